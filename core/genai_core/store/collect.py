"""gc: keep what leases and roots reach and what is young, remove the rest.

A record is kept where a live lease or a root names it, or where it is younger than the grace
period. A blob is kept where a kept record names it, or where it is younger than the grace period
(its writer may be about to commit). Leases belong to whoever wrote them: those of other clusters
and laptops count as much as one's own, and a lease that cannot be read stops gc.

Order matters, since writers go on meanwhile: records go before blobs, so that no lookup hits a
record whose blobs are about to go; leases are read again before the first removal. What still
slips through is a miss later, never a wrong byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from genai_core.errors import CorruptBlob
from genai_core.names import Digest
from genai_core.store.protocol import RecordRef, Store

__all__ = ["DEFAULT_GRACE", "Collected", "collect"]

DEFAULT_GRACE = timedelta(days=7)
_DRAFTS_LAST = timedelta(days=1)


@dataclass
class Collected:
    """What gc did, or would do.

    Attributes:
        bytes_kept: Of the blobs that stay.
        bytes_deleted: Of the blobs that go.
        deleted: The records that go.
        drafts_deleted: What killed writers left half-written, older than a day.
        holders: Who holds live leases.
    """

    dry_run: bool
    records_kept: int = 0
    records_deleted: int = 0
    blobs_kept: int = 0
    blobs_deleted: int = 0
    bytes_kept: int = 0
    bytes_deleted: int = 0
    leases_expired: int = 0
    drafts_deleted: int = 0
    deleted: list[RecordRef] = field(default_factory=list)
    holders: list[str] = field(default_factory=list)


def collect(
    store: Store,
    *,
    now: datetime,
    grace: timedelta = DEFAULT_GRACE,
    roots: Iterable[RecordRef] = (),
    dry_run: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Collected:
    """Remove what nothing reaches.

    Args:
        store: The store; of a layered one, the first.
        now: The time, with a zone.
        grace: How long records and blobs stay untouched after they were written. Below 12 hours
            only where nobody writes: a writer relies on a blob that it found younger than that.
        roots: Records that are kept beside those that leases name.
        dry_run: Only report.
        progress: Called with a line for each removal.

    Raises:
        StoreUnreadable: The store, or a lease in it, cannot be read; nothing was removed then.
    """
    done = Collected(dry_run=dry_run)
    before = now - grace
    wanted = set(roots)
    doomed, kept_blobs = _mark(store, wanted | _leased(store, now, done), before, done)
    # A build that began meanwhile wrote its lease before it looked anything up.
    late = _leased(store, now, Collected(dry_run=True)) & doomed
    for ref in late:
        doomed.discard(ref)
        done.records_kept += 1
        kept_blobs |= _blobs_of(store, ref)
    for ref in sorted(doomed):
        done.deleted.append(ref)
        done.records_deleted += 1
        progress(f"record {ref}")
        if not dry_run:
            store.delete_record(ref)
    _sweep_blobs(store, kept_blobs, before, done, progress)
    done.drafts_deleted = store.delete_drafts(now - _DRAFTS_LAST, dry_run=dry_run)
    return done


def _leased(store: Store, now: datetime, done: Collected) -> set[RecordRef]:
    """Return what live leases name and remove expired ones."""
    found: set[RecordRef] = set()
    for lease in store.list_leases():
        if lease.expires_at > now:
            found.update(lease.records)
            done.holders.append(lease.holder)
            continue
        done.leases_expired += 1
        if not done.dry_run:
            store.delete_lease(lease.name)
    return found


def _mark(
    store: Store, wanted: set[RecordRef], before: datetime, done: Collected
) -> tuple[set[RecordRef], set[Digest]]:
    doomed: set[RecordRef] = set()
    kept: set[Digest] = set()
    for ref in store.list_records():
        if ref in wanted or (ref.modified is not None and ref.modified > before):
            done.records_kept += 1
            kept |= _blobs_of(store, ref)
        else:
            doomed.add(ref)
    return doomed, kept


def _blobs_of(store: Store, ref: RecordRef) -> set[Digest]:
    try:
        stored = store.get_record(ref.operation, ref.key)
    except CorruptBlob:
        return set()  # no lookup will ever hit it
    return set(stored.record.blobs()) if stored else set()


def _sweep_blobs(
    store: Store,
    kept: set[Digest],
    before: datetime,
    done: Collected,
    progress: Callable[[str], None],
) -> None:
    for stat in store.list_blobs():
        if stat.sha256 in kept or stat.modified > before:
            done.blobs_kept += 1
            done.bytes_kept += stat.size
            continue
        if not done.dry_run:
            fresh = store.head_blob(stat.sha256)
            if fresh is None or fresh.modified > before:
                continue  # claimed by a writer since the listing
            store.delete_blob(stat.sha256)
        done.blobs_deleted += 1
        done.bytes_deleted += stat.size
        progress(f"blob {stat.sha256} {stat.size} bytes")
