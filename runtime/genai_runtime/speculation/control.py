"""Speculation for the sequences of an engine: how long drafts are, what came of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from genai_runtime.executor.rows import Logits
from genai_runtime.sampling import Typical
from genai_runtime.speculation.lengths import Costs, Length
from genai_runtime.speculation.method import (
    NOTHING,
    Draft,
    Foresee,
    Keeping,
    Method,
    Observing,
    OpenBeginnings,
)

_LOG = logging.getLogger("genai_runtime")


@dataclass
class Counts:
    """What came of drafts.

    Attributes:
        method: Whose.
        drafts: That were verified.
        guessed: Tokens of them.
        accepted: Tokens that cost no pass of their own.
        positions: By place in the draft, how many were accepted.
    """

    method: str
    drafts: int = 0
    guessed: int = 0
    accepted: int = 0
    positions: list[int] = field(default_factory=list)

    def add(self, guessed: int, accepted: int) -> None:
        """A draft was verified."""
        self.drafts += 1
        self.guessed += guessed
        self.accepted += accepted
        self.positions += [0] * (guessed - len(self.positions))
        for place in range(accepted):
            self.positions[place] += 1


@dataclass
class Gain:
    """What was won, over all passes of writing rows that a plain pass is known to compare with.

    Attributes:
        seconds: That they took, guessing included.
        plain: That plain passes would have taken for the same tokens.
    """

    seconds: float = 0.0
    plain: float = 0.0


@dataclass
class _Member:
    length: Length
    counts: Counts
    draft: Draft = NOTHING
    verified: bool = False


@dataclass(frozen=True)
class Room:
    """What a sequence has left beside its newest token.

    Attributes:
        answer: Tokens that it may still write, less one: the pass itself yields one.
        slot: Places of its cache.
    """

    answer: int
    slot: int


class Speculation:
    """A method, and lengths that follow what it achieves. Not thread safe.

        speculation.start(key, prompt)
        granted = speculation.wanted({key: Room(...)})  # tokens that a pass may have beyond one
        drafts = speculation.propose(granted)
        ... one pass over the rows [newest token, guesses, branch] ...
        speculation.extend(key, written, branch_logits)
        speculation.finish(key)

    Args:
        method: Its own; closed with it.
        most: Tokens of a draft.
        least: Never fewer, where there is room and a guess.
        adaptive: Choose the length between the two; else it is always `most`.
        typical: How samplers keep guesses that they did not draw; None = never.
        clock: Seconds.
    """

    def __init__(
        self,
        method: Method,
        *,
        most: int,
        least: int = 0,
        adaptive: bool = True,
        typical: Typical | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._method = method
        self._most, self._least, self._adaptive = most, least, adaptive
        self._clock = clock
        self.typical = typical
        self._members: dict[int, _Member] = {}
        self._all = Length(most)
        self._failed = False
        self.costs = Costs()
        self.counts = Counts(method.name, positions=[0] * most)
        self.gain = Gain()
        self._drafted = 0.0
        self._plain_token: float | None = None

    @property
    def name(self) -> str:
        """The method's."""
        return self._method.name

    @property
    def most(self) -> int:
        """Tokens of a draft at most."""
        return self._most

    @property
    def branch_tokens(self) -> int:
        """Tokens of a draft's branch at most."""
        return self._method.branch_tokens(self._most)

    def cache_bytes(self, tokens: int) -> int:
        """Memory that a sequence of so many tokens takes beside the target's."""
        return self._method.cache_bytes(tokens)

    def keep_beginnings(self, open_cache: OpenBeginnings) -> None:
        """Keep what the method has read, where it reads with a model of its own; see `Keeping`."""
        if isinstance(self._method, Keeping):
            self._method.keep_beginnings(open_cache)

    def pin(self, tokens: Sequence[int], scope: Hashable = None) -> None:
        """Many sequences will begin with these tokens; see `Keeping`."""
        method = self._method
        if isinstance(method, Keeping):
            self._try(lambda: method.pin(tokens, scope))

    def start(
        self,
        key: int,
        tokens: Sequence[int],
        foresee: Foresee | None = None,
        *,
        scope: Hashable = None,
    ) -> None:
        """A sequence begins to write behind these tokens; see `Method.start`, `Keeping`."""
        if not self._failed:
            if isinstance(self._method, Keeping):
                self._method.share(key, scope)
            self._try(lambda: self._method.start(key, tokens, foresee))
            self._members[key] = _Member(
                Length(self._most, self._least, prior=self._all.acceptance), Counts(self.name)
            )

    @property
    def observes(self) -> bool:
        """Whether the method guesses from hidden states; rows have to yield them then."""
        return isinstance(self._method, Observing)

    def observe(self, key: int, start: int, states: NDArray[np.float32]) -> None:
        """The model's states of a sequence's tokens from `start` on; see `Observing`."""
        method = self._method
        if key in self._members and isinstance(method, Observing):
            self._try(lambda: method.observe(key, start, states))

    def wanted(self, rooms: Mapping[int, Room]) -> dict[int, int]:
        """The most tokens that drafts of the next pass may add to it.

        Args:
            rooms: Of every sequence that writes, those without speculation too.
        """
        rows = len(rooms)
        if self._failed or (self._adaptive and self.costs.plain_is_due(rows)):
            return {}
        wanted = {}
        for key, room in rooms.items():
            member = self._members.get(key)
            if member is None:
                continue
            length = self._most
            if self._adaptive:
                length = member.length.chosen(
                    self.costs, rows, branch=self._method.branch_tokens, free=self._method.free
                )
            length = min(length, room.answer, self._guesses_within(room.slot))
            if length > 0:
                wanted[key] = length + self._method.branch_tokens(length)
        return wanted

    def propose(self, granted: Mapping[int, int], writing: Sequence[int] = ()) -> dict[int, Draft]:
        """Drafts that add at most so many tokens each.

        Args:
            granted: As `wanted`, or less.
            writing: Sequences that write without a draft: a method that costs nothing guesses for
                them too, only to be compared with what comes.
        """
        self._drafted, self._plain_token = 0.0, None
        counts = {
            key: guesses
            for key, tokens in granted.items()
            if key in self._members and (guesses := self._guesses_within(tokens)) > 0
        }
        asked = dict(counts)
        if self._method.free and self._adaptive:
            asked |= {key: 1 for key in writing if key in self._members and key not in counts}
        if self._failed or not asked:
            return {}
        began = self._clock()
        drafts: dict[int, Draft] = {}
        self._try(lambda: drafts.update(self._method.propose(asked)))
        self._drafted = self._clock() - began
        if counts:
            self.costs.observe_drafting(sum(counts.values()), self._drafted)
        chosen = {}
        for key, draft in drafts.items():
            member = self._members[key]
            member.draft, member.verified = draft, key in counts
            if member.verified:
                chosen[key] = draft
        return chosen

    def extend(self, key: int, tokens: Sequence[int], branch: Logits | None = None) -> None:
        """The model wrote tokens for a sequence.

        Args:
            key: Nothing happens where it is not known.
            tokens: What `accept` returned.
            branch: Logits of its draft's branch, where it had one.
        """
        member = self._members.get(key)
        if member is None:
            return
        guesses = member.draft.tokens
        accepted = 0
        for guess, token in zip(guesses, tokens, strict=False):
            if guess != token:
                break
            accepted += 1
        if guesses:
            # Of a draft that was not run only the first place is known.
            guessed = len(guesses) if member.verified else 1
            member.length.observe(guessed, accepted)
            self._all.observe(guessed, accepted)
            if member.verified:
                self.counts.add(len(guesses), accepted)
                member.counts.add(len(guesses), accepted)
        member.draft, member.verified = NOTHING, False
        self._try(lambda: self._method.extend(key, tokens, branch))

    def _guesses_within(self, tokens: int) -> int:
        """The most guesses of a draft that adds so many tokens to a pass; 0 where none fits."""
        lengths = range(self._most, 0, -1)
        fits = (n for n in lengths if n + self._method.branch_tokens(n) <= tokens)
        return next(fits, 0)

    def finish(self, key: int) -> Counts:
        """A sequence has ended; what came of its drafts."""
        member = self._members.pop(key, None)
        if member is None:
            return Counts(self.name)
        self._try(lambda: self._method.finish(key))
        return member.counts

    def observe_pass(self, rows: int, extra: int, seconds: float) -> None:
        """A pass of writing rows alone took so long; see `Costs.observe`."""
        plain = self.costs.plain(rows)
        self.costs.observe(rows, extra, seconds)
        if plain is not None and rows:
            self._plain_token = plain / rows
            self.gain.seconds += seconds + self._drafted

    def wrote(self, tokens: int) -> None:
        """A row of the pass that `observe_pass` told of yielded so many tokens."""
        if self._plain_token is not None:
            self.gain.plain += tokens * self._plain_token

    def close(self) -> None:
        """Close the method."""
        self._method.close()

    def _try(self, work: Callable[[], None]) -> None:
        """Guesses are a help: where they fail, answers are written without them, and it is said."""
        if self._failed:
            return
        try:
            work()
        except Exception:  # noqa: BLE001 - whatever it is, answers go on
            self._failed = True
            _LOG.exception("speculation by %s failed and is off from now on", self.name)
