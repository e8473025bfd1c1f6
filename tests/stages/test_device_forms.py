"""Spellings that the device lacks become ones that it has, with the same numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from genai_stages.quantize.device_forms import to_device_forms

X = np.random.default_rng(0).uniform(-4, 4, (2, 6)).astype(np.float32)
GELU = np.array([[v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in row] for row in X])


class Graph:
    def __init__(self) -> None:
        self.x = ir.Value(name="x", shape=ir.Shape(X.shape), type=ir.TensorType(ir.DataType.FLOAT))
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []

    def op(self, kind: str, *inputs: ir.Value, **attributes: float) -> ir.Value:
        out = ir.Value(name=f"t{len(self.nodes)}", shape=ir.Shape(X.shape),
                       type=ir.TensorType(ir.DataType.FLOAT))  # fmt: skip
        self.nodes.append(
            ir.Node("", kind, inputs, outputs=[out],
                    attributes=ir.convenience.convert_attributes(attributes))
        )  # fmt: skip
        return out

    def number(self, value: float | np.ndarray) -> ir.Value:
        array = np.array(value, np.float32)
        constant = ir.Value(name=f"c{len(self.constants)}", shape=ir.Shape(array.shape),
                            type=ir.TensorType(ir.DataType.FLOAT))  # fmt: skip
        constant.const_value = ir.Tensor(array, name=constant.name)
        self.constants.append(constant)
        return constant

    def model(self, *outputs: ir.Value) -> ir.Model:
        graph = ir.Graph([self.x], list(outputs), nodes=self.nodes, initializers=self.constants,
                         opset_imports={"": 23}, name="g")  # fmt: skip
        return ir.Model(graph, ir_version=10)


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def run(model: ir.Model) -> list[np.ndarray]:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    outputs: list[np.ndarray] = session.run(None, {"x": X})
    return outputs


def first_x(g: Graph, plus: ir.Value) -> ir.Value:
    return g.op("Mul", g.op("Mul", g.x, plus), g.number(0.5))


def first_half(g: Graph, plus: ir.Value) -> ir.Value:
    return g.op("Mul", g.op("Mul", plus, g.number(0.5)), g.x)


def half_of_x(g: Graph, plus: ir.Value) -> ir.Value:
    return g.op("Mul", g.op("Mul", g.number(0.5), g.x), plus)


@pytest.mark.parametrize("order", [first_x, first_half, half_of_x])
@pytest.mark.parametrize("scaling", ["Div", "Mul"])
def test_gelu_written_with_erf_becomes_gelu(
    order: Callable[[Graph, ir.Value], ir.Value], scaling: str
) -> None:
    g = Graph()
    factor = g.number(math.sqrt(2) if scaling == "Div" else math.sqrt(0.5))
    erf = g.op("Erf", g.op(scaling, g.x, factor))
    out = order(g, g.op("Add", erf, g.number(1.0)))
    name = out.name
    model = g.model(out)
    np.testing.assert_allclose(run(model)[0], GELU, atol=1e-5)
    to_device_forms(model)
    assert kinds(model) == ["Gelu"]
    assert model.graph.outputs[0].name == name
    np.testing.assert_allclose(run(model)[0], GELU, atol=1e-5)


@pytest.mark.parametrize("change", ["other factor", "read elsewhere", "not halved"])
def test_what_only_looks_like_gelu_stays(change: str) -> None:
    g = Graph()
    factor = g.number(1.5 if change == "other factor" else math.sqrt(2))
    erf = g.op("Erf", g.op("Div", g.x, factor))
    half = g.number(0.6 if change == "not halved" else 0.5)
    out = g.op("Mul", g.op("Mul", g.x, g.op("Add", erf, g.number(1.0))), half)
    model = g.model(*([out, erf] if change == "read elsewhere" else [out]))
    before, wanted = kinds(model), run(model)
    to_device_forms(model)
    assert kinds(model) == before
    for one, other in zip(run(model), wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_layer_normalization_gets_the_bias_that_the_device_wants() -> None:
    g = Graph()
    scale = g.number(np.linspace(0.5, 2, 6))
    out = g.op("LayerNormalization", g.x, scale, axis=-1, epsilon=1e-5)
    model = g.model(out)
    wanted = run(model)[0]
    to_device_forms(model)
    (node,) = model.graph
    assert len(node.inputs) == 3
    np.testing.assert_allclose(run(model)[0], wanted, atol=1e-6)
    to_device_forms(model)
    assert len(list(model.graph.initializers)) == 2
