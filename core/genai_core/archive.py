"""Archives from elsewhere, unpacked so that nothing in them can do harm.

Only ordinary files and folders come out, below the destination and nowhere else; links, devices
and names that leave the folder are errors, not skipped. What comes out is bounded in bytes and in
number while it is written, whatever the archive says about itself. The kind of archive is told from
its first bytes, not from its name: zip, tar, and tar packed with gzip, bzip2 or xz.

Where everything lies in one folder, as archives usually have it, that folder is the model's.
"""

from __future__ import annotations

import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path
from typing import BinaryIO, cast

from genai_core.errors import BadModel, NoSpace
from genai_core.paths import check_relative_path
from genai_core.store.files import explain

__all__ = ["Bounds", "unpack_archive"]

_BUFFER_BYTES = 1 << 20
_MAGIC = {
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"\x1f\x8b": "tar",
    b"BZh": "tar",
    b"\xfd7zXZ\x00": "tar",
}
_ZSTD = b"\x28\xb5\x2f\xfd"
_TAR_MARK, _TAR_AT = b"ustar", 257
_IGNORED = "__MACOSX"
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    LZMAError,
    EOFError,
    ValueError,
    struct.error,
    NotImplementedError,
    OverflowError,
)


@dataclass(frozen=True)
class Bounds:
    """How much an archive may hold."""

    most_bytes: int = 512 << 30
    most_files: int = 10_000


@dataclass
class _Left:
    """What of the bounds is left."""

    where: str
    bounds: Bounds
    bytes: int = 0
    files: int = 0

    def take_file(self) -> None:
        self.files += 1
        if self.files > self.bounds.most_files:
            raise BadModel(
                f"it holds more than {self.bounds.most_files} files",
                where=self.where,
                remedy="pack the model's own files only",
            )

    def take_bytes(self, count: int) -> None:
        self.bytes += count
        if self.bytes > self.bounds.most_bytes:
            raise BadModel(
                f"unpacked it has more than {self.bounds.most_bytes} bytes",
                where=self.where,
                remedy="pack the model's own files only",
            )


def unpack_archive(archive: Path, dest: Path, *, where: str, bounds: Bounds | None = None) -> Path:
    """Unpack an archive into an empty folder.

    Args:
        archive: The file.
        dest: The folder; what an error leaves in it is the caller's to remove.
        where: How errors name the archive.
        bounds: Beyond them it is refused. Free room on the disk bounds it too.

    Returns:
        The folder of the model: `dest`, or the only folder in it.

    Raises:
        BadModel: It is no archive, is damaged, or holds something that must not be unpacked.
        NoSpace: There is no room for what it holds.
    """
    free = shutil.disk_usage(dest).free
    wanted = bounds or Bounds()
    left = _Left(where, Bounds(min(wanted.most_bytes, free), wanted.most_files))
    try:
        for name, stream in _members(archive, where):
            left.take_file()
            path = dest / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with stream, path.open("xb") as target:
                while data := stream.read(_BUFFER_BYTES):
                    left.take_bytes(len(data))
                    target.write(data)
    except BadModel:
        if left.bytes > free:
            raise NoSpace(
                f"{free} bytes are free, and it holds more", where=where, remedy="make room"
            ) from None
        raise
    except FileExistsError as error:
        name = Path(str(error.filename)).relative_to(dest).as_posix()
        raise _refused(where, name, "is in it twice") from error
    except (NotADirectoryError, IsADirectoryError) as error:
        raise _refused(where, str(error.filename), "is a file and a folder") from error
    except _DAMAGED as error:
        raise _damaged(error, where) from error
    except OSError as error:
        if error.errno is None:  # gzip's and bz2's word for it
            raise _damaged(error, where) from error
        raise explain(error, dest) from error
    entries = [path for path in dest.iterdir() if path.name != _IGNORED]
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else dest


def _damaged(error: Exception, where: str) -> BadModel:
    return BadModel(
        f"the archive is damaged: {error}", where=where, remedy="pack or upload it again"
    )


def _members(archive: Path, where: str) -> Iterator[tuple[str, BinaryIO]]:
    kind = _kind(archive, where)
    return _zip_members(archive, where) if kind == "zip" else _tar_members(archive, where)


def _kind(archive: Path, where: str) -> str:
    with archive.open("rb") as stream:
        head = stream.read(_TAR_AT + len(_TAR_MARK))
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    if head[_TAR_AT:] == _TAR_MARK:
        return "tar"
    what = "packed with zstd, which is not read here" if head.startswith(_ZSTD) else "no archive"
    raise BadModel(
        f"it is {what}", where=where, remedy="pack the model's folder as .tar, .tar.gz or .zip"
    )


def _tar_members(archive: Path, where: str) -> Iterator[tuple[str, BinaryIO]]:
    with tarfile.open(archive, "r:*") as packed:
        for member in packed:
            name = _checked(member.name, where)
            if member.isdir() or name.split("/")[0] == _IGNORED:
                continue
            if member.issym() or member.islnk():
                raise _refused(where, name, "is a link", "pack with tar --dereference")
            if not member.isreg():
                raise _refused(where, name, "is neither a file nor a folder")
            stream = packed.extractfile(member)
            assert stream is not None
            yield name, cast("BinaryIO", stream)


def _zip_members(archive: Path, where: str) -> Iterator[tuple[str, BinaryIO]]:
    with zipfile.ZipFile(archive) as packed:
        for info in packed.infolist():
            name = _checked(info.filename, where)
            if info.is_dir() or name.split("/")[0] == _IGNORED:
                continue
            kind = (info.external_attr >> 16) & 0o170000  # Unix' file type, where zip notes one
            if kind not in {0, 0o100000}:
                raise _refused(where, name, "is a link or a special file")
            if info.flag_bits & 1:
                raise _refused(where, name, "is encrypted")
            try:
                stream = packed.open(info)
            except NotImplementedError as error:
                raise _refused(where, name, f"cannot be unpacked ({error})") from error
            yield name, cast("BinaryIO", stream)


def _checked(name: str, where: str) -> str:
    text = name.removeprefix("./").rstrip("/")
    if text in {"", "."}:
        return _IGNORED  # the folder itself
    try:
        return check_relative_path(text)
    except ValueError as error:
        raise BadModel(
            f"its member {error}", where=where, remedy="pack the model's folder itself"
        ) from error


def _refused(
    where: str, name: str, what: str, remedy: str = "pack the model's folder itself"
) -> BadModel:
    return BadModel(f"its member {name} {what}", where=where, remedy=remedy)
