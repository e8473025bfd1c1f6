"""What the next pass does: a pure function of who waits and who runs.

    step = scheduler.schedule()              # changes nothing
    ... run it ...
    ended = scheduler.update(step, finished={...})

A sequence is admitted in the order of arrival, when a slot is free and its whole need of memory
(prompt and answer) fits beside those that run: so what runs is never put out again, and whoever
waits longest comes next. In a pass every sequence that is writing gets its one token; what is left
of the pass's budget goes to prompts, the oldest first, and what they leave to guesses (see
`genai_runtime.speculation`), shared evenly. There is no clock here: times are given.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from genai_core.errors import BadInput, GenAIError


class QueueFull(GenAIError):
    """As many requests wait as may."""

    code = "QueueFull"


class TooLarge(BadInput):
    """A request that would never fit, however long it waited."""

    code = "TooLarge"


@dataclass(frozen=True)
class ServingLimits:
    """What the server gives out.

    Attributes:
        sequences: That run at once; each has a slot.
        tokens: Of a pass; at least `sequences`, so that all who write get their token.
        waiting: Sequences that may wait for a slot or for memory.
        cache_bytes: Memory of all slots together.
        prefix_bytes: What of it idle slots may keep; they give way to whoever comes.
    """

    sequences: int
    tokens: int
    waiting: int
    cache_bytes: int
    prefix_bytes: int = 0

    def __post_init__(self) -> None:
        """Refuse limits under which something would wait for ever.

        Raises:
            BadInput: A limit is below what the others need.
        """
        if self.sequences < 1 or self.waiting < 0 or self.cache_bytes < 1:
            raise BadInput("sequences and cache must be at least 1, the queue 0", where="limits")
        if self.tokens < self.sequences:
            raise BadInput(
                f"{self.tokens} tokens in a pass are fewer than {self.sequences} sequences",
                where="limits",
            )


@dataclass(frozen=True)
class Sequence:
    """What is asked for.

    Attributes:
        key: Names it; unique.
        prompt: Tokens of the prompt, at least 1.
        most: Tokens of the answer, at least 1.
        cache_bytes: Memory that prompt and answer take.
        deadline: When it must have ended; None = whenever.
    """

    key: int
    prompt: int
    most: int
    cache_bytes: int
    deadline: float | None = None


@dataclass(frozen=True)
class SequenceProgress:
    """A running sequence.

    Attributes:
        asked: What for.
        held: Tokens in its slot.
        written: Tokens of its answer; the last one is in the slot after the next pass only.
    """

    asked: Sequence
    held: int = 0
    written: int = 0

    @property
    def left(self) -> int:
        """Known tokens that its slot does not hold yet."""
        return self.asked.prompt + self.written - self.held

    @property
    def writing(self) -> bool:
        """Its prompt was read."""
        return self.written > 0


@dataclass(frozen=True)
class Work:
    """What a sequence does in a pass.

    Attributes:
        key: Whose.
        start: Tokens in its slot before: what was computed, or is taken from a cache.
        count: Tokens that it appends.
        yields: A token of the answer comes out; more where guesses come true.
        guesses: So many of `count` are guesses, and what else their method wants computed.
    """

    key: int
    start: int
    count: int
    yields: bool
    guesses: int = 0


@dataclass(frozen=True)
class Step:
    """One pass.

    Attributes:
        admitted: Sequences that need a slot first, in order.
        work: At most `ServingLimits.sequences`, together at most `ServingLimits.tokens` tokens.
    """

    admitted: tuple[int, ...]
    work: tuple[Work, ...]

    def with_guesses(self, sizes: Mapping[int, int]) -> Step:
        """It with as many guesses as there really are: no more than were granted."""
        work = [
            replace(one, count=1 + size, guesses=size)
            if one.guesses != (size := min(one.guesses, sizes.get(one.key, 0)))
            else one
            for one in self.work
        ]
        return replace(self, work=tuple(work))


def _nothing_cached(_key: int) -> int:
    return 0


class Scheduler:
    """See the module's docstring."""

    def __init__(self, limits: ServingLimits) -> None:
        self.limits = limits
        self._waiting: dict[int, Sequence] = {}
        self._running: dict[int, SequenceProgress] = {}

    @property
    def waiting(self) -> tuple[int, ...]:
        """Who waits, the longest first."""
        return tuple(self._waiting)

    @property
    def running(self) -> tuple[int, ...]:
        """Who runs, the longest first."""
        return tuple(self._running)

    @property
    def reserved_bytes(self) -> int:
        """Memory that those who run may come to take."""
        return sum(progress.asked.cache_bytes for progress in self._running.values())

    def check(self, sequence: Sequence, *, beside: int = 0) -> None:
        """Whether a sequence may be queued.

        Args:
            sequence: That comes.
            beside: Sequences that wait for something else and come later.

        Raises:
            TooLarge: It needs more memory than all slots may have.
            QueueFull: As many wait as may.
            ValueError: Its key is taken, or it asks for nothing.
        """
        if sequence.key in self._waiting or sequence.key in self._running:
            raise ValueError(f"sequence {sequence.key} is there already")
        if sequence.prompt < 1 or sequence.most < 1:
            raise ValueError("a sequence has a prompt and an answer of at least one token")
        if sequence.cache_bytes > self.limits.cache_bytes:
            raise TooLarge(
                f"{sequence.prompt} prompt tokens and {sequence.most} more take "
                f"{mebibytes(sequence.cache_bytes)} MiB of cache, the server has "
                f"{mebibytes(self.limits.cache_bytes)} MiB",
                remedy="shorten the prompt or ask for fewer tokens",
            )
        self._waiting[sequence.key] = sequence
        stuck = len(self._waiting) + beside - len(tuple(self._admitted()))
        del self._waiting[sequence.key]
        if stuck > self.limits.waiting:
            raise QueueFull(
                f"{len(self._running)} sequences run and {len(self._waiting) + beside} wait, no "
                f"more may; {mebibytes(self.reserved_bytes)} of "
                f"{mebibytes(self.limits.cache_bytes)} MiB of cache are taken and this request "
                f"needs {mebibytes(sequence.cache_bytes)} MiB",
                remedy="try again later",
            )

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises:
            GenAIError: As `check`.
        """
        self.check(sequence)
        self._waiting[sequence.key] = sequence

    def come(self, sequence: Sequence) -> None:
        """Queue a sequence that was checked when it began to wait for something else."""
        self._waiting[sequence.key] = sequence

    def cancel(self, key: int) -> bool:
        """Take a sequence out; whether it was there."""
        there = self._waiting.pop(key, None) or self._running.pop(key, None)
        return there is not None

    def overdue(self, now: float) -> tuple[int, ...]:
        """Who is past the deadline."""
        asked = [*self._waiting.values(), *(p.asked for p in self._running.values())]
        return tuple(s.key for s in asked if s.deadline is not None and s.deadline <= now)

    def schedule(
        self,
        cached: Callable[[int], int] = _nothing_cached,
        wanted: Mapping[int, int] | None = None,
    ) -> Step:
        """The next pass; nothing to do where nobody waits and nobody runs.

        Args:
            cached: Tokens of a sequence's prompt, fewer than all, that its slot can begin with.
                Asked when its first tokens are due and not sooner: who reads the same prompt
                before it has got further by then.
            wanted: Tokens that guesses would add to the pass, by sequences that write.
        """
        admitted = tuple(self._admitted())
        members = dict(self._running)
        members |= {key: SequenceProgress(self._waiting[key]) for key in admitted}
        budget = self.limits.tokens - sum(progress.writing for progress in members.values())
        work = []
        for key, progress in members.items():
            if progress.writing:
                work.append(Work(key, progress.held, progress.left, yields=True))
            elif budget:
                held = progress.held or cached(key)
                left = progress.asked.prompt - held
                count = min(left, budget)
                budget -= count
                work.append(Work(key, held, count, yields=count == left))
        return Step(admitted, tuple(_shared(work, budget, wanted or {})))

    def update(
        self,
        step: Step,
        *,
        finished: Collection[int] = (),
        written: Mapping[int, int] | None = None,
    ) -> tuple[int, ...]:
        """Take over what a pass did.

        Args:
            step: As `schedule` gave it; sequences that were cancelled since are passed over.
            finished: Who reached an end token or the like.
            written: Tokens that came out, where it was not one: guesses came true. The slot then
                holds as many tokens more.

        Returns:
            Who has ended: those that finished, and those whose answer is as long as it may be.
        """
        for key in step.admitted:
            if key in self._waiting:
                self._running[key] = SequenceProgress(self._waiting.pop(key))
        ended = []
        for work in step.work:
            before = self._running.get(work.key)
            if before is None:
                continue
            new = (written or {}).get(work.key, 1) if work.yields else 0
            held = work.start + (new if work.guesses else work.count)
            after = SequenceProgress(before.asked, held, before.written + new)
            self._running[work.key] = after
            if work.key in finished or after.written >= after.asked.most:
                del self._running[work.key]
                ended.append(work.key)
        return tuple(ended)

    def progress(self, key: int) -> SequenceProgress | None:
        """How far a running sequence is."""
        return self._running.get(key)

    def _admitted(self) -> Iterator[int]:
        """Who gets a slot now: from the front of the queue, and nobody past another."""
        slots = self.limits.sequences - len(self._running)
        memory = self.limits.cache_bytes - self.reserved_bytes
        for key, sequence in self._waiting.items():
            if slots < 1 or sequence.cache_bytes > memory:
                return
            slots -= 1
            memory -= sequence.cache_bytes
            yield key


def _shared(work: list[Work], budget: int, wanted: Mapping[int, int]) -> Iterator[Work]:
    """The work with what is left of a pass's budget given to guesses, as evenly as they want."""
    asking = sum(one.key in wanted for one in work)
    for one in work:
        size = 0
        if one.key in wanted:
            size = max(0, min(wanted[one.key], budget // asking))
            asking -= 1
            budget -= size
        yield replace(one, count=1 + size, guesses=size) if size else one


def mebibytes(size: int) -> str:
    """A number of bytes, for messages."""
    return f"{size / (1 << 20):.1f}"
