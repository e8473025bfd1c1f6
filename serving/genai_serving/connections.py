"""Connections of clients: each may take so long and no longer, and a full house lets go of some.

uvicorn closes a connection that rests behind an answer, and no other: one that never sends a
request, sends it byte by byte, or never reads its answer stays for ever, and a thousand of them
keep everybody out, the probes of a pod included. Here

- a connection without a request is closed after `idle`, whatever comes of one within `head`;
- one whose answer nobody reads is broken off after `stalled`;
- where there are more than `most`, the client with the most of them loses the oldest one that is
  not being answered: a new one has yet to send its request. What is being answered is never broken
  off. Where nothing can be let go of, `reserve` more are taken, for the probes.
  A client is an address: behind a proxy that is everybody, and the rule is the same.

How long a body may take is for whoever reads it (`api.bodies`).
"""

from __future__ import annotations

import asyncio
import ipaddress
import resource
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["Connections", "Patience", "room_for"]

_FILES_BESIDE = 256
"""Files of the process that are no connections: the container's, caches', libraries'."""


@dataclass(frozen=True)
class Patience:
    """Seconds that a connection may take.

    Attributes:
        idle: Until a request begins.
        head: From its first byte to the end of its headers.
        stalled: Until something of an answer is read.
        closing: From closing to the end of what is still to be sent.
    """

    idle: float = 30.0
    head: float = 10.0
    stalled: float = 60.0
    closing: float = 5.0


class Connections:
    """All of one server's; of its event loop alone.

    Args:
        most: That are served at once.
        reserve: Beyond them, for requests that are answered in any case.
        patience: See there.
    """

    def __init__(self, most: int, *, reserve: int = 64, patience: Patience | None = None) -> None:
        self.patience = patience or Patience()
        self._most = most
        self._reserve = reserve
        self._open: dict[_Connection, None] = {}
        """In the order of their last change."""

    def __len__(self) -> int:
        """How many there are."""
        return len(self._open)

    @property
    def crowded(self) -> bool:
        """There are more than are served."""
        return len(self._open) > self._most

    def protocol(self, **given: Any) -> H11Protocol:
        """What uvicorn calls for each connection."""
        return _Connection(self, **given)

    def enter(self, new: _Connection) -> None:
        """Take one in, and let go of another where there are too many."""
        self._open[new] = None
        if not self.crowded:
            return
        victim = self._victim(new)
        if victim is not None:
            victim.leave()
        elif len(self._open) > self._most + self._reserve:
            new.leave()

    def touch(self, known: _Connection) -> None:
        """It is the youngest now."""
        if known in self._open:
            del self._open[known]
            self._open[known] = None

    def discard(self, gone: _Connection) -> None:
        """It is closed."""
        self._open.pop(gone, None)

    def _victim(self, new: _Connection) -> _Connection | None:
        counts = Counter(known.origin for known in self._open)
        found = (known for known in self._open if known is not new and not known.answering)
        # Of equals the first, which is the oldest.
        return max(found, key=lambda known: counts[known.origin], default=None)


class _Connection(H11Protocol):
    """uvicorn's, with an end to everything that it waits for."""

    def __init__(self, all_of_them: Connections, **given: Any) -> None:
        super().__init__(**given)
        self._all = all_of_them
        self._timer: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None
        self._begun = False
        self.origin = ""
        """Whose it is: an address, of IPv6 the network that one machine may have."""

    @property
    def idle(self) -> bool:
        """No request is under way."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def answering(self) -> bool:
        """A request has come to its end, and its answer has not."""
        return not self.idle and not self.cycle.more_body

    def leave(self) -> None:
        """End it, whatever it does."""
        self._all.discard(self)
        if self.transport.get_write_buffer_size() or not self.idle:
            self.transport.abort()
        else:
            self.transport.close()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """It is there."""
        super().connection_made(transport)
        self.origin = _origin(self.client)
        self._within(self._all.patience.idle)
        self._all.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._all.discard(self)
        for timer in (self._timer, self._reading):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Something came."""
        rested = self.idle
        super().data_received(data)
        if rested and not self.idle:
            self._all.touch(self)
        if self.idle and rested and not self._begun:
            self._begun = True
            self._within(self._all.patience.head)

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP; behind the beginning of an answer nothing can be told of it."""
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def on_response_complete(self) -> None:
        """The next request may follow at once."""
        super().on_response_complete()
        self._all.touch(self)
        if self.transport.is_closing():
            self._within(self._all.patience.closing)
        elif self.idle:
            self._begun = False
            self._within(self._all.patience.idle)

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        self._reading = self.loop.call_later(self._all.patience.stalled, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads on."""
        super().resume_writing()
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _within(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self._overdue)

    def _overdue(self) -> None:
        if self.transport.is_closing():  # and what is left of its answer is not read
            self.transport.abort()
        elif self.idle:
            self.timeout_keep_alive_handler()
            self._within(self._all.patience.closing)


def _origin(client: tuple[str, int] | None) -> str:
    host = client[0] if client else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def room_for(wanted: int, *, say: Callable[[str], None]) -> int:
    """So many connections as this process may have files for, at most those that are wanted."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _FILES_BESIDE
    soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    current = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if current != resource.RLIM_INFINITY and current < soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        current = soft
    if current == resource.RLIM_INFINITY or current >= needed:
        return wanted
    most = max(current - _FILES_BESIDE, current // 2)
    say(f"{most} connections at once, for {current} open files are allowed (ulimit -n)")
    return most
