"""Standard ONNX's fused Attention as the elementary nodes that its definition names.

Newer exporters write one operator where older ones write a dozen nodes; written out, the same
recognizer reads both. The tensors in between have names of their own making: they stand for
nothing in the source, so no role of an attention may point to them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from genai_core.errors import UnsupportedOperator
from genai_stages.passes.classify_mask import reference
from genai_stages.passes.specialise import StaticGraph, StaticNode, infer_outputs
from genai_stages.source_model import Constant

MADE = "lowered:"
"""What the names of tensors made here begin with."""
CAUSAL = f"{MADE}causal:"
"""What the names of causal masks made here begin with."""


def lower_fused(graph: StaticGraph) -> None:
    """Replace Attention nodes in place."""
    nodes: list[StaticNode] = []
    for node in graph.nodes:
        if node.op_type == "Attention" and not node.domain:
            nodes += _Lowering(graph, node).run()
        else:
            nodes.append(node)
    graph.nodes = nodes


class _Lowering:
    def __init__(self, graph: StaticGraph, node: StaticNode) -> None:
        self.graph = graph
        self.node = node
        self.made: list[StaticNode] = []

    def run(self) -> list[StaticNode]:
        node = self.node
        given = [*node.inputs, *[""] * (6 - len(node.inputs))]
        query, key, value, mask, past_key, past_value = given[:6]
        outputs = [*node.outputs, *[""] * (4 - len(node.outputs))]
        if any(given[6:]) or outputs[3]:
            raise UnsupportedOperator(
                "its scores are an output, or its cache has a length of its own",
                where=node.where(),
                remedy="export with past_key and past_value as concatenated inputs",
            )
        flat = len(self.shape(query)) == 3
        if flat:
            query = self.heads(query, int(node.attributes["q_num_heads"]))
            key = self.heads(key, int(node.attributes["kv_num_heads"]))
            value = self.heads(value, int(node.attributes["kv_num_heads"]))
        key = self.joined(past_key, key, outputs[1])
        value = self.joined(past_value, value, outputs[2])
        heads, width = self.shape(query)[1], self.shape(query)[3]
        scale = float(node.attributes.get("scale", 0.0)) or width**-0.5
        turned = self.op("Transpose", [self.repeated(key, heads)], perm=[0, 1, 3, 2])
        scores = self.op("MatMul", [query, turned])
        scores = self.op("Mul", [scores, self.number(scale)])
        softcap = float(node.attributes.get("softcap", 0.0))
        if softcap:
            low = self.op("Tanh", [self.op("Div", [scores, self.number(softcap)])])
            scores = self.op("Mul", [low, self.number(softcap)])
        masked = self.masked(scores, mask, past=bool(past_key))
        probs = self.op("Softmax", [masked], axis=-1)
        operands = [probs, self.repeated(value, heads)]
        if not flat:
            self.op("MatMul", operands, output=outputs[0])
            return self.made
        context = self.op("Transpose", [self.op("MatMul", operands)], perm=[0, 2, 1, 3])
        self.op("Reshape", [context, self.ints([0, 0, -1])], output=outputs[0])
        return self.made

    def shape(self, name: str) -> tuple[int, ...]:
        constant = self.graph.constants.get(name)
        return self.graph.shapes[name] if constant is None else constant.shape

    def op(
        self,
        op_type: str,
        inputs: Sequence[str],
        *,
        output: str = "",
        **attributes: int | list[int],
    ) -> str:
        name = output or f"{MADE}{self.node.outputs[0]}:{len(self.made)}"
        made = StaticNode(op_type, "", list(inputs), [name], dict(attributes), self.node.name)
        for tensor, shape, dtype in infer_outputs(self.graph, made):
            self.graph.shapes[tensor] = shape
            self.graph.dtypes[tensor] = dtype
        self.made.append(made)
        return name

    def constant(self, array: npt.NDArray[np.generic]) -> str:
        name = f"{MADE}{self.node.outputs[0]}:constant:{len(self.graph.constants)}"
        self.graph.constants[name] = Constant.of(name, array)
        return name

    def ints(self, values: Sequence[int]) -> str:
        return self.constant(np.array(values, np.int64))

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def heads(self, name: str, count: int) -> str:
        """[1, T, heads * D] -> [1, heads, T, D]."""
        batch, tokens, width = self.shape(name)
        shape = self.ints([batch, tokens, count, width // count])
        return self.op("Transpose", [self.op("Reshape", [name, shape])], perm=[0, 2, 1, 3])

    def joined(self, past: str, new: str, present: str) -> str:
        """The past and what is new behind it; a present without a past is what is new."""
        if past:
            return self.op("Concat", [past, new], output=present, axis=2)
        return self.op("Identity", [new], output=present) if present else new

    def repeated(self, name: str, heads: int) -> str:
        batch, held, length, width = self.shape(name)
        if held == heads:
            return name
        shape = self.ints([batch, held, heads // held, length, width])
        wide = self.op("Expand", [self.op("Unsqueeze", [name, self.ints([2])]), shape])
        return self.op("Reshape", [wide, self.ints([batch, heads, length, width])])

    def masked(self, scores: str, mask: str, *, past: bool) -> str:
        lowest = self.number(float(np.finfo(np.float32).min))
        if mask and mask in self.graph.constants:
            if self.graph.constants[mask].dtype == np.bool_:
                scores = self.op("Where", [mask, scores, lowest])
            else:
                scores = self.op("Add", [scores, mask])
        elif mask:
            scores = self.op("Add", [scores, mask])
        if int(self.node.attributes.get("is_causal", 0)):
            *_, tokens, total = self.shape(scores)
            visible = reference(tokens, total - tokens if past else 0, 0)[:, :total]
            name = f"{CAUSAL}{self.node.outputs[0]}"
            self.graph.constants[name] = Constant.of(name, visible)
            scores = self.op("Where", [name, scores, lowest])
        return scores
