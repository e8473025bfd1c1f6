"""Which static graphs are built (AR x CL), and how long a context the container serves."""

from __future__ import annotations

from dataclasses import dataclass

from genai_core.graphs import (
    NATIVE_KV_ARS,
    SAFE_FACTOR,
    check_graph,
    check_htp_graphs,
    check_native_kv,
    fits_htp,
)
from genai_core.kinds.build import MULTI_CONTEXT_LENGTHS, Graphs
from genai_core.operations import GraphConfig
from genai_planner.shape import ModelShape

__all__ = ["GraphGrid", "derive_graphs"]

DEFAULT_CL = 4096
"""What phones are commonly built for; a model's own limit counts where it is smaller."""


DEFAULT_ARS = (1, 128)
"""ARs where none are given and the contexts hold them."""
NATIVE_KV_DEFAULT = (32, 128)
"""ARs with nativeKV where none are given: the smallest that has the layout, and the usual one."""


@dataclass(frozen=True)
class GraphGrid:
    """The graphs of a build.

    Attributes:
        graphs: Every AR x CL, by CL, then AR; the order is part of the binaries.
        context_length: The longest CL.
        notes: What was derived from what.
        warnings: For the user.
    """

    graphs: tuple[GraphConfig, ...]
    context_length: int
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def derive_graphs(
    graphs: Graphs, shape: ModelShape, *, htp: bool, native_kv: bool = False
) -> GraphGrid:
    """Derive the graphs, and refuse those that cannot work.

    Args:
        graphs: As written.
        shape: For the model's own limit.
        htp: There is a target that needs static graphs; the cpu's one graph is dynamic.
        native_kv: The cache has the processor's own layout, which exists for some ARs only.

    Raises:
        InvalidSpec: AR above CL; or, for htp, a CL too close to the largest AR, or an AR without
            the native layout.
    """
    lengths, why = _context_lengths(graphs, shape.max_positions)
    ars, ar_why = _auto_regression(graphs, native_kv=native_kv, shortest=lengths[0])
    notes = [f"context length {_and(lengths)}: {why}"]
    warnings: list[str] = []
    if htp:
        if native_kv:
            check_native_kv(ars)
        warnings += check_htp_graphs(ars, lengths)
        notes.append(f"AR (tokens in one pass) {_and(ars)}: {ar_why}")
    elif graphs.auto_regression:
        for cl in lengths:
            check_graph(ars[-1], cl)
    if shape.max_positions is not None and lengths[-1] > shape.max_positions:
        warnings.append(
            f"CL {lengths[-1]} is longer than the {shape.max_positions} positions that the model "
            "was made for; it may write nonsense beyond them"
        )
    return GraphGrid(
        graphs=tuple(GraphConfig(ar=ar, cl=cl) for cl in lengths for ar in ars),
        context_length=lengths[-1],
        notes=tuple(notes),
        warnings=tuple(warnings),
    )


def _auto_regression(graphs: Graphs, *, native_kv: bool, shortest: int) -> tuple[list[int], str]:
    if graphs.auto_regression:
        return sorted(graphs.auto_regression), "as given"
    usual, why, allowed = DEFAULT_ARS, "the default", [2**n for n in range(7)]
    if native_kv:
        usual, allowed = NATIVE_KV_DEFAULT, list(NATIVE_KV_ARS)
        why = "nativeKV allows no AR 1, so decoding pads to the smallest"
    if fits_htp(usual[-1], shortest):
        return list(usual), why
    fitting = [ar for ar in allowed if SAFE_FACTOR * ar <= shortest]
    why = f"CL {shortest} should hold {SAFE_FACTOR} passes, so the default {usual[-1]} is too many"
    return sorted({usual[0], *fitting[-1:]}), why


def _context_lengths(graphs: Graphs, limit: int | None) -> tuple[list[int], str]:
    if graphs.context_lengths:
        return sorted(graphs.context_lengths), "as given"
    if graphs.multi_context:
        fitting = [cl for cl in MULTI_CONTEXT_LENGTHS if limit is None or cl <= limit]
        if len(fitting) == len(MULTI_CONTEXT_LENGTHS):
            return fitting, "what multiContext stands for"
        assert limit is not None
        return fitting or [limit], (
            f"what multiContext stands for, as far as the model's {limit} positions allow"
        )
    if limit is not None and limit < DEFAULT_CL:
        return [limit], "the model's own limit"
    return [DEFAULT_CL], "the default"


def _and(numbers: list[int]) -> str:
    texts = [str(n) for n in numbers]
    return " and ".join([", ".join(texts[:-1]), texts[-1]]) if len(texts) > 1 else texts[0]
