"""Any chain of operators over heads computes the same head by head as all at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_stages.graph.graph_builder import GraphBuilder, mark_token_axes
from genai_stages.static.head_regions import Regions, head_axes_of
from genai_stages.static.split_heads import split_heads
from genai_stages.static.static_graph import StaticGraph
from genai_stages.static.static_shapes import set_static_shapes

AR, HEADS, DIM, WIDTH = 6, 4, 8, 16


class Chain:
    """A graph in the making; every step takes and gives [HEADS, AR, DIM]."""

    def __init__(self) -> None:
        self.build = GraphBuilder([], {})
        self.build.group = "layer_000"
        self.random = np.random.default_rng(0)
        self.count = 0

    def op(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        self.count += 1
        name = f"{op_type}_{self.count}"
        return self.build.op(op_type, *inputs, name=name, role="copy", **attributes)

    def ints(self, *numbers: int) -> ir.Value:
        return self.build.ints(*numbers)

    def const(self, *shape: int) -> ir.Value:
        self.count += 1
        array = (self.random.standard_normal(shape) / 3).astype(np.float32)
        value = ir.Value(name=f"const_{self.count}", shape=ir.Shape(shape))
        value.type = ir.TensorType(ir.DataType.FLOAT)
        value.const_value = ir.Tensor(array, name=value.name)
        return self.build.weight(value)

    def turned(self, value: ir.Value, *perm: int) -> ir.Value:
        return self.op("Transpose", value, perm=perm)

    def heads_matmul(self, value: ir.Value) -> ir.Value:
        product = self.op("MatMul", value, self.const(HEADS, DIM, DIM))
        mark_token_axes(product, [1])
        return product

    def split_in_two(self, value: ir.Value) -> ir.Value:
        self.count += 1
        halves = [ir.Value(name=f"half_{self.count}_{index}") for index in range(2)]
        attributes = ir.convenience.convert_attributes({"axis": 2, "num_outputs": 2})
        self.build.append(ir.Node("", "Split", [value], attributes=attributes, outputs=halves), "x")
        return self.op("Concat", halves[1], halves[0], axis=2)

    def attend(self, value: ir.Value) -> ir.Value:
        scores = self.op("MatMul", value, self.turned(value, 0, 2, 1))
        mark_token_axes(scores, [1, 2])
        context = self.op("MatMul", self.op("Softmax", scores, axis=-1), value)
        mark_token_axes(context, [1])
        return context


STEPS: dict[str, Callable[[Chain, ir.Value], ir.Value]] = {
    "sigmoid": lambda c, x: c.op("Sigmoid", x),
    "scalar": lambda c, x: c.op("Mul", x, c.build.number(0.5)),
    "per-head constant": lambda c, x: c.op("Add", x, c.const(HEADS, 1, DIM)),
    "shared constant": lambda c, x: c.op("Mul", c.const(DIM), x),
    "softmax over channels": lambda c, x: c.op("Softmax", x, axis=-1),
    "softmax over tokens": lambda c, x: c.op("Softmax", x, axis=1),
    "softmax over heads": lambda c, x: c.op("Softmax", x, axis=0),
    "center": lambda c, x: c.op("Sub", x, c.op("ReduceMean", x, c.ints(2), keepdims=1)),
    "sum of heads": lambda c, x: c.op("Add", x, c.op("ReduceSum", x, c.ints(0), keepdims=1)),
    "norm": lambda c, x: c.op("RMSNormalization", x, c.const(DIM), axis=-1, epsilon=1e-5),
    "norm over tokens": lambda c, x: c.op(
        "LayerNormalization", x, c.const(AR, DIM), axis=1, epsilon=1e-5
    ),
    "halves": lambda c, x: c.op(
        "Concat",
        c.op("Slice", x, c.ints(4), c.ints(8), c.ints(2)),
        c.op("Slice", x, c.ints(0), c.ints(4), c.ints(2)),
        axis=2,
    ),
    "some heads": lambda c, x: c.op(
        "Concat",
        c.op("Slice", x, c.ints(2), c.ints(4), c.ints(0)),
        c.op("Slice", x, c.ints(0), c.ints(2), c.ints(0)),
        axis=0,
    ),
    "split": lambda c, x: c.split_in_two(x),
    "there and back": lambda c, x: c.turned(c.op("Tanh", c.turned(x, 1, 0, 2)), 1, 0, 2),
    "channels first": lambda c, x: c.turned(c.op("Tanh", c.turned(x, 2, 1, 0)), 2, 1, 0),
    "grouped": lambda c, x: c.op(
        "Reshape",
        c.op("Tanh", c.op("Reshape", x, c.ints(2, 2, AR, DIM))),
        c.ints(HEADS, AR, DIM),
    ),
    "wider": lambda c, x: c.op("Squeeze", c.op("Tanh", c.op("Unsqueeze", x, c.ints(1))), c.ints(1)),
    "rows": lambda c, x: c.op(
        "Reshape", c.op("Tanh", c.op("Reshape", x, c.ints(-1, DIM))), c.ints(HEADS, AR, DIM)
    ),
    "expand": lambda c, x: c.op(
        "Add",
        x,
        c.op("Expand", c.op("ReduceMax", x, c.ints(2), keepdims=1), c.ints(HEADS, AR, DIM)),
    ),
    "where": lambda c, x: c.op("Where", c.op("Greater", x, c.const(DIM)), x, c.const(1)),
    "matmul": lambda c, x: c.heads_matmul(x),
    "attend": lambda c, x: c.attend(x),
    "cumulate over heads": lambda c, x: c.op("CumSum", x, c.build.ints(0)),
}
MIXING = ("softmax over heads", "sum of heads", "some heads", "cumulate over heads", "grouped")
"""Steps that no head takes alone; grouped: two axes cannot share the label of four heads."""


def chain(steps: list[str], *, kept: bool) -> StaticGraph:
    """x [AR, WIDTH] -> linear -> heads -> MatMul -> the steps -> flat -> linear."""
    made = Chain()
    x = made.build.input("x", (AR, WIDTH), ir.DataType.FLOAT)
    flat = made.op("Gemm", x, made.const(HEADS * DIM, WIDTH), made.const(HEADS * DIM), transB=1)
    split = made.op("Reshape", flat, made.ints(AR, HEADS, DIM))
    value = made.heads_matmul(made.turned(split, 1, 0, 2))
    for step in steps:
        value = STEPS[step](made, value)
    outputs = [value] if kept else []
    flat = made.op("Reshape", made.turned(value, 1, 0, 2), made.ints(AR, HEADS * DIM))
    outputs.insert(0, made.op("Gemm", flat, made.const(WIDTH, HEADS * DIM), transB=1))
    model = made.build.finish("chain", [x], outputs)
    set_static_shapes(model)
    return StaticGraph(model, {})


def run(static: StaticGraph) -> list[np.ndarray]:
    content = ir.to_proto(static.model).SerializeToString()
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((AR, WIDTH)).astype(np.float32)
    outputs: list[np.ndarray] = session.run(None, {"x": x})
    return outputs


def shape_of(node: ir.Node) -> tuple[int, ...]:
    """Of its first output."""
    shape = node.outputs[0].shape
    assert shape is not None
    return tuple(shape.numpy())


def halved(static: StaticGraph) -> StaticGraph:
    regions = Regions()
    starts = [node for node in static.model.graph if node.op_type == "MatMul"]
    regions.grow(starts, frozenset())
    return split_heads(static, regions)


@settings(deadline=None, max_examples=60)
@given(steps=st.lists(st.sampled_from(sorted(STEPS)), max_size=5), kept=st.booleans())
def test_any_chain_computes_the_same_head_by_head(steps: list[str], kept: bool) -> None:
    before = chain(steps, kept=kept)
    after = halved(before)
    assert not any(head_axes_of(node) for node in after.model.graph)
    for expected, found in zip(run(before), run(after), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("step", STEPS)
def test_each_step_is_taken_by_each_head_unless_it_mixes_them(step: str) -> None:
    """What can be done head by head is: the heads meet only at the end, or around the step."""
    after = halved(chain([step], kept=False))
    joins = [node for node in after.model.graph if node.metadata_props["genai.role"] == "join"]
    if step in MIXING:
        assert shape_of(joins[0]) == (HEADS, AR, DIM)
    else:
        assert [shape_of(node) for node in joins] == [(AR, HEADS * DIM)]


def test_barriers_stay_whole() -> None:
    before = chain(["sigmoid", "scalar"], kept=False)
    nodes = {node.op_type: node for node in before.model.graph}
    barrier = nodes["Sigmoid"].outputs[0]
    regions = Regions()
    starts = [node for node in before.model.graph if node.op_type == "MatMul"]
    regions.grow(starts, frozenset([barrier]))
    after = split_heads(before, regions)
    names = {value.name for node in after.model.graph for value in node.outputs}
    assert barrier.name in names
    assert f"{barrier.name}.head_0" not in names
    for expected, found in zip(run(before), run(after), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
