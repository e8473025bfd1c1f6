"""At which positions a source is looked at again, and at which sizes.

Where something begins to depend on the position is told by the numbers in the arithmetic on
positions and by the ends of tables: one before, at and one behind each of them, the first
position, the last, and others between.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from genai_stages.ingest.folding.folded_graph import FoldedGraph
from genai_stages.ingest.recognition.attention.found_attention import Sizes
from genai_stages.ingest.source.source_model import Constant

LONGEST = 1 << 24
"""Positions; larger numbers are limits of integers, and float32 cannot count any further."""
DEFAULT_LAST = (1 << 15) - 1
"""Where config.json does not say how long a text may be."""
_SHORTER = (1 << 16, 1 << 13, 1 << 11, 1 << 9)
"""For a source that cannot be folded any further: a mask of every token against every other."""
_NEAR = 128
_PLACES = 1024
_SCORES = 1 << 24
"""Scores of all heads in one pass: 64 MB as float32."""
_HEADS = 1 << 24
"""Values of all heads in one pass."""
_LIST = 64
"""Elements; larger integer constants are no list of numbers."""


@dataclasses.dataclass(frozen=True)
class Far:
    """One pass: sizes, and the positions that are looked at.

    Attributes:
        sizes: T and P.
        at: Values [T] of the input of positions, ascending; None = P ... P + T - 1.
        scores: Whether scores fit into memory.
    """

    sizes: Sizes
    at: npt.NDArray[np.int64] | None = None
    scores: bool = True

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        """Positions of the tokens, [T]."""
        return np.arange(self.sizes.past, self.sizes.total) if self.at is None else self.at

    @property
    def is_text(self) -> bool:
        """Whether the tokens follow each other, so that the mask is that of a text."""
        return self.at is None


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Numbers that a graph computes with on the way from positions.

    Attributes:
        single: Those that stand alone.
        listed: Those in lists, and one over small ones.
        ends: Lengths of tables.
    """

    single: frozenset[int]
    listed: frozenset[int]
    ends: frozenset[int]

    @property
    def all(self) -> set[int]:
        """Every one."""
        return {*self.single, *self.listed, *self.ends}


def numbers_of(graph: FoldedGraph, names: Iterable[str]) -> Numbers:
    """The numbers behind some known tensors of a folded graph."""
    single: set[int] = set()
    listed: set[int] = set()
    ends: set[int] = set()
    seen: set[str] = set()
    for name in names:
        for constant in graph.known_ancestors(name):
            if constant.name in seen:
                continue
            seen.add(constant.name)
            if constant.size > _LIST:
                if constant.origin is not None:
                    ends.update(size for size in constant.shape if _NEAR // 2 < size <= LONGEST)
                continue
            meant = _meant(constant)
            (single if constant.size == 1 else listed).update(meant)
    return Numbers(frozenset(single), frozenset(listed), frozenset(ends))


def _meant(constant: Constant) -> set[int]:
    """Whole numbers that a constant's values, or one over them, stand for."""
    if constant.dtype == np.bool_:
        return set()
    wholes: set[int] = set()
    for value in constant.array().reshape(-1).tolist():
        if not math.isfinite(value) or value == 0:
            continue
        for number in (abs(value), 1 / abs(value)):
            near = round(number)
            if 1 < near <= LONGEST and abs(number - near) < 1e-4 * near:
                wholes.add(near)
    return wholes


def places(numbers: Numbers, last: int) -> npt.NDArray[np.int64]:
    """Positions up to the last that one pass looks at, ascending."""
    near = {number + step for number in numbers.all for step in (-1, 0, 1)}
    wanted = {0, last, *near, *range(min(_NEAR, last + 1))}
    random = np.random.default_rng(last)
    wanted.update(int(position) for position in np.geomspace(1, max(last, 1), 64))
    wanted.update(random.integers(0, last + 1, 64).tolist())
    inside = sorted(position for position in wanted if 0 <= position <= last)
    return np.array(inside[: _PLACES - 1] + inside[-1:] if len(inside) > _PLACES else inside)


def far_passes(
    numbers: Numbers,
    last: int,
    *,
    heads: int,
    width: int,
    known: int,
    past: int | None,
    placed: bool,
) -> list[Far]:
    """The passes that look at positions up to the last.

    Args:
        numbers: What the arithmetic on positions holds.
        last: Position.
        heads: Query heads.
        width: Channels of a head.
        known: Positions that are known already.
        past: Past of the pass whose positions are an input; None = the source has no past.
        placed: Whether positions are an input.
    """
    passes: list[Far] = []
    if placed:
        at = places(numbers, last)
        room = max(1, _HEADS // (heads * width))
        for start in range(0, len(at), room):
            part = at[start : start + room]
            held = past or 0
            scores = heads * len(part) * (held + len(part)) <= _SCORES
            passes.append(Far(Sizes(len(part), held, held), part, scores))
    if past is None:
        # Without a number in its arithmetic a mask is the same at any length.
        needed = max([_NEAR, *(number + 2 for number in numbers.all if number <= last)])
        longest = min(last + 1, needed, int(math.sqrt(_SCORES / heads)))
        passes.append(Far(Sizes(longest, 0, 0)))
        longer = min(last + 1, _HEADS // (heads * width))
        if longer > longest and not placed:
            passes.append(Far(Sizes(longer, 0, 0), scores=False))
        return passes
    centres = {number for number in numbers.single | numbers.ends if known < number < last}
    if not placed:
        random = np.random.default_rng(last)
        centres.update(random.integers(min(known, last), last + 1, 3).tolist())
    passes += [_text(centre - 1, min(3, last + 2 - centre), heads) for centre in sorted(centres)]
    tokens = max(1, min(8, last + 1, _SCORES // (heads * (last + 1))))
    passes.append(_text(last + 1 - tokens, tokens, heads))
    return passes


def static_passes(numbers: Numbers, last: int, sizes: Sizes, *, heads: int) -> list[Far]:
    """The passes of a source of fixed sizes whose positions are an input: AR of them in each."""
    at = places(numbers, last)
    scores = heads * sizes.tokens * sizes.total <= _SCORES
    passes = []
    for start in range(0, len(at), sizes.tokens):
        part = at[start : start + sizes.tokens]
        filled = np.concatenate([part, np.full(sizes.tokens - len(part), part[-1])])
        passes.append(Far(sizes, filled, scores))
    return passes


def _text(past: int, tokens: int, heads: int) -> Far:
    scores = heads * tokens * (past + tokens) <= 2 * _SCORES
    return Far(Sizes(tokens, past, past), scores=scores)


def candidates(numbers: Numbers, config: Mapping[str, object]) -> list[int]:
    """Last positions to try, the furthest first: a source's table may end before."""
    stated = config.get("max_position_embeddings")
    last = stated - 1 if isinstance(stated, int) and stated > 0 else DEFAULT_LAST
    if not isinstance(stated, int):
        last = max([last, *numbers.single])
    last = min(last, LONGEST)
    shorter = {end - 1 for end in (*numbers.ends, *_SHORTER) if end - 1 < last}
    return [last, *sorted(shorter, reverse=True)]
