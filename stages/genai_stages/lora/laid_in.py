"""Adapters become part of a static graph: constants where it had inputs, no branch where none is.

The matrices become weights of two linears behind one another, in the form that all linears of a
static graph have, and alphas are in B. Where no adapter touches a linear, its branch goes, and the
linear's own result takes the name of the sum again: nothing is computed there but the base.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from genai_core.errors import BadModel
from genai_core.facts import AdapterInputs, BranchTensors
from genai_stages.lora.branch_ranges import Combination

__all__ = ["lay_in", "touched"]

Floats = NDArray[np.float32]


def touched(inputs: AdapterInputs, worn: Combination) -> AdapterInputs:
    """The branches that a combination uses, of all that the graphs have."""
    kept = tuple(one for one in inputs.branches if worn.at(one.linear) is not None)
    return inputs.model_copy(update={"branches": kept})


def lay_in(graph: ir.Graph, inputs: AdapterInputs, worn: Combination) -> dict[str, Floats]:
    """Change a part of a static graph in place.

    Args:
        graph: It has some of the branches.
        inputs: Of all branches.
        worn: What becomes part of it.

    Returns:
        Constant -> the weight [out, in] that it became; its name is that of the input.

    Raises:
        BadModel: The graph is of another form.
    """
    given = {value.name: value for value in graph.inputs}
    made = {value.name: value for node in graph for value in node.outputs}
    found: dict[str, Floats] = {}
    for branch in inputs.branches:
        if branch.a not in given:
            continue  # of another part
        pair = worn.at(branch.linear)
        up = made[branch.up]
        if pair is None:
            _take_off(graph, up)
        else:
            found |= _constant(graph, branch, made, pair)
    names = inputs.names
    kept = [value for value in graph.inputs if value.name not in names]
    graph.inputs.clear()
    graph.inputs.extend(kept)
    return found


def _constant(
    graph: ir.Graph,
    branch: BranchTensors,
    made: Mapping[str | None, ir.Value],
    pair: tuple[Floats, Floats],
) -> dict[str, Floats]:
    """Two linears instead of two products with inputs, and no factor between them."""
    down, scaled, up = made[branch.down], made[branch.scaled], made[branch.up]
    weights = {
        branch.a: np.ascontiguousarray(pair[0].T),
        branch.b: np.ascontiguousarray(pair[1].T),
    }
    rows, rank = _producer(down).inputs[0], weights[branch.a].shape[0]
    assert rows is not None
    assert down.shape is not None
    tokens = down.shape.numpy()[0]
    before = _producer(down)
    between = [_producer(scaled), _producer(up)]
    first = _linear(graph, rows, branch.a, weights[branch.a], branch.down)
    first.shape, first.type = ir.Shape([tokens, rank]), down.type
    last = _linear(graph, first, branch.b, weights[branch.b], branch.up)
    last.shape, last.type = up.shape, up.type
    graph.insert_before(before, [_producer(first), _producer(last)])
    for node, index in list(up.uses()):
        node.replace_input_with(index, last)
    for node in (*reversed(between), before):
        graph.remove(node, safe=True)
    return weights


def _linear(graph: ir.Graph, rows: ir.Value, name: str, weight: Floats, output: str) -> ir.Value:
    constant = ir.Value(
        name=name, shape=ir.Shape(weight.shape), type=ir.TensorType(ir.DataType.FLOAT)
    )
    constant.const_value = ir.Tensor(weight, name=name)
    graph.initializers[name] = constant
    made = ir.Value(name=output)
    ir.Node(
        "",
        "Gemm",
        [rows, constant],
        attributes=ir.convenience.convert_attributes({"transB": 1}),
        outputs=[made],
        name=f"Gemm:{output}",
    )
    return made


def _take_off(graph: ir.Graph, up: ir.Value) -> None:
    """Remove a branch: each sum that it, or a piece of it, is added to is the linear's own again.

    Raises:
        BadModel: Something else reads it.
    """
    open_values, moved = [up], []
    while open_values:
        value = open_values.pop()
        for node, _ in list(value.uses()):
            if node.op_type == "Add":
                plain = next(one for one in node.inputs if one is not value)
                assert plain is not None
                _replace(graph, node, plain)
            elif len(node.outputs) == 1 and node.op_type in ("Slice", "Reshape"):
                moved.append(node)
                open_values.append(node.outputs[0])
            else:
                raise BadModel(
                    f"{node.op_type} reads a branch of it",
                    where=up.name or "",
                    remedy="build again",
                )
    for node in reversed(moved):
        graph.remove(node, safe=True)
    value = up
    for _ in range(3):  # up, scaled, down
        node = _producer(value)
        source = node.inputs[0]
        graph.remove(node, safe=True)
        assert source is not None
        value = source


def _replace(graph: ir.Graph, node: ir.Node, plain: ir.Value) -> None:
    total = node.outputs[0]
    for user, index in list(total.uses()):
        user.replace_input_with(index, plain)
    for at, output in enumerate(graph.outputs):
        if output is total:
            graph.outputs[at] = plain
    name = total.name
    graph.remove(node, safe=True)
    total.name = f"{name}.without"
    plain.name = name


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node
