"""An adapter laid onto the core graph: for each linear the matrices that it gets.

What is left has the graph's layout and nothing of the file that it came from: A [in, rank], B
[rank, out] with the file's factor in it, so that a linear computes y + alpha * (x A) B.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from genai_core.errors import BadAdapter
from genai_stages.lora.adapter import Adapter, AdapterBranch, Floats
from genai_stages.lora.modules import BranchPart, LinearPlace, parts_of

__all__ = ["SiteBranch", "attach"]

_SHOWN = 3


@dataclass(frozen=True, eq=False)
class SiteBranch:
    """What one linear gets.

    Attributes:
        a: [in, rank], float32.
        b: [rank, out], float32, the file's factor in it.
        widths: See `AdapterBranch`.
    """

    a: Floats
    b: Floats
    widths: tuple[float, float] | None = None


def attach(adapter: Adapter, places: Sequence[LinearPlace]) -> dict[str, SiteBranch]:
    """Find the linear of every module.

    Args:
        adapter: As it was read.
        places: Linears of the core graph.

    Returns:
        Output tensor of a linear -> its branch, in the graph's order.

    Raises:
        BadAdapter: A module has no linear, or two have the same: says how many of how many, and
            names some.
    """
    found: dict[str, tuple[str, AdapterBranch, BranchPart]] = {}
    lost: list[str] = []
    for module, branch in adapter.branches.items():
        parts = parts_of(module, branch.b.shape[0], branch.a.shape[1], places)
        if not parts:
            lost.append(module)
        for part in parts:
            output = part.place.site.output
            if output in found:
                raise BadAdapter(
                    f"{found[output][0]} and {module} both stand for the linear {output}",
                    where=adapter.name,
                    remedy="export the model again with the module names that it was trained with",
                )
            found[output] = module, branch, part
    if lost:
        raise BadAdapter(_unmatched(adapter, lost, places), where=adapter.name, remedy=_REMEDY)
    return {
        place.site.output: _site_branch(*found[place.site.output][1:])
        for place in places
        if place.site.output in found
    }


_REMEDY = (
    "use an adapter that was trained on this model; where the model's export lost the names of its "
    "layers, export it again with them"
)


def _unmatched(adapter: Adapter, lost: Sequence[str], places: Sequence[LinearPlace]) -> str:
    branch = adapter.branches[lost[0]]
    size = f"{branch.b.shape[0]} x {branch.a.shape[1]}"
    near = _nearest(lost[0], places)
    hint = f"; the nearest linear is {near}" if near else ""
    shown = ", ".join(lost[:_SHOWN]) + (" ..." if len(lost) > _SHOWN else "")
    return (
        f"{len(lost)} of its {len(adapter.branches)} modules stand for no linear of the model: "
        f"{shown} (the first one is {size}{hint})"
    )


def _nearest(module: str, places: Sequence[LinearPlace]) -> str:
    """The linear that has the module's last name, with its size."""
    last = module.rpartition(".")[2]
    for place in places:
        if any(path.rpartition(".")[2] == last for path in place.paths):
            return f"{place.site.output}, {place.site.outputs} x {place.site.inputs}"
    return ""


def _site_branch(branch: AdapterBranch, part: BranchPart) -> SiteBranch:
    rows = slice(None) if part.rows is None else list(part.rows)
    b = branch.b[rows].T * np.float32(branch.scale)
    return SiteBranch(
        np.ascontiguousarray(branch.a.T, dtype=np.float32),
        np.ascontiguousarray(b, np.float32),
        branch.widths,
    )


def rank_of(branches: Mapping[str, SiteBranch]) -> int:
    """The largest rank of any linear."""
    return max((branch.a.shape[1] for branch in branches.values()), default=0)
