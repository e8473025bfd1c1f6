"""A head guesses from the model's own hidden states (Li et al., EAGLE, 2024; EAGLE-3, 2025).

Entry i of the head's cache is made of token i + 1 and the model's hidden states of token i; its
logits are about token i + 2. While it drafts, its own state of the entry before stands in for the
model's. Such entries are dropped again, and made anew of the model's states once tokens are known.

It has slots of its own, one a sequence, and drafts of several sequences share its passes. A prompt
is read in chunks, one a proposal. Where hidden states of a prompt's beginning are not known, since
its keys and values came out of a cache, the head begins behind it: it guesses from a shorter text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from genai_runtime.executor.executor import Executor
from genai_runtime.executor.rows import Logits, Row, Want
from genai_runtime.speculation.method import Draft, Foresee

CHUNK = 128
"""Entries of a prompt that one proposal reads."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Head:
    """How an EAGLE head is driven.

    Attributes:
        executor: Runs it; the method's own.
        features: Input of the model's hidden states.
        hidden: Input of its own state, [T, H]; may be the same.
        feedback: Output that is given back.
        token_map: [draft ids] the model's ids; None = they are the same.
    """

    executor: Executor
    features: str
    hidden: str
    feedback: str
    token_map: NDArray[np.int64] | None = None

    @property
    def features_size(self) -> int:
        """Width of the model's hidden states beside one another."""
        return self.executor.given[self.features]

    def of_model(self, states: Floats) -> dict[str, Floats]:
        """Its inputs for entries of the model's states [T, F]."""
        return {**self._nothing(len(states)), self.features: states}

    def of_itself(self, states: Floats) -> dict[str, Floats]:
        """Its inputs for entries of its own states [T, H]."""
        return {**self._nothing(len(states)), self.hidden: states}

    def states(self, output: Floats) -> Floats:
        """What is given back, of a row's states [T, S]."""
        start = 0
        for name, width in self.executor.states.items():
            if name == self.feedback:
                return output[:, start : start + width]
            start += width
        raise KeyError(self.feedback)

    def spread(self, logits: NDArray[np.float32], vocab_size: int) -> NDArray[np.float32]:
        """Its logits [draft ids] over the model's tokens [V]; tokens that it lacks are -inf."""
        spread = np.full(vocab_size, -np.inf, np.float32)
        if self.token_map is None:
            shared = min(vocab_size, logits.size)
            spread[:shared] = logits[:shared]
        else:
            spread[self.token_map] = logits
        return spread

    def _nothing(self, count: int) -> dict[str, Floats]:
        return {
            name: np.zeros((count, width), np.float32)
            for name, width in self.executor.given.items()
        }


@dataclass
class _Sequence:
    """What the head knows of a sequence.

    Attributes:
        slot: Its own.
        tokens: All known ones.
        first: The token whose states made the slot's first entry.
        unread: Hidden states of the tokens behind those that the slot has entries of.
    """

    slot: int
    tokens: list[int]
    foresee: Foresee | None
    first: int = 0
    unread: list[Floats] = field(default_factory=list)


class Eagle:
    """See the module's docstring.

    Args:
        head: This method's own.
        vocab_size: Of the model.
    """

    name = "eagle"
    free = False

    def __init__(self, head: Head, *, vocab_size: int) -> None:
        self._head = head
        self._executor = head.executor
        self._vocab_size = vocab_size
        self._sequences: dict[int, _Sequence] = {}

    def branch_tokens(self, guesses: int) -> int:
        """None."""
        del guesses
        return 0

    def start(self, key: int, tokens: Sequence[int], foresee: Foresee | None = None) -> None:
        """Open a slot; nothing is read yet."""
        slot = self._executor.open()
        self._sequences[key] = _Sequence(slot, [int(token) for token in tokens], foresee)

    def observe(self, key: int, start: int, states: Floats) -> None:
        """Keep the model's states until the head reads them. See `Observing`."""
        sequence = self._sequences[key]
        held = self._executor.length(sequence.slot) + sum(len(one) for one in sequence.unread)
        if start != sequence.first + held:  # nothing joins them with what is known
            self._executor.truncate(sequence.slot, 0)
            sequence.first, sequence.unread = start, []
        sequence.unread.append(states)

    def propose(self, wanted: Mapping[int, int]) -> dict[int, Draft]:
        """As many passes as the longest draft has tokens; who still reads a prompt has no guess."""
        executor, head = self._executor, self._head
        rows: list[tuple[int, list[int], dict[str, Floats]]] = []
        counts: dict[int, int] = {}
        for key, count in wanted.items():
            states = self._read(self._sequences[key], counts, key, count)
            if states is not None:
                rows.append(states)
        held = {key: 0 for key, _, _ in rows}
        drafts: dict[int, list[int]] = {}
        while rows:
            outputs = executor.forward(
                [
                    Row(
                        self._sequences[key].slot,
                        np.asarray(tokens),
                        want=Want.LAST,
                        states=True,
                        given=given,
                    )
                    for key, tokens, given in rows
                ]
            )
            behind = []
            for (key, _, _), output in zip(rows, outputs, strict=True):
                sequence = self._sequences[key]
                if not held[key]:
                    held[key] = executor.length(sequence.slot)
                if key not in counts:
                    continue
                known = drafts.setdefault(key, [])
                guess = self._taken(output.logits[-1], len(known), sequence.foresee)
                known.append(guess)
                if len(known) < counts[key]:
                    assert output.states is not None
                    given = head.of_itself(head.states(output.states[-1:]))
                    behind.append((key, [guess], given))
            rows = behind
        for key, length in held.items():
            executor.truncate(self._sequences[key].slot, length)
        return {key: Draft(tuple(guesses)) for key, guesses in drafts.items()}

    def _read(
        self, sequence: _Sequence, counts: dict[int, int], key: int, count: int
    ) -> tuple[int, list[int], dict[str, Floats]] | None:
        """The row of entries that are known and not made; its guesses are counted where it ends."""
        if not sequence.unread:
            return None
        length = self._executor.length(sequence.slot)
        states = np.concatenate(sequence.unread)
        begin = sequence.first + length + 1
        tokens = sequence.tokens[begin : begin + len(states)]
        room = self._executor.context_length - length
        if not tokens or len(tokens) < len(states) or room < min(len(states), CHUNK):
            return None  # it cannot follow the target any further
        if len(tokens) <= CHUNK:
            counts[key] = min(count, room - len(tokens) + 1)
            sequence.unread = []
        else:
            sequence.unread = [states[CHUNK:]]
        return key, tokens[:CHUNK], self._head.of_model(states[:CHUNK])

    def _taken(self, logits: NDArray[np.float32], place: int, foresee: Foresee | None) -> int:
        """A token of the model's vocabulary."""
        spread = self._head.spread(logits, self._vocab_size)
        return int(spread.argmax()) if foresee is None else foresee(spread, place)

    def extend(self, key: int, tokens: Sequence[int], branch: Logits | None = None) -> None:
        """Know what was written; entries of it are made of the model's states."""
        del branch
        self._sequences[key].tokens += [int(token) for token in tokens]

    def finish(self, key: int) -> None:
        """Free the slot."""
        sequence = self._sequences.pop(key, None)
        if sequence is not None:
            self._executor.free(sequence.slot)

    def cache_bytes(self, tokens: int) -> int:
        """Keys and values of a slot, and hidden states that wait to be read."""
        entries = min(tokens, self._executor.context_length)
        return self._executor.cache_bytes(entries) + 4 * self._head.features_size * tokens

    def close(self) -> None:
        """Close the head."""
        self._sequences.clear()
        self._executor.close()
