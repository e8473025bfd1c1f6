"""gc, readers and writers of one directory store, each to be run in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from genai_core.names import Key
from genai_core.operations import operation_of
from genai_core.store.collection.build_lease import Holder
from genai_core.store.collection.collect import LEAST_GRACE, collect
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.lookup import BlobSwept, publish
from genai_core.store.protocol import Hit, RecordRef
from genai_core.tasks.keys import task_key, toolchain_id
from genai_core.tasks.record import Blob, Output, Record, ToolchainUsed

__all__ = ["PROCESSES", "age", "gc", "key_of", "reader", "ref_of", "stored", "writer"]

PROCESSES = multiprocessing.get_context("forkserver")  # a fork would take over threads' locks
PROCESSES.set_forkserver_preload(["genai_core.store.collection.collect"])
TOOLS = toolchain_id({})


def key_of(number: int) -> Key:
    version = operation_of("ingest").code_version
    return task_key("ingest", version, toolchain_id=TOOLS, config={"n": number}, inputs={})


def ref_of(number: int) -> RecordRef:
    return RecordRef("ingest", key_of(number))


def stored(store: DirectoryStore, number: int, datas: list[bytes]) -> Record:
    outputs = {}
    for index, data in enumerate(datas):
        blob = store.put_bytes(data)
        outputs[f"f{index}"] = Output(sha256=blob.sha256, size=blob.size)
    return Record(
        operation="ingest",
        key=key_of(number),
        config={"n": number},
        outputs=outputs,
        toolchain=ToolchainUsed(id=TOOLS),
        created_at=datetime.now(UTC),
    )


def age(root: Path, seconds: float) -> None:
    for path in [*(root / "blobs").rglob("*"), *(root / "records").rglob("*.json")]:
        if path.is_file():
            os.utime(path, ns=(1, path.stat().st_mtime_ns - int(seconds * 1e9)))


def gc(root: Path, pause: float, told: Any, begun: Any = None) -> None:
    if begun is not None:
        assert begun.wait(60)
    time.sleep(pause)
    try:
        done = collect(DirectoryStore(root), grace=LEAST_GRACE)
        told.put(("gc", done.records_deleted))
    except BaseException as error:  # noqa: BLE001 - the test looks at it
        told.put(("error", repr(error)))


def reader(root: Path, numbers: list[int], pause: float, told: Any, begun: Any) -> None:
    time.sleep(pause)
    store = DirectoryStore(root)
    try:
        name = f"r{os.getpid()}"
        Holder(store, name, holder="r").claim(map(ref_of, numbers))
        begun.set()
        for number in numbers:
            answer = store.lookup("ingest", key_of(number))
            if not isinstance(answer, Hit):
                continue
            told.put(("hit", 1))
            for _ in range(2):
                for output in answer.record.outputs.values():
                    blob = Blob(sha256=output.sha256, size=output.size)
                    store.fetch_blob(blob, root / "tmp" / name, shared=True)
                time.sleep(random.random() * 0.01)
    except BaseException as error:  # noqa: BLE001
        told.put(("error", repr(error)))


def writer(root: Path, number: int, datas: list[bytes], pause: float, told: Any) -> None:
    time.sleep(pause)
    store = DirectoryStore(root)
    try:
        Holder(store, f"w{number}-{os.getpid()}", holder="w").claim([ref_of(number)])
        for _ in range(6):
            try:
                record = stored(store, number, datas)
                time.sleep(random.random() * 0.01)
                publish(store, record)
                break
            except BlobSwept:
                told.put(("swept", 1))
        if isinstance(store.lookup("ingest", key_of(number)), Hit):
            told.put(("written", 1))
        else:
            told.put(("error", f"what a writer published is no hit: {number}"))
    except BaseException as error:  # noqa: BLE001
        told.put(("error", repr(error)))
