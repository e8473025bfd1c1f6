"""Operators that move values without computing: what goes in comes out on the same grid.

A device moves integers; so the input and the output of such an operator have one encoding (the
ties). Following them also finds the entry of a tensor whose own name is not in the file: AIMET
writes none for moved tensors in 1.0.0.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

_ONE_INPUT = frozenset(
    {
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Identity",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)


def moved_inputs(node: ir.Node) -> tuple[ir.Value, ...]:
    """The inputs whose values a node only moves; empty for a node that computes."""
    if node.domain not in ("", "ai.onnx"):
        return ()
    given = [value for value in node.inputs if value is not None]
    if node.op_type in _ONE_INPUT:
        return (given[0],)
    if node.op_type == "Concat":
        return tuple(given)
    if node.op_type == "Gather" and not given[0].is_initializer():
        return (given[0],)
    if node.op_type in ("ScatterElements", "ScatterND"):
        return (given[0], given[2])
    return ()


def moved_onward(value: ir.Value) -> Iterator[ir.Value]:
    """Everything that this value's content is moved to, nearest first; without itself."""
    seen = {value}
    queue = [value]
    while queue:
        current = queue.pop(0)
        for node in current.consumers():
            if current not in moved_inputs(node):
                continue
            for output in node.outputs:
                if output not in seen:
                    seen.add(output)
                    queue.append(output)
                    yield output


def moved_from(value: ir.Value) -> Iterator[ir.Value]:
    """Everything that this value's content was moved from, nearest first; without itself."""
    seen = {value}
    queue = [value]
    while queue:
        producer = queue.pop(0).producer()
        if producer is None:
            continue
        for source in moved_inputs(producer):
            if source not in seen:
                seen.add(source)
                queue.append(source)
                yield source
