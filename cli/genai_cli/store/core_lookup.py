"""The core graph that a container was made of, found in a store by the container's manifest."""

from __future__ import annotations

from pathlib import Path

from genai_cli.settings import ProgramSettings
from genai_cli.store.entries import opened, records
from genai_core.canonical import digest_json
from genai_core.container.manifest import Manifest
from genai_core.errors import BadInput
from genai_core.tasks.record import Output

__all__ = ["find_core"]

_FILES = ("model.onnx", "facts.json")


def find_core(
    manifest: Manifest, folder: Path, settings: ProgramSettings, address: str | None
) -> Path | None:
    """Fetch `model.onnx` and `facts.json` of the core graph; no weights.

    Args:
        manifest: Of the container.
        folder: Where they are put; made here.
        settings: Of the program.
        address: Of the store; None = the usual one.

    Returns:
        The folder; None where the store does not have it.

    Raises:
        BadInput: A store was named and is not there.
    """
    try:
        store = opened(settings, address)
    except BadInput:
        if address is not None:
            raise
        return None
    wanted = manifest.model.get("core")
    for record in records(store, "ingest"):
        files = [record.outputs.get(name) for name in _FILES]
        present = [file for file in files if file is not None]
        if len(present) == len(_FILES) and _digest(present) == wanted:
            folder.mkdir(parents=True)
            for name, file in zip(_FILES, present, strict=True):
                store.fetch_blob(file, folder / name)
            return folder
    return None


def _digest(files: list[Output]) -> str:
    """As the package writes it into the manifest."""
    return digest_json([file.sha256 for file in files])
