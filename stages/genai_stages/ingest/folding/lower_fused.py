"""Fused operators as the elementary nodes that their definitions name.

Standard ONNX has one Attention operator and ONNX Runtime's builder writes grouped-query attention,
rotary embeddings and skip norms as one node each. Written out, the same recognizers read them all.
The tensors in between have names of their own making: they stand for nothing in the source, so no
role of an attention may point to them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from genai_core.errors import BadInput, BadModel, UnsupportedOperator
from genai_stages.ingest.folding.classify_mask import reference
from genai_stages.ingest.folding.dequantize import matrix_of_bits, table_of_bits
from genai_stages.ingest.folding.folded_graph import FoldedGraph, StaticNode, infer_outputs
from genai_stages.ingest.source.source_model import Array, Constant

MADE = "lowered:"
"""What the names of tensors made here begin with."""
CAUSAL = f"{MADE}causal:"
"""What the names of causal masks made here begin with; the window follows, 0 = none."""


def lower(graph: FoldedGraph, node: StaticNode) -> list[StaticNode] | None:
    """The nodes that a fused one stands for, their shapes noted in the graph; None = not fused.

    Raises:
        UnsupportedOperator: A use of it that has no such form.
    """
    rule = _RULES.get((node.domain, node.op_type))
    if rule is None:
        return None
    lowering = _Lowering(graph, node)
    rule(lowering)
    return lowering.made


class _Lowering:
    def __init__(self, graph: FoldedGraph, node: StaticNode) -> None:
        self.graph = graph
        self.node = node
        self.made: list[StaticNode] = []
        self.inputs = [*node.inputs, *[""] * (16 - len(node.inputs))]
        self.outputs = [*node.outputs, *[""] * (4 - len(node.outputs))]

    def refuse(self, reason: str, remedy: str = "export the model without that") -> BadInput:
        return UnsupportedOperator(
            f"operator {self.node.op_type} is used in a way that has no form here: {reason}",
            where=self.node.where(),
            remedy=remedy,
        )

    def integer(self, name: str, default: int) -> int:
        return int(self.node.attributes.get(name, default))

    def number_of(self, name: str, default: float) -> float:
        return float(self.node.attributes.get(name, default))

    def attention(self) -> None:
        """ONNX's Attention, opset 23."""
        query, key, value, mask, past_key, past_value = self.inputs[:6]
        if any(self.inputs[6:]) or self.outputs[3]:
            raise self.refuse("its scores are an output, or its cache has a length of its own")
        flat = len(self.shape(query)) == 3
        if flat:
            query = self.heads(query, self.integer("q_num_heads", 0))
            key = self.heads(key, self.integer("kv_num_heads", 0))
            value = self.heads(value, self.integer("kv_num_heads", 0))
        key = self.joined(past_key, key, self.outputs[1])
        value = self.joined(past_value, value, self.outputs[2])
        scores = self.scores(query, key)
        if mask and self.is_bool(mask):
            scores = self.op("Where", [mask, scores, self.lowest()])
        elif mask:
            scores = self.op("Add", [scores, mask])
        if self.integer("is_causal", 0):
            scores = self.causal(scores, 0)
        self.context(scores, value, flat=flat)

    def grouped_query_attention(self) -> None:
        """ONNX Runtime's GroupQueryAttention: causal, with its own rotary embedding."""
        query, key, value, past_key, past_value, _, _, cos, sin, given, bias = self.inputs[:11]
        if any(self.inputs[11:14]) or not past_key or not past_value:
            raise self.refuse(
                "sinks, scales of a quantized cache or no past",
                "export it with past_key and past_value and without the others",
            )
        heads, kv_heads = self.integer("num_heads", 0), self.integer("kv_num_heads", 0)
        if not key:
            width = self.shape(query)[-1] // (heads + 2 * kv_heads)
            bounds = np.cumsum([0, heads, kv_heads, kv_heads]) * width
            query, key, value = (
                self.sliced(query, int(start), int(stop), axis=2)
                for start, stop in itertools.pairwise(bounds)
            )
        query = self.heads(query, heads)
        key = self.heads(key, kv_heads)
        query, key = (
            self.head_norm(heads, scale)
            for heads, scale in zip((query, key), self.inputs[14:16], strict=True)
        )
        if self.integer("do_rotary", 0):
            past = self.shape(past_key)[2]
            positions = np.arange(past, past + self.shape(query)[2])
            if given:
                positions = self.table(given).reshape(-1).astype(np.int64)
            interleaved = bool(self.integer("rotary_interleaved", 0))
            waves = [self.wave(name, positions) for name in (cos, sin)]
            query = self.rotated(query, waves, interleaved=interleaved)
            key = self.rotated(key, waves, interleaved=interleaved)
        key = self.joined(past_key, key, self.outputs[1])
        value = self.joined(past_value, self.heads(value, kv_heads), self.outputs[2])
        # ONNX Runtime counts the tokens before the current one that are seen.
        window = self.integer("local_window_size", -1)
        scores = self.scores(query, key)
        if bias:
            scores = self.op("Add", [scores, bias])
        scores = self.causal(scores, max(0, window))
        self.context(scores, value, flat=True)

    def multi_head_attention(self) -> None:
        """ONNX Runtime's MultiHeadAttention over separate projections."""
        query, key, value, bias, padding, mask, past_key, past_value = self.inputs[:8]
        if not key or not value or len(self.shape(query)) == 5:
            raise self.refuse(
                "query, key and value are one tensor", "export it with a projection for each"
            )
        if any(self.inputs[8:]) or self.outputs[3]:
            raise self.refuse("a cache that is shared, or scores as an output")
        if padding and not (len(self.table(padding).shape) == 2 and self.table(padding).all()):
            raise self.refuse("a padding mask that hides keys of a text without padding")
        heads = self.integer("num_heads", 0)
        if bias:
            query, key, value = self.biased((query, key, value), bias)
        query, key, value = (
            self.heads(name, heads) if len(self.shape(name)) == 3 else name
            for name in (query, key, value)
        )
        key = self.joined(past_key, key, self.outputs[1])
        value = self.joined(past_value, value, self.outputs[2])
        scores = self.scores(query, key)
        if mask:
            scores = self.op("Add", [scores, mask])
        if self.integer("unidirectional", 0):
            scores = self.causal(scores, 0)
        self.context(scores, value, flat=True)

    def biased(self, projections: Sequence[str], bias: str) -> Iterator[str]:
        """Projections [1, T, C] with their parts of one bias for all three added."""
        if any(len(self.shape(name)) != 3 for name in projections):
            raise self.refuse("a bias on keys that are in the cache already")
        self.need_known([bias])
        values = self.graph.constants[bias].array()
        ends = itertools.accumulate(self.shape(name)[-1] for name in projections)
        for name, end in zip(projections, ends, strict=True):
            part = self.constant(values[end - self.shape(name)[-1] : end])
            self.graph.ancestors[part] = (bias,)
            yield self.op("Add", [name, part])

    def matmul_bits(self) -> None:
        """ONNX Runtime's MatMulNBits: a projection whose weight is packed integers."""
        self.need_known(self.inputs[1:6])
        name = f"{MADE}{self.node.outputs[0]}:weight"
        self.graph.constants[name] = matrix_of_bits(self.node, self.graph.constants, name)
        bias = self.inputs[5]
        product = self.op("MatMul", [self.inputs[0], name], output="" if bias else self.outputs[0])
        if bias:
            self.op("Add", [product, bias], output=self.outputs[0])

    def gather_bits(self) -> None:
        """ONNX Runtime's GatherBlockQuantized: rows of a table of packed integers."""
        self.need_known([self.inputs[0], *self.inputs[2:4]])
        name = f"{MADE}{self.node.outputs[0]}:table"
        self.graph.constants[name] = table_of_bits(self.node, self.graph.constants, name)
        axis = self.integer("gather_axis", 0)
        self.op("Gather", [name, self.inputs[1]], output=self.outputs[0], axis=axis)

    def rotary_embedding(self) -> None:
        """ONNX Runtime's RotaryEmbedding over [1, T, heads * D] or [1, heads, T, D]."""
        source, positions, cos, sin = self.inputs[:4]
        index = self.table(positions).reshape(-1).astype(np.int64)
        flat = len(self.shape(source)) == 3
        tokens = self.shape(source)[1 if flat else 2]
        if len(index) == 1:
            index = np.arange(int(index[0]), int(index[0]) + tokens)
        waves = [self.wave(name, index) for name in (cos, sin)]
        heads = self.integer("num_heads", 0)
        if flat and not heads:
            rotary = self.integer("rotary_embedding_dim", 0) or 2 * self.shape(waves[0])[-1]
            heads = self.shape(source)[-1] // rotary
        inside = self.heads(source, heads) if flat else source
        turned = self.rotated(inside, waves, interleaved=bool(self.integer("interleaved", 0)))
        if not flat:
            self.op("Identity", [turned], output=self.outputs[0])
            return
        back = self.op("Transpose", [turned], perm=[0, 2, 1, 3])
        self.op("Reshape", [back, self.ints(self.shape(source))], output=self.outputs[0])

    def simplified_norm(self) -> None:
        self.rms_norm(self.inputs[0], self.inputs[1])

    def skip_norm(self) -> None:
        """The sum of two streams (and a bias), and its RMSNorm."""
        source, skip, scale, bias = self.inputs[:4]
        if bias:
            source = self.op("Add", [source, bias])
        stream = self.op("Add", [source, skip], output=self.outputs[3])
        self.rms_norm(stream, scale, default=1e-12)

    def head_norm(self, heads: str, scale: str) -> str:
        """RMSNorm of [1, heads, T, D] over a head, where there is a weight for it."""
        if not scale:
            return heads
        epsilon = self.number_of("qk_norm_epsilon", 1e-6)
        return self.normalized(heads, scale, epsilon, output="")

    def rms_norm(self, source: str, scale: str, *, default: float = 1e-5) -> None:
        epsilon = self.number_of("epsilon", default)
        self.normalized(source, scale, epsilon, output=self.outputs[0])

    def normalized(self, source: str, scale: str, epsilon: float, *, output: str) -> str:
        square = self.op("Mul", [source, source])
        if self.graph.opset >= 18:
            mean = self.op("ReduceMean", [square, self.ints([-1])], keepdims=1)
        else:
            mean = self.op("ReduceMean", [square], axes=[-1], keepdims=1)
        plus = self.op("Add", [mean, self.number(epsilon)])
        scaled = self.op("Div", [source, self.op("Sqrt", [plus])])
        return self.op("Mul", [scaled, scale], output=output)

    def scores(self, query: str, key: str) -> str:
        """Scaled and capped products of queries and keys."""
        heads, width = self.shape(query)[1], self.shape(query)[3]
        scale = self.number_of("scale", 0.0) or width**-0.5
        turned = self.op("Transpose", [self.repeated(key, heads)], perm=[0, 1, 3, 2])
        scores = self.op("MatMul", [query, turned])
        scores = self.op("Mul", [scores, self.number(scale)])
        softcap = self.number_of("softcap", 0.0)
        if softcap:
            low = self.op("Tanh", [self.op("Div", [scores, self.number(softcap)])])
            scores = self.op("Mul", [low, self.number(softcap)])
        return scores

    def context(self, scores: str, value: str, *, flat: bool) -> None:
        """The node's first output from its masked scores."""
        heads = self.shape(scores)[1]
        probs = self.op("Softmax", [scores], axis=-1)
        operands = [probs, self.repeated(value, heads)]
        if not flat:
            self.op("MatMul", operands, output=self.outputs[0])
            return
        context = self.op("Transpose", [self.op("MatMul", operands)], perm=[0, 2, 1, 3])
        self.op("Reshape", [context, self.ints([0, 0, -1])], output=self.outputs[0])

    def causal(self, scores: str, window: int) -> str:
        *_, tokens, total = self.shape(scores)
        name = f"{CAUSAL}{window}:{self.node.outputs[0]}"
        visible = reference(tokens, total - tokens, window)
        self.graph.constants[name] = Constant.of(name, visible)
        return self.op("Where", [name, scores, self.lowest()])

    def wave(self, name: str, positions: npt.NDArray[np.int64]) -> str:
        """Rows of a table of cosines or sines, as a constant."""
        table = self.table(name)
        if len(positions) and int(positions.max()) >= len(table):
            raise BadModel(
                f"its table {name} ends at position {len(table) - 1}",
                where=self.node.where(),
                remedy="export the model for longer texts",
            )
        made = self.constant(table[positions].astype(np.float32))
        self.graph.ancestors[made] = (name,)
        return made

    def rotated(self, source: str, waves: Sequence[str], *, interleaved: bool) -> str:
        """Turn [1, heads, T, D] by cosine and sine [T, pairs]."""
        cos, sin = waves
        pairs, width = self.shape(cos)[-1], self.shape(source)[-1]
        if interleaved:
            left = self.sliced(source, 0, 2 * pairs, axis=3, step=2)
            right = self.sliced(source, 1, 2 * pairs, axis=3, step=2)
        else:
            left = self.sliced(source, 0, pairs, axis=3)
            right = self.sliced(source, pairs, 2 * pairs, axis=3)
        one = self.op("Sub", [self.op("Mul", [left, cos]), self.op("Mul", [right, sin])])
        two = self.op("Add", [self.op("Mul", [right, cos]), self.op("Mul", [left, sin])])
        if interleaved:
            both = [self.op("Unsqueeze", [part, self.ints([4])]) for part in (one, two)]
            shape = self.ints([*self.shape(one)[:3], 2 * pairs])
            turned = self.op("Reshape", [self.op("Concat", both, axis=4), shape])
        else:
            turned = self.op("Concat", [one, two], axis=3)
        if 2 * pairs == width:
            return turned
        rest = self.sliced(source, 2 * pairs, width, axis=3)
        return self.op("Concat", [turned, rest], axis=3)

    def need_known(self, names: Sequence[str]) -> None:
        if any(name and name not in self.graph.constants for name in names):
            raise self.refuse("its weight depends on the tokens")

    def shape(self, name: str) -> tuple[int, ...]:
        constant = self.graph.constants.get(name)
        return self.graph.shapes[name] if constant is None else constant.shape

    def is_bool(self, name: str) -> bool:
        constant = self.graph.constants.get(name)
        dtype = self.graph.dtypes[name] if constant is None else constant.dtype
        return dtype == np.bool_

    def table(self, name: str) -> Array:
        if name not in self.graph.constants:
            raise self.refuse("its positions or tables depend on the tokens")
        return self.graph.constants[name].array()

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

    def lowest(self) -> str:
        return self.number(float(np.finfo(np.float32).min))

    def sliced(self, name: str, start: int, stop: int, *, axis: int, step: int = 1) -> str:
        return self.op("Slice", [name, *(self.ints([one]) for one in (start, stop, axis, step))])

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


_CONTRIB = "com.microsoft"
_RULES: dict[tuple[str, str], Callable[[_Lowering], None]] = {
    ("", "Attention"): _Lowering.attention,
    (_CONTRIB, "GroupQueryAttention"): _Lowering.grouped_query_attention,
    (_CONTRIB, "MatMulNBits"): _Lowering.matmul_bits,
    (_CONTRIB, "GatherBlockQuantized"): _Lowering.gather_bits,
    (_CONTRIB, "MultiHeadAttention"): _Lowering.multi_head_attention,
    (_CONTRIB, "RotaryEmbedding"): _Lowering.rotary_embedding,
    ("", "SimplifiedLayerNormalization"): _Lowering.simplified_norm,
    (_CONTRIB, "SimplifiedLayerNormalization"): _Lowering.simplified_norm,
    (_CONTRIB, "SkipSimplifiedLayerNormalization"): _Lowering.skip_norm,
}
