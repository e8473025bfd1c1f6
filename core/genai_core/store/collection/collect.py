"""gc: keep what leases and roots reach and what is young, remove the rest.

A record is kept where a live lease or a root names it, or where it is younger than the grace
period. A blob is kept where a kept record names it, or where it is younger than the grace period
(its writer may be about to commit). An uploaded model is kept where a live lease names it, or where
its newest file is younger than that. Leases belong to whoever wrote them: those of other clusters
and laptops count as much as one's own, and a lease that cannot be read stops gc.

Writers and builds go on meanwhile. Records go before blobs, so that no lookup hits a record whose
blobs are about to go, and everything goes in small sweeps that builds are told of and that look at
the leases again (see `sweeps`): what a build has claimed, or a writer has just stored, stays.

What the store refuses to remove (a lock, a policy, another user's file) stays, is told by name, and
the rest goes on.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple, TypeVar

from genai_core.errors import CorruptBlob, StoreUnreadable
from genai_core.names import Digest
from genai_core.store.collection.removal import CollectResult, Removals, went
from genai_core.store.protocol import SWEEP_LASTS, BlobStat, RecordRef, Store, Sweep, Upload

__all__ = ["DEFAULT_GRACE", "LEAST_GRACE", "collect"]

DEFAULT_GRACE = timedelta(days=7)
LEAST_GRACE = timedelta(hours=13)
"""Where anybody writes: a writer relies for 12 hours on a blob that it found standing."""
_DRAFTS_LAST = timedelta(days=1)
_AT_ONCE = 200
"""Records or blobs of one sweep: who needs one of them waits until it is over."""

T = TypeVar("T")


def collect(
    store: Store,
    *,
    now: datetime | None = None,
    grace: timedelta = DEFAULT_GRACE,
    roots: Iterable[RecordRef] = (),
    dry_run: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> CollectResult:
    """Remove what nothing reaches.

    Args:
        store: The store; of a layered one, the first.
        now: The time, with a zone; None = the store's own, since times in the store are compared
            with it: a machine whose clock runs ahead would remove what is young.
        grace: How long things stay untouched after they were written. Below 12 hours
            only where nobody writes: a writer relies on a blob that it found younger than that.
        roots: Records that are kept beside those that leases name.
        dry_run: Only report.
        progress: Called with a line for each removal, and for each that is refused.

    Raises:
        StoreUnreadable: The store, or a lease in it, cannot be read, and nothing was removed; or
            nothing at all may be removed.
    """
    done = CollectResult(dry_run=dry_run)
    now = now or store.now()
    before = now - grace
    began = time.monotonic()
    wanted = set(roots)
    removals = Removals(done, progress)
    leased = _leased(store, now, done, progress).records
    doomed, kept_blobs = _mark(store, wanted | leased, before, done)
    for batch in _batches(sorted(doomed)):
        with _sweeping(store, now, began, done, records=batch) as lasts:
            # A build that began meanwhile wrote its lease before it looked anything up.
            late = _claims(store, now).records
            for ref in batch:
                stays = ref in late or not lasts()
                if stays or not went(f"record {ref}", partial(store.delete_record, ref), removals):
                    done.records_kept += 1
                    kept_blobs |= _blobs_of(store, ref)
                    continue
                done.deleted.append(ref)
                done.records_deleted += 1
                progress(f"record {ref}")
    old = [stat for stat in store.list_blobs() if _goes(stat, kept_blobs, before, done)]
    for stats in _batches(old):
        digests = [stat.sha256 for stat in stats]
        with _sweeping(store, now, began, done, blobs=digests) as lasts:
            for stat in stats:
                _remove_blob(store, stat, before, lasts=lasts, removals=removals)
    _collect_uploads(store, now, began, before=before, removals=removals)
    done.drafts_deleted = store.delete_drafts(now - _DRAFTS_LAST, dry_run=dry_run)
    return done


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), _AT_ONCE):
        yield items[start : start + _AT_ONCE]


@contextmanager
def _sweeping(
    store: Store,
    now: datetime,
    began: float,
    done: CollectResult,
    *,
    records: Iterable[RecordRef] = (),
    blobs: Iterable[Digest] = (),
    uploads: Iterable[str] = (),
) -> Iterator[Callable[[], bool]]:
    """Tell builds what goes; yields whether there is still time to remove it."""
    if done.dry_run:
        yield lambda: True
        return
    passed = timedelta(seconds=time.monotonic() - began)
    until = time.monotonic() + SWEEP_LASTS.total_seconds() / 2
    name = f"gc-{secrets.token_hex(8)}"
    ends = now + passed + SWEEP_LASTS
    store.put_sweep(Sweep(name, frozenset(records), frozenset(blobs), ends, frozenset(uploads)))
    try:
        yield lambda: time.monotonic() < until
    finally:
        _end_sweep(store, name)


def _end_sweep(store: Store, name: str) -> None:
    try:
        store.delete_sweep(name)
    except StoreUnreadable as error:
        raise StoreUnreadable(
            f"gc cannot remove its own sweeps/{name}.json, so that it stops: {error.message}",
            where=store.location,
            remedy="let these credentials delete below the store's prefix",
        ) from error


class _Leased(NamedTuple):
    """What live leases name; `uploads` is None where one of them cannot say."""

    records: set[RecordRef]
    uploads: set[str] | None


def _leased(
    store: Store, now: datetime, done: CollectResult, progress: Callable[[str], None]
) -> _Leased:
    """Return what live leases name and remove expired ones."""
    records: set[RecordRef] = set()
    uploads: set[str] | None = set()
    for lease in store.list_leases():
        if lease.expires_at > now:
            records.update(lease.claimed)
            known = lease.uploads
            uploads = None if uploads is None or known is None else uploads.union(known)
            done.holders.append(lease.holder)
            continue
        remove = partial(store.delete_lease, lease.name)
        done.leases_expired += went(f"lease {lease.name}", remove, Removals(done, progress))
    return _Leased(records, uploads)


def _claims(store: Store, now: datetime) -> _Leased:
    """What live leases name by now."""
    return _leased(store, now, CollectResult(dry_run=True), lambda _: None)


def _mark(
    store: Store, wanted: set[RecordRef], before: datetime, done: CollectResult
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


def _goes(stat: BlobStat, kept: set[Digest], before: datetime, done: CollectResult) -> bool:
    """Tell whether a blob is to go; counts it where it stays."""
    if stat.sha256 in kept or stat.modified > before:
        done.blobs_kept += 1
        done.bytes_kept += stat.size
        return False
    return True


def _remove_blob(
    store: Store,
    stat: BlobStat,
    before: datetime,
    *,
    lasts: Callable[[], bool],
    removals: Removals,
) -> None:
    done, progress = removals
    if not done.dry_run:
        fresh = store.head_blob(stat.sha256)
        if fresh is None or fresh.modified > before or not lasts():
            return  # claimed by a writer since the listing
    remove = partial(store.delete_blob, stat.sha256)
    if not went(f"blob {stat.sha256}", remove, removals, size=stat.size):
        done.blobs_kept += 1
        done.bytes_kept += stat.size
        return
    done.blobs_deleted += 1
    done.bytes_deleted += stat.size
    progress(f"blob {stat.sha256} {stat.size} bytes")


def _collect_uploads(
    store: Store,
    now: datetime,
    began: float,
    *,
    before: datetime,
    removals: Removals,
) -> None:
    """Remove uploaded models that no lease names and that are old."""
    done, progress = removals
    leased = _claims(store, now).uploads
    doomed: list[Upload] = []
    for upload in store.list_uploads():
        if leased is None or upload.name in leased or upload.modified > before:
            done.uploads_kept += 1
            done.bytes_kept += upload.size
        else:
            doomed.append(upload)
    for upload in doomed:  # one at a time: a model may take long
        with _sweeping(store, now, began, done, uploads=[upload.name]) as lasts:
            # Whoever sends it again claimed it before looking which of its files are there.
            late = _claims(store, now).uploads
            stays = late is None or upload.name in late or not lasts()
            remove = partial(store.delete_upload, upload.name)
            if stays or not went(f"upload {upload.name}", remove, removals, size=upload.size):
                done.uploads_kept += 1
                done.bytes_kept += upload.size
                continue
            progress(f"upload {upload.name} {upload.size} bytes")
            done.uploads_deleted += 1
            done.bytes_deleted += upload.size
