"""One sequence: what generation, evaluation and golden prompts speak to.

A session hides how tokens become logits. It is a view of one slot of an executor, so whatever runs
rows also runs sessions.

    session.reset()
    logits = session.forward(prompt)          # [T, V]: row i predicts the token behind prompt[i]
    logits = session.forward(next_token)      # appends to the cache
    session.truncate(session.length - 1)      # forget the last token again
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from genai_runtime.executor.executor import Executor
from genai_runtime.executor.row_checks import checked_tokens
from genai_runtime.executor.rows import (
    AdapterUse,
    Embeddings,
    Logits,
    Row,
    Tokens,
    Tree,
    Want,
)

__all__ = ["Logits", "Session", "SlotSession", "Tokens", "in_chunks"]


@runtime_checkable
class Session(Protocol):
    """One sequence with its cache. Not thread safe."""

    @property
    def context_length(self) -> int:
        """The most tokens that the cache can hold."""
        ...

    @property
    def vocab_size(self) -> int:
        """V, the last axis of the logits."""
        ...

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        ...

    def reset(self) -> None:
        """Empty the cache."""
        ...

    def forward(self, tokens: Tokens, tree: Tree | None = None) -> Logits:
        """Append `tokens` ([T], T >= 1) to the cache and return float32 logits [T, V].

        The returned array belongs to the caller; later calls do not change it.

        Args:
            tokens: What is read.
            tree: How they relate, where they are no chain.

        Raises:
            BadInput: A token id is outside the vocabulary, the array is not a vector of integers
                or is empty, or the context length would be exceeded; a tree where the executor
                takes none. The cache is then unchanged.
        """
        ...

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens of the cache (0 <= length <= self.length).

        Raises:
            BadInput: `length` is outside that range.
        """
        ...

    def close(self) -> None:
        """Give memory and handles back; the session is unusable afterwards."""
        ...


class SlotSession:
    """A slot of an executor as a `Session`.

    Args:
        executor: Where the slot is opened. It is this session's own: closing the session closes it.
        worn: Adapters of every pass.

    Attributes:
        states_wanted: Passes yield the executor's states too.
        states: [T, S] of the last pass, where they were wanted.
    """

    def __init__(self, executor: Executor, worn: Sequence[AdapterUse] = ()) -> None:
        self._executor = executor
        self._worn = tuple(worn)
        self._slot = executor.open()
        self.states_wanted = False
        self.states: NDArray[np.float32] | None = None

    @property
    def executor(self) -> Executor:
        """What runs it."""
        return self._executor

    @property
    def context_length(self) -> int:
        """The most tokens that the cache can hold."""
        return self._executor.context_length

    @property
    def vocab_size(self) -> int:
        """Last axis of the logits."""
        return self._executor.vocab_size

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._executor.length(self._slot)

    def reset(self) -> None:
        """Empty the cache."""
        self._executor.truncate(self._slot, 0)

    def forward(self, tokens: Tokens, tree: Tree | None = None) -> Logits:
        """Append tokens; logits of each. See `Session.forward`."""
        return self._forward(tokens, tree, None)

    def forward_embedded(self, tokens: Tokens, embeddings: Embeddings) -> Logits:
        """Append tokens, in some places embeddings instead; logits of each. See `Row`."""
        return self._forward(tokens, None, embeddings)

    def _forward(self, tokens: Tokens, tree: Tree | None, embeddings: Embeddings | None) -> Logits:
        row = Row(
            self._slot,
            tokens,
            want=Want.ALL,
            adapters=self._worn,
            tree=tree,
            states=self.states_wanted,
            embeddings=embeddings,
        )
        (output,) = self._executor.forward([row])
        self.states = output.states
        return output.logits

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens."""
        self._executor.truncate(self._slot, length)

    def release(self) -> None:
        """Free the slot alone: the executor goes on."""
        self._executor.free(self._slot)

    def close(self) -> None:
        """Free slot and executor."""
        self._executor.close()


LOGITS_PER_CHUNK = 16 * 1024 * 1024
"""Elements of logits held at once (64 MB): a vocabulary of 150,000 makes chunks of 111 tokens."""

TOKENS_PER_CHUNK = 512
"""Attention holds heads x new tokens x all tokens of scores: 0.3 GB at 32 heads and 4096."""


def in_chunks(
    session: Session, tokens: Tokens, embeddings: Embeddings | None = None
) -> Iterator[Logits]:
    """Forward `tokens` in pieces whose logits stay small; yields the logits of each piece.

    All tokens are checked before the first pass, so a refused text leaves the cache unchanged.

    Args:
        session: What reads them; a `SlotSession` where there are embeddings.
        tokens: [T].
        embeddings: What stands in places of these tokens.
    """
    array = checked_tokens(tokens, session, session.length)
    size = max(1, min(LOGITS_PER_CHUNK // session.vocab_size, TOKENS_PER_CHUNK))
    for start in range(0, array.size, size):
        piece = array[start : start + size]
        instead = embeddings and embeddings.between(start, start + size)
        if instead is None:
            yield session.forward(piece)
            continue
        assert isinstance(session, SlotSession)
        yield session.forward_embedded(piece, instead)
