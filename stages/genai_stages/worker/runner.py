"""Runs one task: fetch, compute, commit. The only module here that knows a store.

The order is what makes it safe to kill at any moment: outputs become blobs first, the record that
names them is written last and only where none stands. A worker that finds the record already there
has nothing to do; two that compute the same task both succeed, and the first record stands.
"""

from __future__ import annotations

import importlib
import logging
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import cast

from genai_core.errors import CorruptBlob, GenAIError, ToolchainMismatch
from genai_core.memory import peak_resident_bytes
from genai_core.names import Digest, Key
from genai_core.operations import Operation, operation_of
from genai_core.sources.user_names import with_user_names
from genai_core.store.layered import brought
from genai_core.store.lookup import BlobSwept, publish
from genai_core.store.protocol import Committed, Hit, Miss, Store
from genai_core.tasks.keys import task_key
from genai_core.tasks.record import Blob, Measurements, Output, Record, ToolchainUsed
from genai_core.tasks.task_file import TaskFile, TaskResult
from genai_core.tasks.toolchain import check_toolchain
from genai_stages.measured import note_measurements
from genai_stages.stage import Context, OperationModule, StageResult
from genai_stages.worker.local_file import TakenFile, refuse_changed, take_local

log = logging.getLogger("genai_stages.worker.runner")

_KIB = 1024
_MOST_SWEPT = 2
"""How often outputs are stored again because a gc took what stood there before."""


def run_task(task: TaskFile, store: Store, scratch: Path) -> TaskResult:
    """Run a task unless its record stands already.

    Args:
        task: What to do; its key is computed again and must agree.
        store: Where inputs come from and outputs go to.
        scratch: A private folder, empty; best on the store's disk, so that files are linked
            rather than copied.

    Raises:
        GenAIError: Why it could not be done; nothing was committed.
    """
    return run_recorded(task, store, scratch, at_hand={})[0]


def run_recorded(
    task: TaskFile, store: Store, scratch: Path, *, at_hand: dict[str, Path]
) -> tuple[TaskResult, Record]:
    """The same, with the record that stands in the end.

    Args:
        task: What to do.
        store: Where inputs come from and outputs go to.
        scratch: A private folder, empty.
        at_hand: Digest -> a file of that content that an earlier task left on this disk; it is
            linked instead of fetched. What this one fetches and writes is added.
    """
    started = time.monotonic()
    operation = _operation(task)
    key = Key(task.key)
    found = brought(store, operation.name, key, store.lookup(operation.name, key))
    if isinstance(found, Hit):
        result = TaskResult(id=task.id, outcome="cached", seconds=time.monotonic() - started)
        return result, found.record
    log_file = scratch / "task.log"
    handler = _log_to(log_file)
    before = cpu_seconds()
    try:
        inputs, taken = _fetch(task, store, scratch / "inputs", at_hand)
        made, out = _compute(task, operation, inputs, scratch=scratch)
        refuse_changed(taken)
        # Other than wall time it says the same on a busy machine.
        spent = round(cpu_seconds() - before, 2)
        made = replace(made, notes={**made.notes, "cpuSeconds": spent})
        if operation.name != "package":
            cost = {"seconds": round(time.monotonic() - started, 2)}
            made = note_measurements(task.id, inputs, out, result=made, cost=cost)
        record, first = _commit(
            store,
            lambda: _store_outputs(
                task, store, out, result=made, started=started, log_file=log_file
            ),
            found,
        )
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    if first:
        at_hand |= {output.sha256: out / path for path, output in record.outputs.items()}
    result = TaskResult(
        id=task.id,
        outcome="run" if first else "cached",
        seconds=time.monotonic() - started,
        peak_memory_bytes=peak_memory_bytes(),
        warnings=list(made.warnings),
    )
    return result, record


def failed(task: TaskFile, error: GenAIError, started: float) -> TaskResult:
    """The result of a task that ended with an error."""
    return TaskResult(
        id=task.id,
        outcome="failed",
        error=error.as_dict(),
        exit_code=error.exit_code,
        seconds=time.monotonic() - started,
        peak_memory_bytes=peak_memory_bytes(),
    )


def _user_names(task: TaskFile) -> dict[str, str]:
    """Role -> name, of the source's files that a task reads where they lie."""
    return {
        role: PurePosixPath(file.path.partition("?")[0]).name
        for files in task.inputs.values()
        for role, file in files.items()
        if file.path is not None
    }


def peak_memory_bytes() -> int:
    """Largest resident set so far of this process and of its ended children, whichever is more."""
    unit = 1 if sys.platform == "darwin" else _KIB
    children = unit * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return max(peak_resident_bytes(), children)


def cpu_seconds() -> float:
    """User and system time so far of this process and of its ended children."""
    return sum(os.times()[:4])


def _operation(task: TaskFile) -> Operation:
    try:
        operation = operation_of(task.operation, task.backend)
    except KeyError as error:
        raise ToolchainMismatch(
            f"this version knows no operation {task.operation!r}",
            where=task.id,
            remedy="use the version of genai-operator that made the plan",
        ) from error
    check_toolchain(operation, task.toolchain)
    key = task_key(
        task.operation,
        operation.code_version,
        toolchain_id=Digest(task.toolchain.id),
        config=task.config,
        inputs={
            name: {path: Digest(file.identity) for path, file in files.items()}
            for name, files in task.inputs.items()
        },
    )
    if operation.code_version != task.code_version or key != task.key:
        raise ToolchainMismatch(
            "the key of the plan is not the key that this version computes",
            where=task.id,
            remedy="use the version of genai-operator that made the plan, or plan again",
        )
    return operation


def _log_to(path: Path) -> logging.Handler:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    return handler


def _fetch(
    task: TaskFile, store: Store, folder: Path, at_hand: dict[str, Path]
) -> tuple[dict[str, Path], list[TakenFile]]:
    """A folder for each input; and the user's own files among them, linked where they lie."""
    inputs: dict[str, Path] = {}
    taken: list[TakenFile] = []
    lost: list[CorruptBlob] = []
    for name, files in task.inputs.items():
        inputs[name] = folder / name
        inputs[name].mkdir(parents=True)
        for path, file in files.items():
            dest = inputs[name] / path
            dest.parent.mkdir(parents=True, exist_ok=True)
            if file.path is None:
                if not _link(at_hand.get(file.sha256), dest):
                    try:
                        blob = Blob(sha256=Digest(file.sha256), size=file.size)
                        store.fetch_blob(blob, dest, shared=True)
                    except CorruptBlob as error:
                        # The rest is looked at too: each wrong blob that is found is removed, so
                        # that what it came from mends all of them when it runs again.
                        lost.append(error)
                        continue
                at_hand[file.sha256] = dest
            elif "://" in file.path:
                from genai_stages.worker.source_access import fetch_source_file

                if (linked := fetch_source_file(file, dest)) is not None:
                    taken.append(linked)
            else:
                taken.append(take_local(Path(file.path), file, dest))
    if lost:
        raise lost[0]
    return inputs, taken


def _link(kept: Path | None, dest: Path) -> bool:
    if kept is None:
        return False
    try:
        os.link(kept, dest)
    except OSError:
        return False
    return True


def _compute(
    task: TaskFile, operation: Operation, inputs: dict[str, Path], *, scratch: Path
) -> tuple[StageResult, Path]:
    out = scratch / "out"
    out.mkdir()
    work = scratch / "work"
    work.mkdir()
    module = cast(
        "OperationModule",
        importlib.import_module(f"genai_stages.operations.{operation.module}"),
    )
    config = operation.config.model_validate(task.config)
    try:
        result = module.run(inputs, config, out, Context(scratch=work, threads=task.threads))
    except GenAIError as error:
        named = with_user_names(error, _user_names(task))
        if named is error:
            raise
        raise named from error
    shutil.rmtree(work, ignore_errors=True)
    return result, out


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path


def _store_outputs(
    task: TaskFile,
    store: Store,
    out: Path,
    *,
    result: StageResult,
    started: float,
    log_file: Path,
) -> Record:
    outputs: dict[str, Output] = {}
    for name, path in _files(out):
        blob = store.put_blob(path, consume=True)
        semantic = result.semantic.get(name)
        outputs[name] = Output(
            sha256=blob.sha256,
            size=blob.size,
            semantic=Digest(semantic) if semantic else None,
        )
    text = log_file.read_bytes()
    return Record(
        operation=task.operation,
        key=Key(task.key),
        model=task.slug,
        source=task.source,
        config=task.config,
        inputs={
            name: {path: Digest(file.identity) for path, file in files.items()}
            for name, files in task.inputs.items()
        },
        outputs=outputs,
        facts=dict(result.facts),
        toolchain=ToolchainUsed(id=Digest(task.toolchain.id), versions=task.toolchain.versions),
        created_at=datetime.now(UTC),
        measurements=Measurements(
            seconds=time.monotonic() - started,
            peak_memory_bytes=peak_memory_bytes(),
            notes=dict(result.notes),
            warnings=result.warnings,
            log=store.put_bytes(text) if text else None,
        ),
    )


def _commit(store: Store, stored: Callable[[], Record], found: Miss) -> tuple[Record, bool]:
    """Store and commit; returns the record that stands, and whether it is this worker's."""
    for _ in range(_MOST_SWEPT):
        with suppress(BlobSwept):
            outcome = publish(store, stored())
            break
    else:
        outcome = publish(store, stored())
    # The very record that was unusable before: storing its blobs again has healed it.
    if isinstance(outcome, Committed) or outcome.etag == found.etag:
        return outcome.record, True
    log.info("another worker was first; its record stands")
    return outcome.record, False
