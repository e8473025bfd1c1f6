"""Checking and cleaning a store."""

from __future__ import annotations

from datetime import timedelta

from genai_cli.display.output import emit, say, tell
from genai_cli.display.words import counted, size
from genai_cli.settings import ProgramSettings
from genai_cli.store.entries import opened
from genai_core.store.collection.collect import collect
from genai_core.store.collection.removal import CollectResult
from genai_core.store.verify import verify

__all__ = ["collect_garbage", "verify_store"]

_FIRST = 3


def verify_store(settings: ProgramSettings, address: str | None, *, remove: bool) -> int:
    """Read every blob; returns 1 where something is wrong."""
    store = opened(settings, address)
    done = verify(store, remove=remove, progress=_tell)
    if settings.json:
        emit(
            {
                "store": store.location,
                "records": done.records,
                "blobs": done.blobs,
                "bytes": done.bytes,
                "faults": [
                    {
                        "digest": fault.digest,
                        "what": fault.what,
                        "records": [str(ref) for ref in fault.records],
                        "removed": fault.removed,
                    }
                    for fault in done.faults
                ],
                "unreadable": [str(ref) for ref in done.unreadable],
                "untrue": {str(ref): why for ref, why in done.untrue.items()},
            }
        )
    else:
        wrong = len(done.faults) + len(done.unreadable) + len(done.untrue)
        end = "all is well" if done.clean else f"{wrong} wrong"
        read = f"{counted(done.blobs, 'blob')}, {size(done.bytes)} read"
        say(f"{counted(done.records, 'entry')}, {read}: {end}")
        if (done.faults or done.untrue) and not remove:
            say("genai cache verify --remove removes what is wrong; its tasks then run again")
    return 0 if done.clean else 1


def collect_garbage(
    settings: ProgramSettings, address: str | None, *, keep_days: float, dry_run: bool
) -> int:
    """Remove what nothing needs; returns the exit code."""
    store = opened(settings, address)
    done = collect(
        store,
        grace=timedelta(days=keep_days),
        dry_run=dry_run,
        progress=_tell,
    )
    if settings.json:
        emit(
            {
                "store": store.location,
                "dryRun": dry_run,
                "records": {"kept": done.records_kept, "deleted": done.records_deleted},
                "blobs": {"kept": done.blobs_kept, "deleted": done.blobs_deleted},
                "uploads": {"kept": done.uploads_kept, "deleted": done.uploads_deleted},
                "bytes": {
                    "kept": done.bytes_kept,
                    "deleted": done.bytes_deleted,
                    "older": done.bytes_older,
                },
                "refused": done.refused,
                "holders": done.holders,
            }
        )
        return _gc_code(done)
    verb = "would go" if dry_run else "removed"
    went = _counts(done.records_deleted, done.uploads_deleted, done.bytes_deleted)
    say(f"{went} {verb}; {_counts(done.records_kept, done.uploads_kept, done.bytes_kept)} stay")
    for holder in done.holders:
        say(f"  kept for {holder}")
    if done.bytes_older:
        older = f"{size(done.bytes_older)} of what went stays in the bucket as older versions"
        say(f"  {older}; a lifecycle rule for noncurrent versions frees it")
    if done.refused:
        say(f"  {done.refused} stay because the store does not let them go; the first:")
        for line in done.refusals[:_FIRST]:
            say(f"    {line}")
    return _gc_code(done)


def _gc_code(done: CollectResult) -> int:
    return 1 if done.refused else 0


def _counts(entries: int, uploads: int, held: int) -> str:
    models = f", {counted(uploads, 'uploaded model')}" if uploads else ""
    return f"{counted(entries, 'entry')}{models} and {size(held)}"


def _tell(line: str) -> None:
    tell(f"{line}")
