"""The lease of a build: written before anything is looked up, renewed, and left at the end.

While it works, a build claims the keys that it is going to look up beside all that it claimed when
it last ended: an edit that fails costs nothing that was good. When it is done the lease names the
plan's records and the last few revisions of its containers. See `sweeps` for why the order matters.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from genai_core.errors import StoreUnreadable
from genai_core.store.collection.sweeps import Clock, Sleep, await_sweeps, utc_now
from genai_core.store.leases import Leases
from genai_core.store.protocol import KeptContainer, Lease, RecordRef

__all__ = ["KEEP", "LASTS", "Holder", "with_containers"]

LASTS = timedelta(days=30)
"""A holder that is silent for so long has given up."""
KEEP = 3
"""Revisions of a container that are kept for each target, the newest among them."""


def with_containers(
    standing: Iterable[KeptContainer],
    built: Mapping[str, RecordRef],
    *,
    keep: int,
    now: datetime,
) -> tuple[KeptContainer, ...]:
    """The revisions that stay: those just built first, `keep` of each target.

    Args:
        standing: Kept so far, the newest first.
        built: Target -> record of its container.
        keep: How many; what was just built stays in any case.
        now: When they were built.
    """
    before = {(kept.target, kept.ref): kept.built_at for kept in standing}
    fresh = [
        KeptContainer(target, ref, before.get((target, ref), now))
        for target, ref in sorted(built.items())
    ]
    found = list(fresh)
    for kept in standing:
        count = sum(other.target == kept.target for other in found)
        again = any((other.target, other.ref) == (kept.target, kept.ref) for other in found)
        if not again and count < keep:
            found.append(kept)
    return tuple(found)


class Holder:
    """Holds one lease. Not for several threads at once.

    Args:
        store: Where the lease lies.
        name: Of the lease.
        holder: Who to ask.
        lasts: For how long each writing of it counts.
        now: The clock; None = the store's, asked once.
        sleep: How a sweep's end is waited for.
    """

    def __init__(
        self,
        store: Leases,
        name: str,
        *,
        holder: str,
        lasts: timedelta = LASTS,
        now: Clock | None = None,
        sleep: Sleep = time.sleep,
    ) -> None:
        self.store = store
        self.name = name
        self.holder = holder
        self.problem = ""
        """Why the last writing failed; a build may stand on a store that it cannot write."""
        self._lasts = lasts
        self._clock = now
        self._ahead: timedelta | None = None
        self._sleep = sleep
        self._lease: Lease | None = None
        self._read = False

    def _now(self) -> datetime:
        """The time that gc goes by."""
        if self._clock is not None:
            return self._clock()
        if self._ahead is None:
            self._ahead = self.store.now() - utc_now()
        return utc_now() + self._ahead

    @property
    def due(self) -> bool:
        """A third of the lease's time is over, or nothing is known of it."""
        lease = self._standing()
        return lease is None or lease.expires_at - self._now() < self._lasts * 2 / 3

    def claim(self, refs: Iterable[RecordRef], uploads: Iterable[str] = ()) -> None:
        """Claim records and uploads before they are looked up; what is claimed costs nothing.

        Raises:
            StoreUnavailable: The store does not answer.
        """
        lease = self._standing()
        claimed = lease.claimed if lease is not None else frozenset[RecordRef]()
        known = lease.uploads if lease is not None else ()
        new = frozenset(refs) - claimed
        models = frozenset(uploads) - frozenset(known or ())
        if not new and not models and known is not None and not self.due:
            return
        kept = lease.containers if lease is not None else ()
        self._write(claimed | new, kept, uploads=models.union(known or ()))
        if new or models:
            await_sweeps(
                self.store, records=new, uploads=models, now=self._clock, sleep=self._sleep
            )

    def settle(
        self,
        refs: Iterable[RecordRef],
        containers: Mapping[str, RecordRef],
        *,
        keep: int = KEEP,
        uploads: Iterable[str] = (),
    ) -> None:
        """The build is done: claim just its plan's records, its last containers and its model.

        Raises:
            StoreUnavailable: The store does not answer.
        """
        lease = self._standing()
        standing = lease.containers if lease is not None else ()
        kept = with_containers(standing, containers, keep=keep, now=self._now())
        wanted = frozenset(refs) | {one.ref for one in kept}
        models = frozenset(uploads)
        if (
            lease is None
            or lease.claimed != wanted
            or lease.containers != kept
            or lease.uploads is None
            or frozenset(lease.uploads) != models
            or self.due
        ):
            self._write(wanted, kept, uploads=models)

    def renew(self) -> bool:
        """Write the lease anew as it stands; False where it is gone."""
        self._read = False
        lease = self._standing()
        if lease is None:
            return False
        if self.due:
            self._write(lease.records, lease.containers, uploads=lease.uploads)
        return True

    def release(self) -> None:
        """Give the lease up."""
        self._lease, self._read = None, True
        try:
            self.store.delete_lease(self.name)
        except StoreUnreadable as error:
            self.problem = str(error)

    def _standing(self) -> Lease | None:
        if not self._read:
            self._lease = self.store.get_lease(self.name)
            self._read = True
        lease = self._lease
        return lease if lease is not None and lease.expires_at > self._now() else None

    def _write(
        self,
        refs: Iterable[RecordRef],
        kept: tuple[KeptContainer, ...],
        *,
        uploads: Iterable[str] | None,
    ) -> None:
        lease = Lease(
            self.name,
            self.holder,
            tuple(sorted(refs)),
            self._now() + self._lasts,
            kept,
            tuple(sorted(uploads)) if uploads is not None else None,
        )
        try:
            self.store.put_lease(lease)
        except StoreUnreadable as error:
            self.problem = str(error)
            return
        self.problem = ""
        self._lease, self._read = lease, True
