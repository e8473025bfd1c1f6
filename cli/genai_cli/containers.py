"""Containers out of a store into folders: `<output>/<build>/<target>/`.

A container is written beside its place and then renamed, so that a reader sees the old one or the
new one. Files are copies, verified on the way: onnx.load refuses external data that has a second
name, so links to the store's blobs would not do. A container that is there already, same revision
and sizes, is left untouched.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from genai_core.errors import GenAIError, NoSpace
from genai_core.manifest import MANIFEST_FILE, Manifest
from genai_core.record import Output, Record
from genai_core.store.protocol import Store

__all__ = ["Delivered", "deliver", "folder_name", "place", "revision_of"]

_NO_SPACE = {28, 122}
"""ENOSPC and EDQUOT."""


@dataclass(frozen=True)
class Delivered:
    """A container in its folder.

    Attributes:
        revision: `sha256:` and the digest of its canonical manifest.
        size_bytes: Of all its files.
        changed: It was written just now.
    """

    target: str
    path: Path
    revision: str
    size_bytes: int
    changed: bool

    def as_json(self) -> dict[str, object]:
        """The form in which `build --json` shows it."""
        return {
            "path": str(self.path),
            "revision": self.revision,
            "sizeBytes": self.size_bytes,
            "changed": self.changed,
        }


def folder_name(target: str) -> str:
    """A target's folder: `sm8750` as it is, `dsp_arch:v79;soc_model:69` without : and ;."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", target).strip("-.") or "target"


def deliver(record: Record, store: Store, path: Path, *, target: str) -> Delivered:
    """Make the folder `path` hold the container of a package record.

    Args:
        record: Of the package task.
        store: Holds its blobs.
        path: The container's folder; replaced unless it holds this revision.
        target: Its name, for the result.

    Raises:
        GenAIError: The record is no container, or a blob is missing or wrong.
        NoSpace: No room at `path`.
    """
    manifest = record.outputs.get(MANIFEST_FILE)
    if manifest is None:
        raise GenAIError("it is no container: it has no manifest", where=f"package {record.key}")
    revision = revision_of(store.read_blob(manifest))
    changed = not _holds(path, revision, record.outputs)
    if changed:
        place(record, store, path)
    return Delivered(
        target=target,
        path=path,
        revision=revision,
        size_bytes=sum(output.size for output in record.outputs.values()),
        changed=changed,
    )


def revision_of(manifest: bytes) -> str:
    """The revision that a manifest.json stands for."""
    return Manifest.model_validate_json(manifest).revision()


def place(record: Record, store: Store, path: Path) -> None:
    """Write all outputs of a record into a folder, in place of what is there.

    Raises:
        NoSpace: There is no room.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        for name, output in record.outputs.items():
            dest = draft / name
            dest.parent.mkdir(parents=True, exist_ok=True)
            # A copy: people may change it, and onnx.load refuses data that has a second name.
            store.fetch_blob(output, dest)
        _swap(draft, path)
    except OSError as error:
        if error.errno in _NO_SPACE:
            need = sum(output.size for output in record.outputs.values())
            raise NoSpace(
                f"{need} bytes are needed", where=str(path), remedy="free some room"
            ) from error
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _swap(draft: Path, path: Path) -> None:
    aside = path.with_name(f"{draft.name}.old")
    try:
        path.rename(aside)
    except FileNotFoundError:
        draft.rename(path)
        return
    draft.rename(path)
    shutil.rmtree(aside, ignore_errors=True)


def _holds(path: Path, revision: str, outputs: dict[str, Output]) -> bool:
    """Whether the folder holds this revision, every file with its size and no other."""
    try:
        if revision_of((path / MANIFEST_FILE).read_bytes()) != revision:
            return False
        found = {
            file.relative_to(path).as_posix(): file.stat().st_size
            for file in path.rglob("*")
            if file.is_file()
        }
    except (OSError, ValueError, json.JSONDecodeError):
        return False
    return found == {name: output.size for name, output in outputs.items()}
