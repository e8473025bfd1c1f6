"""Files out of a store: one entry, or all of them as the folders that people look at.

A graph of arcl or transform names weights that lie in ingest's entry, which is its input. They are
copied beside it, so that onnx.load opens it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from genai_cli.display.output import emit, say, tell
from genai_cli.display.words import counted
from genai_cli.settings import ProgramSettings
from genai_cli.store.entries import believed, checked_operation, find_entry, opened, records
from genai_core.errors import CorruptBlob
from genai_core.store.blobs import Blobs
from genai_core.store.delivery import place
from genai_core.store.record_checks import key_fault
from genai_core.tasks.record import Blob, Record, entry_folder

__all__ = ["export", "pull"]


_GRAPH = ".onnx"


def pull(
    settings: ProgramSettings,
    address: str | None,
    *,
    entry: str,
    output: Path | None,
    weights: bool,
) -> int:
    """Put one entry's files into a folder; returns the exit code.

    Args:
        settings: Of the program.
        address: Of the store; None = the settings'.
        entry: A key, its beginning, or an entry's folder.
        output: The folder; None = named as the entry, here.
        weights: With the files of other entries that its graphs name.
    """
    store = opened(settings, address)
    record = believed(find_entry(store, entry))
    path = (output or Path(Path(entry_folder(record)).name)).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    named = _named_weights(record, store) if weights else {}
    place(record, store, path, described=True, beside=named)
    if settings.json:
        emit(
            {
                "path": str(path),
                "key": record.key,
                "files": sorted(record.outputs),
                "weights": sorted(named),
            }
        )
    else:
        read = f", and {counted(len(named), 'file')} that its graphs name" if named else ""
        say(f"{path}: {counted(len(record.outputs), 'file')}{read}")
    return 0


def _named_weights(record: Record, store: Blobs) -> dict[str, Blob]:
    """Files among a task's inputs that the graphs among its outputs name as their data.

    A name stands in a graph's file as it is, whatever else is in it, so the file need not be
    understood. What is no longer in the store is left out, with a warning.
    """
    graphs = [output for path, output in record.outputs.items() if path.endswith(_GRAPH)]
    inputs = {
        path: digest
        for files in record.inputs.values()
        for path, digest in files.items()
        if path not in record.outputs and not path.endswith(_GRAPH)
    }
    found: dict[str, Blob] = {}
    if not graphs or not inputs:
        return found
    for graph in graphs:
        data = store.read_blob(graph)
        for path in [path for path in inputs if path.encode() in data]:
            stat = store.head_blob(inputs.pop(path))
            if stat is None:
                tell(f"warning: {entry_folder(record)}: {path} is not in the store any more")
            else:
                found[path] = Blob(sha256=stat.sha256, size=stat.size)
    return found


def export(
    settings: ProgramSettings,
    address: str | None,
    *,
    folder: Path,
    entries: Sequence[str],
    operation: str | None,
    weights: bool,
) -> int:
    """Write entries as folders; returns 1 where a blob was missing or wrong.

    Args:
        settings: Of the program.
        address: Of the store; None = the settings'.
        folder: Gets `<model>/<operation>_<key>/`.
        entries: Keys, beginnings of keys or folders; empty = all of the operation.
        operation: None = of all.
        weights: With the files of other entries that graphs name.
    """
    operation = checked_operation(operation)
    store = opened(settings, address)
    written: list[str] = []
    faults: list[str] = []
    chosen = [believed(find_entry(store, entry)) for entry in entries]
    for record in chosen or records(store, operation):
        if (fault := key_fault(record)) is not None:
            faults.append(f"{entry_folder(record)}: {fault}")
            continue
        path = folder / entry_folder(record)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            named = _named_weights(record, store) if weights else {}
            place(record, store, path, described=True, beside=named)
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
