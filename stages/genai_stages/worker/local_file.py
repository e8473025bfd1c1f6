"""A file of the model that this machine can read: linked, once it is known to be the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from genai_core.canonical import digest_file
from genai_core.errors import BadModel
from genai_core.tasks.task_file import TaskFileInput

__all__ = ["identities", "refuse_changed", "take_local"]

_CHANGED = "it changed while the build was running"


def take_local(
    source: Path,
    file: TaskFileInput,
    dest: Path,
    *,
    shown: str = "",
    remedy: str = "run the same command again",
) -> None:
    """Make a file available, having made sure that it is still the one planned with.

    Args:
        source: Where it lies.
        file: What it must be.
        dest: Becomes a link to it.
        shown: How errors name it, where that is not its path.
        remedy: What the user does about a change.

    Raises:
        BadModel: It has other bytes, or is gone.
    """
    changed = BadModel(_CHANGED, where=shown or str(source), remedy=remedy)
    try:
        if source.stat().st_size != file.size or digest_file(source) != file.sha256:
            raise changed
    except FileNotFoundError as error:
        raise changed from error
    # A link keeps gigabytes where they are. Not a hard link: while a file has two names, onnx.load
    # refuses it ("potential hardlink attack"), and it is the user's own model.
    dest.symlink_to(source.resolve())


def identities(paths: Iterable[Path]) -> dict[Path, tuple[int, ...]]:
    """Path -> what tells that the file, or the one behind a link, was changed or replaced."""
    return {path: _identity(path) for path in paths}


def refuse_changed(files: Mapping[Path, tuple[int, ...]]) -> None:
    """Make sure that files stayed as they were while they were read.

    Raises:
        BadModel: One was changed, replaced or deleted.
    """
    for path, identity in files.items():
        try:
            same = _identity(path) == identity
        except OSError:
            same = False
        if not same:
            raise BadModel(_CHANGED, where=path.name, remedy="run the same command again")


def _identity(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
