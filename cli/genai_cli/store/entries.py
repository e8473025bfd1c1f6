"""Entries of a store: listed, searched, shown."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.text import Text

from genai_cli.display.console import PlainConsole
from genai_cli.display.output import emit, say, table, tell
from genai_cli.display.words import counted, duration, size
from genai_cli.settings import ProgramSettings
from genai_core.canonical import digest_file
from genai_core.errors import BadInput, CorruptBlob
from genai_core.files.home import expanded
from genai_core.kinds.documents.problems import nearest
from genai_core.operations import OPERATIONS
from genai_core.redaction import plain
from genai_core.sources.resolved import RESOLVE
from genai_core.store.location import open_store
from genai_core.store.protocol import RecordRef, Store
from genai_core.store.record_checks import key_fault
from genai_core.store.records import Records
from genai_core.tasks.record import (
    SIDECAR_NAME,
    Record,
    entry_folder,
    flat_strings,
    record_of_sidecar,
)

__all__ = [
    "believed",
    "checked_operation",
    "find_entry",
    "list_entries",
    "named_key",
    "opened",
    "records",
    "show",
]

_SHORT_KEY = 12
_LEAST_PREFIX = 4
_CANDIDATES = 8
_AT_ONCE = 8
_ENTRY = re.compile(
    r"(?:.*/)??(?:(?P<operation>[a-z][a-z0-9_]*)[/_])?(?:sha256:)?(?P<key>[0-9a-f]+)/?"
)
"""`<folders>/convert_3f2a...`, `convert/3f2a`, `3f2a`."""


def opened(settings: ProgramSettings, address: str | None) -> Store:
    """The store that a command means, which must exist.

    Raises:
        BadInput: There is no such folder.
    """
    location = address or settings.store
    if "://" not in location and not expanded(location).is_dir():
        raise BadInput(
            "there is no store",
            where=location,
            remedy="name one with --store; genai build makes it",
        )
    return open_store(location)


def records(store: Records, operation: str | None = None) -> Iterator[Record]:
    """Every readable record; unreadable ones are misses and are left to `cache verify`."""
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="records") as pool:
        for record in pool.map(lambda ref: _read(store, ref), store.list_records(operation)):
            if record is not None:
                yield record


def _read(store: Records, ref: RecordRef) -> Record | None:
    try:
        stored = store.get_record(ref.operation, ref.key)
    except CorruptBlob:
        return None
    return stored.record if stored else None


def list_entries(
    settings: ProgramSettings, address: str | None, *, operation: str | None, terms: Sequence[str]
) -> int:
    """Print the entries of an operation that match every term; returns the exit code."""
    operation = checked_operation(operation)
    store = opened(settings, address)
    tests = [_test_of(term) for term in terms]
    found = [record for record in records(store, operation) if all(test(record) for test in tests)]
    found.sort(key=lambda record: (record.created_at, record.operation, record.key))
    if settings.json:
        emit({"store": store.location, "entries": [_as_json(record) for record in found]})
        return 0
    if not found:
        tell(f"nothing found in {store.location}")
        return 0
    table(
        ("operation", "model", "key", "made", "size", "took", "about"),
        [_row(record) for record in found],
        right=("size", "took"),
    )
    blobs = {digest: count for record in found for digest, count in record.blobs().items()}
    say(f"{counted(len(found), 'entry')}, {size(sum(blobs.values()))} in {store.location}")
    return 0


def show(settings: ProgramSettings, address: str | None, *, entry: str, log: bool) -> int:
    """Print one entry, or its log; returns the exit code."""
    store = opened(settings, address)
    record = find_entry(store, entry)
    if log:
        kept = record.measurements.log
        if kept is None:
            raise BadInput(
                "it has no log: the task said nothing",
                where=f"{record.operation}/{record.key[:12]}",
                remedy="leave --log out to see what it cost",
            )
        sys.stdout.write(plain(store.read_blob(kept).decode(errors="replace")))
        return 0
    if settings.json:
        emit({"folder": entry_folder(record), **record.to_json()})
        return 0
    console = PlainConsole(highlight=False)
    for name, text in _facts(record):
        console.print(Text.assemble((f"{name:11}", "dim"), text), soft_wrap=True)
    for path, output in sorted(record.outputs.items()):
        console.print(f"  {size(output.size):>8}  {output.sha256[:12]}  {path}", soft_wrap=True)
    return 0


def find_entry(store: Records, text: str) -> Record:
    """The record that a key, the beginning of one, or an entry's folder stands for.

    Raises:
        BadInput: None or several; names them.
    """
    folder = Path(text)
    if (folder / SIDECAR_NAME).is_file() or folder.name == SIDECAR_NAME:
        return read_entry(folder)
    name, wanted = named_key(text)
    if len(wanted) < _LEAST_PREFIX:
        raise BadInput(
            f"a key needs at least {_LEAST_PREFIX} digits", where=text, remedy="see genai cache ls"
        )
    operation = checked_operation(name)
    refs = [ref for ref in store.list_records(operation) if ref.key.startswith(wanted)]
    found = [record for ref in refs if (record := _read(store, ref)) is not None]
    if not found:
        raise BadInput(
            "there is no such entry", where=text, remedy=f"see genai cache ls, in {store.location}"
        )
    if len(found) > 1:
        names = [f"{one.operation}/{one.key[:_SHORT_KEY]}" for one in found[:_CANDIDATES]]
        if len(found) > _CANDIDATES:
            names.append(f"{len(found) - _CANDIDATES} more")
        raise BadInput(
            f"{len(found)} entries begin so: {', '.join(names)}",
            where=text,
            remedy="give more digits, or operation/digits",
        )
    return found[0]


def named_key(text: str) -> tuple[str | None, str]:
    """The operation, where one is given, and the digits of `convert/3f2a`, `3f2a`.

    Raises:
        BadInput: It is nothing of the kind.
    """
    named = _ENTRY.fullmatch(text.lower())
    if named is None:
        raise BadInput(
            "it is no key and no entry's folder",
            where=text,
            remedy="give a key or its beginning, hex digits; see genai cache ls",
        )
    return named["operation"], named["key"]


def checked_operation(name: str | None) -> str | None:
    """An operation that a user named.

    Raises:
        BadInput: There is none of that name; names the known ones.
    """
    known = list(dict.fromkeys([RESOLVE, *(row.name for row in OPERATIONS)]))
    if name is None or name in known:
        return name
    near = nearest(name, known)
    meant = f"did you mean {near}? " if near else ""
    raise BadInput(
        f"no operation is called {name!r}",
        where="operation",
        remedy=f"{meant}known: {', '.join(known)}",
    )


def read_entry(folder: Path) -> Record:
    """The record in an entry's folder.

    Raises:
        BadInput: The folder is no entry.
    """
    path = folder if folder.name == SIDECAR_NAME else folder / SIDECAR_NAME
    try:
        return record_of_sidecar(path.read_bytes())
    except FileNotFoundError as error:
        raise BadInput(
            f"it is no entry of a store: there is no {SIDECAR_NAME}",
            where=str(folder),
            remedy="name a folder <store>/<model>/<operation>_<key>",
        ) from error
    except ValueError as error:
        text = " ".join(str(error).split())[:200]
        raise BadInput(
            f"it cannot be read: {text}",
            where=str(path),
            remedy="name another entry, or have the task run again: remove the folder, and build",
        ) from error


def believed(record: Record) -> Record:
    """The same record, where its key is that of what it says.

    Raises:
        BadInput: It was edited, or lies under another task's key.
    """
    if (fault := key_fault(record)) is not None:
        raise BadInput(
            fault,
            where=entry_folder(record),
            remedy="name an entry as genai wrote it; genai replay changes options with --set",
        )
    return record


class _Test:
    """Whether a record matches one term."""

    def __init__(self, name: str, value: str) -> None:
        self.name = name.lower()
        self.value = value.lower()

    def __call__(self, record: Record) -> bool:
        if self.name:
            known = _searchable(record)
            found = known.get(self.name, known.get(f"config.{self.name}", []))
            return any(
                self.value in {text.lower(), text.lower()[: len(self.value)]} for text in found
            )
        return any(
            self.value in text.lower() for texts in _searchable(record).values() for text in texts
        )


def _test_of(term: str) -> _Test:
    path = Path(term)
    if path.is_file():
        return _Test("digest", digest_file(path))
    name, equals, value = term.partition("=")
    return _Test(name, value) if equals else _Test("", term)


def _searchable(record: Record) -> dict[str, list[str]]:
    config = {
        f"config.{name.lower()}": [text] for name, text in flat_strings(record.config).items()
    }
    return {
        "operation": [record.operation],
        "model": [record.model],
        "key": [record.key],
        "source": [record.source],
        "output": list(record.outputs),
        "digest": [output.sha256 for output in record.outputs.values()],
        **config,
    }


def _as_json(record: Record) -> dict[str, Any]:
    return {
        "operation": record.operation,
        "key": record.key,
        "model": record.model,
        "source": record.source,
        "folder": entry_folder(record),
        "createdAt": record.created_at.isoformat(),
        "sizeBytes": _bytes(record),
        "seconds": record.measurements.seconds,
        "about": _about(record),
        "outputs": {path: output.size for path, output in sorted(record.outputs.items())},
    }


def _row(record: Record) -> tuple[str, ...]:
    return (
        record.operation,
        record.model,
        record.key[:_SHORT_KEY],
        record.created_at.astimezone().strftime("%Y-%m-%d %H:%M"),
        size(_bytes(record)),
        duration(record.measurements.seconds),
        _about(record),
    )


def _bytes(record: Record) -> int:
    return sum(output.size for output in record.outputs.values())


def _about(record: Record) -> str:
    """What tells an entry from others of its operation."""
    config = record.config
    parts = []
    if isinstance(graph := config.get("graph"), dict):
        parts.append(f"ar{graph.get('ar')}_cl{graph.get('cl')}")
    if isinstance(split := config.get("split"), dict):
        parts.append(f"{split.get('index')}_of_{split.get('count')}")
    parts += [str(config[name]) for name in ("target", "backend", "precision") if config.get(name)]
    return " ".join(parts)


def _facts(record: Record) -> Iterator[tuple[str, str]]:
    yield "entry", entry_folder(record)
    yield "operation", record.operation
    yield "key", record.key
    yield "source", record.source or "-"
    yield "made", record.created_at.astimezone().isoformat(timespec="seconds")
    cost = record.measurements
    yield "took", f"{duration(cost.seconds)}, {size(cost.peak_memory_bytes)} of memory"
    for name, text in flat_strings(record.config).items():
        yield "config", f"{name} = {text}"
    for name, version in sorted(record.toolchain.versions.items()):
        yield "tool", f"{name} {version}"
    for name, files in sorted(record.inputs.items()):
        yield "input", f"{name}: {counted(len(files), 'file')}"
    for text in cost.warnings:
        yield "warning", text
    yield "outputs", f"{counted(len(record.outputs), 'file')}, {size(_bytes(record))}"
