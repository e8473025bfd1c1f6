"""Clocks and waits, given to whoever needs one; and what a pass costs of a processor.

A build of a thousand tasks hears of one every moment, and each pass looks at all of them: it rests
in proportion to what it computed. That is the time of its own steps and of its calls in threads,
and not what other passes compute while it waits.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

__all__ = ["SYSTEM", "Cost", "Metered", "Timing", "charged"]

T = TypeVar("T")


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _awake_or_not() -> float:
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


@dataclass(frozen=True)
class Timing:
    """The clocks.

    Attributes:
        now: The time of day, in UTC: what objects of the apiserver are compared with.
        monotonic: Seconds, for what is remembered and waited for here.
        awake_or_not: Seconds that go on while this machine is suspended, as others' clocks do.
        sleep: Waits so many seconds.
        computed: Seconds that the calling thread has computed.
    """

    now: Callable[[], datetime] = _utc_now
    monotonic: Callable[[], float] = time.monotonic
    awake_or_not: Callable[[], float] = _awake_or_not
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    computed: Callable[[], float] = time.thread_time


SYSTEM = Timing()
"""The machine's own."""


@dataclass
class Cost:
    """Seconds that one pass has computed so far."""

    seconds: float = 0.0


_CURRENT: contextvars.ContextVar[Cost | None] = contextvars.ContextVar("_CURRENT", default=None)


@contextmanager
def charged(timing: Timing = SYSTEM) -> Iterator[None]:
    """Charge the current pass, if any, with what this thread computes inside."""
    cost = _CURRENT.get()
    began = timing.computed()
    try:
        yield
    finally:
        if cost is not None:
            cost.seconds += timing.computed() - began


class Metered(Generic[T]):
    """Awaits a pass and adds up what its own steps compute, between one wait and the next."""

    def __init__(self, work: Coroutine[Any, Any, T], cost: Cost, timing: Timing = SYSTEM) -> None:
        self._work = work
        self._cost = cost
        self._timing = timing

    def __await__(self) -> Generator[Any, Any, T]:
        """Run the steps."""
        token = _CURRENT.set(self._cost)
        try:
            error: BaseException | None = None
            value: Any = None
            while True:
                with charged(self._timing):
                    try:
                        waits = self._work.send(value) if error is None else self._work.throw(error)
                    except StopIteration as end:
                        result: T = end.value
                        return result
                error = None
                try:
                    value = yield waits
                except BaseException as raised:  # noqa: BLE001 - the pass's own to judge
                    error = raised
        finally:
            _CURRENT.reset(token)
