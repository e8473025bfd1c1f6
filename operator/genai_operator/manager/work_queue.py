"""A queue of keys: each stands in it once, and one worker at a time is at a key.

A key that is added while it is being worked on is worked on once more afterwards, so nothing that
happened meanwhile is missed. Failures come back after growing pauses; `add(after=...)` comes back
at the earliest time asked for, but not before a rest that `done` gave the key is over: what happens
meanwhile is then worked on together.

Keys belong to groups, which take turns: what a group of one key waits for is one pass of each
other group, however many keys those have. A group whose work takes long (`slow`) is worked on at
one more key at a time until it is through with that, and with two such at none, so that it leaves
the workers to others.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from genai_operator.timing import SYSTEM, Timing

__all__ = ["WorkQueue"]

_MOST_SLOW = 2

K = TypeVar("K", bound=Hashable)


class WorkQueue(Generic[K]):
    """See the module's docstring.

    Args:
        first_pause: Seconds after a first failure; doubled with each further one.
        longest_pause: What it grows to.
        waited: Told, of each key that is worked on, how many seconds it was due before.
        group: Of a key; None: it is in none.
        timing: The clocks.
    """

    def __init__(
        self,
        *,
        first_pause: float = 0.5,
        longest_pause: float = 60.0,
        waited: Callable[[K, float], None] | None = None,
        group: Callable[[K], Hashable | None] = lambda _key: None,
        timing: Timing = SYSTEM,
    ) -> None:
        self._first = first_pause
        self._longest = longest_pause
        self._waited = waited
        self._timing = timing
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._count = 0
        self._group = group
        self._working: set[K] = set()
        self._working_of: Counter[Hashable] = Counter()
        self._slow: set[K] = set()
        self._slow_of: Counter[Hashable] = Counter()
        self._ready: dict[Hashable | None, deque[tuple[float, K]]] = {}
        """What is due, by group; the first group's turn is next."""
        self._failures: dict[K, int] = {}
        self._rests: dict[K, float] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """Keys that are due or will be."""
        return len(self._due)

    def overdue(self) -> int:
        """Keys that could be worked on now."""
        now = self._timing.monotonic()
        return sum(due <= now for due in self._due.values())

    def add(self, key: K, *, after: float = 0.0) -> None:
        """Have a key worked on, at once or in some seconds; the earlier wish wins."""
        due = max(self._timing.monotonic() + after, self._rests.get(key, 0.0))
        known = self._due.get(key)
        if known is not None and known <= due:
            return
        self._due[key] = due
        self._count += 1
        heapq.heappush(self._heap, (due, self._count, key))
        self._changed.set()

    async def get(self) -> K:
        """Wait for a key that is due and that nobody works on; call `done` or `failed` after."""
        while True:
            self._changed.clear()
            key, pause = self._next()
            if key is not None:
                self._working.add(key)
                self._working_of[self._group(key)] += 1
                return key
            try:
                await asyncio.wait_for(self._changed.wait(), pause)
            except TimeoutError:
                continue

    def slow(self, key: K) -> None:
        """It takes long: whoever is at it goes on, and is no worker meanwhile."""
        self._slow.add(key)
        self._slow_of[self._group(key)] += 1

    def done(self, key: K, *, rest: float = 0.0) -> None:
        """It went well.

        Args:
            key: What was worked on.
            rest: Seconds for which it is let alone.
        """
        self._failures.pop(key, None)
        if rest > 0:
            now = self._timing.monotonic()
            self._rests = {kept: until for kept, until in self._rests.items() if until > now}
            self._rests[key] = now + rest
            if key in self._due:  # added meanwhile: not before then
                del self._due[key]
                self.add(key)
        self._release(key)

    def failed(self, key: K) -> float:
        """It did not; returns the pause after which it comes back."""
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        doubled = min(self._first * float(2 ** min(count, 30)), self._longest)
        pause = doubled * random.uniform(0.75, 1.25)  # noqa: S311 - spreads retries, guards nothing
        self._release(key)
        self.add(key, after=pause)
        return pause

    def forget(self, key: K) -> None:
        """It is gone: no failure is remembered, nothing is due."""
        self._failures.pop(key, None)
        self._rests.pop(key, None)
        self._due.pop(key, None)

    def _release(self, key: K) -> None:
        group = self._group(key)
        for kept, counts in ((self._working, self._working_of), (self._slow, self._slow_of)):
            if key in kept:
                kept.discard(key)
                counts[group] -= 1
                if not counts[group]:
                    del counts[group]
        self._changed.set()

    def _may_work(self, group: Hashable | None) -> bool:
        slow = self._slow_of[group]
        return group is None or not slow or (slow < _MOST_SLOW and self._working_of[group] == slow)

    def _next(self) -> tuple[K | None, float | None]:
        """A key to work on now, else None and how long to wait."""
        now = self._timing.monotonic()
        pause: float | None = None
        while self._heap:
            due, _, key = self._heap[0]
            if due > now and self._due.get(key) == due:
                pause = due - now
                break
            heapq.heappop(self._heap)
            if self._due.get(key) == due:  # else moved to an earlier time, or forgotten
                self._ready.setdefault(self._group(key), deque()).append((due, key))
        for group in tuple(self._ready):
            found = self._turn(group)
            if found is not None:
                return found, pause
        return None, pause

    def _turn(self, group: Hashable | None) -> K | None:
        """The key that a group has waited with longest; it is the last one's turn then."""
        if not self._may_work(group):
            return None
        waiting, busy = self._ready.pop(group), []
        found: K | None = None
        while waiting and found is None:
            due, key = waiting.popleft()
            if self._due.get(key) != due:
                continue
            if key in self._working:
                busy.append((due, key))
                continue
            found = key
            del self._due[key]
            self._rests.pop(key, None)
            if self._waited is not None:
                self._waited(key, self._timing.monotonic() - due)
        waiting.extendleft(reversed(busy))
        if waiting:
            self._ready[group] = waiting
        return found
