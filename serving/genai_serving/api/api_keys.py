"""Keys that clients may present: fixed ones, and those of a folder that is read again and again.

A Secret that is mounted as a folder has a file for each of its entries, and the kubelet replaces
them while the server runs: a rotated key needs no restart.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["ApiKeys"]

_SECONDS = 2.0


class ApiKeys:
    """See the module's docstring.

    Args:
        fixed: Keys that never change.
        folder: Each file holds one key, and surrounding white space; names that begin with a dot
            are passed over. A folder without a key lets nobody in.
        clock: Seconds.
    """

    def __init__(
        self,
        fixed: Sequence[str] = (),
        folder: Path | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fixed = [key.encode() for key in fixed]
        self._folder = folder
        self._clock = clock
        self._read: list[bytes] = []
        self._due = float("-inf")

    @property
    def wanted(self) -> bool:
        """Whether a key is asked for at all."""
        return bool(self._fixed) or self._folder is not None

    def allow(self, header: bytes) -> bool:
        """Whether an `Authorization` header lets its client in."""
        if not self.wanted:
            return True
        kind, _, token = header.partition(b" ")
        if kind.lower() != b"bearer":
            return False
        # Every key is compared, so that time tells nothing.
        matches = [hmac.compare_digest(token.strip(), key) for key in self._current()]
        return any(matches)

    def _current(self) -> list[bytes]:
        now = self._clock()
        if self._folder is not None and now >= self._due:
            self._due = now + _SECONDS
            self._read = _keys_of(self._folder)
        return [*self._fixed, *self._read]


def _keys_of(folder: Path) -> list[bytes]:
    try:
        files = [file for file in sorted(folder.iterdir()) if not file.name.startswith(".")]
        found = [file.read_bytes().strip() for file in files if file.is_file()]
    except OSError:  # it is being replaced, or gone: nobody gets in by a key that is not there
        return []
    return [key for key in found if key]
