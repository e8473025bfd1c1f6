"""A file of the model that this machine can read: linked, once it is known to be the same."""

from __future__ import annotations

import os
from pathlib import Path

from genai_core.canonical import digest_file
from genai_core.errors import BadModel
from genai_core.task import TaskFileInput

__all__ = ["take_local"]


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
    changed = BadModel(
        "it changed while the build was running", where=shown or str(source), remedy=remedy
    )
    try:
        if source.stat().st_size != file.size or digest_file(source) != file.sha256:
            raise changed
    except FileNotFoundError as error:
        raise changed from error
    # A link of either kind keeps gigabytes where they are; stages never write to their inputs.
    try:
        os.link(source.resolve(), dest)
    except OSError:
        dest.symlink_to(source.resolve())
