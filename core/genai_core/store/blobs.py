"""Blobs: bytes by their SHA-256. Immutable, so writing one twice is harmless.

Bytes are hashed whenever they are read: a wrong byte is never served.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Protocol, TypeAlias

from genai_core.errors import CorruptBlob
from genai_core.names import Digest
from genai_core.tasks.record import Blob

__all__ = ["READ_AT_ONCE_BYTES", "BlobStat", "Blobs", "HeadBlob", "Located", "check_small"]


@dataclass(frozen=True)
class BlobStat:
    """What a store says about a blob without reading it.

    Attributes:
        stored_digest: The SHA-256 that the store itself keeps beside the bytes; None where it
            keeps none (a directory), and then only the size is compared.
        modified: When the blob was last written or claimed; gc's grace period counts from it.
    """

    sha256: Digest
    size: int
    stored_digest: Digest | None
    modified: datetime

    def stands_for(self, digest: Digest, size: int) -> bool:
        """Tell whether this can be the blob that a record names."""
        return self.size == size and self.stored_digest in {None, digest}


HeadBlob: TypeAlias = Callable[[Digest], BlobStat | None]
READ_AT_ONCE_BYTES = 64 << 20
"""Of a blob that is read into memory: facts, a manifest, a log."""


def check_small(blob: Blob, location: str) -> None:
    """Refuse to read a blob into memory that a record says to be large.

    Raises:
        CorruptBlob: It is; nothing of ours is, so that the record is not ours either.
    """
    if blob.size > READ_AT_ONCE_BYTES:
        raise CorruptBlob(
            f"blob {blob.sha256[:12]} has {blob.size} bytes, and at most {READ_AT_ONCE_BYTES} are "
            "read at once",
            where=location,
        )


class Located(Protocol):
    """What messages call a store."""

    @property
    def location(self) -> str:
        """The address users gave, without credentials."""
        ...


class Blobs(Located, Protocol):
    """The blobs of a store; errors as `protocol.Store` says."""

    def head_blob(self, digest: Digest) -> BlobStat | None:
        """Return what the store says about a blob, or None where it has none."""
        ...

    def put_blob(self, path: Path, *, digest: Digest | None = None, consume: bool = False) -> Blob:
        """Store a file's bytes; where they stand already, claim them anew (gc's grace restarts).

        Args:
            path: A regular file that nobody writes any more.
            digest: Its SHA-256 where the caller knows it (from the file cache): not computed again.
            consume: The caller gives the file up: a directory store may take it over by a link
                instead of copying; it is read-only afterwards.

        Raises:
            NoSpace: Names path and bytes needed; nothing is left half-written.
            CorruptBlob: The bytes do not have the digest given.
        """
        ...

    def put_bytes(self, data: bytes) -> Blob:
        """Store bytes in memory (a log, a small JSON)."""
        ...

    def fetch_blob(self, blob: Blob, dest: Path, *, shared: bool = False) -> None:
        """Place a blob at `dest`, verified while read, atomically; the parent folder must exist.

        Args:
            blob: Digest and size.
            dest: Replaced where it exists.
            shared: The caller only reads: `dest` may share bytes with the store (hard link, mode
                0444). Otherwise it is a private copy.

        Raises:
            CorruptBlob: Missing, or the bytes are wrong; nothing is placed. A wrong blob is also
                removed, so that the next lookup is a miss and the task runs again.
            NoSpace: No room at `dest`.
        """
        ...

    def open_blob(self, blob: Blob) -> AbstractContextManager[BinaryIO]:
        """Open a blob for reading; all bytes were verified before the first is handed out.

        Raises:
            CorruptBlob: As for `fetch_blob`.
        """
        ...

    def read_blob(self, blob: Blob) -> bytes:
        """Return a small blob's verified bytes, at most `READ_AT_ONCE_BYTES`.

        Raises:
            CorruptBlob: As for `fetch_blob`; or the blob is larger.
        """
        ...

    def check_blob(self, blob: Blob) -> str | None:
        """Read a blob's bytes; return None where they are right, else what is wrong with them."""
        ...

    def delete_blob(self, digest: Digest) -> bool:
        """Remove a blob; no error where there is none.

        Returns:
            Whether its bytes are gone. A bucket that keeps versions keeps them, as an older one.
        """
        ...

    def list_blobs(self) -> Iterator[BlobStat]:
        """Go through all blobs; `stored_digest` is None in a listing."""
        ...
