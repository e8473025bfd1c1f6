"""Whether a slot's numbers depend on its own tokens alone, here: tried, not assumed.

Lossless speculation, a cache of prefixes and answers that repeat under load all rest on it. It
holds for Int8 and Float models by the way they are run, on every processor that was tried; for Int4
it depends on the kernels that a processor gets. So a server tries it at its start, on its own
model, in about a second, and says what it found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genai_runtime.executor.executor import Executor
from genai_runtime.executor.rows import Logits, Row, Want

_TOKENS = 32
_CUTS = ((1,) * _TOKENS, (7, 1, 2, 22))
_PROMPT_CUTS = ((7, 2, 23), (16, 16))
_ROWS = 8


@dataclass(frozen=True)
class Steadiness:
    """What was equal to the last bit.

    Attributes:
        chunks: A text in one pass, in chunks and token by token.
        neighbours: A row alone and beside others, of other lengths.
    """

    chunks: bool
    neighbours: bool

    @property
    def all(self) -> bool:
        """A slot's keys and values are those of its tokens, whoever computed them beside what."""
        return self.chunks and self.neighbours


def try_out(executor: Executor, *, seed: int = 0) -> Steadiness:
    """Run some random tokens in different ways. Slots are opened for it and freed again."""
    texts = _texts(executor, seed)
    size = texts[0].size
    chunks = try_out_chunks(executor, seed=seed)
    ends = [size - row % 3 for row in range(_ROWS)]  # ragged
    alone = [_run(executor, [texts[row][:end]], (end,))[0] for row, end in enumerate(ends)]
    ragged = [texts[row][:end] for row, end in enumerate(ends)]
    beside = _run(executor, ragged, _cut((5, 1, 3), size))
    neighbours = all(np.array_equal(a, b) for a, b in zip(alone, beside, strict=True))
    return Steadiness(chunks=chunks, neighbours=neighbours)


def try_out_chunks(executor: Executor, *, seed: int = 0) -> bool:
    """`Steadiness.chunks` alone: all that one sequence needs."""
    texts = _texts(executor, seed)[:1]
    size = texts[0].size
    whole = _run(executor, texts, (size,))[0]
    return all(np.array_equal(whole, _run(executor, texts, _cut(cut, size))[0]) for cut in _CUTS)


def try_out_prompts(executor: Executor, *, seed: int = 0) -> bool:
    """Whether rows of two tokens and more are steady, alone, in chunks and beside others.

    That is what keys and values of prompts need where lone tokens are not doubled.
    """
    texts = _texts(executor, seed)
    size = texts[0].size
    alone = [_run(executor, [text], (size,))[0] for text in texts]
    cut = [_run(executor, texts[:1], _cut(sizes, size))[0] for sizes in _PROMPT_CUTS]
    beside = _run(executor, texts, _cut((5, 2, 3), size))
    return all(np.array_equal(alone[0], one) for one in cut) and all(
        np.array_equal(one, other) for one, other in zip(alone, beside, strict=True)
    )


def _texts(executor: Executor, seed: int) -> list[NDArray[np.integer]]:
    size = min(_TOKENS, executor.context_length - 1)
    return list(np.random.default_rng(seed).integers(0, executor.vocab_size, (_ROWS, size)))


def _cut(sizes: Sequence[int], total: int) -> tuple[int, ...]:
    """Sizes whose sum is `total`: the last takes the rest, those beyond are left out."""
    kept: list[int] = []
    for size in sizes:
        if sum(kept) < total:
            kept.append(min(size, total - sum(kept)))
    kept[-1] += total - sum(kept)
    return tuple(kept)


def _run(
    executor: Executor, texts: Sequence[NDArray[np.integer]], cut: Sequence[int]
) -> list[Logits]:
    """Logits of all tokens of each text, in passes of so many tokens each."""
    slots = [executor.open() for _ in texts]
    logits: list[list[Logits]] = [[] for _ in texts]
    try:
        start = 0
        for size in cut:
            members = [i for i, text in enumerate(texts) if text.size > start]
            rows = [Row(slots[i], texts[i][start : start + size], want=Want.ALL) for i in members]
            for i, output in zip(members, executor.forward(rows), strict=True):
                logits[i].append(output.logits)
            start += size
    finally:
        for slot in slots:
            executor.free(slot)
    return [np.concatenate(parts) for parts in logits]
