"""Adapters in memory, within a bound: those that a server was started with stay, others come again.

Called from any thread; reading, which takes long, is of whoever asks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from genai_runtime.executor.adapter_weights import AdapterShape, AdapterWeights, NoRoom
from genai_serving.scheduler import mebibytes

__all__ = ["AdapterCache", "AdapterLoader"]


@dataclass(frozen=True)
class AdapterLoader:
    """Where an adapter is read from, as often as it is needed.

    Attributes:
        shape: What it takes.
        read: Its matrices, of bytes whose digest was compared.
    """

    shape: AdapterShape
    read: Callable[[], AdapterWeights] = field(repr=False)


class AdapterCache:
    """See the module's docstring.

    Args:
        most_bytes: Of all that it holds; None = no bound.
    """

    def __init__(self, most_bytes: int | None = None) -> None:
        self._most = most_bytes
        self._lock = threading.Lock()
        self._sources: dict[str, AdapterLoader] = {}
        self._pinned: set[str] = set()
        self._held: dict[str, AdapterWeights] = {}
        """The one that was not asked for longest first."""

    @property
    def held(self) -> frozenset[str]:
        """Names of those in memory."""
        with self._lock:
            return frozenset(self._held)

    @property
    def bytes(self) -> int:
        """Of what is in memory."""
        with self._lock:
            return self._bytes(self._held)

    def source(self, name: str) -> AdapterLoader:
        """Of an adapter that was added."""
        return self._sources[name]

    def add(self, name: str, source: AdapterLoader, *, pinned: bool = False) -> None:
        """Know an adapter; it is read when it is asked for.

        Args:
            name: Means one content for ever.
            source: Of it.
            pinned: Once read, it stays.

        Raises:
            NoRoom: It is larger than what pinned ones leave.
        """
        with self._lock:
            left = None if self._most is None else self._most - self._bytes(self._pinned)
            if left is not None and source.shape.bytes > left:
                raise NoRoom(
                    f"it takes {mebibytes(source.shape.bytes)} MiB; of "
                    f"{mebibytes(self._most or 0)} MiB in which adapters are kept, "
                    f"{mebibytes(left)} MiB are not of those that the server was started with",
                    where=f"adapter {name.partition('@')[0]}",
                    remedy="start the server with a larger --adapter-cache-mib",
                )
            self._sources[name] = source
            if pinned:
                self._pinned.add(name)

    def weights(self, name: str) -> AdapterWeights:
        """Of an adapter that was added: from memory, else read anew.

        Raises:
            GenAIError: As its source; nothing is kept of it then.
        """
        with self._lock:
            found = self._held.pop(name, None)
            if found is not None:
                self._held[name] = found
                return found
            source = self._sources[name]
            self._make_room(source.shape.bytes)
        read = source.read()
        with self._lock:
            if name in self._sources:  # it may have gone meanwhile
                self._held[name] = read
        return read

    def forget(self, name: str) -> None:
        """Let one go for ever."""
        with self._lock:
            for kind in (self._sources, self._held):
                kind.pop(name, None)
            self._pinned.discard(name)

    def _make_room(self, size: int) -> None:
        """Before it is read: what is in memory never exceeds the bound."""
        for name in [name for name in self._held if name not in self._pinned]:
            pinned_later = self._bytes(self._pinned - set(self._held))
            if self._most is None or self._bytes(self._held) + pinned_later + size <= self._most:
                return
            del self._held[name]

    def _bytes(self, names: Iterable[str]) -> int:
        return sum(self._sources[name].shape.bytes for name in names)
