"""Speculation as the engine uses it: what is guessed for whom in a pass, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from genai_runtime.executor.rows import Logits, Row, Want
from genai_runtime.sampling import Typical
from genai_runtime.speculation.control import Counts, Gain, Room, Speculation
from genai_runtime.speculation.method import NOTHING, Draft, Foresee
from genai_serving.scheduler import Step, Work


class Guesses:
    """Drafts of the pass that runs now.

    Args:
        speculation: Its own; None = nothing is ever guessed.
    """

    def __init__(self, speculation: Speculation | None = None) -> None:
        self._speculation = speculation
        self._drafts: dict[int, Draft] = {}

    @property
    def counts(self) -> Counts | None:
        """Of all drafts so far; None where nothing is guessed."""
        return None if self._speculation is None else self._speculation.counts

    @property
    def places(self) -> int:
        """Of a slot, beyond what a sequence's own tokens need."""
        return 0 if self._speculation is None else self._speculation.branch_tokens

    def cache_bytes(self, tokens: int) -> int:
        """Memory of a sequence beside the target's slot."""
        return 0 if self._speculation is None else self._speculation.cache_bytes(tokens)

    def start(self, key: int, prompt: NDArray[np.int64], foresee: Foresee, salt: str) -> None:
        """A sequence has read its prompt and is to be guessed for."""
        if self._speculation is not None:
            self._speculation.start(key, prompt.tolist(), foresee, scope=salt)

    def pin(self, prompt: NDArray[np.int64]) -> None:
        """Many prompts will begin as this one."""
        if self._speculation is not None:
            self._speculation.pin(prompt.tolist(), "")

    @property
    def observes(self) -> bool:
        """Whether rows have to yield the model's states."""
        return self._speculation is not None and self._speculation.observes

    @property
    def typical(self) -> Typical | None:
        """How samplers keep guesses that they did not draw; None = never."""
        return None if self._speculation is None else self._speculation.typical

    def observe(self, key: int, start: int, states: NDArray[np.float32]) -> None:
        """The model's states of a sequence's tokens from `start` on."""
        if self._speculation is not None:
            self._speculation.observe(key, start, states)

    def wanted(self, rooms: Mapping[int, Room]) -> dict[int, int]:
        """Tokens that guesses would add to the next pass, by sequence."""
        if self._speculation is None or not rooms:
            return {}
        return self._speculation.wanted(rooms)

    def propose(self, step: Step, writing: Iterable[int]) -> Step:
        """Guess what was granted; the step with what there is."""
        if self._speculation is None:
            return step
        granted = {work.key: work.guesses for work in step.work if work.guesses}
        self._drafts = self._speculation.propose(granted, list(writing))
        return step.with_guesses({key: draft.size for key, draft in self._drafts.items()})

    def of(self, work: Work) -> Draft:
        """The draft that a row verifies."""
        return self._drafts.get(work.key, NOTHING) if work.guesses else NOTHING

    def row(self, work: Work, row: Row) -> Row:
        """A row of one token as one that verifies its draft."""
        draft = self.of(work)
        if not draft.size:
            return row
        tokens = draft.row(int(row.tokens[-1]))
        return replace(row, tokens=tokens, want=Want.ALL, tree=draft.tree(work.start))

    def extend(self, work: Work, written: Sequence[int], logits: Logits) -> None:
        """A sequence wrote tokens; `logits` are all of its row's."""
        if self._speculation is not None:
            draft = self.of(work)
            branch = logits[1 + len(draft.tokens) :] if draft.branch is not None else None
            self._speculation.extend(work.key, written, branch)

    def took(self, step: Step, writing: Iterable[int], seconds: float) -> None:
        """A pass took so long; one with prompts in it tells nothing of guesses."""
        if self._speculation is None or {work.key for work in step.work} - set(writing):
            return
        extra = sum(work.guesses for work in step.work)
        self._speculation.observe_pass(len(step.work), extra, seconds)

    @property
    def gain(self) -> Gain | None:
        """What was won so far; None where nothing is guessed."""
        return None if self._speculation is None else self._speculation.gain

    def wrote(self, tokens: int) -> None:
        """A row of the pass yielded so many tokens."""
        if self._speculation is not None:
            self._speculation.wrote(tokens)

    def finish(self, key: int) -> Counts | None:
        """A sequence has ended; what came of its drafts."""
        return None if self._speculation is None else self._speculation.finish(key)

    def close(self) -> None:
        """Close the method."""
        if self._speculation is not None:
            self._speculation.close()
