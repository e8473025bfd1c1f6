"""Files that are there whole or not at all, and that are hashed while they are copied.

Everything is written under a name that nobody reads, in the file system of its destination, and
gets its own name by a link or rename.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from genai_core.errors import GenAIError, NoSpace, StoreUnavailable, StoreUnreadable
from genai_core.files.regular import open_regular
from genai_core.names import Digest

__all__ = [
    "DRAFT_SUFFIX",
    "copy_hashed",
    "explain",
    "hash_file",
    "private_name",
    "put_away",
    "room_in",
    "sync_folder",
    "temporary",
    "write_atomically",
]

DRAFT_SUFFIX = ".part"
"""How names that nobody reads end."""

_BUFFER_BYTES = 256 << 10
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_PASSING = {errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EHOSTDOWN}


def private_name(near: str = "") -> str:
    """Return a file name that no other process uses; `near` helps people who find it."""
    return f".{near[:80]}.{os.getpid()}-{secrets.token_hex(6)}{DRAFT_SUFFIX}"


def explain(error: OSError, path: Path, *, need: int | None = None) -> GenAIError:
    """Return the error of ours for one of the operating system's.

    Args:
        error: What was raised.
        path: What was being read or written, as the user knows it.
        need: Bytes that were to be written, where known.
    """
    if error.errno in _FULL:
        wanted = f"{need} bytes are needed" if need is not None else "no room left"
        return NoSpace(
            f"{wanted}, {_free_bytes(path)} are free ({os.strerror(error.errno or 0)})",
            where=str(path),
            remedy="make room there, or name another store or folder",
        )
    if error.errno in _PASSING:
        return StoreUnavailable(error.strerror or str(error), where=str(error.filename or path))
    return StoreUnreadable(
        error.strerror or str(error),
        where=str(error.filename or path),
        remedy="check that the folder exists, is a folder, and that you may read and write it",
    )


def room_in(folder: Path) -> int:
    """Bytes that a stranger's file may take there: some room stays for everybody else.

    A twentieth of the disk stays free, at most 2 GiB.
    """
    disk = shutil.disk_usage(folder)
    return max(0, disk.free - min(disk.total // 20, 2 << 30))


def _free_bytes(path: Path) -> int | str:
    for folder in (path, *path.parents):
        with suppress(OSError):
            return os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    return "an unknown number"


def copy_hashed(source: BinaryIO, target: BinaryIO | None) -> tuple[Digest, int]:
    """Copy what is left of a stream and return digest and size of the bytes copied.

    The bytes are hashed from the buffer that is written, so that what stands has the digest even
    where the source changes meanwhile. One thread: handing buffers to a second one cost more than
    it gained as soon as the machine had other work.

    Args:
        source: Unbuffered binary stream.
        target: Unbuffered binary stream; None = only hash.
    """
    digest = hashlib.sha256()
    size = 0
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    readinto: Callable[[memoryview], int | None] = source.readinto  # type: ignore[attr-defined]
    while count := readinto(buffer):
        filled = buffer[:count]
        digest.update(filled)
        if target is not None:
            _write_all(target, filled)
        size += count
    return Digest(digest.hexdigest()), size


def _write_all(target: BinaryIO, data: memoryview) -> None:
    done = 0
    while done < len(data):
        done += target.write(data[done:])


def hash_file(path: Path) -> tuple[Digest, int]:
    """Return digest and size of a file, read whole; of an ordinary file only."""
    with open_regular(path) as stream:
        return copy_hashed(cast("BinaryIO", stream), None)


def put_away(path: Path, scratch: Path) -> None:
    """Remove a file, or whatever else stands in its place, in one step as others see it."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        if path.is_symlink() or not path.is_dir():
            raise
        away = scratch / private_name(path.name)
        path.rename(away)
        shutil.rmtree(away, ignore_errors=True)


@contextmanager
def temporary(folder: Path, near: str = "") -> Iterator[Path]:
    """Yield a path in a folder for a file to come; what is left there afterwards is removed."""
    path = folder / private_name(near)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; file systems that cannot are left alone."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_atomically(path: Path, data: bytes, *, scratch: Path, exclusive: bool = False) -> bool:
    """Write a small file durably and at once.

    Args:
        path: Its place; the parent folder must exist.
        data: Its bytes.
        scratch: A folder on the same file system.
        exclusive: Only where nothing stands there.

    Returns:
        False where `exclusive` and the file exists; it is then untouched.
    """
    with temporary(scratch, path.name) as draft:
        with draft.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if exclusive:
            try:
                os.link(draft, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                if path.exists():  # callers hold a lock; without one the window is a moment
                    return False
                draft.replace(path)
        else:
            draft.replace(path)
    sync_folder(path.parent)
    return True
