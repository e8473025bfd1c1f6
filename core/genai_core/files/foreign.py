"""Untrusted files: a boundary around each reader, so that every bad file gives one clear error.

A reader of malformed input raises whatever its libraries raise. Inside `boundary` that becomes an
error of the file: its name, what is wrong, exit code 2. What is no fault of the file (a full disk,
memory, an interruption) passes through.
"""

from __future__ import annotations

import codecs
import errno
import json
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genai_core.errors import BadInput, BadModel, GenAIError
from genai_core.files.json_budgets import CONFIG
from genai_core.files.regular import NotRegular, read_regular

__all__ = ["boundary", "decoded", "is_failure", "plain_text", "read_json_object", "refuse_pointer"]

log = logging.getLogger(__name__)

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""The mark of the byte order that a text may begin with; the longer of two that agree first."""

_LONGEST = 160
"""Characters of another library's sentence."""
_POINTER = b"version https://git-lfs.github.com/spec/"
_LARGEST_POINTER = 1024
_OURS = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO}
"""Errors of the machine, not of a file's content."""


@contextmanager
def boundary(
    where: str,
    *,
    kind: type[BadInput] = BadModel,
    what: str = "it cannot be read",
    remedy: str = "copy the file again, or export the model anew",
    detailed: bool = False,
) -> Iterator[None]:
    """Turn what a reader raises into an error of the file that it reads.

    Args:
        where: The file, as the user knows it.
        kind: Of the error.
        what: Begins the sentence; how it failed stands behind it in brackets.
        remedy: What to do.
        detailed: Name the exception and the module of ours that it came from: for whoever the
            user reports it to.

    Raises:
        BadInput: Of `kind`, for anything but expected errors, lack of memory or disk, and
            interruptions.
    """
    try:
        yield
    except (GenAIError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except OSError as error:
        if error.errno in _OURS:
            raise
        raise _error(error, where, kind, what=what, remedy=remedy, detailed=detailed) from error
    except BaseException as error:
        if not is_failure(error):
            raise
        raise _error(error, where, kind, what=what, remedy=remedy, detailed=detailed) from error


def is_failure(error: BaseException) -> bool:
    """Whether something went wrong, and nobody asked to stop.

    Libraries written in Rust raise their panics beside Exception.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _error(
    error: BaseException,
    where: str,
    kind: type[BadInput],
    *,
    what: str,
    remedy: str,
    detailed: bool,
) -> BadInput:
    log.info("%s: unexpected while reading", where, exc_info=error)
    said = " ".join(str(error).split())
    said = f"{said[:_LONGEST]}..." if len(said) > _LONGEST else said
    if detailed or not said:
        frames = traceback.extract_tb(error.__traceback__)
        own = [Path(frame.filename).stem for frame in frames if "genai_" in frame.filename]
        name = f"{type(error).__name__}{f' in {own[-1]}' if own else ''}"
        said = f"{name}: {said}" if said else name
    return kind(f"{what} ({said})", where=where, remedy=remedy)


def decoded(data: bytes) -> str:
    """A text's characters: UTF-8, or UTF-16 and UTF-32 with the mark of their byte order.

    Raises:
        UnicodeDecodeError: It is none of them.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding)
    return data.decode("utf-8")


def plain_text(data: bytes) -> bytes:
    """The same text as UTF-8 without a mark; bytes that have no mark stay as they are."""
    if not any(data.startswith(mark) for mark, _ in _MARKS):
        return data
    return decoded(data).encode("utf-8")


def refuse_pointer(path: Path, *, where: str = "", remedy: str = "") -> None:
    """Refuse what Git LFS left in a file's place.

    Args:
        path: An existing file.
        where: As the user knows it; its name where empty.
        remedy: Else `git lfs pull`.

    Raises:
        BadModel: It is a pointer; says how large the file itself is.
        OSError: It cannot be read.
    """
    if path.stat().st_size > _LARGEST_POINTER:
        return
    data = path.read_bytes()
    if not data.startswith(_POINTER):
        return
    size = next((line[5:] for line in data.split(b"\n") if line.startswith(b"size ")), b"")
    shown = f" of {size.decode()} bytes" if size.isdigit() else ""
    raise BadModel(
        f"it is a pointer of Git LFS, not the file{shown} that it stands for",
        where=where or path.name,
        remedy=remedy or "run `git lfs pull` in the model's folder",
    )


def read_json_object(
    path: Path,
    *,
    where: str = "",
    kind: type[BadInput] = BadModel,
    remedy: str = "restore the model's own file",
) -> Any:
    """Read a JSON object that somebody else wrote.

    Args:
        path: An existing file.
        where: As the user knows it; its name where empty.
        kind: Of the error.
        remedy: What to do about it.

    Raises:
        BadInput: Of `kind`: a pointer of Git LFS, no text, no JSON, no object, nested too deeply,
            or with numbers or characters that JSON does not have.
        OSError: It cannot be read.
    """
    where = where or path.name
    refuse_pointer(path, where=where)
    try:
        value = CONFIG.read(plain_text(read_regular(path, CONFIG.most_bytes)))
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # halves of characters
    except NotRegular as error:
        raise kind(f"it {error.strerror}", where=where, remedy=remedy) from error
    except UnicodeDecodeError as error:
        raise kind("it is not UTF-8 text", where=where, remedy=remedy) from error
    except UnicodeEncodeError as error:
        raise kind("it has half a character", where=where, remedy=remedy) from error
    except RecursionError as error:
        raise kind("it is nested too deeply", where=where, remedy=remedy) from error
    except ValueError as error:
        raise kind(f"it is not JSON: {error}", where=where, remedy=remedy) from error
    if not isinstance(value, dict):
        raise kind("it is not a JSON object", where=where, remedy=remedy)
    return value
