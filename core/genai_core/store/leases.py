"""Leases keep what builds claim from gc; sweeps say what a gc is removing.

Who waits for whom is said in `build_lease` and `sweeps`; how both are written, in `lease_files`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from genai_core.names import Digest
from genai_core.store.blobs import Located
from genai_core.store.records import RecordRef

__all__ = ["LEASE_MOST", "SWEEP_LASTS", "KeptContainer", "Lease", "Leases", "Sweep"]

SWEEP_LASTS = timedelta(minutes=10)
"""A gc uses half of it. By the store's clock a sweep counts for no longer after it was written."""
LEASE_MOST = timedelta(days=32)
"""By the store's clock a lease counts for no longer after it was written; builds take 30 days."""


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


class Leases(Located, Protocol):
    """The leases and sweeps of a store; errors as `protocol.Store` says."""

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
