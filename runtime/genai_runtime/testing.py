"""A session that needs no model, for tests of whatever drives one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from genai_runtime.session import Logits, Tokens, checked_tokens, checked_truncation


class ScriptedSession:
    """Logits that depend on the whole history through a small recurrent sum.

    Row i depends on tokens 0 .. i and nothing else, so chunks, truncation and resetting must give
    what one pass gives, as with a real model.

    Args:
        vocab_size: V.
        context_length: Slots.
        seed: Of the table that maps states to logits.
    """

    def __init__(self, *, vocab_size: int = 17, context_length: int = 64, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self._table: NDArray[np.float64] = random.normal(size=(257, vocab_size))
        self._context_length = context_length
        self._tokens: list[int] = []
        self.passes: list[int] = []
        """Tokens of each call of `forward`."""
        self.closed = False

    @property
    def context_length(self) -> int:
        """Slots of the cache."""
        return self._context_length

    @property
    def vocab_size(self) -> int:
        """Last axis of the logits."""
        return int(self._table.shape[1])

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return len(self._tokens)

    def reset(self) -> None:
        """Empty the cache."""
        self._tokens = []

    def forward(self, tokens: Tokens) -> Logits:
        """Append tokens; logits of each."""
        array = checked_tokens(tokens, self)
        self.passes.append(array.size)
        rows = []
        for token in array:
            self._tokens.append(int(token))
            rows.append(self._table[self._state()])
        return np.asarray(rows, dtype=np.float32)

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens."""
        self._tokens = self._tokens[: checked_truncation(length, self)]

    def close(self) -> None:
        """Remember that it was called."""
        self.closed = True

    def _state(self) -> int:
        state = 1
        for token in self._tokens:
            state = (state * 31 + token + 7) % 257
        return state
