"""How many tokens are worth guessing: from what was accepted, and from what passes took.

A draft of k tokens of which each is accepted with probability a yields 1 + a + ... + a^k tokens, in
a pass that takes longer than a plain one. The length with the most tokens for the time is taken; 0
where plain decoding is faster. There is no clock here: seconds are told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

_KEPT = 9
"""Passes of a kind that are remembered."""
_NEEDED = 3
"""Plain passes before anything is guessed."""
_HALVED = 128
"""Passes without drafts after which their costs count half, so that they are tried again."""
_SLOPE = 0.12
"""A further token's share of a pass where none was measured yet: int8 on a processor with AVX2."""
_AGAIN = 64
"""Passes with drafts after which one without is run, so that what is compared is of today."""
_FORGET = 0.85
_FIRST_PAUSE, _LONGEST_PAUSE = 16, 256
"""Passes before a length of 0 is left for a try."""
_GAIN = 1.02
"""What a draft must promise before it is tried: below it costs might be noise."""


class Costs:
    """What passes of an engine take."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, int], deque[float]] = {}
        self._medians: dict[int, dict[int, float]] = {}
        self._idle: dict[int, int] = {}
        self._drafting: deque[float] = deque(maxlen=_KEPT)
        self._since: dict[int, int] = {}

    def observe(self, rows: int, extra: int, seconds: float) -> None:
        """A pass of so many writing rows, with so many tokens beyond one each, took so long."""
        kept = self._seconds.setdefault((rows, extra), deque(maxlen=_KEPT))
        kept.append(seconds)
        self._medians.setdefault(rows, {})[extra] = median(kept)
        self._idle[rows] = 0 if extra else self._idle.get(rows, 0) + 1
        self._since[rows] = self._since.get(rows, 0) + 1 if extra else 0

    def observe_drafting(self, tokens: int, seconds: float) -> None:
        """Proposing so many tokens took so long."""
        self._drafting.append(seconds / max(tokens, 1))

    def plain_is_due(self, rows: int) -> bool:
        """Whether a pass without drafts is to be run, to be compared with."""
        plain = self._seconds.get((rows, 0), ())
        return len(plain) < _NEEDED or self._since.get(rows, 0) >= _AGAIN

    def plain(self, rows: int) -> float | None:
        """Seconds of a plain pass with so many rows; None where too few were run."""
        kept = self._seconds.get((rows, 0), ())
        return median(kept) if len(kept) >= _NEEDED else None

    def factor(self, rows: int, extra: int) -> float:
        """Time of a pass with so many further tokens, as a multiple of a plain one's."""
        known = self._medians.get(rows, {})
        plain = known.get(0)
        if extra and plain is not None and len(known) > 1:
            nearest = min((more for more in known if more), key=lambda more: abs(more - extra))
            slope = max(0.0, known[nearest] / plain - 1) / nearest
            return 1.0 + slope * extra * float(2.0 ** (-self._idle[rows] / _HALVED))
        return 1.0 + _SLOPE * extra / rows

    def drafting(self, rows: int) -> float:
        """Time of guessing one token, as a share of a plain pass."""
        plain = self._medians.get(rows, {}).get(0)
        if plain is None or not self._drafting:
            return 0.0
        return median(self._drafting) / plain


@dataclass
class Length:
    """The length of one sequence's drafts.

    Attributes:
        most: Tokens of a draft.
        least: Never fewer.
        prior: Probability that a guess is right, as far as anything is known before the first.
    """

    most: int
    least: int = 0
    prior: float = 0.6
    _idle: int = field(default=0)
    _pause: int = field(default=_FIRST_PAUSE)

    def __post_init__(self) -> None:
        """Begin with what is known before."""
        self._right, self._tried = 2 * self.prior, 2.0

    @property
    def acceptance(self) -> float:
        """Estimated probability that a guess is right, lately."""
        return self._right / self._tried

    def observe(self, guessed: int, accepted: int) -> None:
        """A draft was verified, or compared with what came without it."""
        tried = min(accepted + 1, guessed)  # behind the first wrong guess nothing was tried
        self._right = self._right * _FORGET + accepted
        self._tried = self._tried * _FORGET + tried

    def chosen(
        self,
        costs: Costs,
        rows: int,
        *,
        branch: Callable[[int], int] = lambda _: 0,
        free: bool = True,
    ) -> int:
        """The length with the most tokens for the time.

        Args:
            costs: Of passes with so many rows.
            rows: That write.
            branch: Length -> tokens that such a draft adds to a pass beyond its guesses.
            free: Guessing takes no time. Otherwise a length of 0 is left after a while for a try:
                nothing else would tell that guesses have become better.
        """
        best, gain = 0, _GAIN
        price = 0.0 if free else costs.drafting(rows)
        tokens = 1.0
        for length in range(1, self.most + 1):
            tokens += self.acceptance**length
            taken = costs.factor(rows, (length + branch(length)) * rows) + price * length * rows
            if tokens / taken > gain:
                best, gain = length, tokens / taken
        if best:
            self._idle, self._pause = 0, _FIRST_PAUSE
        elif not free:
            self._idle += 1
            if self._idle >= self._pause:
                self._idle, self._pause = 0, min(2 * self._pause, _LONGEST_PAUSE)
                best = 1
        return max(best, self.least)
