"""Further places from which heads are split: MatMuls over several heads that are no attention.

A softmax attention is known as one from its `genai.Attention`. Whatever else a model computes with
a batch of heads stays together unless a start point names it: a regular expression for the name of
a tensor, as the source or as the graph calls it. The MatMul itself may be named, or a tensor that
leads to it or comes from it through operators that only move or scale numbers.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

import onnx_ir as ir

from genai_core.errors import BadInput
from genai_stages.bounded_match import full_matches
from genai_stages.graph.graph_builder import ROLE
from genai_stages.graph.provenance import source_of
from genai_stages.static.head_regions import head_axes_of
from genai_stages.static.static_graph import StaticGraph

ATTENTION_ROLES = ("scores", "context")
"""Roles of the two MatMuls of every softmax attention."""

_NEAR = 3
_MIXING = frozenset(("Gemm", "MatMul", "Conv"))


def attention_starts(static: StaticGraph) -> list[ir.Node]:
    """The MatMuls of every softmax attention."""
    return [
        node
        for node in static.model.graph
        if node.op_type == "MatMul" and node.metadata_props.get(ROLE) in ATTENTION_ROLES
    ]


def check_start_points(static: StaticGraph, patterns: Iterable[str]) -> tuple[str, ...]:
    """Check patterns against the whole graph; return warnings.

    Raises:
        BadInput: One is no regular expression, or no tensor has such a name.
    """
    warnings = []
    for pattern in patterns:
        matched = _matched(static, pattern)
        if not matched:
            raise BadInput(
                f"start point {pattern!r} matches no tensor" + _near(static, pattern),
                where="transformation.additionalStartPoints",
                remedy="use a regular expression for the whole name of a tensor",
            )
        if not _starts_from(matched):
            warnings.append(
                f"start point {pattern!r} matches {len(matched)} tensors, but none at a MatMul "
                "over several heads beside the attentions, whose heads are split anyway"
            )
    return tuple(warnings)


def additional_starts(static: StaticGraph, patterns: Iterable[str]) -> list[ir.Node]:
    """The MatMuls that patterns name in a part; none where the part has no such tensor."""
    found: dict[ir.Node, None] = {}
    for pattern in patterns:
        found |= dict.fromkeys(_starts_from(_matched(static, pattern)))
    return list(found)


def _matched(static: StaticGraph, pattern: str) -> list[ir.Value]:
    named = {value: _names(static, value) for node in static.model.graph for value in node.outputs}
    everything = frozenset[str]().union(*named.values())
    matched = full_matches(pattern, everything, where="transformation.additionalStartPoints")
    return [value for value, names in named.items() if not matched.isdisjoint(names)]


def _names(static: StaticGraph, value: ir.Value) -> set[str]:
    name = value.name or ""
    return {name, source_of(name, static.provenance).source}


def _starts_from(values: Iterable[ir.Value]) -> list[ir.Node]:
    """MatMuls over several heads, beside attentions, at or around some tensors."""
    found: dict[ir.Node, None] = {}
    for value in values:
        for forward in (True, False):
            found |= dict.fromkeys(_reach(value, forward=forward))
    return [
        node
        for node in found
        if head_axes_of(node) and node.metadata_props.get(ROLE) not in ATTENTION_ROLES
    ]


def _reach(start: ir.Value, *, forward: bool) -> list[ir.Node]:
    """The MatMuls before or behind a tensor, with nothing between that mixes channels."""
    found: list[ir.Node] = []
    seen: set[ir.Value] = set()
    pending = [start]
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        if forward:
            nodes = [node for node, _ in value.uses()]
        else:
            producer = value.producer()
            nodes = [] if producer is None else [producer]
        for node in nodes:
            if node.op_type == "MatMul":
                found.append(node)
            elif node.op_type not in _MIXING:
                pending += node.outputs if forward else [v for v in node.inputs if v is not None]
    return found


def _near(static: StaticGraph, pattern: str) -> str:
    names = sorted(
        {
            name
            for node in static.model.graph
            for value in node.outputs
            for name in _names(static, value)
        }
    )
    plain = re.sub(r"[\\.*+?^$()\[\]{}|]+", ".", pattern)
    near = difflib.get_close_matches(plain, names, n=_NEAR, cutoff=0.3)
    return f"; near: {', '.join(near)}" if near else ""
