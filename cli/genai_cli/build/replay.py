"""One stage again, from the record of its entry: does it still give the same bytes?

The stage runs as it ran then, in a process of `genai-stage`, into a store of its own, so that the
lookup cannot answer in its place; then the digests are compared. With changed options it runs into
the store proper: another key, another entry, the old one stays.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from genai_cli.display.output import emit, say, tell
from genai_cli.display.words import duration, size
from genai_cli.engine.local_engine import run_task
from genai_cli.settings import ProgramSettings
from genai_cli.store.entries import believed, find_entry, named_key, opened, read_entry, records
from genai_core.errors import BadInput, InvalidSpec, from_dict
from genai_core.files.digest_cache import FileCache
from genai_core.files.whole_files import DRAFT_SUFFIX
from genai_core.kinds.documents.problems import nearest
from genai_core.kinds.documents.yaml_documents import load_documents
from genai_core.names import Backend, Digest, Key
from genai_core.operations import Operation, operation_of
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.protocol import Store
from genai_core.tasks.keys import task_key
from genai_core.tasks.record import Blob, Output, Record, entry_folder
from genai_core.tasks.task_file import TaskFile, TaskFileInput
from genai_core.tasks.toolchain import toolchain_of

__all__ = ["changed_config", "replay"]

_MOST_FILES = 10_000
_OPTIONS = "options"
"""The field whose members are the vendor's: names with dots, values that are text."""


def replay(
    entry: str,
    settings: ProgramSettings,
    *,
    changes: Sequence[str],
    source: Path | None,
    store: str | None,
) -> int:
    """Run an entry's stage again; returns 0 where the outputs are the same, else 1.

    Args:
        entry: The entry's folder, its key or the beginning of it.
        settings: Of the program.
        changes: `name=value` for fields of the stage's config; empty = exactly as it was.
        source: Folder of the model, for ingest, whose inputs lie outside the store.
        store: Address; None = the one that the entry lies in.
    """
    record, artifacts = _found(entry, settings, store)
    operation = _operation(record)
    config = changed_config(operation, record, changes)
    inputs = _Inputs(record, artifacts, source).found()
    task = _task(record, operation, config, inputs)
    if changes and task.key != record.key:
        return _run_changed(task, artifacts, settings)
    return _run_again(record, task, artifacts, settings=settings)


def _found(entry: str, settings: ProgramSettings, store: str | None) -> tuple[Record, Store]:
    """The record, and the store that its inputs come from."""
    folder = Path(entry)
    if folder.exists():
        record = believed(read_entry(folder))
        return record, opened(settings, store or _store_around(folder, record) or settings.store)
    named_key(entry)  # what is none needs no store to be refused
    artifacts = opened(settings, store)
    return believed(find_entry(artifacts, entry)), artifacts


def _operation(record: Record) -> Operation:
    try:
        return operation_of(record.operation, _backend(record.config))
    except KeyError as error:
        raise BadInput(
            f"{record.operation} is no stage that can be run again here",
            where=entry_folder(record),
            remedy="name an entry of another stage, or use the genai that made this one",
        ) from error


def _store_around(entry: Path, record: Record) -> str | None:
    """The directory store whose view the folder belongs to."""
    root = entry.absolute().parent.parent
    return str(root) if (root / "records" / record.operation).is_dir() else None


def _backend(config: Mapping[str, Any]) -> Backend | None:
    value = config.get("backend")
    return Backend(value) if value in set(Backend) else None


def changed_config(operation: Operation, record: Record, changes: Sequence[str]) -> dict[str, Any]:
    """The config of a record with `name=value` changes, checked by the stage's own model.

    Raises:
        InvalidSpec: Names the change.
    """
    config: dict[str, Any] = {**record.config}
    for text in changes:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InvalidSpec(f"{text!r} is not KEY=VALUE", where="--set")
        parts = _parts(name)
        here = config
        for part in parts[:-1]:
            inner = here.get(part)
            here[part] = dict(inner) if isinstance(inner, dict) else {}
            here = here[part]
        here[parts[-1]] = value if parts[0] == _OPTIONS else _value(value, f"--set {name}")
    try:
        model = operation.config.model_validate(config)
    except ValidationError as error:
        if not changes:
            raise BadInput(
                "it was made by another version of this stage, whose options were others",
                where=entry_folder(record),
                remedy="use the genai that made it, or build again and replay the new entry",
            ) from error
        raise _bad_option(error, operation) from error
    return model.model_dump(mode="json")


def _parts(name: str) -> list[str]:
    """`options.graphs.O` names one member of options; elsewhere dots go deeper."""
    head, dot, tail = name.partition(".")
    return [head, tail] if dot and head == _OPTIONS else name.split(".")


def _value(text: str, where: str) -> Any:
    documents = load_documents(text, name=where)
    return documents[0].value if documents else None


def _bad_option(error: ValidationError, operation: Operation) -> InvalidSpec:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    remedy = f"options of {operation.name}: {', '.join(operation.config.model_fields)}"
    if first["type"] == "extra_forbidden":
        near = nearest(name, operation.config.model_fields)
        return InvalidSpec(
            "unknown option",
            where=f"--set {name}",
            remedy=f"did you mean {near}?" if near else remedy,
        )
    return InvalidSpec(first["msg"][:1].lower() + first["msg"][1:], where=f"--set {name}")


@dataclass(frozen=True)
class _Inputs:
    """Finds the bytes behind the identities that a record names as its inputs."""

    record: Record
    store: Store
    source: Path | None

    def found(self) -> dict[str, dict[str, TaskFileInput]]:
        """Input name -> path -> file.

        Raises:
            BadInput: The bytes are neither in the store nor in the model's folder.
        """
        wanted = {identity for files in self.record.inputs.values() for identity in files.values()}
        known: dict[Digest, TaskFileInput] = {}
        for identity in wanted:
            if (stat := self.store.head_blob(identity)) is not None:
                known[identity] = TaskFileInput(sha256=identity, size=stat.size)
        if missing := wanted - known.keys():
            known.update(self._by_meaning(missing))
        if missing := wanted - known.keys():
            known.update(self._local(missing))
        return {
            name: {path: self._one(known, path, identity) for path, identity in files.items()}
            for name, files in self.record.inputs.items()
        }

    def _by_meaning(self, missing: set[Digest]) -> Iterator[tuple[Digest, TaskFileInput]]:
        """Files whose bytes carry a clock stand in keys under a semantic digest."""
        for other in records(self.store):
            for output in other.outputs.values():
                if output.semantic in missing and self.store.head_blob(output.sha256) is not None:
                    yield (
                        output.semantic,
                        TaskFileInput(
                            sha256=output.sha256, size=output.size, semantic=output.semantic
                        ),
                    )

    def _local(self, missing: set[Digest]) -> Iterator[tuple[Digest, TaskFileInput]]:
        folder = self.source or Path(self.record.source)
        if folder.is_file():
            folder = folder.parent
        if not folder.is_dir():
            return
        # The entry names the folder, which may be a whole disk, or one without an end (/proc).
        paths = list(islice(folder.rglob("*"), _MOST_FILES + 1))
        if len(paths) > _MOST_FILES:
            raise BadInput(
                f"{folder} holds more than {_MOST_FILES} files, so it is no model's folder",
                where=entry_folder(self.record),
                remedy="name the model's folder with --source",
            )
        cache = FileCache(None)
        for path in sorted(paths):
            if not path.is_file():
                continue
            with suppress(OSError):  # what cannot be read is not the input
                digest, length = cache.digest(path), path.stat().st_size
                if digest in missing:
                    yield (
                        digest,
                        TaskFileInput(sha256=digest, size=length, path=str(path.absolute())),
                    )

    def _one(
        self, known: Mapping[Digest, TaskFileInput], path: str, identity: Digest
    ) -> TaskFileInput:
        if identity in known:
            return known[identity]
        raise BadInput(
            f"its input {path} ({identity[:12]}) is neither in the store nor in "
            f"{self.source or self.record.source or 'a folder'}",
            where=entry_folder(self.record),
            remedy="name the model's folder with --source, or build again",
        )


def _task(
    record: Record,
    operation: Operation,
    config: dict[str, Any],
    inputs: dict[str, dict[str, TaskFileInput]],
) -> TaskFile:
    toolchain = toolchain_of(operation)
    key = task_key(
        operation.name,
        operation.code_version,
        toolchain_id=Digest(toolchain.id),
        config=config,
        inputs={
            name: {path: Digest(file.identity) for path, file in files.items()}
            for name, files in inputs.items()
        },
    )
    return TaskFile(
        id=f"replay/{operation.name}_{key[:12]}",
        operation=operation.name,
        backend=_backend(config),
        key=key,
        code_version=operation.code_version,
        config=config,
        inputs=inputs,
        toolchain=toolchain,
        slug=record.model,
        source=record.source,
        threads=os.cpu_count() or 1,
    )


def _run_changed(task: TaskFile, store: Store, settings: ProgramSettings) -> int:
    result = run_task(task, store, on_event=lambda _: None)
    if result.error is not None:
        raise from_dict(result.error)
    stored = store.get_record(task.operation, Key(task.key))
    assert stored is not None, "a task that succeeded has committed its record"
    folder = entry_folder(stored.record)
    if isinstance(store, DirectoryStore):
        folder = str(Path(store.location) / folder)
    if settings.json:
        emit(
            {
                "entry": folder,
                "key": task.key,
                "operation": task.operation,
                "outcome": result.outcome,
                "seconds": round(result.seconds, 3),
            }
        )
    else:
        say(f"{folder}")
        done = "was there already" if result.outcome == "cached" else "new entry"
        say(f"  {done}, {duration(result.seconds)}, {size(result.peak_memory_bytes)} of memory")
    return 0


def _run_again(record: Record, task: TaskFile, store: Store, *, settings: ProgramSettings) -> int:
    with _scratch_store(store) as scratch:
        _lend(task, store, scratch)
        result = run_task(task, scratch, on_event=lambda _: None)
        if result.error is not None:
            raise from_dict(result.error)
        stored = scratch.get_record(task.operation, Key(task.key))
        assert stored is not None, "a task that succeeded has committed its record"
        again = stored.record
    same = record.identities() == again.identities() and record.facts == again.facts
    if settings.json:
        emit(
            {
                "key": record.key,
                "operation": record.operation,
                "same": same,
                "sameKey": task.key == record.key,
                "outputs": _compared(record, again),
                "seconds": round(result.seconds, 3),
            }
        )
        return 0 if same else 1
    if task.key != record.key:
        tell("warning: libraries or code differ from those that made the entry")
    for path, (before, after) in sorted(_pairs(record, again)):
        say(f"  {_verdict(before, after):9}  {path}")
    if record.facts != again.facts:
        say("  differs    facts")
    state = "the same outputs" if same else "other outputs"
    say(f"{record.operation}_{record.key[:12]}: {state}, {duration(result.seconds)}")
    return 0 if same else 1


@contextmanager
def _scratch_store(store: Store) -> Iterator[DirectoryStore]:
    """A store for one replay, on the disk of the store where that is a folder."""
    # Called as drafts are, so that gc removes what a killed replay left.
    writable = isinstance(store, DirectoryStore) and os.access(store.root, os.W_OK)
    parent = store.scratch if isinstance(store, DirectoryStore) and writable else None
    with tempfile.TemporaryDirectory(suffix=DRAFT_SUFFIX, prefix=".replay.", dir=parent) as folder:
        yield DirectoryStore(Path(folder))


def _lend(task: TaskFile, store: Store, scratch: DirectoryStore) -> None:
    """Make the inputs readable in the scratch store; hard links where the disk allows."""
    for files in task.inputs.values():
        for file in files.values():
            if file.path is None:
                digest = Digest(file.sha256)
                draft = Path(scratch.location) / f"lent-{digest}"
                store.fetch_blob(Blob(sha256=digest, size=file.size), draft, shared=True)
                scratch.put_blob(draft, digest=digest, consume=True)
                draft.unlink(missing_ok=True)


def _pairs(
    record: Record, again: Record
) -> Iterator[tuple[str, tuple[Output | None, Output | None]]]:
    for path in record.outputs.keys() | again.outputs.keys():
        yield path, (record.outputs.get(path), again.outputs.get(path))


def _verdict(before: Output | None, after: Output | None) -> str:
    if before is None or after is None:
        return "new" if before is None else "gone"
    return "same" if before.identity == after.identity else "differs"


def _compared(record: Record, again: Record) -> dict[str, Any]:
    return {
        path: {
            "before": before.identity if before else None,
            "after": after.identity if after else None,
            "verdict": _verdict(before, after),
        }
        for path, (before, after) in sorted(_pairs(record, again))
    }
