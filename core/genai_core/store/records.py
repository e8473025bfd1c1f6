"""Records: what a finished task leaves, by operation and key.

A record is the commit point: it is written last, after every blob it names, and only where none
stands yet, so of two writers the first wins and both succeed. A hit is a record whose blobs all
answer with the right size and stored checksum; anything less is a miss with a reason, and the task
runs again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, TypeAlias

from genai_core.names import Key
from genai_core.store.blobs import HeadBlob, Located
from genai_core.tasks.record import Record

__all__ = [
    "Committed",
    "Existing",
    "Hit",
    "Lookup",
    "Miss",
    "RecordRef",
    "Records",
    "StoredRecord",
]


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


@dataclass(frozen=True)
class Committed:
    """The record is now the store's."""

    record: Record


@dataclass(frozen=True)
class Existing:
    """Another writer was first; its record stands and is as good."""

    record: Record
    etag: str


class Records(Located, Protocol):
    """The records of a store; errors as `protocol.Store` says."""

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
