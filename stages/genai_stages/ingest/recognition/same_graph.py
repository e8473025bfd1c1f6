"""Whether a source folded at other sizes is the same graph outside of its attentions.

What stands between the attentions must not depend on positions at all. Some of it may look so at
small ones: a factor that is one there, a choice that always goes one way. Such nodes vanish from
the graph that is recognized, and appear when it is folded further out.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from genai_stages.ingest.folding.folded_graph import FoldedGraph, StaticNode
from genai_stages.ingest.recognition.recognise_layers import MOVEMENTS
from genai_stages.ingest.source.source_model import Array, Constant


def difference(
    near: FoldedGraph,
    far: FoldedGraph,
    nodes: Collection[str],
    *,
    tokens: tuple[int, int],
) -> tuple[StaticNode, str] | None:
    """The first node that is another one further out, and how; None = none is.

    Args:
        near: The graph that was recognized.
        far: The same source at other sizes.
        nodes: Outputs of the nodes of `near` that are compared.
        tokens: T of both.
    """
    made = far.producers()
    for node in near.nodes:
        if node.outputs[0] not in nodes:
            continue
        other = made.get(node.outputs[0])
        if other is None:
            return node, "is left out"
        if other.op_type != node.op_type or len(other.inputs) != len(node.inputs):
            return other, f"is no {node.op_type}"
        moves = node.op_type in MOVEMENTS
        if not moves and not _same_attributes(node.attributes, other.attributes):
            return other, "has other attributes"
        for index, (one, two) in enumerate(zip(node.inputs, other.inputs, strict=True)):
            known, value = near.constants.get(one), far.constants.get(two)
            if (known is None) != (value is None):
                return other, "reads something else"
            if known is None or value is None:
                if one != two:
                    return made.get(two, other), "is no identity"
            elif not (moves and index) and not _same(known, value, tokens):
                return other, "computes with another constant"
    return None


def _same_attributes(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return one.keys() == two.keys() and all(
        np.array_equal(np.asarray(one[key]), np.asarray(two[key])) for key in one
    )


def _same(near: Constant, far: Constant, tokens: tuple[int, int]) -> bool:
    """Whether two constants are one, or one row that every token has."""
    if near.origin is not None and near.origin == far.origin and near.shape == far.shape:
        return True
    left, right = near.array(), far.array()
    if left.shape == right.shape and np.array_equal(left, right, equal_nan=_floats(left)):
        return True
    rows = _one_row(left, right, tokens)
    if rows is None:
        return False
    left, right = rows
    if not _floats(left):
        return bool(np.array_equal(left, right))
    return bool(np.allclose(left, right, rtol=1e-5, atol=1e-7, equal_nan=True))


def _floats(array: Array) -> bool:
    return bool(np.issubdtype(array.dtype, np.floating))


def _one_row(near: Array, far: Array, tokens: tuple[int, int]) -> tuple[Array, Array] | None:
    """The rows that all tokens have on both sides; None where tokens differ.

    At the small size the number of tokens is a prime that is no other dimension.
    """
    if near.ndim != far.ndim:
        return None
    for axis, sizes in enumerate(zip(near.shape, far.shape, strict=True)):
        if sizes[0] == tokens[0] and sizes[1] in (1, tokens[1]):
            firsts = [np.take(one, [0], axis=axis) for one in (near, far)]
            for first, whole in zip(firsts, (near, far), strict=True):
                if not np.array_equal(np.broadcast_to(first, whole.shape), whole):
                    return None
            near, far = firsts
    return (near, far) if near.shape == far.shape else None
