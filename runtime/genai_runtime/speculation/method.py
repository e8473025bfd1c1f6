"""What a method of speculation owes, and what it proposes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from genai_runtime.executor.executor import Executor
from genai_runtime.executor.rows import Logits, Tree
from genai_runtime.prefixes.cache import PrefixCache
from genai_runtime.prefixes.prefix_files import PrefixFiles


@dataclass(frozen=True)
class Branch:
    """Tokens of a pass that stand behind the guesses and are forgotten after it.

    Attributes:
        tokens: B ids.
        offsets: [B] their positions behind the newest known token.
        sees: bool [B, B]; token i attends to branch token j. All see the newest known token and
            what lies before it.
        guesses: [B] how many guesses each sees, ascending; None = none of them sees one.
        prefixed: They see the executor's trained prefix too.
    """

    tokens: tuple[int, ...]
    offsets: NDArray[np.int64]
    sees: NDArray[np.bool_]
    guesses: NDArray[np.int64] | None = None
    prefixed: bool = False

    def behind(self, count: int) -> Branch:
        """It without the tokens that see more than so many guesses."""
        if self.guesses is None or not (self.guesses > count).any():
            return self
        kept = int((self.guesses <= count).sum())
        return replace(
            self,
            tokens=self.tokens[:kept],
            offsets=self.offsets[:kept],
            sees=self.sees[:kept, :kept],
            guesses=self.guesses[:kept],
        )


@dataclass(frozen=True)
class Draft:
    """A proposal for one sequence.

    Attributes:
        tokens: Guesses, the first one for the place behind the newest known token. May be empty.
        branch: What else the method wants logits of.
    """

    tokens: tuple[int, ...] = ()
    branch: Branch | None = None

    @property
    def size(self) -> int:
        """Tokens that it adds to a pass."""
        return len(self.tokens) + (0 if self.branch is None else len(self.branch.tokens))

    def first(self, count: int) -> Draft:
        """It with at most so many guesses; the branch stays, as far as it sees no others."""
        return Draft(
            self.tokens[:count], None if self.branch is None else self.branch.behind(count)
        )

    def tree(self, start: int) -> Tree | None:
        """The tree of the row [newest token, guesses, branch] at cache place `start`.

        None where it is a chain. The chain comes first, so nothing hidden stands between its keys
        and its numbers are a plain chain's to the bit.
        """
        if self.branch is None:
            return None
        chain = 1 + len(self.tokens)
        total = 1 + self.size
        sees = np.zeros((total, total), np.bool_)
        sees[:chain, :chain] = np.tril(np.ones((chain, chain), np.bool_))
        sees[chain:, 0] = True
        sees[chain:, chain:] = self.branch.sees
        if self.branch.guesses is not None:
            sees[chain:, 1:chain] = np.arange(chain - 1) < self.branch.guesses[:, None]
        positions = np.concatenate([np.arange(chain), self.branch.offsets]) + start
        seen = len(self.branch.tokens) if self.branch.prefixed else 0
        return Tree(positions.astype(np.int64), sees, prefixed=seen)

    def row(self, newest: int) -> NDArray[np.int64]:
        """Tokens of the row that verifies it."""
        behind = () if self.branch is None else self.branch.tokens
        return np.asarray([newest, *self.tokens, *behind], np.int64)


NOTHING = Draft()

Foresee = Callable[[NDArray[np.float32], int], int]
"""Logits [V] and a place of a draft -> the token that would be taken there: `Sampler.foreseen`."""


class Method(Protocol):
    """Guesses tokens of several sequences, which it knows by keys. Not thread safe."""

    @property
    def name(self) -> str:
        """As configurations name it."""
        ...

    @property
    def free(self) -> bool:
        """A proposal takes next to no time: no model runs for it."""
        ...

    def branch_tokens(self, guesses: int) -> int:
        """Tokens of the branch of a draft of so many guesses, not fewer with more of them.

        Above 0 the executor must take trees.
        """
        ...

    def start(self, key: int, tokens: Sequence[int], foresee: Foresee | None = None) -> None:
        """A sequence begins with these tokens: its prompt.

        Args:
            key: Names it.
            tokens: At least one.
            foresee: How it takes tokens; None = always the likeliest.
        """
        ...

    def propose(self, wanted: Mapping[int, int]) -> dict[int, Draft]:
        """Guesses for keys, of at most so many tokens (>= 1); who has no guess is left out."""
        ...

    def extend(self, key: int, tokens: Sequence[int], branch: Logits | None = None) -> None:
        """The model wrote these tokens.

        Args:
            key: Whose.
            tokens: At least one.
            branch: [B, V] logits of the branch of the draft that this verified.
        """
        ...

    def finish(self, key: int) -> None:
        """A sequence has ended; nothing where it is not known."""
        ...

    def cache_bytes(self, tokens: int) -> int:
        """Memory that a sequence of so many tokens takes here."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


@runtime_checkable
class Observing(Protocol):
    """A method that guesses from the model's hidden states."""

    def observe(self, key: int, start: int, states: NDArray[np.float32]) -> None:
        """The model has read tokens of a sequence that has begun.

        Called before `extend` tells what came of it, and never for a token that is dropped again.

        Args:
            key: Whose.
            start: Place of the first of them in the text.
            states: [T, S], as the executor gives them out.
        """
        ...


OpenBeginnings = Callable[[Executor], tuple[PrefixCache, PrefixFiles | None]]
"""Opens what beginnings are kept in, for the executor whose slots they are: in memory, and on disk
where they outlive the process. Both are the method's own then."""


@runtime_checkable
class Keeping(Protocol):
    """A method that keeps what it has read of one sequence for the beginnings of others."""

    def keep_beginnings(self, open_cache: OpenBeginnings) -> None:
        """Keep them from now on.

        Args:
            open_cache: See there.
        """
        ...

    def share(self, key: int, scope: Hashable) -> None:
        """A sequence that is about to start shares with those of the same scope alone."""
        ...

    def pin(self, tokens: Sequence[int], scope: Hashable) -> None:
        """Read a beginning of many sequences and keep it until the end.

        Args:
            tokens: At least one.
            scope: As in `share`.
        """
        ...


Take = Callable[[NDArray[np.float32], int | None], tuple[int, bool]]
"""Logits [V] and the guess for their place -> the token that the sampler takes, and whether the
answer ends with it."""


def accept(logits: Logits, guesses: Sequence[int], take: Take) -> list[int]:
    """The tokens that a verified row yields: the accepted guesses and one more, or up to an end.

    Args:
        logits: Row 0 is that of the newest known token, row i that of guess i - 1.
        guesses: As they stood in the row.
        take: Called once for each token that is returned, in order, and never beyond.
    """
    written: list[int] = []
    for place in range(len(guesses) + 1):
        token, ended = take(logits[place], guesses[place] if place < len(guesses) else None)
        written.append(token)
        if ended or place == len(guesses) or token != guesses[place]:
            break
    return written
