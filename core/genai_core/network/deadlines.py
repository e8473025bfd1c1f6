"""Deadlines for whole calls to a server: one that sends a byte a minute would never time out.

A socket's timeout counts from byte to byte. Here a watching thread closes the connection once the
call as a whole has taken too long, which ends the read or write that waits.
"""

from __future__ import annotations

import heapq
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

__all__ = ["Deadline", "hang_up", "hung_up_after"]


class Deadline:
    """When a call is ended.

    Attributes:
        expired: It was ended.
    """

    def __init__(self, end: Callable[[], None]) -> None:
        self.expired = False
        self.over = False
        self._end = end
        self._lock = threading.Lock()

    def ring(self) -> None:
        """End the call, unless it has ended by itself."""
        with self._lock:
            if self.over:
                return
            self.expired = True
            with suppress(Exception):  # the connection may be closing just now
                self._end()

    def cancel(self) -> None:
        """The call has ended by itself."""
        with self._lock:
            self.over = True


class _Watch:
    """Rings deadlines as their times come."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[tuple[float, int, Deadline]] = []
        self._numbers = itertools.count()
        self._process = 0

    def add(self, when: float, deadline: Deadline) -> None:
        with self._changed:
            if self._process != os.getpid():  # the first, or in a fork: threads stay behind
                self._process, self._waiting = os.getpid(), []
                threading.Thread(target=self._run, name="deadlines", daemon=True).start()
            entry = (when, next(self._numbers), deadline)
            heapq.heappush(self._waiting, entry)
            if self._waiting[0] is entry:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._waiting and self._waiting[0][2].over:
                    heapq.heappop(self._waiting)
                wait = self._waiting[0][0] - time.monotonic() if self._waiting else None
                if wait is None or wait > 0:
                    self._changed.wait(wait)
                    continue
                due = heapq.heappop(self._waiting)[2]
            due.ring()


_watch = _Watch()


@contextmanager
def hung_up_after(seconds: float, end: Callable[[], None]) -> Iterator[Deadline]:
    """Call `end` from another thread where the block takes longer.

    Args:
        seconds: From now.
        end: Makes what the block waits for end; quick, and harmless where nothing waits.
    """
    deadline = Deadline(end)
    _watch.add(time.monotonic() + seconds, deadline)
    try:
        yield deadline
    finally:
        deadline.cancel()


def hang_up(connected: socket.socket | None) -> None:
    """End both directions of a connection; whoever waits for it goes on."""
    if connected is not None:
        with suppress(OSError):
            # Not SSLSocket's, which takes away what the other thread reads with.
            socket.socket.shutdown(connected, socket.SHUT_RDWR)
