"""One store to write, others that are only read.

A team's laptops read the cluster's store and write their own. A lookup falls through; whatever is
used is copied into the first store, record included, so that the next lookup is local and what a
build reaches does not depend on a store that someone else cleans up.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from genai_core.errors import BadInput, CorruptBlob
from genai_core.files.whole_files import DRAFT_SUFFIX
from genai_core.names import Digest, Key
from genai_core.store.collection.sweeps import CLAIM_LASTS
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.lookup import publish
from genai_core.store.protocol import (
    BlobStat,
    Capabilities,
    Committed,
    Existing,
    HeadBlob,
    Hit,
    Lease,
    Lookup,
    RecordRef,
    Store,
    StoredRecord,
    Sweep,
    Upload,
)
from genai_core.store.record_checks import container_fault
from genai_core.tasks.record import Blob, Record

__all__ = ["LayeredStore", "brought", "layers"]


class LayeredStore:
    """See the module's docstring; writes, listings, leases and gc concern the first store only.

    Args:
        first: Read and written.
        others: Read in this order.
    """

    def __init__(self, first: Store, others: Sequence[Store]) -> None:
        self.first = first
        self.others = tuple(others)

    @property
    def location(self) -> str:
        """Where it is written."""
        return self.first.location

    @property
    def writable(self) -> Store:
        """The first."""
        return self.first

    def head_blob(self, digest: Digest) -> BlobStat | None:
        """Ask each store in turn."""
        for store in layers(self):
            if (stat := store.head_blob(digest)) is not None:
                return stat
        return None

    def put_blob(self, path: Path, *, digest: Digest | None = None, consume: bool = False) -> Blob:
        """Store a file in the first store."""
        return self.first.put_blob(path, digest=digest, consume=consume)

    def put_bytes(self, data: bytes) -> Blob:
        """Store bytes in the first store."""
        return self.first.put_bytes(data)

    def fetch_blob(self, blob: Blob, dest: Path, *, shared: bool = False) -> None:
        """Fetch from the first store, copying the blob there before where it is not."""
        self._bring(blob)
        self.first.fetch_blob(blob, dest, shared=shared)

    @contextmanager
    def open_blob(self, blob: Blob) -> Iterator[BinaryIO]:
        """Open in the first store, copying the blob there before where it is not."""
        self._bring(blob)
        with self.first.open_blob(blob) as stream:
            yield stream

    def read_blob(self, blob: Blob) -> bytes:
        """Read a small blob where it is; nothing is copied for a glance."""
        if self.first.head_blob(blob.sha256) is None:
            for store in self.others:
                with suppress(CorruptBlob):
                    return store.read_blob(blob)
        return self.first.read_blob(blob)

    def _bring(self, blob: Blob, *, claim: datetime | None = None) -> None:
        """Copy a blob into the first store.

        Args:
            blob: What is wanted.
            claim: A record is about to name it: gc must not take what stands there for forgotten.
                The first store's time.
        """
        stat = self.first.head_blob(blob.sha256)
        stands = stat is not None and stat.stands_for(blob.sha256, blob.size)
        if stat is not None and stands and (claim is None or claim - stat.modified < CLAIM_LASTS):
            return
        for store in layers(self) if stands else self.others:
            if store.head_blob(blob.sha256) is None:
                continue
            near = self.first.scratch if isinstance(self.first, DirectoryStore) else None
            # Called as drafts are, so that gc removes what a killed process left.
            with tempfile.TemporaryDirectory(DRAFT_SUFFIX, ".copy.", near) as folder:
                copy = Path(folder) / blob.sha256
                try:
                    store.fetch_blob(blob, copy, shared=store is self.first)
                except CorruptBlob:
                    continue
                self.first.put_blob(copy, digest=blob.sha256, consume=True)
                return

    def check_blob(self, blob: Blob) -> str | None:
        """Check in the first store that has it."""
        for store in layers(self):
            if store.head_blob(blob.sha256) is not None:
                return store.check_blob(blob)
        return "is missing"

    def delete_blob(self, digest: Digest) -> bool:
        """Remove from the first store."""
        return self.first.delete_blob(digest)

    def list_blobs(self) -> Iterator[BlobStat]:
        """Go through the first store."""
        return self.first.list_blobs()

    def get_record(self, operation: str, key: Key) -> StoredRecord | None:
        """Ask each store in turn."""
        for store in layers(self):
            if (stored := store.get_record(operation, key)) is not None:
                return stored
        return None

    def lookup(self, operation: str, key: Key, *, head: HeadBlob | None = None) -> Lookup:
        """Return the first store's hit, else another's, else the first store's miss."""
        del head  # it would answer for all stores at once
        answer = self.first.lookup(operation, key)
        if isinstance(answer, Hit):
            return answer
        for store in self.others:
            other = store.lookup(operation, key)
            if isinstance(other, Hit):
                return other
        return answer

    def adopt(self, operation: str, key: Key) -> Hit | None:
        """Copy a hit of another store into the first: its blobs, then its record.

        Returns:
            The first store's hit; None where no store has one, or where a container is not what
            its manifest says.
        """
        found = self.lookup(operation, key)
        if not isinstance(found, Hit):
            return None
        if found.origin == self.first.location:
            return found
        try:
            if container_fault(found.record, self) is not None:
                return None
        except BadInput:  # a newer version's: not for this one
            return None
        now = self.first.now()
        for digest, size in found.record.blobs().items():
            self._bring(Blob(sha256=digest, size=size), claim=now)
        publish(self.first, found.record)
        own = self.first.lookup(operation, key)
        return own if isinstance(own, Hit) else None

    def commit(self, record: Record) -> Committed | Existing:
        """Commit to the first store."""
        return self.first.commit(record)

    def heal(self, record: Record, etag: str) -> Committed | Existing:
        """Heal in the first store."""
        return self.first.heal(record, etag)

    def delete_record(self, ref: RecordRef) -> None:
        """Remove from the first store."""
        self.first.delete_record(ref)

    def list_records(self, operation: str | None = None) -> Iterator[RecordRef]:
        """Go through the first store."""
        return self.first.list_records(operation)

    def delete_drafts(self, before: datetime, *, dry_run: bool = False) -> int:
        """Clean the first store."""
        return self.first.delete_drafts(before, dry_run=dry_run)

    def list_uploads(self) -> Sequence[Upload]:
        """Those beside the first store."""
        return self.first.list_uploads()

    def delete_upload(self, name: str) -> bool:
        """Remove it beside the first store."""
        return self.first.delete_upload(name)

    def put_lease(self, lease: Lease) -> None:
        """Claim in the first store; the others are only read."""
        self.first.put_lease(lease)

    def delete_lease(self, name: str) -> None:
        """Give up in the first store."""
        self.first.delete_lease(name)

    def get_lease(self, name: str) -> Lease | None:
        """Read in the first store."""
        return self.first.get_lease(name)

    def list_leases(self) -> Sequence[Lease]:
        """Read the first store's leases."""
        return self.first.list_leases()

    def put_sweep(self, sweep: Sweep) -> None:
        """Only the first store is swept."""
        self.first.put_sweep(sweep)

    def delete_sweep(self, name: str) -> None:
        """In the first store."""
        self.first.delete_sweep(name)

    def list_sweeps(self) -> Sequence[Sweep]:
        """Read the first store's sweeps."""
        return self.first.list_sweeps()

    def now(self) -> datetime:
        """The first store's time."""
        return self.first.now()

    def probe(self) -> Capabilities:
        """Probe the first store."""
        return self.first.probe()


def brought(store: Store, operation: str, key: Key, answer: Lookup) -> Lookup:
    """Bring a hit of another store into the one that is written; any other answer as it is."""
    if not isinstance(store, LayeredStore) or not isinstance(answer, Hit):
        return answer
    return store.adopt(operation, key) or store.first.lookup(operation, key)


def layers(store: Store) -> tuple[Store, ...]:
    """The stores that one reads, in order: what a listing of all of them needs."""
    return (store.first, *store.others) if isinstance(store, LayeredStore) else (store,)
