"""A file of the model that this machine can read: linked, once it is known to be the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from genai_core.errors import BadModel
from genai_core.files.unchanged import HashedFile, hashed
from genai_core.tasks.task_file import TaskFileInput

__all__ = ["TakenFile", "refuse_changed", "take_local"]


@dataclass(frozen=True)
class TakenFile:
    """A user's file that a task reads where it lies, which nothing keeps from being changed.

    Attributes:
        shown: How errors name it.
        remedy: What the user does about a change.
    """

    file: HashedFile
    shown: str
    remedy: str


def take_local(
    source: Path,
    file: TaskFileInput,
    dest: Path,
    *,
    shown: str = "",
    remedy: str = "run the same command again",
) -> TakenFile:
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
    shown = shown or str(source)
    changed = _changed(shown, remedy)
    real = source.resolve()  # once: a link may be pointed elsewhere while its file is hashed
    try:
        if real.stat().st_size != file.size:
            raise changed
        found = hashed(real)
    except FileNotFoundError as error:
        raise changed from error
    if found.sha256 != file.sha256:
        raise changed
    # A link keeps gigabytes where they are. Not a hard link: while a file has two names, onnx.load
    # refuses it ("potential hardlink attack"), and it is the user's own model.
    dest.symlink_to(real)
    return TakenFile(found, shown, remedy)


def refuse_changed(taken: Iterable[TakenFile]) -> None:
    """Make sure that files stayed as they were while they were read.

    Raises:
        BadModel: One was changed, replaced or deleted.
    """
    for each in taken:
        if not each.file.stands():
            raise _changed(each.shown, each.remedy)


def _changed(shown: str, remedy: str) -> BadModel:
    return BadModel("it changed while the build was running", where=shown, remedy=remedy)
