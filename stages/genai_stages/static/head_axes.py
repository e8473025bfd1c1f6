"""Where the heads are in a tensor, and how an operator carries them from its inputs to its output.

A layout names the heads that each axis counts, outermost first, before whatever else the axis
counts: with labels kv (2) and g (3), a tensor [AR, 6 * D] whose channels are those of six heads in
turn has the layout `((), ("kv", "g"))`; its form [kv, g, AR, D] has `(("kv",), ("g",), (), ())`. A
tensor with an empty layout is the same for all heads.

Each rule is pure and answers None where an operator mixes the heads or cannot be cut along them:
there a split begins (the tensor is sliced) or ends (the heads are concatenated).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from genai_stages.graph.core_graph import mapped
from genai_stages.static.static_graph import ELEMENTWISE
from genai_stages.static.static_shapes import Shape, static_shape

Layout = tuple[tuple[str, ...], ...]
Sizes = Mapping[str, int]
"""Label -> how many heads."""

MOVES = frozenset(("Reshape", "Squeeze", "Unsqueeze", "Flatten"))
"""Operators that only give another shape, with the order of numbers kept."""

_NORMS = frozenset(("RMSNormalization", "LayerNormalization"))
_ONE_AXIS = frozenset(("Softmax", "LogSoftmax", "Concat", "Split"))
_REDUCTIONS = frozenset(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceL2"))


def plain(rank: int) -> Layout:
    """No heads on any axis."""
    return ((),) * rank


def labels_of(layout: Layout) -> tuple[str, ...]:
    """All labels, in the order of the axes."""
    return tuple(label for axis in layout for label in axis)


def part_shape(shape: Shape, layout: Layout, sizes: Sizes) -> Shape:
    """The shape of one head's part."""
    return tuple(
        dim // math.prod(sizes[label] for label in labels)
        for dim, labels in zip(shape, layout, strict=True)
    )


def input_layouts(node: ir.Node, out: Layout, sizes: Sizes) -> tuple[Layout, ...] | None:
    """What the inputs must look like for the output to be computed head by head.

    Args:
        node: A node of a static graph.
        out: Layout wanted of its first output.
        sizes: Heads of each label.

    Returns:
        A layout for each input; None where the heads cannot be computed one by one.
    """
    rule = _rule(node)
    return None if rule is None else rule(node, out, sizes)


def output_layout(node: ir.Node, index: int, layout: Layout, *, sizes: Sizes) -> Layout | None:
    """What the output looks like when input `index` is given head by head; None = mixed."""
    value = node.inputs[index]
    assert value is not None
    shape_in, shape_out = static_shape(value), static_shape(node.outputs[0])
    out: Layout | None
    if node.op_type == "Gemm":
        return None
    if node.op_type in MOVES:
        out = reshaped(shape_in, layout, shape_out, sizes=sizes)
    elif node.op_type == "Transpose":
        out = tuple(layout[axis] for axis in _perm(node))
    else:
        out = _broadcast(shape_in, layout, shape_out)
    if out is None:
        return None
    needed = input_layouts(node, out, sizes)
    return out if needed is not None and needed[index] == layout else None


def reshaped(shape: Shape, layout: Layout, target: Shape, *, sizes: Sizes) -> Layout | None:
    """The layout after a change of shape; None where an axis would hold parts of two heads."""
    found: list[tuple[str, ...]] = []
    for axes, target_dims in _blocks(shape, target):
        factors: list[tuple[str, int]] = []
        for axis in axes:
            factors += [(label, sizes[label]) for label in layout[axis]]
            factors.append(("", part_shape(shape, layout, sizes)[axis]))
        factors = [(label, size) for label, size in factors if size > 1]
        if not any(label for label, _ in factors):
            found += [()] * len(target_dims)
            continue
        for dim in target_dims:
            labels = _consume(factors, dim)
            if labels is None:
                return None
            found.append(labels)
    return tuple(found)


def _consume(factors: list[tuple[str, int]], dim: int) -> tuple[str, ...] | None:
    """Take the factors that make up one axis; its labels, None unless they come outermost."""
    labels: list[str] = []
    inside = False
    while dim > 1:
        label, size = factors[0]
        if label:
            if inside or dim % size:
                return None
            labels.append(label)
        elif size > dim:
            if size % dim:
                return None
            factors[0] = ("", size // dim)
            return tuple(labels)
        elif dim % size:
            return None
        else:
            inside = True
        dim //= size
        factors.pop(0)
    return tuple(labels)


def _blocks(shape: Shape, target: Shape) -> list[tuple[list[int], list[int]]]:
    """The smallest groups of axes (indices here, dimensions there) with as many elements."""
    blocks: list[tuple[list[int], list[int]]] = []
    here = there = 0
    while here < len(shape) or there < len(target):
        axes: list[int] = []
        dims: list[int] = []
        left = right = 1
        while True:
            if here < len(shape) and (left < right or not axes):
                left *= shape[here]
                axes.append(here)
                here += 1
            elif there < len(target) and (right < left or not dims):
                right *= target[there]
                dims.append(target[there])
                there += 1
            else:
                break
        blocks.append((axes, dims))
    return blocks


def _broadcast(shape: Shape, layout: Layout, out: Shape) -> Layout | None:
    """The layout of an output that one operand's axes are aligned with from the right."""
    missing = len(out) - len(shape)
    if missing < 0:
        return None
    return plain(missing) + layout


def _aligned(value: ir.Value | None, out_shape: Shape, out: Layout) -> Layout:
    """The layout of an operand that is broadcast to an output."""
    if value is None:
        return ()
    shape = static_shape(value)
    missing = len(out_shape) - len(shape)
    return tuple(
        labels if dim != 1 else () for dim, labels in zip(shape, out[missing:], strict=True)
    )


def _elementwise(node: ir.Node, out: Layout, sizes: Sizes) -> tuple[Layout, ...]:
    del sizes
    shape = static_shape(node.outputs[0])
    return tuple(_aligned(value, shape, out) for value in node.inputs)


def _matmul(node: ir.Node, out: Layout, sizes: Sizes) -> tuple[Layout, ...] | None:
    del sizes
    shape = static_shape(node.outputs[0])
    shapes = [static_shape(value) for value in node.inputs if value is not None]
    if len(out) < 3 or out[-1] or out[-2] or any(len(one) < 2 for one in shapes):
        return None
    return tuple(_batch(one, shape[:-2], out[:-2]) + plain(2) for one in shapes)


def _batch(shape: Shape, out_shape: Shape, out: Layout) -> Layout:
    batch = shape[:-2]
    missing = len(out_shape) - len(batch)
    return tuple(
        labels if dim != 1 else () for dim, labels in zip(batch, out[missing:], strict=True)
    )


def _gemm(node: ir.Node, out: Layout, sizes: Sizes) -> tuple[Layout, ...] | None:
    """A head's rows of a weight [out, in] give that head's channels."""
    del sizes
    transposed = "transB" in node.attributes and node.attributes["transB"].as_int()
    others = set(node.attributes) - {"transB"}
    if out[0] or not transposed or others:
        return None
    layouts: list[Layout] = [plain(2), (out[1], ())]
    if len(node.inputs) > 2:
        bias = node.inputs[2]
        assert bias is not None
        if len(static_shape(bias)) != 1:
            return None
        layouts.append((out[1],))
    return tuple(layouts)


def _transpose(node: ir.Node, out: Layout, sizes: Sizes) -> tuple[Layout, ...]:
    del sizes
    layout: list[tuple[str, ...]] = [()] * len(out)
    for axis, source in enumerate(_perm(node)):
        layout[source] = out[axis]
    return (tuple(layout),)


def _move(node: ir.Node, out: Layout, sizes: Sizes) -> tuple[Layout, ...] | None:
    value = node.inputs[0]
    assert value is not None
    found = reshaped(static_shape(node.outputs[0]), out, static_shape(value), sizes=sizes)
    return None if found is None else _with_plain_rest(node, found)


def _normalized(node: ir.Node, out: Layout, sizes: Sizes) -> tuple[Layout, ...] | None:
    """A norm takes the axes from `axis` on together."""
    del sizes
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    if labels_of(out[axis:]):
        return None
    return _with_plain_rest(node, out)


def _one_axis(node: ir.Node, out: Layout, sizes: Sizes) -> tuple[Layout, ...] | None:
    """The axis that is concatenated, split or normalized over must not count heads."""
    del sizes
    default = 0 if node.op_type == "Split" else -1
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else default
    if out[axis]:
        return None
    if node.op_type == "Concat":
        return (out,) * len(node.inputs)
    return _with_plain_rest(node, out)


def _slice(node: ir.Node, out: Layout, sizes: Sizes) -> tuple[Layout, ...] | None:
    del sizes
    axes = _constant(node, 3)
    if axes is None or any(out[axis] for axis in axes):
        return None
    return _with_plain_rest(node, out)


def _reduce(node: ir.Node, out: Layout, sizes: Sizes) -> tuple[Layout, ...] | None:
    del sizes
    axes = _constant(node, 1)
    keeps = "keepdims" not in node.attributes or node.attributes["keepdims"].as_int()
    if axes is None or not keeps or any(out[axis] for axis in axes):
        return None
    return _with_plain_rest(node, out)


def _expand(node: ir.Node, out: Layout, sizes: Sizes) -> tuple[Layout, ...]:
    del sizes
    value, target = node.inputs
    assert target is not None
    return (
        _aligned(value, static_shape(node.outputs[0]), out),
        plain(len(static_shape(target))),
    )


def _with_plain_rest(node: ir.Node, first: Layout) -> tuple[Layout, ...]:
    rest = [() if value is None else plain(len(static_shape(value))) for value in node.inputs[1:]]
    return (first, *rest)


def _perm(node: ir.Node) -> Sequence[int]:
    if "perm" in node.attributes:
        return list(node.attributes["perm"].as_ints())
    return list(range(len(static_shape(node.outputs[0]))))[::-1]


def _constant(node: ir.Node, index: int) -> list[int] | None:
    """The integers of a constant input, None where it is missing or computed."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.const_value is None:
        return None
    return [int(number) for number in mapped(value.const_value).ravel()]


Rule = Callable[[ir.Node, Layout, Sizes], tuple[Layout, ...] | None]


def _rule(node: ir.Node) -> Rule | None:
    op_type = node.op_type
    if node.domain:
        return None
    if op_type in ELEMENTWISE:
        return _elementwise
    if op_type in MOVES:
        return _move
    if op_type in _NORMS:
        return _normalized
    if op_type in _ONE_AXIS:
        return _one_axis
    if op_type in _REDUCTIONS:
        return _reduce
    single: dict[str, Rule] = {
        "MatMul": _matmul,
        "Gemm": _gemm,
        "Transpose": _transpose,
        "Slice": _slice,
        "Expand": _expand,
    }
    return single.get(op_type)
