"""Names from elsewhere that become paths: of a spec, a record, a manifest, an archive, a listing.

Whoever writes such a name is not whoever opens the file, so it may lead only downwards: it is
relative, without `.` and `..`, and what it leads to lies inside the folder that it was joined to,
also where a link is on the way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from genai_core.errors import BadModel

__all__ = [
    "FILE_NAME",
    "PREFIX",
    "FileName",
    "RelativePath",
    "check_relative_path",
    "inside",
    "links_may_reach",
    "refuse_unreadable_name",
]

_REST = r"[^/\\\x00-\x1f]*"
_PART = rf"([^/\\\x00-\x1f.]|\.[^/\\\x00-\x1f.]|\.\.[^/\\\x00-\x1f]){_REST}"
_FIRST = rf"([^/\\\x00-\x1f.~]|\.[^/\\\x00-\x1f.]|\.\.[^/\\\x00-\x1f]){_REST}"

FILE_NAME = rf"^{_FIRST}(/{_PART})*$"
"""A file below a folder, as a pattern that an apiserver knows as well (RE2)."""
PREFIX = rf"^/?({_PART}(/{_PART})*)?/?$"
"""A prefix of a bucket; servers that keep objects as files would follow `..`."""


def check_relative_path(path: str) -> str:
    """Return a path that stays inside the folder it is joined to.

    Raises:
        ValueError: Absolute, empty, with `..`, `.`, an empty part, a backslash or a control
            character.
    """
    if not path or path.startswith("/") or "\\" in path or any(ord(c) < 32 for c in path):
        raise ValueError(f"{path!r} is not a relative path with / between its parts")
    if any(part in {"", ".", ".."} for part in path.split("/")):
        raise ValueError(f"{path!r} leaves its folder or is not in its shortest form")
    return path


RelativePath = Annotated[str, AfterValidator(check_relative_path)]
"""A path in a document that a program wrote."""
FileName = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=FILE_NAME)]
"""A file of the model's folder, as a user names it in a spec."""


def links_may_reach(folder: Path) -> Path:
    """How far links in a model's folder may lead: the folder itself.

    Hugging Face's cache is the exception: what `snapshots/<revision>/` shows are links into the
    `blobs/` beside it.
    """
    above = folder.parent.parent
    is_snapshot = folder.parent.name == "snapshots" and (above / "blobs").is_dir()
    return above if is_snapshot else folder


def inside(path: Path, root: Path, shown: str, *, of: str = "model's folder") -> Path:
    """The path, unless it, or a link on the way, leads out of a folder.

    Args:
        path: What is about to be opened; it need not exist.
        root: The folder.
        shown: How the error names the path.
        of: What the folder is called.

    Raises:
        BadModel: It does.
    """
    try:
        real = path.resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        why = "its links lead nowhere"
        raise BadModel(why, where=shown, remedy="copy the file there") from error
    if not real.is_relative_to(root.resolve()):
        raise BadModel(
            f"it is a link that leaves the {of}",
            where=shown,
            remedy="copy the file there",
        )
    return path


def refuse_unreadable_name(path: Path) -> None:
    """Refuse a path of bytes that are no text: no record, key or message could hold it.

    Raises:
        BadModel: It is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise BadModel(
            "its name is not UTF-8",
            where=str(path).encode(errors="backslashreplace").decode(),
            remedy="rename it",
        ) from error
