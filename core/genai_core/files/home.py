"""`~` at the beginning of a path that a user wrote."""

from __future__ import annotations

from pathlib import Path

from genai_core.errors import InvalidSpec

__all__ = ["expanded"]


def expanded(path: str | Path) -> Path:
    """The path with `~` or `~user` written out.

    Raises:
        InvalidSpec: There is no such user, or the own home folder is not known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InvalidSpec(
            "~ stands for no home folder here",
            where=str(path),
            remedy="write the whole path, or set HOME",
        ) from error
