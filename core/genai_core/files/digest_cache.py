"""Digests of files that were hashed before, so that gigabytes are not read again.

A digest is used again while size, modification time, change time, inode and device are the same.
The change time is there because a program can put the modification time back after writing, but
not the change time. A file that was written in the last two seconds is hashed but not remembered:
another write within the clock's tick would not show.

The cache is a hint in SQLite, safe for several processes; where it cannot be opened or is damaged,
files are hashed as if it were empty.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from genai_core.canonical import digest_file, is_digest
from genai_core.files.unchanged import Stamp
from genai_core.names import Digest

__all__ = ["FileCache"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY, stamp TEXT NOT NULL, sha256 TEXT NOT NULL, used INTEGER NOT NULL
) WITHOUT ROWID
"""
_MOST_ROWS = 100_000


class FileCache:
    """See the module's docstring.

    Args:
        path: The cache's file, made where absent; None = remember nothing.
        clock_ns: The time in nanoseconds since 1970.
    """

    def __init__(self, path: Path | None, *, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self.path = path
        self._clock_ns = clock_ns

    def digest(self, path: Path) -> Digest:
        """Return a file's SHA-256, from the cache where the file has not changed.

        Raises:
            OSError: The file cannot be read.
        """
        name = os.path.abspath(path)
        before = Stamp.of(path)
        known = self._find(name, _noted(before))
        if known is not None:
            return known
        found = digest_file(path)
        if Stamp.of(path) == before and before.settled(self._clock_ns()):
            self._remember(name, _noted(before), found)
        return found

    def _find(self, name: str, stamp: str) -> Digest | None:
        if self.path is None:
            return None
        try:
            with self._opened(self.path) as rows:
                row = rows.execute(
                    "SELECT sha256 FROM files WHERE path = ? AND stamp = ?", (name, stamp)
                ).fetchone()
        except (sqlite3.Error, OSError):
            return None
        return Digest(row[0]) if row and is_digest(row[0]) else None

    def _remember(self, name: str, stamp: str, digest: Digest) -> None:
        if self.path is None:
            return
        now = self._clock_ns()
        with suppress(sqlite3.Error, OSError), self._opened(self.path) as rows:
            rows.execute(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", (name, stamp, digest, now)
            )
            if digest.startswith("00"):  # now and then; it reads the whole table
                rows.execute(
                    "DELETE FROM files WHERE path IN"
                    " (SELECT path FROM files ORDER BY used DESC LIMIT -1 OFFSET ?)",
                    (_MOST_ROWS,),
                )

    @staticmethod
    @contextmanager
    def _opened(path: Path) -> Iterator[sqlite3.Connection]:
        """Yield a connection inside a transaction."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=5)) as connection, connection:
            connection.execute(_SCHEMA)
            yield connection


def _noted(stamp: Stamp) -> str:
    return f"{stamp.size} {stamp.modified} {stamp.changed} {stamp.inode} {stamp.device}"
