"""The folders people look at in a directory store, derived from the records.

`<root>/<model-slug>/<operation>_<first 32 hex of the key>/` holds a task's outputs under their own
names beside `builder_cache_info.json`, so that `find ROOT -name '*.bin'` shows how far a build
came. The files are hard links to the read-only blobs (symbolic links where the file system has
none) and cost nothing; links that went stale, because a blob was healed, are put right when the
entry is next hit.

Deleting such a folder invalidates its entry: the record counts only while the sidecar stands. The
task then runs again, and committing it puts the folder back.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from genai_core.files.whole_files import private_name
from genai_core.names import Digest
from genai_core.tasks.record import SIDECAR_NAME, Record, entry_folder, sidecar

__all__ = ["is_invalidated", "is_stale", "remove_view", "write_view"]


def is_invalidated(root: Path, record: Record) -> bool:
    """Tell whether the user has deleted the entry's folder."""
    return not (root / entry_folder(record) / SIDECAR_NAME).is_file()


def is_stale(root: Path, record: Record, *, blob_path: dict[Digest, Path]) -> bool:
    """Tell whether a file of an entry's folder is missing or is not the blob that now stands."""
    folder = root / entry_folder(record)
    try:
        return any(
            (folder / path).stat().st_ino != blob_path[output.sha256].stat().st_ino
            for path, output in record.outputs.items()
        )
    except FileNotFoundError:
        return True


def write_view(root: Path, record: Record, *, blob_path: dict[Digest, Path], scratch: Path) -> None:
    """Write an entry's folder whole, in place of one that stands.

    Args:
        root: The store.
        record: What the folder shows.
        blob_path: Where the outputs' blobs are.
        scratch: A folder on the store's file system.
    """
    draft = scratch / private_name(record.operation)
    draft.mkdir()
    try:
        for path, output in record.outputs.items():
            link = draft / path
            link.parent.mkdir(parents=True, exist_ok=True)
            _link(blob_path[output.sha256], link, final=root / entry_folder(record) / path)
        (draft / SIDECAR_NAME).write_bytes(sidecar(record))
        _swap(draft, root / entry_folder(record), scratch)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def remove_view(root: Path, record: Record, *, scratch: Path) -> None:
    """Remove an entry's folder, and its model's where it was the last."""
    _put_away(root / entry_folder(record), scratch)
    try:
        (root / record.model).rmdir()
    except OSError:
        return  # not empty, or gone


def _link(blob: Path, link: Path, *, final: Path) -> None:
    if not blob.exists():
        return  # the record is no hit either; a dangling link would only confuse
    try:
        os.link(blob, link)
    except OSError:  # no hard links here, or too many on this blob
        link.symlink_to(os.path.relpath(blob, final.parent))


def _swap(draft: Path, final: Path, scratch: Path) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(100):
        try:
            draft.rename(final)
        except OSError:
            if not final.exists():
                raise
            _put_away(final, scratch)
        else:
            return
    draft.rename(final)


def _put_away(folder: Path, scratch: Path) -> None:
    """Remove a folder in one step as others see it."""
    away = scratch / private_name(folder.name)
    try:
        folder.rename(away)
    except FileNotFoundError:
        return
    shutil.rmtree(away, ignore_errors=True)
