"""Lookahead decoding (Fu et al. 2024): the model itself guesses n-grams, in the passes it runs.

Each pass carries a window beside the newest token: W columns of N - 1 tokens, each column a guess
of what stands from its place on, improved by one Jacobi step a pass. A column and the token that
the pass yields behind it make an n-gram, which goes into a pool. A guess is the pool's latest
n-gram that begins with the newest token.

The paper verifies up to G n-grams beside one another. Here it is the latest alone: the numbers of
siblings agree with plain decoding only to rounding on this executor, those of one chain to the bit.
The window's (N - 1) W - 1 tokens are paid for in every pass, which a processor without idle units
feels: see docs/speculation.md for what it costs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from genai_runtime.executor.rows import Logits
from genai_runtime.speculation.method import Branch, Draft, Foresee

MOST_FIRST_TOKENS = 4096
"""Tokens that the pool has n-grams for, of one sequence; the one that came up longest ago goes."""


@dataclass
class _Sequence:
    """A sequence's window and pool.

    Attributes:
        newest: The last known token.
        levels: int [N - 1, W]; column i holds guesses for the places i, i + 1, ... behind the
            newest token. Level 0, column 0 is the newest token itself.
        pool: First token -> the N - 1 tokens behind it, the latest last.
        proposed: A draft with the window is out.
    """

    newest: int
    levels: NDArray[np.int64]
    pool: OrderedDict[int, OrderedDict[tuple[int, ...], None]] = field(default_factory=OrderedDict)
    proposed: bool = False


class Lookahead:
    """See the module's docstring.

    Args:
        window: W, columns.
        ngram: N, at least 2.
        gcap: G, n-grams that are kept for a first token.
    """

    name = "lookahead"
    free = False

    def __init__(self, *, window: int, ngram: int, gcap: int) -> None:
        self._window, self._ngram, self._gcap = window, ngram, gcap
        self._offsets, self._sees = _layout(window, ngram - 1)
        self._sequences: dict[int, _Sequence] = {}

    def branch_tokens(self, guesses: int) -> int:
        """The window, whatever is guessed beside it."""
        del guesses
        return len(self._offsets)

    def start(self, key: int, tokens: Sequence[int], foresee: Foresee | None = None) -> None:
        """Fill the window with tokens of the prompt: any will do, the model improves them."""
        del foresee
        random = np.random.default_rng(len(tokens))
        levels = random.choice(np.asarray(tokens), (self._ngram - 1, self._window))
        self._sequences[key] = _Sequence(int(tokens[-1]), levels.astype(np.int64))

    def propose(self, wanted: Mapping[int, int]) -> dict[int, Draft]:
        """The latest n-gram of each newest token, and every window."""
        drafts = {}
        for key, count in wanted.items():
            sequence = self._sequences[key]
            known = sequence.pool.get(sequence.newest)
            guesses = next(reversed(known)) if known else ()
            branch = Branch(
                tuple(sequence.levels.reshape(-1)[1:].tolist()), self._offsets, self._sees
            )
            drafts[key] = Draft(guesses[:count], branch)
            sequence.proposed = True
        return drafts

    def extend(self, key: int, tokens: Sequence[int], branch: Logits | None = None) -> None:
        """Take the window one step on, and its n-grams into the pool."""
        sequence = self._sequences[key]
        if branch is not None and sequence.proposed:
            self._step(sequence, branch, tokens)
        sequence.proposed = False
        sequence.newest = int(tokens[-1])
        sequence.levels[0, 0] = sequence.newest

    def finish(self, key: int) -> None:
        """Forget a sequence."""
        self._sequences.pop(key, None)

    def cache_bytes(self, tokens: int) -> int:
        """Nothing: windows stand in the target's slot, for one pass."""
        del tokens
        return 0

    def close(self) -> None:
        """Forget all."""
        self._sequences.clear()

    def _step(self, sequence: _Sequence, branch: Logits, tokens: Sequence[int]) -> None:
        levels = sequence.levels
        behind = branch[-self._window :].argmax(axis=1)
        if behind.size < self._window:  # one level: behind its column 0 the model wrote a token
            behind = np.concatenate([np.asarray(tokens[:1]), behind])
        for column in range(self._window):
            self._keep(sequence, [*levels[:, column].tolist(), int(behind[column])])
        moved = np.concatenate([levels[1:], behind[None]])
        sequence.levels = np.roll(moved, 1 - len(tokens), axis=1)  # column 0 is the newest's place

    def _keep(self, sequence: _Sequence, tokens: list[int]) -> None:
        known = sequence.pool.setdefault(tokens[0], OrderedDict())
        sequence.pool.move_to_end(tokens[0])
        gram = tuple(tokens[1:])
        known[gram] = None
        known.move_to_end(gram)
        if len(known) > self._gcap:
            known.popitem(last=False)
        if len(sequence.pool) > MOST_FIRST_TOKENS:
            sequence.pool.popitem(last=False)


def _layout(window: int, levels: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Positions and mask of a window without its first token, level by level.

    A token sees the first level up to its own column, and its own column above it.
    """
    level, column = (axis.reshape(-1) for axis in np.indices((levels, window)))
    of_first = (level[None] == 0) & (column[None] <= column[:, None])
    above = (column[None] == column[:, None]) & (level[None] <= level[:, None])
    return (level + column)[1:].astype(np.int64), (of_first | above)[1:, 1:]
