"""What tests let other processes do.

They come from multiprocessing's fork server: a fork of the test's own process would take over
whatever locks its threads hold at that moment, those of earlier tests included, and wait for ever.
"""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from threading import Barrier

from genai_core.canonical import digest_bytes
from genai_core.files.digest_cache import FileCache
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.lookup import publish
from genai_core.tasks.record import Record

__all__ = ["PROCESSES", "commit_in_process", "digest_many"]

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["genai_core.store.directory.directory_store"])


def commit_in_process(root: Path, record: Record, number: int, start: Barrier) -> str:
    """Publish a record of its own under the key, with the others: what came of it, and whose."""
    store = DirectoryStore(root)
    blob = store.put_bytes(b"clock %d" % number)
    outputs = {"a.bin": {"sha256": blob.sha256, "size": blob.size}}
    mine = Record.model_validate(record.model_dump(by_alias=True) | {"outputs": outputs})
    start.wait(30)
    answer = publish(store, mine)
    return f"{type(answer).__name__} {answer.record.outputs['a.bin'].sha256}"


def digest_many(place: Path, number: int, ahead_ns: int) -> bool:
    """Whether twenty files have the digests of their content, by a cache that others use too."""
    cache = FileCache(place / "digests", clock_ns=lambda: time.time_ns() + ahead_ns)
    return all(
        cache.digest(place / f"file{n}") == digest_bytes(b"%d" % n)
        for n in range(number, number + 20)
    )
