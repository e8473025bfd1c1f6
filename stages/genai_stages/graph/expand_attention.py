"""Core graph -> plain ONNX with a past, the reference that runs in ONNX Runtime.

`genai.Attention` says what is computed, not how. Here it becomes ordinary operators, in the
plainest way: rotary tables and masks are computed inside from the sizes of the inputs, keys and
values are concatenated behind the past, heads are repeated for grouped queries. Nothing is static,
so one model serves prefill and decoding. Used by ingest's own check and by tests; what devices
get is written elsewhere.

The expanded graph:
    inputs   `input_ids` int64 [1, T] (or the boundary tensor where it starts, [1, T, hidden]);
             per layer `past_key_{l}`, `past_value_{l}` float32 [1, KV, P, D] (rotated keys)
    outputs  `logits` (or the boundary where it ends); per layer `present_key_{l}`,
             `present_value_{l}` float32 [1, KV, P + T, D]
An EAGLE head has further inputs and outputs; they keep their names.
Positions are P ... P + T - 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from genai_core.facts import ModelFacts, Role, RopeTable
from genai_stages.graph.core_graph import DOMAIN, IR_VERSION, OPSET, AttributeValue

HIDDEN = -1e30
"""Added to scores that may not be seen: far below any score, and finite."""


@dataclasses.dataclass(frozen=True)
class AttentionSpec:
    """The attributes of one `genai.Attention`."""

    layer: int
    num_heads: int
    kv_heads: int
    head_dim: int
    scale: float
    softcap: float
    window: int
    rope: str
    rotary_dim: int
    interleaved: bool
    qk_norm_epsilon: float

    @classmethod
    def of(cls, node: ir.Node) -> AttentionSpec:
        """Read them from a node of a core graph."""
        attributes = node.attributes
        return cls(
            layer=attributes["layer"].as_int(),
            num_heads=attributes["num_heads"].as_int(),
            kv_heads=attributes["kv_heads"].as_int(),
            head_dim=attributes["head_dim"].as_int(),
            scale=attributes["scale"].as_float(),
            softcap=attributes["softcap"].as_float(),
            window=attributes["window"].as_int(),
            rope=attributes["rope"].as_string(),
            rotary_dim=attributes["rotary_dim"].as_int(),
            interleaved=bool(attributes["interleaved"].as_int()),
            qk_norm_epsilon=attributes["qk_norm_epsilon"].as_float(),
        )


def expand(
    model: ir.Model, facts: ModelFacts, *, start: str | None = None, end: str | None = None
) -> ir.Model:
    """Expand a core graph, or the part of it between two tensors.

    Args:
        model: A core graph; left unchanged.
        facts: Its facts.
        start: The tensor it starts from, None = `input_ids`.
        end: The tensor it ends with, None = `logits`.

    Returns:
        A model that refers to the same weights; save it into the same folder, or give ONNX Runtime
        that folder.
    """
    graph = model.graph
    by_name = {value.name: value for node in graph for value in node.outputs}
    first = graph.inputs[0] if start is None else by_name[start]
    last = graph.outputs[0] if end is None else by_name[end]
    further = list(graph.outputs[1:]) if end is None else []
    return Expansion(facts, first, last, further).run(needed_nodes(first, last))


def needed_nodes(first: ir.Value, last: ir.Value) -> list[ir.Node]:
    """The nodes that compute `last` from `first`, in the graph's order."""
    wanted: set[ir.Node] = set()
    open_values = [last]
    while open_values:
        value = open_values.pop()
        producer = value.producer()
        if value is first or producer is None or producer in wanted:
            continue
        wanted.add(producer)
        open_values.extend(used for used in producer.inputs if used is not None)
    graph = last.graph
    assert graph is not None
    return [node for node in graph if node in wanted]


class Expansion:
    """Builds the expanded graph node by node.

    Subclasses that watch or change what flows through it override `copy`, `linear` and `seen`.

    Args:
        facts: The core graph's facts.
        first: The core tensor that becomes the first input.
        last: The core tensor that becomes the first output.
        further: Others on the way to it that are outputs too.
    """

    def __init__(
        self,
        facts: ModelFacts,
        first: ir.Value,
        last: ir.Value,
        further: Sequence[ir.Value] = (),
    ) -> None:
        self.facts = facts
        self.first = first
        self.last = last
        self.further = further
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []
        self.map: dict[ir.Value, ir.Value] = {}
        self.made: dict[str, ir.Value] = {}

    def run(self, nodes: Sequence[ir.Node]) -> ir.Model:
        """Expand these nodes of the core graph."""
        stream = ir.Value(name=self.first.name, shape=self.first.shape, type=self.first.type)
        self.map[self.first] = stream
        self.inputs.append(stream)
        tokens = self.op("Gather", self.op("Shape", stream), self.ints("one", 1))
        positions_ready = False
        presents: list[ir.Value] = []
        for node in nodes:
            if node.op_type == "Attention" and node.domain == DOMAIN:
                spec = AttentionSpec.of(node)
                past = [self.past(f"past_{kind}_{spec.layer}", spec) for kind in ("key", "value")]
                if not positions_ready:
                    self.positions(past[0], tokens)
                    positions_ready = True
                presents += self.attention(node, spec, past)
            elif node.op_type == "Linear" and node.domain == DOMAIN:
                self.linear(node)
            else:
                self.copy(node)
        output = self.map[self.last]
        graph = ir.Graph(
            self.inputs,
            [output, *presents, *(self.map[value] for value in self.further)],
            nodes=self.nodes,
            initializers=self.initializers,
            opset_imports={"": OPSET},
            name="expanded",
        )
        return ir.Model(graph, ir_version=IR_VERSION)

    def op(
        self,
        op_type: str,
        *inputs: ir.Value,
        name: str | None = None,
        **attributes: AttributeValue,
    ) -> ir.Value:
        """Append a node with one output."""
        output = ir.Value(name=name or f"expanded_{len(self.nodes)}")
        self.nodes.append(
            ir.Node(
                "",
                op_type,
                inputs,
                attributes=ir.convenience.convert_attributes(attributes),
                outputs=[output],
            )
        )
        return output

    def constant(self, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
        """A shared constant; one name stands for one content."""
        name = f"constant_{name}"
        if name not in self.made:
            value = ir.Value(
                name=name,
                shape=ir.Shape(array.shape),
                type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            )
            value.const_value = ir.Tensor(array, name=name)
            self.initializers.append(value)
            self.made[name] = value
        return self.made[name]

    def ints(self, name: str, *values: int) -> ir.Value:
        """A shared int64 vector."""
        return self.constant(name, np.array(values, np.int64))

    def number(self, value: float) -> ir.Value:
        """A shared float32 scalar."""
        return self.constant(f"float_{value!r}", np.array(value, np.float32))

    def mapped(self, value: ir.Value) -> ir.Value:
        """The expanded graph's counterpart of a core tensor; weights are taken along."""
        if value not in self.map:
            copy = ir.Value(name=value.name, shape=value.shape, type=value.type)
            copy.const_value = value.const_value
            (self.inputs if value.is_graph_input() else self.initializers).append(copy)
            self.map[value] = copy
        return self.map[value]

    def copy(self, node: ir.Node) -> None:
        """Take an ordinary node over as it is."""
        outputs = [ir.Value(name=out.name, shape=out.shape, type=out.type) for out in node.outputs]
        self.nodes.append(
            ir.Node(
                node.domain,
                node.op_type,
                [None if used is None else self.mapped(used) for used in node.inputs],
                attributes=list(node.attributes.values()),
                outputs=outputs,
            )
        )
        self.map.update(zip(node.outputs, outputs, strict=True))

    def linear(self, node: ir.Node) -> None:
        """Gemm takes [out, in] as it lies, where MatMul would need a transposed copy."""
        inputs = [self.mapped(used) for used in node.inputs if used is not None]
        shape = inputs[1].shape
        assert shape is not None
        width_out, width_in = shape.numpy()
        rows = self.op("Reshape", inputs[0], self.ints(f"rows_{width_in}", -1, width_in))
        product = self.op("Gemm", rows, *inputs[1:], transB=1)
        out = node.outputs[0]
        shape_out = self.ints(f"tokens_{width_out}", 1, -1, width_out)
        self.map[out] = self.op("Reshape", product, shape_out, name=out.name)
        self.map[out].shape, self.map[out].type = out.shape, out.type

    def seen(self, value: ir.Value, role: Role, spec: AttentionSpec) -> ir.Value:
        """Called with each tensor inside an attention; what it returns is used instead."""
        del role, spec
        return value

    def past(self, name: str, spec: AttentionSpec) -> ir.Value:
        """Declare the input of a past, [1, KV, P, D]."""
        shape = ir.Shape([1, spec.kv_heads, "P", spec.head_dim])
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
        self.inputs.append(value)
        return value

    def positions(self, past: ir.Value, tokens: ir.Value) -> None:
        """Positions of the new tokens as a column and of all tokens as a row, both int64."""
        length = self.op("Gather", self.op("Shape", past), self.ints("two", 2))
        total = self.op("Add", length, tokens)
        scalar = self.ints("axis_0", 0)
        zero, one = (
            self.constant(f"scalar_{number}", np.array(number, np.int64)) for number in (0, 1)
        )
        begin, stop = self.op("Squeeze", length, scalar), self.op("Squeeze", total, scalar)
        row = self.op("Range", zero, stop, one)
        column = self.op("Range", begin, stop, one)
        self.made["all"] = self.op("Unsqueeze", row, scalar)
        self.made["new"] = self.op("Unsqueeze", column, self.ints("axis_1", 1))

    def mask(self, window: int) -> ir.Value:
        """Float [T, P + T], 0 = visible."""
        name = f"mask_{window}"
        if name not in self.made:
            hidden = self.op("Greater", self.made["all"], self.made["new"])
            if window:
                border = self.op("Sub", self.made["new"], self.ints(f"window_{window}", window))
                too_old = self.op("LessOrEqual", self.made["all"], border)
                hidden = self.op("Or", hidden, too_old)
            self.made[name] = self.op("Where", hidden, self.number(HIDDEN), self.number(0.0))
        return self.made[name]

    def rotary(self, name: str, table: RopeTable) -> tuple[ir.Value, ir.Value]:
        """Cos and sin, float [T, rotary_dim / 2]."""
        if f"cos_{name}" not in self.made:
            inv_freq = self.constant(f"inv_freq_{name}", np.array([table.inv_freq], np.float32))
            position = self.op("Cast", self.made["new"], to=int(ir.DataType.FLOAT))
            angle = self.op("Mul", position, inv_freq)
            factor = self.number(float(np.float32(table.attention_factor)))
            for kind in ("Cos", "Sin"):
                self.made[f"{kind.lower()}_{name}"] = self.op("Mul", self.op(kind, angle), factor)
        return self.made[f"cos_{name}"], self.made[f"sin_{name}"]

    def rotate(self, value: ir.Value, spec: AttentionSpec) -> ir.Value:
        """Rotate [1, heads, T, D] by the positions."""
        cos, sin = self.rotary(spec.rope, self.facts.rope[spec.rope])
        half, rotary = spec.rotary_dim // 2, spec.rotary_dim
        part = self.slice(value, 0, rotary, 1)
        if spec.interleaved:
            left, right = self.slice(part, 0, rotary, 2), self.slice(part, 1, rotary, 2)
        else:
            left, right = self.slice(part, 0, half, 1), self.slice(part, half, rotary, 1)
        first = self.op("Sub", self.op("Mul", left, cos), self.op("Mul", right, sin))
        second = self.op("Add", self.op("Mul", right, cos), self.op("Mul", left, sin))
        if spec.interleaved:
            last = self.ints("axis_4", 4)
            pairs = [self.op("Unsqueeze", half, last) for half in (first, second)]
            stacked = self.op("Concat", *pairs, axis=-1)
            rotated = self.op("Reshape", stacked, self.ints(f"flat_{rotary}", 0, 0, 0, -1))
        else:
            rotated = self.op("Concat", first, second, axis=-1)
        if rotary == spec.head_dim:
            return rotated
        rest = self.slice(value, rotary, spec.head_dim, 1)
        return self.op("Concat", rotated, rest, axis=-1)

    def slice(self, value: ir.Value, start: int, stop: int, step: int) -> ir.Value:
        """Channels start, start + step ... of the last of four axes."""
        numbers = [self.ints(f"int_{number}", number) for number in (start, stop, 3, step)]
        return self.op("Slice", value, *numbers)

    def heads(self, value: ir.Value, count: int, width: int) -> ir.Value:
        """[1, T, heads * D] -> [1, heads, T, D]."""
        shape = self.ints(f"heads_{count}_{width}", 1, -1, count, width)
        return self.op("Transpose", self.op("Reshape", value, shape), perm=[0, 2, 1, 3])

    def repeated(self, value: ir.Value, spec: AttentionSpec) -> ir.Value:
        """[1, KV, K, D] -> [1, H, K, D], query head h reading kv head h // (H / KV)."""
        groups = spec.num_heads // spec.kv_heads
        if groups == 1:
            return value
        wide = self.op("Unsqueeze", value, self.ints("axis_2", 2))
        shape = self.ints(f"groups_{groups}", 1, 1, groups, 1, 1)
        wide = self.op("Expand", wide, shape)
        shape = self.ints(f"merged_{spec.num_heads}_{spec.head_dim}", 1, spec.num_heads, -1,
                          spec.head_dim)  # fmt: skip
        return self.op("Reshape", wide, shape)

    def attention(
        self, node: ir.Node, spec: AttentionSpec, past: Sequence[ir.Value]
    ) -> list[ir.Value]:
        """Compute the context and return the extended key and value."""
        given = [None if used is None else self.mapped(used) for used in node.inputs]
        given += [None] * (5 - len(given))
        query, key, value, query_norm, key_norm = given
        assert query is not None
        assert key is not None
        assert value is not None
        query = self.heads(query, spec.num_heads, spec.head_dim)
        key = self.heads(key, spec.kv_heads, spec.head_dim)
        value = self.heads(value, spec.kv_heads, spec.head_dim)
        epsilon = spec.qk_norm_epsilon
        if query_norm is not None:
            query = self.op("RMSNormalization", query, query_norm, axis=-1, epsilon=epsilon)
            query = self.seen(query, "query_normed", spec)
        if key_norm is not None:
            key = self.op("RMSNormalization", key, key_norm, axis=-1, epsilon=epsilon)
            key = self.seen(key, "key_normed", spec)
        if spec.rope:
            query = self.seen(self.rotate(query, spec), "query_rotated", spec)
            key = self.seen(self.rotate(key, spec), "key_rotated", spec)
        past = [
            self.seen(past[0], "past_key", spec),
            self.seen(past[1], "past_value", spec),
        ]
        key = self.seen(key, "key_new", spec)
        value = self.seen(value, "value_new", spec)
        names = [f"present_{kind}_{spec.layer}" for kind in ("key", "value")]
        key = self.op("Concat", past[0], key, axis=2, name=names[0])
        value = self.op("Concat", past[1], value, axis=2, name=names[1])
        for present in (key, value):
            present.type = ir.TensorType(ir.DataType.FLOAT)
            present.shape = ir.Shape([1, spec.kv_heads, "P + T", spec.head_dim])
        all_keys = self.seen(key, "key_all", spec)
        all_values = self.seen(value, "value_all", spec)
        turned = self.op("Transpose", self.repeated(all_keys, spec), perm=[0, 1, 3, 2])
        scores = self.op("MatMul", self.op("Mul", query, self.number(spec.scale)), turned)
        scores = self.seen(scores, "scaled", spec)
        if spec.softcap:
            low = self.op("Tanh", self.op("Div", scores, self.number(spec.softcap)))
            scores = self.op("Mul", low, self.number(spec.softcap))
            scores = self.seen(scores, "capped", spec)
        masked = self.op("Add", scores, self.mask(spec.window))
        masked = self.seen(masked, "masked", spec)
        probs = self.seen(self.op("Softmax", masked, axis=-1), "probs", spec)
        context = self.op("MatMul", probs, self.repeated(all_values, spec))
        context = self.seen(context, "context", spec)
        flat = self.ints(f"context_{spec.num_heads * spec.head_dim}", 1, -1,
                         spec.num_heads * spec.head_dim)  # fmt: skip
        out = node.outputs[0]
        turned = self.op("Transpose", context, perm=[0, 2, 1, 3])
        self.map[out] = self.op("Reshape", turned, flat, name=out.name)
        self.map[out].shape, self.map[out].type = out.shape, out.type
        return [key, value]
