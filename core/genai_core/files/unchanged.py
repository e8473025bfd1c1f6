"""Tells whether a user's file is still the one that was hashed.

A program can put a file's modification time back after it wrote, but not its change time. That also
moves when the file gets another name or other rights, so where it alone differs the bytes are
hashed again; so they are where the file was written within the tick of the clock before, in which
another write would not show.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from genai_core.canonical import digest_file
from genai_core.names import Digest

__all__ = ["HashedFile", "Stamp", "hashed"]

_SETTLED_NS = 2_000_000_000
"""FAT notes times to 2 s; everybody else is finer."""


@dataclass(frozen=True)
class Stamp:
    """What the file system notes about a file, or about the one behind a link. Times in ns."""

    size: int
    modified: int
    changed: int
    inode: int
    device: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """Ask for it; raises OSError where there is no file."""
        stat = path.stat()
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev)

    def settled(self, now_ns: int) -> bool:
        """Whether its last write is so long ago that another would have another time."""
        return now_ns - max(self.modified, self.changed) > _SETTLED_NS

    def same_write(self, other: Stamp) -> bool:
        """Whether only the change time differs."""
        return (self.size, self.modified, self.inode, self.device) == (
            *(other.size, other.modified, other.inode, other.device),
        )


@dataclass(frozen=True)
class HashedFile:
    """A file with the digest of its bytes.

    Attributes:
        stamp: As it was before the bytes were read.
        settled: As of the end of that reading.
    """

    path: Path
    stamp: Stamp
    sha256: Digest
    settled: bool

    def stands(self) -> bool:
        """Whether the file is there with these bytes, and was not written since."""
        try:
            now = Stamp.of(self.path)
            if now == self.stamp and self.settled:
                return True
            return now.same_write(self.stamp) and digest_file(self.path) == self.sha256
        except OSError:
            return False


def hashed(path: Path) -> HashedFile:
    """Hash a file; raises OSError where that cannot be done."""
    stamp = Stamp.of(path)
    digest = digest_file(path)
    return HashedFile(path, stamp, digest, stamp.settled(time.time_ns()))
