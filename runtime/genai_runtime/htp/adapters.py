"""Adapters as inputs of static graphs: what each graph is fed for what a row wears.

All adapters share one rank R: those that are worn together lie beside one another along it, each
with its alpha in its rows of B, and the rest is zeros. The graphs' own alpha is then 1, or 0 where
nothing is worn, so that the branch is exactly nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from genai_core.errors import BadInput
from genai_core.facts import AdapterInputs, AdapterRanges, BranchTensors
from genai_runtime.executor.adapter_weights import AdapterWeights
from genai_runtime.executor.rows import AdapterUse

__all__ = ["BranchFeeds", "branch_widths", "check_fits"]

_ROUNDING = 1 + 1e-4
_KEPT = 8
"""Combinations whose matrices stay laid out."""

Floats = NDArray[np.float32]


def branch_widths(a: Floats, b: Floats, norm: float) -> tuple[float, float, float, float]:
    """The largest absolute values of A, B, x A and (x A) B.

    For any x the last two are at most its L2 norm times that of a column (Cauchy and Schwarz).

    Args:
        a: [in, rank].
        b: [rank, out], alpha in it.
        norm: The largest of x.
    """
    wide = a.astype(np.float64)
    columns = (np.linalg.norm(one, axis=0).max(initial=0.0) for one in (wide, wide @ b))
    down, up = (norm * float(length) for length in columns)
    return float(np.abs(a).max(initial=0.0)), float(np.abs(b).max(initial=0.0)), down, up


def check_fits(weights: AdapterWeights, inputs: AdapterInputs, *, where: str) -> None:
    """Refuse an adapter that graphs have no room for.

    Args:
        weights: The adapter.
        inputs: Of the graphs.
        where: The adapter, for messages.

    Raises:
        BadInput: Its rank is larger, it touches other linears, or they have other sizes.
    """
    if weights.rank > inputs.rank:
        raise BadInput(
            f"its rank is {weights.rank}, the graphs were built for {inputs.rank}",
            where=where,
            remedy="build with a larger lora.maxRank",
        )
    sizes = {branch.linear: (branch.inputs, branch.outputs) for branch in inputs.branches}
    lost = [linear for linear in weights.branches if linear not in sizes]
    if lost:
        raise BadInput(
            f"{len(lost)} of the {len(weights.branches)} linears that it touches take no adapter "
            f"in these graphs: {', '.join(lost[:2])}{' ...' if len(lost) > 2 else ''}",
            where=where,
            remedy="build with its modules in lora.targetModules",
        )
    for linear, (a, b) in weights.branches.items():
        if (a.shape[0], b.shape[1]) != sizes[linear]:
            raise BadInput(
                f"{linear} is {sizes[linear][0]} x {sizes[linear][1]}, the adapter's is "
                f"{a.shape[0]} x {b.shape[1]}",
                where=where,
                remedy="use an adapter of this model",
            )


class BranchFeeds:
    """Float values of the graphs' adapter inputs.

    Args:
        inputs: Of the graphs; None = they take none.
        adapters: By name.
        ranges: Of the branches; None = they are floating point.

    Raises:
        BadInput: One does not fit.
    """

    def __init__(
        self,
        inputs: AdapterInputs | None,
        adapters: Mapping[str, AdapterWeights],
        *,
        ranges: AdapterRanges | None,
    ) -> None:
        for name, weights in adapters.items():
            if inputs is None:
                raise BadInput(
                    "the graphs take no adapters",
                    where=f"adapter {name}",
                    remedy="build the container with spec.lora",
                )
            check_fits(weights, inputs, where=f"adapter {name}")
        self._inputs = inputs
        self._ranges = ranges
        self._adapters = dict(adapters)
        self._made: dict[tuple[AdapterUse, ...], dict[str, Floats]] = {}

    @property
    def names(self) -> frozenset[str]:
        """What a row may wear."""
        return frozenset(self._adapters)

    def of(self, uses: Sequence[AdapterUse]) -> Mapping[str, Floats]:
        """Input -> its values for a row that wears these; empty = zeros everywhere.

        Raises:
            BadInput: Together they have a larger rank than the graphs, or a value lies beyond what
                the graphs' inputs take.
        """
        worn = tuple(uses)
        if not worn or self._inputs is None:
            return {}
        if worn not in self._made:
            made = self._laid_out(worn, self._inputs)
            while len(self._made) >= _KEPT:
                self._made.pop(next(iter(self._made)))
            self._made[worn] = made
        return self._made[worn]

    def _laid_out(self, worn: tuple[AdapterUse, ...], inputs: AdapterInputs) -> dict[str, Floats]:
        found: dict[str, Floats] = {inputs.alpha: np.ones(1, np.float32)}
        for branch in inputs.branches:
            a = np.zeros((branch.inputs, inputs.rank), np.float32)
            b = np.zeros((inputs.rank, branch.outputs), np.float32)
            start = 0
            for use in worn:
                halves = self._adapters[use.name].branches.get(branch.linear)
                if halves is None:
                    continue
                stop = start + halves[0].shape[1]
                if stop > inputs.rank:
                    ranks = " and ".join(str(self._adapters[one.name].rank) for one in worn)
                    raise BadInput(
                        f"adapters of the ranks {ranks} are worn together, the graphs were built "
                        f"for {inputs.rank}",
                        where=f"adapters {', '.join(one.name for one in worn)}",
                        remedy="build with a use case of them, or a larger lora.maxRank",
                    )
                a[:, start:stop] = halves[0]
                b[start:stop] = halves[1] * np.float32(use.alpha)
                start = stop
            self._check_ranges(branch, a, b, worn)
            found |= {branch.a: a, branch.b: b}
        return found

    def _check_ranges(
        self, branch: BranchTensors, a: Floats, b: Floats, worn: tuple[AdapterUse, ...]
    ) -> None:
        """Clipped values would make another adapter of it."""
        if self._ranges is None:
            return
        widths = branch_widths(a, b, self._ranges.norms[branch.linear])
        names = (branch.a, branch.b, branch.down, branch.up)
        for what, name, widest in zip(("A", "B", "x A", "(x A) B"), names, widths, strict=True):
            limit = self._ranges.widest[name]
            if widest > limit * _ROUNDING:
                uses = " + ".join(f"{use.alpha:g} {use.name}" for use in worn)
                raise BadInput(
                    f"{what} at {branch.linear} reaches +-{widest:.4g}, the graphs were built for "
                    f"+-{limit:.4g}",
                    where=f"adapter {uses}",
                    remedy="use a smaller alpha, or build with it, or with a larger "
                    f"lora.reserveRange (at least {widest / limit:.2g} times the present one)",
                )
