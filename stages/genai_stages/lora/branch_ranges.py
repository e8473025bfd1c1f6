"""How wide the values are that adapters give the branches of static graphs.

The float core graph runs once over some text, without adapters, and the length (L2 norm) of what
each linear reads is noted. With it the range of whatever an adapter computes there follows from its
matrices alone (`branch_widths`), so one that comes later is held to the same bounds, without the
model. Ranges are rounded up to steps of the square root of two: an adapter that is trained a little
further leaves them, and all that is built on them, as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from genai_core.facts import AdapterInputs, AdapterRanges, BranchTensors, ModelFacts
from genai_runtime.executor.adapter_weights import AdapterWeights
from genai_runtime.htp.adapters import branch_widths
from genai_stages.graph.core_graph import read_core
from genai_stages.quantize.watch import Watching, watched_ranges

__all__ = ["Combination", "adapter_ranges", "input_norms"]

_MARGIN = 2.0
"""Other text, and layers behind one that wears an adapter, go further than what was read here."""
_LEAST = 2.0**-20
"""Of a branch that no adapter uses."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Combination:
    """Adapters that are used at once.

    Attributes:
        adapters: Each of them.
        alphas: Of each.
        widths: Of each, linear -> largest absolute values of x A and of what is added at alpha 1,
            where its own encodings say; empty: of none.
    """

    adapters: Sequence[AdapterWeights]
    alphas: Sequence[float]
    widths: Sequence[Mapping[str, tuple[float, float]]] = ()

    def at(self, linear: str) -> tuple[Floats, Floats] | None:
        """A and B side by side, alphas in B; None where none of them touches the linear."""
        found = [
            (*adapter.branches[linear], alpha)
            for adapter, alpha in zip(self.adapters, self.alphas, strict=True)
            if linear in adapter.branches
        ]
        if not found:
            return None
        b = np.concatenate([b * np.float32(alpha) for _, b, alpha in found], axis=0)
        return np.concatenate([a for a, _, _ in found], axis=1), b

    def encoded(self, linear: str) -> tuple[float, float] | None:
        """Largest absolute values of x A and (x A) B; None unless all that touch it say theirs."""
        pairs = [
            (own.get(linear), alpha)
            for adapter, own, alpha in zip(self.adapters, self.widths, self.alphas, strict=False)
            if linear in adapter.branches
        ]
        known = [(own, abs(alpha)) for own, alpha in pairs if own is not None]
        if not known or len(known) < len(pairs):
            return None
        return max(own[0] for own, _ in known), sum(own[1] * alpha for own, alpha in known)


def input_norms(
    core: Path,
    inputs: AdapterInputs,
    pieces: Sequence[NDArray[np.integer]],
    *,
    scratch: Path,
    threads: int = 1,
) -> dict[str, float]:
    """Linear -> the largest L2 norm of what it reads for a token, with a margin.

    Args:
        core: Folder of the core graph with its weights.
        inputs: Which linears.
        pieces: Token ids, each piece [T].
        scratch: An empty folder.
        threads: Of ONNX Runtime.

    Raises:
        BadModel: The model yields values that are not finite.
    """
    model, facts = read_core(core)
    linears = frozenset(branch.linear for branch in inputs.branches)
    spans = watched_ranges(
        core,
        model,
        facts,
        partial(_Norms, facts, linears=linears),
        pieces=pieces,
        scratch=scratch,
        threads=threads,
    )
    return {name: _step(_MARGIN * max(high, _LEAST)) for name, (_, high) in spans.items()}


def adapter_ranges(
    inputs: AdapterInputs,
    combinations: Sequence[Combination],
    norms: Mapping[str, float],
    *,
    reserve: float = 1.0,
) -> AdapterRanges:
    """The union over all combinations.

    Args:
        inputs: The branches.
        combinations: Each adapter alone, and each use case.
        norms: See `input_norms`.
        reserve: Factor on all ranges.
    """
    widest = {}
    for branch in inputs.branches:
        found = []
        for worn in combinations:
            pair = worn.at(branch.linear)
            if pair is not None:
                widths = branch_widths(*pair, norms[branch.linear])
                own = worn.encoded(branch.linear)
                found.append(widths if own is None else (*widths[:2], *own))
        for place, name in enumerate(_measured(branch)):
            largest = max((widths[place] for widths in found), default=0.0)
            widest[name] = _step(max(largest * reserve, _LEAST))
    return AdapterRanges(widest=widest, norms=dict(norms))


def _measured(branch: BranchTensors) -> tuple[str, str, str, str]:
    return branch.a, branch.b, branch.down, branch.up


def _step(value: float) -> float:
    """The next power of the square root of two."""
    return float(2.0 ** (math.ceil(2 * math.log2(value)) / 2))


class _Norms(Watching):
    """Notes the L2 norm of what linears read."""

    def __init__(
        self, facts: ModelFacts, first: ir.Value, last: ir.Value, *, linears: frozenset[str]
    ) -> None:
        super().__init__(facts, first, last)
        self.linears = linears

    def linear(self, node: ir.Node) -> None:
        super().linear(node)
        source, name = node.inputs[0], node.outputs[0].name or ""
        if name not in self.linears:
            return
        assert source is not None
        norm = self.op("ReduceL2", self.mapped(source), self.ints("last", -1), keepdims=0)
        self.watch(norm, name)
