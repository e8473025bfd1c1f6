"""Hit or miss, and how a finished task's record gets into a store, for every kind of store."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from genai_core.errors import CorruptBlob, StoreUnavailable
from genai_core.store.blobs import Blobs
from genai_core.store.collection.sweeps import Sleep, await_sweeps
from genai_core.store.protocol import (
    BlobStat,
    Committed,
    Existing,
    HeadBlob,
    Hit,
    Lookup,
    RecordRef,
    Store,
)
from genai_core.tasks.record import Record

__all__ = ["BlobSwept", "first_fault", "lookup_all", "publish"]

_ROUNDS = 8
_FEW = 4


class BlobSwept(CorruptBlob):
    """A blob went between being stored and being committed: it has to be stored again."""


def first_fault(record: Record, head: HeadBlob, *, pool: ThreadPoolExecutor | None) -> str | None:
    """Return why a record's blobs do not make a hit, or None where all answer.

    Args:
        record: What is to be used.
        head: The store's `head_blob`.
        pool: Asks for several blobs at once, where a question takes a round trip.
    """
    blobs = record.blobs()
    stats: Iterable[BlobStat | None] = (pool.map if pool else map)(head, blobs)
    for (digest, size), stat in zip(blobs.items(), stats, strict=True):
        if stat is None:
            return f"blob {digest[:12]} is missing"
        if stat.size != size:
            return f"blob {digest[:12]} has {stat.size} bytes instead of {size}"
        if not stat.stands_for(digest, size):
            return f"blob {digest[:12]} is stored with another checksum"
    return None


def publish(store: Store, record: Record, *, sleep: Sleep = time.sleep) -> Committed | Existing:
    """Commit a record; where one stands that is no hit, replace it.

    This is what a runner calls after its blobs are stored. A record that stands and is a hit wins:
    use the outputs of the answer's record, not one's own.

    Raises:
        BlobSwept: A gc took a blob that this writer found standing; store it again.
        StoreUnavailable: Writers and deleters kept crossing each other.
    """
    place = store.writable
    ref, blobs = RecordRef(record.operation, record.key), record.blobs()
    for _ in range(_ROUNDS):
        await_sweeps(place, records=(ref,), blobs=blobs, sleep=sleep)
        fault = _fault(record, place)
        if fault is not None:
            raise BlobSwept(f"{fault}; it has to be stored again", where=place.location)
        answer = store.commit(record)
        if isinstance(answer, Committed):
            return answer
        found = store.lookup(record.operation, record.key)
        if isinstance(found, Hit):
            return Existing(found.record, found.etag)
        if found.etag is None:
            continue  # deleted since; try to be first again
        answer = store.heal(record, found.etag)
        if isinstance(answer, Committed):
            return answer
    raise StoreUnavailable(
        f"{record.operation}/{record.key[:12]} kept changing while it was committed",
        where=store.location,
    )


def _fault(record: Record, store: Blobs) -> str | None:
    if len(record.blobs()) <= _FEW:
        return first_fault(record, store.head_blob, pool=None)
    with ThreadPoolExecutor(8, thread_name_prefix="publish") as pool:
        return first_fault(record, store.head_blob, pool=pool)


def lookup_all(
    store: Store, refs: Iterable[RecordRef], *, threads: int = 8
) -> Mapping[RecordRef, Lookup]:
    """Look many tasks up at once.

    At plan time most of the time is round trips, so they run side by side, and a blob that many
    records share (the weights of all graphs) is asked for once.
    """
    wanted = list(dict.fromkeys(refs))
    head = cache(store.head_blob)

    def look(ref: RecordRef) -> Lookup:
        return store.lookup(ref.operation, ref.key, head=head)

    if threads <= 1 or len(wanted) <= 1:
        return {ref: look(ref) for ref in wanted}
    with ThreadPoolExecutor(threads, thread_name_prefix="lookup") as pool:
        found = pool.map(look, wanted)
        return dict(zip(wanted, found, strict=True))
