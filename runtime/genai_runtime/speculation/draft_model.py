"""A smaller model of the same vocabulary writes ahead (Leviathan et al. 2023).

Its tokens are taken as the sequence's own are, with the very draws that will be made: where the
two models agree on a distribution, guesses come true also at a temperature.

It has slots of its own, one a sequence, and reads no adapter. Drafts of several sequences share
its passes. A prompt is read in chunks, one a proposal, so that nobody waits for a long one; what
an earlier sequence of the same scope began with is not read again, where beginnings are kept.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from genai_runtime.executor.executor import Executor
from genai_runtime.executor.rows import Logits, Row, Want
from genai_runtime.prefixes.cache import Held, PrefixCache
from genai_runtime.prefixes.prefix_files import PrefixFiles
from genai_runtime.speculation.method import Draft, Foresee, OpenBeginnings

CHUNK = 128
"""Tokens of a prompt that one proposal reads."""


@dataclass
class _Sequence:
    """What the draft model knows of a sequence.

    Attributes:
        tokens: All known ones.
        scope: With whom it shares what is kept.
        guesses: The draft behind them that was proposed last.
    """

    slot: int
    tokens: list[int]
    foresee: Foresee | None
    scope: Hashable
    guesses: list[int] = field(default_factory=list)


class DraftModel:
    """See the module's docstring.

    Args:
        executor: The draft model's; this method's own.
        vocab_size: Of the target. The draft's may be larger or smaller by padding.
    """

    name = "draft_model"
    free = False

    def __init__(self, executor: Executor, *, vocab_size: int) -> None:
        self._executor = executor
        self._vocab_size = vocab_size
        self._sequences: dict[int, _Sequence] = {}
        self._cache: PrefixCache | None = None
        self._files: PrefixFiles | None = None
        self._scopes: dict[int, Hashable] = {}

    def keep_beginnings(self, open_cache: OpenBeginnings) -> None:
        """See `Keeping`."""
        self._cache, self._files = open_cache(self._executor)

    def share(self, key: int, scope: Hashable) -> None:
        """See `Keeping`."""
        self._scopes[key] = scope

    def pin(self, tokens: Sequence[int], scope: Hashable) -> None:
        """See `Keeping`; a beginning that this model cannot follow is left out."""
        fits = len(tokens) < self._executor.context_length
        if self._cache is None or not fits or max(tokens) >= self._executor.vocab_size:
            return
        # One token more, which is not read: of a prompt all but the last is looked for.
        slot = self._begun([*tokens, 0], scope)
        while unread := tokens[self._executor.length(slot) :][:CHUNK]:
            self._executor.forward([Row(slot, np.asarray(unread), want=Want.NONE)])
        held = Held(slot, scope, np.asarray(tokens, np.int64))
        if self._files is not None:
            self._files.save(held)
        self._cache.pin(held)

    def branch_tokens(self, guesses: int) -> int:
        """None."""
        del guesses
        return 0

    def start(self, key: int, tokens: Sequence[int], foresee: Foresee | None = None) -> None:
        """Have a slot, with what is kept of such a beginning; nothing is read yet."""
        scope = self._scopes.pop(key, None)
        slot = self._begun(tokens, scope)
        self._sequences[key] = _Sequence(slot, [int(token) for token in tokens], foresee, scope)

    def _begun(self, tokens: Sequence[int], scope: Hashable) -> int:
        """A slot that holds as much of a text as is kept, but not its last token."""
        if self._cache is None:
            return self._executor.open()
        text = np.asarray(tokens, np.int64)
        match = self._cache.find(scope, text)
        shared = 0 if match is None else match.tokens
        fits = text.size <= self._executor.context_length
        if self._files is not None and fits:
            slot = self._files.load(scope, text, beyond=shared)
            if slot is not None:
                return slot
        if match is None:
            return self._executor.open()
        most = self._executor.cache_bytes(self._executor.context_length)
        return self._cache.take(match, most_bytes=most)

    def propose(self, wanted: Mapping[int, int]) -> dict[int, Draft]:
        """As many passes as the longest draft has tokens; who still reads a prompt has no guess."""
        executor = self._executor
        rows, counts = [], {}
        for key, count in wanted.items():
            sequence = self._sequences[key]
            unread = sequence.tokens[executor.length(sequence.slot) :]
            room = executor.context_length - len(sequence.tokens)
            if room < 1 or not unread or max(unread) >= executor.vocab_size:
                continue  # it cannot follow the target any further
            rows.append((key, unread[:CHUNK]))
            if len(unread) <= CHUNK:
                counts[key] = min(count, room)
        drafts: dict[int, list[int]] = {}
        while rows:
            outputs = executor.forward(
                [Row(self._sequences[key].slot, np.asarray(tokens)) for key, tokens in rows]
            )
            behind = []
            for (key, _), output in zip(rows, outputs, strict=True):
                if key not in counts:
                    continue
                known = drafts.setdefault(key, [])
                guess = self._taken(output.logits[-1], len(known), self._sequences[key].foresee)
                known.append(guess)
                if len(known) < counts[key] and guess < executor.vocab_size:
                    behind.append((key, [guess]))
            rows = behind
        for key, guesses in drafts.items():
            self._sequences[key].guesses = guesses
        return {key: Draft(tuple(guesses)) for key, guesses in drafts.items()}

    def _taken(self, logits: NDArray[np.float32], place: int, foresee: Foresee | None) -> int:
        """A token of the target's vocabulary."""
        fitting = np.full(self._vocab_size, -np.inf, np.float32)
        shared = min(self._vocab_size, logits.size)
        fitting[:shared] = logits[:shared]
        return int(fitting.argmax()) if foresee is None else foresee(fitting, place)

    def extend(self, key: int, tokens: Sequence[int], branch: Logits | None = None) -> None:
        """Keep what the slot holds of guesses that came true."""
        del branch
        sequence = self._sequences[key]
        right = 0
        for guess, token in zip(sequence.guesses, tokens, strict=False):
            if guess != token:
                break
            right += 1
        held = self._executor.length(sequence.slot)
        self._executor.truncate(sequence.slot, min(held, len(sequence.tokens) + right))
        sequence.tokens += [int(token) for token in tokens]
        sequence.guesses = []

    def finish(self, key: int) -> None:
        """Free the slot, or keep it."""
        sequence = self._sequences.pop(key, None)
        if sequence is None:
            return
        if self._cache is None:
            self._executor.free(sequence.slot)
            return
        # What stands behind the known tokens are guesses that nobody looked at.
        size = min(self._executor.length(sequence.slot), len(sequence.tokens))
        self._executor.truncate(sequence.slot, size)
        held = Held(sequence.slot, sequence.scope, np.asarray(sequence.tokens[:size], np.int64))
        if self._files is not None:
            self._files.save(held)
        self._cache.keep(held)

    def cache_bytes(self, tokens: int) -> int:
        """Keys and values of a slot."""
        return self._executor.cache_bytes(min(tokens, self._executor.context_length))

    def close(self) -> None:
        """Close the model."""
        self._sequences.clear()
        if self._files is not None:
            self._files.close()
        if self._cache is not None:
            self._cache.close()
        self._executor.close()
