"""Which axes of a source's weights count output and input channels, found by who reads them.

Encodings name tensors of the source, and the source may hold a weight in any layout: [in, out] for
MatMul, [out, in] for Gemm with transB, [out, in, 1, 1] for a Conv of one position, turned once more
on its way. The nodes that read it tell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

Shape = tuple[int, ...]

_SAME = {"Identity", "Cast", "CastLike", "DequantizeLinear", "Dropout"}
_RESHAPED = {"Reshape", "Squeeze", "Unsqueeze", "Flatten"}


@dataclasses.dataclass
class WeightAxes:
    """What is known about one weight.

    Attributes:
        shape: Of the tensor in the source.
        outputs: Axes that count output channels; empty where nothing tells.
        inputs: Axes that count input channels.
        reader: The first node that multiplies by it, for messages.
    """

    shape: Shape
    outputs: set[int] = dataclasses.field(default_factory=set)
    inputs: set[int] = dataclasses.field(default_factory=set)
    reader: str = ""


def weight_axes(graph: ir.Graph) -> dict[str, WeightAxes]:
    """The weights of a graph by name, those included that are moved from others.

    Args:
        graph: A source graph in execution order.
    """
    nodes = list(graph)
    found = {name: WeightAxes(_shape(value)) for name, value in graph.initializers.items()}
    for node in nodes:
        shape = _moved_shape(node, found)
        if shape is not None:
            found[str(node.outputs[0].name)] = WeightAxes(shape)
    for node in reversed(nodes):
        _read(node, found)
    return found


def computed_names(graph: ir.Graph) -> set[str]:
    """Tensors that depend on the graph's inputs: activations, not weights."""
    known = set(graph.initializers)
    names = {str(value.name) for value in graph.inputs} - known
    for node in graph:
        read = [value for value in node.inputs if value is not None]
        outputs = {str(value.name) for value in node.outputs}
        if any(value.name in names for value in read):
            names |= outputs
    return names


def _shape(value: ir.Value) -> Shape:
    tensor = value.const_value
    return () if tensor is None else tuple(int(size) for size in tensor.shape.numpy())


def _moved_shape(node: ir.Node, known: dict[str, WeightAxes]) -> Shape | None:
    """The shape of what a node makes of a weight by moving it; None where it does otherwise."""
    if node.op_type == "Constant" and "value" in node.attributes:
        return tuple(int(size) for size in node.attributes["value"].as_tensor().shape.numpy())
    first = node.inputs[0] if node.inputs else None
    if first is None or first.name not in known or len(node.outputs) != 1:
        return None
    shape = known[first.name].shape
    if node.op_type in _SAME:
        return shape
    if node.op_type == "Transpose":
        return tuple(shape[axis] for axis in _permutation(node, len(shape)))
    if node.op_type in _RESHAPED:
        return _reshaped(node, shape)
    return None


def _permutation(node: ir.Node, rank: int) -> list[int]:
    given = node.attributes.get("perm")
    order = list(reversed(range(rank))) if given is None else [int(n) for n in given.as_ints()]
    return order if sorted(order) == list(range(rank)) else list(range(rank))


def _reshaped(node: ir.Node, shape: Shape) -> Shape | None:
    """The shape behind Reshape and its kin, where it is only a matter of dimensions of 1."""
    plain = [size for size in shape if size != 1]
    if node.op_type == "Squeeze":
        axes = _whole_numbers(node, "axes")
        gone = {axis % len(shape) for axis in axes if shape}
        gone = gone or {axis for axis, size in enumerate(shape) if size == 1}
        return tuple(size for axis, size in enumerate(shape) if axis not in gone)
    if node.op_type == "Unsqueeze":
        axes = _whole_numbers(node, "axes")
        rank = len(shape) + len(axes)
        added = {axis % rank for axis in axes}
        sizes = iter(shape)
        return tuple(1 if axis in added else next(sizes, 1) for axis in range(rank))
    if node.op_type == "Flatten":
        return shape if len(shape) == 2 else None
    wanted = [shape[axis] if size == 0 and axis < len(shape) else size
              for axis, size in enumerate(_whole_numbers(node, "shape"))]  # fmt: skip
    if wanted.count(-1) == 1:
        rest = int(np.prod([size for size in wanted if size != -1], dtype=object))
        wanted[wanted.index(-1)] = int(np.prod(shape, dtype=object)) // rest if rest else 0
    return tuple(wanted) if [size for size in wanted if size != 1] == plain else None


def _whole_numbers(node: ir.Node, attribute: str) -> list[int]:
    """An attribute of whole numbers, or the second input where that is constant."""
    if attribute in node.attributes:
        return [int(number) for number in node.attributes[attribute].as_ints()]
    second = node.inputs[1] if len(node.inputs) > 1 else None
    if second is None:
        return []
    tensor = second.const_value
    maker = second.producer()
    if tensor is None and maker is not None and "value" in maker.attributes:
        tensor = maker.attributes["value"].as_tensor()
    if tensor is None or tensor.size > 16:
        return []
    return [int(number) for number in tensor.numpy().reshape(-1)]


def _read(node: ir.Node, found: dict[str, WeightAxes]) -> None:
    """Note what a node says about the weights that it reads."""
    names = [None if value is None else value.name for value in node.inputs]
    weights = [found.get(name or "") for name in names]
    turned = [_flag(node, "transA"), _flag(node, "transB")]
    if node.op_type in ("MatMul", "Gemm", "FusedMatMul"):
        for index, weight in enumerate(weights[:2]):
            if weight is not None and len(weight.shape) >= 2:
                last, before = len(weight.shape) - 1, len(weight.shape) - 2
                # The second factor is [in, out], the first [out, in]; a turned one the reverse.
                output, read = (last, before) if (index == 1) != turned[index] else (before, last)
                _note(weight, node, {output}, {read})
    elif node.op_type == "Conv" and len(weights) > 1 and weights[1] is not None:
        _note(weights[1], node, {0}, {1})
    elif node.op_type == "Gather" and weights and weights[0] is not None:
        axis = node.attributes.get("axis")
        if len(weights[0].shape) == 2 and (axis is None or axis.as_int() == 0):
            _note(weights[0], node, {0}, {1})
    elif weights and weights[0] is not None and node.outputs:
        moved = found.get(str(node.outputs[0].name))
        if moved is not None and moved.reader:
            back = _way_back(node, weights[0].shape, moved.shape)
            outputs, inputs = _mapped(moved.outputs, back), _mapped(moved.inputs, back)
            _note(weights[0], node, outputs, inputs, reader=moved.reader)


def _note(
    weight: WeightAxes,
    node: ir.Node,
    outputs: Iterable[int],
    inputs: Iterable[int],
    *,
    reader: str = "",
) -> None:
    weight.outputs.update(outputs)
    weight.inputs.update(inputs)
    weight.reader = reader or f"{node.op_type} {node.name or node.outputs[0].name}"


def _flag(node: ir.Node, name: str) -> bool:
    given = node.attributes.get(name)
    return given is not None and bool(given.as_int())


def _way_back(node: ir.Node, shape: Shape, moved: Shape) -> Sequence[int | None]:
    """For each axis of what was moved, the axis of what it was moved from."""
    if node.op_type in _SAME:
        return range(len(shape))
    if node.op_type == "Transpose":
        return _permutation(node, len(shape))
    if node.op_type not in _RESHAPED:
        return [None] * len(moved)
    longer = [axis for axis, size in enumerate(shape) if size != 1]
    kept = iter(longer)
    return [next(kept, None) if size != 1 else None for size in moved]


def _mapped(axes: Iterable[int], back: Sequence[int | None]) -> set[int]:
    return {axis for one in axes if one < len(back) and (axis := back[one]) is not None}
