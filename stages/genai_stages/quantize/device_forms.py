"""Other spellings of the same computation, where the device has an operator for only one of them.

- GELU written out with Erf: x * (1 + erf(x / sqrt 2)) / 2 in any order. The device has no Erf, but
  it has Gelu (Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016).
- LayerNormalization without a bias: the device's has one, so it gets zeros.

What stands for a source tensor keeps its name; tensors inside a GELU need no encoding any more.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from genai_stages.graph.core_graph import mapped

_CLOSE = 1e-3


def to_device_forms(model: ir.Model) -> None:
    """Rewrite a static graph in place."""
    for node in list(model.graph):
        if node.domain:
            continue
        if node.op_type == "Erf":
            _gelu(model.graph, node)
        elif node.op_type == "LayerNormalization":
            _with_bias(model.graph, node)


def _gelu(graph: ir.Graph, erf: ir.Node) -> None:
    x = _unscaled(erf.inputs[0])
    plus = _only_reader(erf.outputs[0], "Add")
    if x is None or plus is None or _other_number(plus, erf.outputs[0]) != 1.0:
        return
    # Three factors, x, (1 + erf) and 1/2, in two multiplications.
    inner = _only_reader(plus.outputs[0], "Mul")
    if inner is None:
        return
    other = _other(inner, plus.outputs[0])
    chain = [erf, plus, inner]
    if other is x:
        last = _only_reader(inner.outputs[0], "Mul")
        fits = last is not None and _other_number(last, inner.outputs[0]) == 0.5
    elif _number(other) == 0.5:
        last = _only_reader(inner.outputs[0], "Mul")
        fits = last is not None and _other(last, inner.outputs[0]) is x
    else:
        half = other.producer()
        last = inner
        fits = (
            half is not None
            and half.op_type == "Mul"
            and x in half.inputs
            and _other_number(half, x) == 0.5
            and _only_reader(other, "Mul") is inner
        )
        if fits and half is not None:
            chain.append(half)
    scaling = erf.inputs[0].producer() if erf.inputs[0] is not None else None
    if not fits or last is None or scaling is None:
        return
    out = last.outputs[0]
    gelu = ir.Node("", "Gelu", [x], outputs=[ir.Value(name=out.name, shape=out.shape,
                                                      type=out.type)],
                   name=f"Gelu:{out.name}", metadata_props=dict(last.metadata_props))  # fmt: skip
    graph.insert_after(last, gelu)
    ir.convenience.replace_all_uses_with(out, gelu.outputs[0], replace_graph_outputs=True)
    dead = [last, *reversed(chain), scaling]
    for node in dict.fromkeys(dead):
        if all(not value.uses() and not value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)


def _unscaled(value: ir.Value | None) -> ir.Value | None:
    """The x of x / sqrt 2."""
    node = None if value is None else value.producer()
    if node is None or node.op_type not in ("Div", "Mul") or node.inputs[0] is None:
        return None
    for x, factor in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        number = _number(factor)
        if number is None or x is None or (node.op_type == "Div" and factor is node.inputs[0]):
            continue
        wanted = math.sqrt(2) if node.op_type == "Div" else math.sqrt(0.5)
        if abs(number - wanted) < _CLOSE:
            return x
    return None


def _only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.op_type != op_type:
        return None
    return uses[0].node


def _other(node: ir.Node, value: ir.Value) -> ir.Value:
    one = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
    assert one is not None
    return one


def _other_number(node: ir.Node, value: ir.Value) -> float | None:
    return _number(_other(node, value))


def _number(value: ir.Value | None) -> float | None:
    if value is None or not value.is_initializer() or value.const_value is None:
        return None
    if value.const_value.size != 1:
        return None
    return float(mapped(value.const_value).reshape(()))


def _with_bias(graph: ir.Graph, node: ir.Node) -> None:
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return
    scale = node.inputs[1]
    assert scale is not None
    assert scale.shape is not None
    zeros = np.zeros(tuple(scale.shape.numpy()), np.float32)
    name = f"{node.outputs[0].name}.no_bias"
    bias = ir.Value(name=name, shape=ir.Shape(zeros.shape),
                    type=ir.TensorType(ir.DataType.FLOAT))  # fmt: skip
    bias.const_value = ir.Tensor(zeros, name=name)
    graph.register_initializer(bias)
    node.resize_inputs(3)
    node.replace_input_with(2, bias)
