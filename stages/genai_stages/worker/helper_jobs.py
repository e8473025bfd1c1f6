"""Questions about a store, answered by a pod that can reach it; see `genai_core.helper_jobs`."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TypeAlias

from genai_core.errors import CorruptBlob
from genai_core.helper_jobs import (
    CollectFile,
    HelperAnswer,
    LeaseFile,
    LookFile,
    ProbeFile,
    answer_lines,
    ref_of,
)
from genai_core.names import Digest, Key
from genai_core.store.collection.build_lease import Holder
from genai_core.store.collection.collect import LEAST_GRACE, collect
from genai_core.store.lookup import lookup_all
from genai_core.store.protocol import Hit, RecordRef, Store
from genai_core.store.records import Records
from genai_core.tasks.record import Blob, Record
from genai_core.tasks.task_file import TaskResult

__all__ = ["StoreQuestion", "answer_question", "show_record", "tell"]

StoreQuestion: TypeAlias = LookFile | LeaseFile | ProbeFile | CollectFile

_THREADS = 16
_MOST_RECORDS = 20_000
_SMALL_BYTES = 256 << 10
_PLANS_READ = ("facts.json",)


def answer_question(question: StoreQuestion, store: Store) -> TaskResult:
    """Answer a question about a store.

    Raises:
        GenAIError: The store cannot be used.
    """
    started = time.monotonic()
    facts: dict[str, int | bool] = {}
    if isinstance(question, ProbeFile):
        able = store.probe()
        facts = {"conditionalWrites": able.conditional_create, "checksums": able.checksums}
    elif isinstance(question, CollectFile):
        grace = max(timedelta(days=question.grace_days), LEAST_GRACE)
        done = collect(store.writable, grace=grace)
        facts = {
            "recordsDeleted": done.records_deleted,
            "recordsKept": done.records_kept,
            "uploadsDeleted": done.uploads_deleted,
            "uploadsKept": done.uploads_kept,
            "bytesDeleted": done.bytes_deleted,
            "bytesKept": done.bytes_kept,
            "bytesOlder": done.bytes_older,
            "refused": done.refused,
        }
    elif isinstance(question, LeaseFile):
        _lease(question, store)
    else:
        tell(_look(question, store))
    return TaskResult(
        id=question.kind, outcome="run", seconds=time.monotonic() - started, facts=facts
    )


def tell(answer: HelperAnswer) -> None:
    """Write an answer to the pod's log, where the asker reads it."""
    for line in answer_lines(answer):
        print(line, flush=True)  # noqa: T201 - the log is how it is said


def show_record(store: Store, operation: str, key: Key) -> HelperAnswer:
    """The record that a task has just left, with the small files that a plan is made from."""
    ref = str(RecordRef(operation, key))
    return _answer(store, (ref,), _hits(store, [ref_of(ref)]), _PLANS_READ)


def _lease(question: LeaseFile, store: Store, refs: Iterable[RecordRef] = ()) -> Holder:
    holder = Holder(store, question.name, holder=question.holder)
    records = [*map(ref_of, question.records), *refs]
    uploads = question.uploads or ()
    if question.containers is not None:
        built = {target: ref_of(text) for target, text in question.containers.items()}
        holder.settle(records, built, keep=question.keep, uploads=uploads)
    elif records:
        holder.claim(records, uploads)
    elif holder.renew() or uploads:
        holder.claim((), uploads)
    return holder


def _look(question: LookFile, store: Store) -> HelperAnswer:
    """Look up what is asked for, and what was made of it, so that nobody has to ask twice."""
    asked = list(map(ref_of, question.refs))
    holder = _lease(question.lease, store, asked) if question.lease is not None else None
    found = _hits(store, asked)
    offspring = _offspring(store, set(question.known), found)
    if holder is not None:
        holder.claim(offspring)
    found |= _hits(store, [ref for ref in offspring if ref not in found])
    return _answer(store, question.refs, found, question.read)


def _answer(
    store: Store, asked: tuple[str, ...], found: dict[RecordRef, Record], read: Iterable[str]
) -> HelperAnswer:
    blobs: dict[str, str] = {}
    for ref, record in list(found.items()):
        for name in read:
            output = record.outputs.get(name)
            if output is None or output.size > _SMALL_BYTES:
                continue
            try:
                data = store.read_blob(Blob(sha256=Digest(output.sha256), size=output.size))
            except CorruptBlob:  # reading took the wrong bytes away: now it is a miss
                found.pop(ref, None)
                continue
            blobs[output.sha256] = base64.b64encode(data).decode()
    return HelperAnswer(asked=asked, records=tuple(found.values()), blobs=blobs)


def _hits(store: Store, refs: Iterable[RecordRef]) -> dict[RecordRef, Record]:
    answers = lookup_all(store, refs, threads=_THREADS)
    return {ref: answer.record for ref, answer in answers.items() if isinstance(answer, Hit)}


def _offspring(store: Store, known: set[str], found: dict[RecordRef, Record]) -> list[RecordRef]:
    """Records all of whose inputs are known files or outputs of such records."""
    if not found:
        return []
    known |= _made(found.values())
    refs = [ref for ref in store.list_records() if ref not in found][:_MOST_RECORDS]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="look") as pool:
        read = pool.map(lambda ref: _read(store, ref), refs)
        left = {ref: record for ref, record in zip(refs, read, strict=True) if record is not None}
    chosen: list[RecordRef] = []
    while True:
        more = [
            ref
            for ref, record in left.items()
            if record.inputs
            and all(
                digest in known for files in record.inputs.values() for digest in files.values()
            )
        ]
        if not more:
            return chosen
        chosen += more
        known |= _made(left.pop(ref) for ref in more)


def _read(store: Records, ref: RecordRef) -> Record | None:
    try:
        stored = store.get_record(ref.operation, ref.key)
    except CorruptBlob:
        return None
    return stored.record if stored else None


def _made(records: Iterable[Record]) -> set[str]:
    return {out.semantic or out.sha256 for record in records for out in record.outputs.values()}
