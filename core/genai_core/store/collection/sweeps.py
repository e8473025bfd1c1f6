"""Sweeps: how a gc and the builds beside it wait for each other, so that it deletes nothing in use.

Two flags, as in Dekker's algorithm: each side raises its own before it looks at the other's.

    a build    writes a lease that names a record, then reads the sweeps, then looks the record up
    a gc       writes a sweep that names a record, then reads the leases, then removes the record

Whichever wrote second sees the other. A gc leaves alone what it sees leased; a build waits until no
sweep names its record, and then finds it there or gone. Uploaded models are claimed in the same way
before anybody looks whether they are there. The same holds for blobs: a writer stores them, then
reads the sweeps, then makes sure that they stand, then commits the record. Stores show every write
to the next reader (S3 does since 2020), which is all that this needs.

A sweep names at most a few hundred things, so waits are short, and it expires: a gc that was killed
holds nobody up for long. A gc stops well before its own sweep ends. What a sweep says of its end is
believed only within ten minutes after it was written, by the store's clock: whoever writes one that
ends in a thousand years holds nobody up for longer either.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta

from genai_core.errors import StoreUnavailable
from genai_core.names import Digest
from genai_core.store.leases import Leases
from genai_core.store.protocol import SWEEP_LASTS, RecordRef, Sweep

__all__ = ["CLAIM_LASTS", "SWEEP_LASTS", "Clock", "Sleep", "await_sweeps", "utc_now"]

CLAIM_LASTS = timedelta(hours=12)
"""A blob younger than this need not be written again by who relies on it; gc's grace is longer."""

log = logging.getLogger("genai_core.store")

_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 2.0
_SILENT_SECONDS = 5.0
_MOST_SECONDS = SWEEP_LASTS.total_seconds()

Clock = Callable[[], datetime]
Sleep = Callable[[float], None]


def utc_now() -> datetime:
    """The time, with a zone."""
    return datetime.now(UTC)


def await_sweeps(
    store: Leases,
    *,
    records: Collection[RecordRef] = (),
    blobs: Collection[Digest] = (),
    uploads: Collection[str] = (),
    now: Clock | None = None,
    sleep: Sleep = time.sleep,
) -> None:
    """Wait until no gc is about to remove any of these.

    Args:
        store: Where the sweeps lie.
        records: What is about to be looked up.
        blobs: What is about to be relied on.
        uploads: Names of models that are about to be read or sent.
        now: The clock; None = the store's.
        sleep: Waits.

    Raises:
        StoreUnavailable: Sweeps went on naming them for longer than a gc is at one.
    """
    wanted, digests, models = frozenset(records), frozenset(blobs), frozenset(uploads)

    def hits(sweep: Sweep) -> bool:
        return bool(sweep.records & wanted or sweep.blobs & digests or sweep.uploads & models)

    pause, waited, began = _PAUSE_SECONDS, 0.0, time.monotonic()
    while named := [sweep for sweep in store.list_sweeps() if hits(sweep)]:
        clock = (now or store.now)()
        lasting = [sweep for sweep in named if sweep.expires_at > clock]
        if not lasting:
            return
        if max(waited, time.monotonic() - began) > _MOST_SECONDS:
            raise StoreUnavailable(
                f"sweeps/{lasting[0].name}.json says for too long that a gc is about to remove "
                "what is needed here",
                where=store.location,
                remedy="delete that file where no gc runs",
            )
        if waited <= _SILENT_SECONDS < waited + pause:
            log.warning(
                "%s: waits for a gc (sweeps/%s.json), ten minutes at most",
                store.location,
                lasting[0].name,
            )
        sleep(pause)
        waited += pause
        pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)
