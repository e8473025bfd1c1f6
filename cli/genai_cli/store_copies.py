"""Files out of a store: one entry, or all of them as the folders that people look at."""

from __future__ import annotations

from pathlib import Path

from genai_cli.containers import place
from genai_cli.output import emit, say
from genai_cli.settings import Settings
from genai_cli.store_entries import checked_operation, find_entry, opened, records
from genai_cli.words import counted
from genai_core.errors import CorruptBlob
from genai_core.record import entry_folder

__all__ = ["export", "pull"]


def pull(settings: Settings, address: str | None, *, entry: str, output: Path | None) -> int:
    """Put one entry's files into a folder; returns the exit code."""
    store = opened(settings, address)
    record = find_entry(store, entry)
    path = (output or Path(Path(entry_folder(record)).name)).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    place(record, store, path, described=True)
    if settings.json:
        emit({"path": str(path), "key": record.key, "files": sorted(record.outputs)})
    else:
        say(f"{path}: {counted(len(record.outputs), 'file')}")
    return 0


def export(settings: Settings, address: str | None, *, folder: Path, operation: str | None) -> int:
    """Write all entries as folders; returns 1 where a blob was missing or wrong."""
    operation = checked_operation(operation)
    store = opened(settings, address)
    written: list[str] = []
    faults: list[str] = []
    for record in records(store, operation):
        path = folder / entry_folder(record)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            place(record, store, path, described=True)
        except CorruptBlob as error:
            faults.append(str(error))
            continue
        written.append(entry_folder(record))
    if settings.json:
        emit({"path": str(folder), "entries": sorted(written), "faults": faults})
    else:
        for fault in faults:
            say(f"left out: {fault}")
        say(f"{folder}: {len(written)} of {counted(len(written) + len(faults), 'entry')}")
    return 1 if faults else 0
