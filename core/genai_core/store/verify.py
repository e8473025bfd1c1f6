"""Compare every byte that a record names with its digest, and the record with itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from genai_core.errors import BadInput, CorruptBlob, StoreUnreadable
from genai_core.names import Digest
from genai_core.store.blobs import Blobs
from genai_core.store.protocol import RecordRef, Store
from genai_core.store.record_checks import container_fault, key_fault
from genai_core.tasks.record import Blob, Record

__all__ = ["BlobFault", "Verified", "verify"]


@dataclass(frozen=True)
class BlobFault:
    """A blob that is not what its records say.

    Attributes:
        what: `is missing`, `has ... bytes instead of ...`, `has bytes of digest ...`.
        records: The tasks that will run again.
        removed: It was removed, so that the next lookup is a miss.
    """

    digest: Digest
    what: str
    records: tuple[RecordRef, ...]
    removed: bool


@dataclass
class Verified:
    """What was read.

    Attributes:
        unreadable: Records that are none; they are misses already.
        untrue: Records under another task's key, or of a container that is not its manifest's,
            and why.
    """

    records: int = 0
    blobs: int = 0
    bytes: int = 0
    faults: list[BlobFault] = field(default_factory=list)
    unreadable: list[RecordRef] = field(default_factory=list)
    untrue: dict[RecordRef, str] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Nothing was wrong."""
        return not (self.faults or self.unreadable or self.untrue)


def verify(
    store: Store, *, remove: bool = False, progress: Callable[[str], None] = lambda _: None
) -> Verified:
    """Check all blobs of all records.

    Args:
        store: The store.
        remove: Remove wrong blobs and untrue records, so that their tasks run again.
        progress: Called with a line for each fault.
    """
    done = Verified()
    users: dict[Blob, list[RecordRef]] = {}
    for ref in store.list_records():
        try:
            stored = store.get_record(ref.operation, ref.key)
        except CorruptBlob:
            done.unreadable.append(ref)
            progress(f"{ref}: the record cannot be read")
            continue
        if stored is None:
            continue
        done.records += 1
        if (why := _untrue(stored.record, store)) is not None:
            kept = _kept(partial(store.delete_record, ref)) if remove else ""
            done.untrue[ref] = why
            progress(f"{ref}: {why}{kept}")
            if remove and not kept:
                continue
        for digest, size in stored.record.blobs().items():
            users.setdefault(Blob(sha256=digest, size=size), []).append(ref)
    for blob, refs in users.items():
        what = store.check_blob(blob)
        done.blobs += 1
        done.bytes += blob.size
        if what is None:
            continue
        kept = _kept(partial(store.delete_blob, blob.sha256)) if remove else ""
        done.faults.append(BlobFault(blob.sha256, what, tuple(refs), removed=remove and not kept))
        progress(f"blob {blob.sha256} {what}; used by {', '.join(map(str, refs))}{kept}")
    return done


def _kept(remove: Callable[[], object]) -> str:
    """Remove one thing; returns what is to be said where the store refuses."""
    try:
        remove()
    except StoreUnreadable as error:
        return f"; it stays: {error.message}"
    return ""


def _untrue(record: Record, store: Blobs) -> str | None:
    if (fault := key_fault(record)) is not None:
        return fault
    try:
        return container_fault(record, store)
    except (BadInput, CorruptBlob):  # of a newer version; a wrong blob is found below
        return None
