"""What every executor offers: one sequence, one key/value cache, logits for each new token.

A session hides how tokens become logits. The CPU executor runs one dynamic-T model; the htp
executor drives static graphs in the emulator, cutting and padding the tokens to their AR. Both
keep the cache inside, so that callers (generation, evaluation, golden prompts, speculation) speak
of tokens alone.

    session.reset()
    logits = session.forward(prompt)          # [T, V]: row i predicts the token behind prompt[i]
    logits = session.forward(next_token)      # appends to the cache
    session.truncate(session.length - 1)      # forget the last token again
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from genai_core.errors import BadInput

Tokens = NDArray[np.integer]
"""Token ids, [T], any integer dtype."""

Logits = NDArray[np.float32]
"""[T, V]; row i is the model's opinion of the token that follows token i."""


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

    def forward(self, tokens: Tokens) -> Logits:
        """Append `tokens` ([T], T >= 1) to the cache and return float32 logits [T, V].

        The returned array belongs to the caller; later calls do not change it.

        Raises:
            BadInput: A token id is outside the vocabulary, the array is not a vector of integers
                or is empty, or the context length would be exceeded. The cache is then unchanged.
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


def checked_tokens(tokens: Tokens, session: Session) -> NDArray[np.int64]:
    """The tokens as int64, after the checks that every executor's `forward` owes.

    Raises:
        BadInput: As `Session.forward` says.
    """
    array = np.asarray(tokens)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise BadInput(
            f"expected a vector of token ids, got {array.dtype} {list(array.shape)}",
            remedy="pass at least one token, as integers",
        )
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= session.vocab_size:
        raise BadInput(
            f"token id {low if low < 0 else high} is outside the vocabulary of "
            f"{session.vocab_size}",
            remedy="use the tokenizer of this model",
        )
    if session.length + array.size > session.context_length:
        raise BadInput(
            f"{session.length} tokens in the cache and {array.size} new ones exceed the context "
            f"length of {session.context_length}",
            remedy="shorten the prompt, or build for a longer context",
        )
    return array.astype(np.int64)


def checked_truncation(length: int, session: Session) -> int:
    """The new length, after the check that every executor's `truncate` owes.

    Raises:
        BadInput: It is negative or beyond the cache.
    """
    if not 0 <= length <= session.length:
        raise BadInput(f"cannot keep {length} of the {session.length} tokens in the cache")
    return length


LOGITS_PER_CHUNK = 16 * 1024 * 1024
"""Elements of logits held at once (64 MB): a vocabulary of 150,000 makes chunks of 111 tokens."""

TOKENS_PER_CHUNK = 512
"""Attention holds heads x new tokens x all tokens of scores: 0.3 GB at 32 heads and 4096."""


def in_chunks(session: Session, tokens: Tokens) -> Iterator[Logits]:
    """Forward `tokens` in pieces whose logits stay small; yields the logits of each piece.

    All tokens are checked before the first pass, so a refused text leaves the cache unchanged.
    """
    array = checked_tokens(tokens, session)
    size = max(1, min(LOGITS_PER_CHUNK // session.vocab_size, TOKENS_PER_CHUNK))
    for start in range(0, array.size, size):
        yield session.forward(array[start : start + size])
