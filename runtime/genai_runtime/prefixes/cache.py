"""Beginnings of texts whose keys and values are there already: the slots of earlier sequences.

A slot whose sequence has ended is kept, idle, with the tokens that it holds. A new one begins with
the longest beginning that it shares with an idle or a running slot of the same scope: it takes an
idle slot over where it goes on behind all of it, else copies. Idle slots give way, the one unused
for longest first, before a request waits for their memory; pinned ones never do, and are always
copied. Not thread safe.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from genai_runtime.executor.executor import Executor

__all__ = ["Held", "Match", "Pictures", "PrefixCache", "common"]

Pictures: TypeAlias = tuple[tuple[int, str], ...]
"""Of each picture in a text its first place and the digest of its embeddings, in order."""

_MOST = 256
"""Idle slots: every one of them is compared with each prompt."""


@dataclass(frozen=True)
class Held:
    """What a slot holds.

    Attributes:
        slot: Of the executor.
        scope: What its keys and values depend on beside the tokens: equal ones may share.
        tokens: [T], those whose keys and values are in the slot.
        pictures: Among them.
    """

    slot: int
    scope: Hashable
    tokens: NDArray[np.int64]
    pictures: Pictures = ()

    def shared(self, other: Held) -> int:
        """How many tokens both begin with."""
        return common(self.tokens, other.tokens, (self.pictures, other.pictures))


@dataclass(frozen=True)
class Match:
    """A beginning that a slot has.

    Attributes:
        slot: Where it is.
        tokens: How long it is, at least 1.
        whole: It is all that an idle slot holds.
    """

    slot: int
    tokens: int
    whole: bool


class PrefixCache:
    """See the module's docstring.

    Args:
        executor: Whose slots are kept.
        most_bytes: Of all idle slots, those that are pinned aside; 0 = nothing is kept or shared.
    """

    def __init__(self, executor: Executor, most_bytes: int) -> None:
        self._executor = executor
        self._most_bytes = most_bytes
        self._idle: dict[int, Held] = {}
        """By slot, the one unused for longest first."""
        self._pinned: dict[int, Held] = {}
        self.bytes = 0
        """Memory of the idle slots without pinned ones; that of an idle slot never changes."""

    @property
    def slots(self) -> tuple[int, ...]:
        """Idle slots, the one unused for longest first."""
        return tuple(self._idle)

    @property
    def all_held(self) -> tuple[Held, ...]:
        """What pinned and idle slots hold."""
        return (*self._pinned.values(), *self._idle.values())

    @property
    def pinned(self) -> tuple[int, ...]:
        """Slots that stay."""
        return tuple(self._pinned)

    def find(
        self,
        scope: Hashable,
        prompt: NDArray[np.int64],
        running: Iterable[Held] = (),
        *,
        pictures: Pictures = (),
    ) -> Match | None:
        """The longest beginning of a prompt that a slot has; never all of it.

        The last token is left out: its logits are wanted, and only a pass gives them.

        Args:
            scope: Of the request.
            prompt: Its tokens, [T].
            running: Slots at work, which may be copied from.
            pictures: Of the prompt.
        """
        if not self._most_bytes and not self._pinned:
            return None
        best: Match | None = None
        for held, idle in [
            *((h, True) for h in self._idle.values()),
            *((h, False) for h in self._pinned.values()),
            *((h, False) for h in running),
        ]:
            if held.scope != scope:
                continue
            shared = common(held.tokens, prompt[:-1], (held.pictures, pictures))
            if shared > (0 if best is None else best.tokens):
                best = Match(held.slot, shared, idle and shared == held.tokens.size)
        return best

    def take(self, match: Match, *, most_bytes: int, wanted: Collection[int] = ()) -> int:
        """A slot that begins with what was found.

        Args:
            match: As `find` gave it, since when no slot was freed.
            most_bytes: The slot may occupy so many; a larger one is copied.
            wanted: Slots that others will copy from in this step.
        """
        fits = match.slot in self._idle and self._executor.slot_bytes(match.slot) <= most_bytes
        if match.whole and fits and match.slot not in wanted:
            del self._idle[match.slot]
            self.bytes -= self._executor.slot_bytes(match.slot)
            return match.slot
        held = self._idle.pop(match.slot, None)
        if held is not None:  # used just now
            self._idle[match.slot] = held
        return self._executor.copy(match.slot, match.tokens)

    def pin(self, held: Held) -> None:
        """Take a slot in that stays until it is forgotten."""
        self._executor.truncate(held.slot, held.tokens.size)
        self._pinned[held.slot] = held

    def keep(self, held: Held) -> None:
        """Take a slot in whose answer has ended; it is freed at once where nothing is to be kept.

        Of two slots where one holds what the other begins with, the longer one stays.
        """
        size = held.tokens.size
        within = any(
            other.scope == held.scope and other.shared(held) == size
            for other in self._pinned.values()
        )
        for other in list(self._idle.values()):
            if other.scope == held.scope:
                shared = other.shared(held)
                within |= shared == size
                if shared == other.tokens.size < size:
                    self._free(other.slot)
        if within or not size:
            self._executor.free(held.slot)
            return
        self._executor.truncate(held.slot, size)
        self._idle[held.slot] = held
        self.bytes += self._executor.slot_bytes(held.slot)
        self.shrink(self._most_bytes)

    def forget(self, gone: Callable[[Hashable], bool]) -> None:
        """Free the idle and pinned slots of scopes in which nobody can ask any more."""
        for held in [held for held in self._idle.values() if gone(held.scope)]:
            self._free(held.slot)
        for held in [held for held in self._pinned.values() if gone(held.scope)]:
            del self._pinned[held.slot]
            self._executor.free(held.slot)

    def close(self) -> None:
        """Free everything."""
        self.shrink(0)
        self.forget(lambda _: True)

    def shrink(self, most_bytes: int, *, wanted: Collection[int] = ()) -> None:
        """Free idle slots until the rest occupies no more than so many bytes.

        Args:
            most_bytes: Of those that stay.
            wanted: Slots that stay whatever they occupy.
        """
        bound = min(most_bytes, self._most_bytes)
        if self.bytes <= bound and len(self._idle) <= _MOST:
            return
        for slot in [slot for slot in self._idle if slot not in wanted]:
            self._free(slot)
            if self.bytes <= bound and len(self._idle) <= _MOST:
                return

    def _free(self, slot: int) -> None:
        del self._idle[slot]
        self.bytes -= self._executor.slot_bytes(slot)
        self._executor.free(slot)


def common(
    one: NDArray[np.int64],
    other: NDArray[np.int64],
    pictures: tuple[Pictures, Pictures] = ((), ()),
) -> int:
    """How many tokens two texts share at their beginnings.

    Args:
        one: Tokens [T].
        other: Likewise.
        pictures: Of each: all places of a picture have one token, so its digest tells.
    """
    size = min(one.size, other.size)
    differ = one[:size] != other[:size]
    shared = int(differ.argmax()) if differ.any() else size
    for pair in zip_longest(*pictures):
        if pair[0] != pair[1]:
            return min(shared, *(picture[0] for picture in pair if picture is not None))
    return shared
