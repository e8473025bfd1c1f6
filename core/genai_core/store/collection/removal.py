"""What a gc came to, and one removal: it goes on where the store refuses one thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from genai_core.errors import StoreUnreadable
from genai_core.store.protocol import RecordRef

__all__ = ["CollectResult", "Removals", "went"]

_REFUSALS = 20


@dataclass
class CollectResult:
    """What gc did, or would do.

    Attributes:
        uploads_kept: Models that `genai build --remote` sent, and that stay.
        uploads_deleted: Those that go.
        bytes_kept: Of the blobs and uploads that stay.
        bytes_deleted: Of the blobs and uploads that go.
        bytes_older: Those of `bytes_deleted` that the bucket keeps as older versions.
        deleted: The records that go.
        refused: How many things should go, and the store does not let them.
        refusals: The first of these, and why.
        drafts_deleted: What killed writers left half-written, older than a day.
        holders: Who holds live leases.
    """

    dry_run: bool
    records_kept: int = 0
    records_deleted: int = 0
    blobs_kept: int = 0
    blobs_deleted: int = 0
    uploads_kept: int = 0
    uploads_deleted: int = 0
    bytes_kept: int = 0
    bytes_deleted: int = 0
    bytes_older: int = 0
    leases_expired: int = 0
    drafts_deleted: int = 0
    deleted: list[RecordRef] = field(default_factory=list)
    refused: int = 0
    refusals: list[str] = field(default_factory=list)
    holders: list[str] = field(default_factory=list)


class Removals(NamedTuple):
    """Where it is noted and told what goes."""

    done: CollectResult
    progress: Callable[[str], None]


def went(
    what: str, remove: Callable[[], bool | None], removals: Removals, *, size: int = 0
) -> bool:
    """Remove one thing; False, and noted, where the store refuses.

    Args:
        what: It is.
        remove: Does it; False where its bytes stay as an older version.
        removals: Of the gc; a dry run removes nothing.
        size: Bytes of it.
    """
    done, progress = removals
    if done.dry_run:
        return True
    try:
        freed = remove()
    except StoreUnreadable as error:
        done.refused += 1
        text = f"{what} stays: {error.message}"
        if len(done.refusals) < _REFUSALS:
            done.refusals.append(text)
        progress(text)
        return False
    if freed is False:
        done.bytes_older += size
    return True
