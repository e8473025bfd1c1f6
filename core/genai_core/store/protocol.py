"""What a store is: blobs by digest, records by operation and key, uploads, leases and sweeps.

Two kinds of things, two rules. A *blob* is immutable and named by its SHA-256, so writing it twice
is harmless. A *record* is the commit point: it is written last, after every blob it names, and
only where none stands yet, so of two writers the first wins and both succeed. Everything else
(the folders people look at, sizes, listings) is derived.

A hit is a record whose blobs all answer with the right size and stored checksum; anything less is
a miss with a reason, and the task runs again. Bytes are hashed whenever they are read: a wrong
byte is never served.

Implementations: `directory.DirectoryStore`, `s3.S3Store`, `layered.LayeredStore`. All are safe to
use from several threads, processes and machines at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Protocol, TypeAlias

from genai_core.errors import CorruptBlob
from genai_core.names import Digest, Key
from genai_core.tasks.record import Blob, Record

__all__ = [
    "LEASE_MOST",
    "READ_AT_ONCE_BYTES",
    "SWEEP_LASTS",
    "BlobStat",
    "Capabilities",
    "Committed",
    "Existing",
    "HeadBlob",
    "Hit",
    "KeptContainer",
    "Lease",
    "Lookup",
    "Miss",
    "RecordRef",
    "Store",
    "StoredRecord",
    "Sweep",
    "Upload",
    "check_small",
]


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


@dataclass(frozen=True, order=True)
class RecordRef:
    """A record's place.

    Attributes:
        modified: When it was written; None unless it comes from a listing.
    """

    operation: str
    key: Key
    modified: datetime | None = field(default=None, compare=False)

    def __str__(self) -> str:
        """`<operation>/<key>`: how leases name records."""
        return f"{self.operation}/{self.key}"


@dataclass(frozen=True)
class StoredRecord:
    """A record and the tag of exactly these bytes of it (for `heal`)."""

    record: Record
    etag: str


@dataclass(frozen=True)
class Hit:
    """The task need not run.

    Attributes:
        origin: Location of the store that holds the record.
    """

    record: Record
    etag: str
    origin: str


@dataclass(frozen=True)
class Miss:
    """The task must run.

    Attributes:
        reason: One sentence for people, e.g. `no record`, `blob 3f2a.. is missing`.
        etag: Tag of the unusable record, where one stands; `heal` needs it.
    """

    reason: str
    etag: str | None = None


Lookup: TypeAlias = Hit | Miss
HeadBlob: TypeAlias = Callable[[Digest], BlobStat | None]


@dataclass(frozen=True)
class Committed:
    """The record is now the store's."""

    record: Record


@dataclass(frozen=True)
class Existing:
    """Another writer was first; its record stands and is as good."""

    record: Record
    etag: str


@dataclass(frozen=True)
class KeptContainer:
    """One revision of a build's container, and when it was built."""

    target: str
    ref: RecordRef
    built_at: datetime


@dataclass(frozen=True)
class Lease:
    """A claim that keeps records, the blobs they name, and uploaded models from gc.

    Attributes:
        name: Unique in the store: letters, digits, `.`, `_`, `-`; at most 200.
        holder: Who to ask, e.g. `cluster-a/ns/build tiny-llama`.
        records: What is claimed, also records that do not exist yet.
        expires_at: From then on the lease counts for nothing. Renewed by writing it again.
        containers: The build's last revisions, the newest first; claimed like `records`.
        uploads: Names of uploaded models that are claimed. None: an older version wrote the lease,
            which could not say, so that all of them have to stay.
    """

    name: str
    holder: str
    records: tuple[RecordRef, ...]
    expires_at: datetime
    containers: tuple[KeptContainer, ...] = ()
    uploads: tuple[str, ...] | None = ()

    @property
    def claimed(self) -> frozenset[RecordRef]:
        """Everything that this lease keeps."""
        return frozenset(self.records) | {kept.ref for kept in self.containers}


@dataclass(frozen=True)
class Sweep:
    """What a gc is removing right now; see `build_lease` for who waits for whom.

    Attributes:
        name: As of a lease.
        expires_at: A gc that was killed holds nobody up after that.
    """

    name: str
    records: frozenset[RecordRef]
    blobs: frozenset[Digest]
    expires_at: datetime
    uploads: frozenset[str] = frozenset()


@dataclass(frozen=True, order=True)
class Upload:
    """A model that `genai build --remote` put beside the store; see `s3.upload_names`.

    Attributes:
        name: Of its folder: `sha256-` and the digest of its files and their roles.
        size: Bytes of all its files.
        modified: When its newest file was sent.
    """

    name: str
    size: int
    modified: datetime


@dataclass(frozen=True)
class Capabilities:
    """What a probe found out by doing it.

    Attributes:
        conditional_create: A second create of the same object is refused (If-None-Match).
        conditional_replace: A replacement with an outdated tag is refused (If-Match).
        checksums: The store keeps a SHA-256 beside the bytes and shows it without reading them.
    """

    conditional_create: bool
    conditional_replace: bool
    checksums: bool


SWEEP_LASTS = timedelta(minutes=10)
"""A gc uses half of it. By the store's clock a sweep counts for no longer after it was written."""
LEASE_MOST = timedelta(days=32)
"""By the store's clock a lease counts for no longer after it was written; builds take 30 days."""
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


class Store(Protocol):
    """The contract; see the module's docstring.

    Every method raises `StoreUnavailable` where trying again may help and `StoreUnreadable` where
    the user must act (credentials, permissions, no such bucket or folder).
    """

    @property
    def location(self) -> str:
        """The address users gave, without credentials."""
        ...

    @property
    def writable(self) -> Store:
        """Where writes go: itself, or the first of several."""
        ...

    # Blobs

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

    def delete_blob(self, digest: Digest) -> None:
        """Remove a blob; no error where there is none."""
        ...

    def list_blobs(self) -> Iterator[BlobStat]:
        """Go through all blobs; `stored_digest` is None in a listing."""
        ...

    # Records

    def get_record(self, operation: str, key: Key) -> StoredRecord | None:
        """Return a record as it stands, whether or not its blobs do.

        Raises:
            CorruptBlob: A record stands there and cannot be read.
        """
        ...

    def lookup(self, operation: str, key: Key, *, head: HeadBlob | None = None) -> Lookup:
        """Return a hit where the record stands and every blob answers, else a miss and why.

        Args:
            operation: Name of the operation.
            key: The task's key.
            head: Asked instead of `head_blob`; `lookup_all` remembers answers with it.
        """
        ...

    def commit(self, record: Record) -> Committed | Existing:
        """Write a record where none (or an unreadable one) stands: the commit point.

        Its blobs must be stored before. `lookup.publish` is what a runner calls: it also replaces
        a record that stands but is no hit.
        """
        ...

    def heal(self, record: Record, etag: str) -> Committed | Existing:
        """Replace the unusable record that bears `etag`; one that changed meanwhile stands."""
        ...

    def delete_record(self, ref: RecordRef) -> None:
        """Remove a record and its view; no error where there is none."""
        ...

    def list_records(self, operation: str | None = None) -> Iterator[RecordRef]:
        """Go through the places of all records, without reading them."""
        ...

    def delete_drafts(self, before: datetime, *, dry_run: bool = False) -> int:
        """Remove what writers killed before that time left half-written; return how many."""
        ...

    # Uploaded models

    def list_uploads(self) -> Sequence[Upload]:
        """Return the uploaded models; a directory has none."""
        ...

    def delete_upload(self, name: str) -> None:
        """Remove an uploaded model; no error where there is none."""
        ...

    # Leases, sweeps and the store itself

    def put_lease(self, lease: Lease) -> None:
        """Write or renew a lease."""
        ...

    def delete_lease(self, name: str) -> None:
        """Give a lease up; no error where there is none."""
        ...

    def get_lease(self, name: str) -> Lease | None:
        """Return one lease, expired or not; None where there is none.

        None lasts for longer than `LEASE_MOST` after it was written, by the store's clock, whatever
        it says itself.
        """
        ...

    def list_leases(self) -> Sequence[Lease]:
        """Return all leases, expired ones too."""
        ...

    def put_sweep(self, sweep: Sweep) -> None:
        """Tell writers and readers what is about to be removed."""
        ...

    def delete_sweep(self, name: str) -> None:
        """Tell them that it is over; no error where there is none."""
        ...

    def list_sweeps(self) -> Sequence[Sweep]:
        """Return the sweeps of the last ten minutes (`SWEEP_LASTS`), by the store's clock.

        Raises:
            StoreUnavailable: One of them cannot be read; later it counts for nothing.
        """
        ...

    def now(self) -> datetime:
        """The store's own time, with a zone: that of the server, or of the file system.

        What is compared with times that the store notes is compared with this: the clocks of those
        who use it may differ by days. A store that cannot tell gives this machine's time.
        """
        ...

    def probe(self) -> Capabilities:
        """Write, write again under conditions, read, delete; return what the store can do.

        Raises:
            StoreUnreadable: It cannot be written or read; the message says which.
        """
        ...
