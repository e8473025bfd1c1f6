"""Check a static graph against its core graph, one layer at a time.

The same tokens go through both: at once through the expanded core graph, in passes of AR tokens
with a growing cache through the static one. Only one layer's weights are mapped at any moment; each
side goes on with what its own previous layers yielded, so the last comparison is that of logits.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from genai_core.errors import DriftError
from genai_core.facts import ModelFacts
from genai_core.graphs import graph_name
from genai_runtime.masks import EMPTY
from genai_stages.graph.expand_attention import expand
from genai_stages.static.split import ModelPart, cut
from genai_stages.static.static_graph import StaticGraph, is_adapter_input
from genai_stages.static.static_session import (
    Arrays,
    StaticSession,
    adapter_feed,
    position_inputs,
)

TOLERANCE = 1e-4
"""Largest difference of logits up to 10; of larger ones in proportion (float32 rounding)."""

TOKENS = 96
LARGE = 256 * 1024 * 1024
"""Bytes of weights above which only a few passes are run, behind a cache from the core graph."""

FEW_PASSES = 4

Floats = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class StaticComparison:
    """What the check measured.

    Attributes:
        drift: Largest difference of logits.
        limit: Largest allowed one.
        cache_drift: Largest difference of keys and values.
        tokens: Tokens in the context at the end.
        passes: Passes of the static graph.
    """

    drift: float
    limit: float
    cache_drift: float
    tokens: int
    passes: int


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Which tokens are given by the core graph's cache, and which passes follow.

    Attributes:
        given: Tokens whose keys and values are taken from the core graph.
        passes: [start, stop) of each pass.
    """

    given: int
    passes: tuple[tuple[int, int], ...]

    @property
    def tokens(self) -> int:
        """Tokens in the context at the end."""
        return self.passes[-1][1]


def schedule(ar: int, cl: int, *, large: bool) -> Schedule:
    """Some 96 tokens in passes of AR, the last of them incomplete where AR does not divide them.

    At least one pass has a past, unless CL = AR leaves none. Of a large model and a large AR it is
    the only one: the graph is the same in every pass, its masks are inputs.

    Args:
        ar: Tokens of a pass.
        cl: Context length: no pass may start behind CL - AR.
        large: Whether few passes have to do.
    """
    wanted = TOKENS if ar <= TOKENS else ar + ar // 4
    starts = [start for start in range(0, wanted, ar) if start <= cl - ar]
    alone = len(starts) == 1 or (large and ar > TOKENS)
    if alone and cl > ar:
        starts = [min(cl - ar, max(1, ar // 4))]
        wanted = starts[0] + ar
    stop = min(wanted, starts[-1] + ar)
    if large:
        starts = starts[-FEW_PASSES:]
    ends = [*starts[1:], stop]
    return Schedule(starts[0], tuple(zip(starts, ends, strict=True)))


def compare_static(
    core: ir.Model,
    facts: ModelFacts,
    static: StaticGraph,
    *,
    weights: Path,
    ar: int,
    cl: int,
    threads: int = 1,
) -> StaticComparison:
    """Compare a static graph with the core graph that it was made from.

    Args:
        core: The core graph.
        facts: Its facts.
        static: The static graph.
        weights: The folder that both graphs' external data is relative to.
        ar: New tokens of a pass.
        cl: Past and new tokens together.
        threads: Of ONNX Runtime.

    Raises:
        DriftError: Logits differ by more than the tolerance.
    """
    size = sum(group.size_bytes for group in facts.groups.values())
    plan = schedule(ar, cl, large=size > LARGE)
    random = np.random.default_rng(0)
    tokens = random.integers(0, facts.vocab_size, plan.tokens)
    wanted: NDArray[Any] = tokens[None]
    have: NDArray[Any] = tokens[None].astype(np.int32)
    runner = _Passes(facts, plan, ar=ar, cl=cl)
    cache_drift = 0.0
    first = ""
    for part, start, end in _parts(facts):
        expanded = StaticSession(
            expand(core, facts, start=start, end=end), weights, threads=threads
        )
        wanted, caches = _run_core(expanded, wanted)
        del expanded
        piece = cut(static, facts, part, name="check")
        session = StaticSession(piece.model, weights, threads=threads)
        have, found = runner.run(session, have, caches)
        del session
        for name, cache in found.items():
            cache_drift = max(cache_drift, _difference(cache, caches[name]))
        drift, limit = _judge(wanted[:, plan.given :], have[:, plan.given :])
        if not first and not drift <= limit:
            first = "the embedding" if end == facts.boundaries[0] else f"layer {part.first}"
        have[:, : plan.given] = wanted[:, : plan.given]
    if not drift <= limit:
        raise DriftError(
            f"logits depart from the core graph's by {drift:.1e}, allowed are {limit:.1e}",
            where=f"{graph_name(ar, cl)}, from {first or 'the head'} on",
            remedy="report this with the model: the conversion is wrong",
        )
    return StaticComparison(drift, limit, cache_drift, plan.tokens, len(plan.passes))


def _parts(facts: ModelFacts) -> Iterator[tuple[ModelPart, str | None, str | None]]:
    """Embedding, each layer, head; with the core tensors that each starts from and ends with."""
    yield ModelPart(0, 0, embedding=True, lm_head=False), None, facts.boundaries[0]
    for layer, (start, end) in enumerate(itertools.pairwise(facts.boundaries)):
        yield ModelPart(layer, layer + 1, embedding=False, lm_head=False), start, end
    last = facts.layers
    yield ModelPart(last, last, embedding=False, lm_head=True), facts.boundaries[-1], None


def _run_core(session: StaticSession, state: NDArray[Any]) -> tuple[Floats, Arrays]:
    """All tokens at once; caches in the static graphs' form, [KV, 1, D, T] and [KV, 1, T, D]."""
    feeds: Arrays = {}
    for index, (name, shape) in enumerate(session.shapes.items()):
        feeds[name] = state if index == 0 else np.zeros((1, shape[1], 0, shape[3]), np.float32)
    found = session.run(feeds)
    main = next(iter(found.values()))
    caches: Arrays = {}
    for name, values in found.items():
        if name.startswith("present_key_"):
            caches[name.replace("present_", "past_")] = values.transpose(1, 0, 3, 2)
        elif name.startswith("present_value_"):
            caches[name.replace("present_", "past_")] = values.transpose(1, 0, 2, 3)
    return main, caches


class _Passes:
    """Runs one part of the static graph over all passes."""

    def __init__(self, facts: ModelFacts, plan: Schedule, *, ar: int, cl: int) -> None:
        self.facts = facts
        self.plan = plan
        self.ar = ar
        self.cl = cl

    def run(
        self, session: StaticSession, state: NDArray[Any], given: Arrays
    ) -> tuple[Floats, Arrays]:
        """The part's output for all tokens of the passes, and its cache."""
        caches = self._begin(given)
        output: Floats | None = None
        for start, stop in self.plan.passes:
            count = stop - start
            feeds = self._positions(start, count) | self._pasts(caches)
            rows = np.zeros((1, self.ar, *state.shape[2:]), state.dtype)
            rows[:, :count] = state[:, start:stop]
            feeds |= {
                name: adapter_feed(name, shape, None)
                for name, shape in session.shapes.items()
                if is_adapter_input(name)
            }
            feeds[next(iter(session.shapes))] = rows
            found = session.run(feeds)
            result = next(iter(found.values()))
            if output is None:
                output = np.zeros((1, self.plan.tokens, result.shape[2]), np.float32)
            output[:, start:stop] = result[:, :count]
            for name, cache in caches.items():
                new = found[f"{name}_out"]
                if name.startswith("past_key_"):
                    cache[..., start:stop] = new[..., :count]
                else:
                    cache[:, :, start:stop] = new[:, :, :count]
        assert output is not None
        return output, {
            name: cache[..., : self.plan.tokens]
            if name.startswith("past_key_")
            else cache[:, :, : self.plan.tokens]
            for name, cache in caches.items()
        }

    def _begin(self, given: Arrays) -> Arrays:
        """Caches of CL slots, with what the core graph gave in front."""
        caches: Arrays = {}
        for name, values in given.items():
            shape = list(values.shape)
            axis = 3 if name.startswith("past_key_") else 2
            shape[axis] = self.cl
            cache = np.zeros(shape, np.float32)
            known = [slice(None)] * 4
            known[axis] = slice(0, self.plan.given)
            cache[tuple(known)] = values[tuple(known)]
            caches[name] = cache
        return caches

    def _pasts(self, caches: Arrays) -> Arrays:
        length = self.cl - self.ar
        return {
            f"{name}_in": np.ascontiguousarray(
                cache[..., :length] if name.startswith("past_key_") else cache[:, :, :length]
            )
            for name, cache in caches.items()
        }

    def _positions(self, start: int, count: int) -> Arrays:
        queries = np.full(self.ar, EMPTY)
        queries[:count] = np.arange(start, start + count)
        keys = np.full(self.cl, EMPTY)
        keys[:start] = np.arange(start)
        keys[self.cl - self.ar :] = queries
        return position_inputs(self.facts, queries, keys)


def _judge(wanted: NDArray[Any], have: NDArray[Any]) -> tuple[float, float]:
    """The difference, and the largest one that may be; NaN fails."""
    largest = float(np.abs(wanted).max())
    return _difference(wanted, have), TOLERANCE * max(1.0, largest / 10)


def _difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(np.abs(one - other).max())
