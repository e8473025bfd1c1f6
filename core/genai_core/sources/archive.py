"""Archives from elsewhere, unpacked so that nothing in them can do harm.

Only ordinary files and folders come out, below the destination and nowhere else; links, devices
and names that leave the folder are errors, not skipped. What comes out is bounded in bytes and in
number while it is written, whatever the archive says about itself, and in proportion to the
archive; some room stays on the disk. What a reader keeps in memory (a tar's long names, a zip's
directory) is bounded as well. The kind of archive is told from its first bytes, not from its name:
zip, tar, and tar packed with gzip, bzip2 or xz.

Where everything lies in one folder, as archives usually have it, that folder is the model's.
"""

from __future__ import annotations

import errno
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from lzma import LZMAError
from pathlib import Path
from typing import BinaryIO, cast

from genai_core.errors import BadModel, NoSpace
from genai_core.files.paths import check_relative_path
from genai_core.files.whole_files import explain, room_in

__all__ = ["ArchiveLimits", "unpack_archive"]

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
_EXTENDED = {
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
}
_HEADER_BYTES, _HEADERS_BYTES = 64 << 10, 16 << 20
"""Of one extended header of a tar, and of all."""
_NAME_BYTES = 1024
_DIRECTORY_BYTES = 4 << 20
"""Of a zip; ten thousand files take 1.5 MB."""
_DIRECTORY_SIZE = 5
"""Where zipfile has it."""
_NO_SPARSE = "pack without --sparse"
_DAMAGED = (
    RecursionError,  # tarfile's word for a chain of headers
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
class ArchiveLimits:
    """How much an archive may hold."""

    most_bytes: int = 512 << 30
    most_files: int = 10_000
    """Files and folders together."""
    most_depth: int = 32
    """Folders inside one another."""
    ratio: int = 100
    """Unpacked to packed; weights hardly shrink at all."""
    any_ratio_bytes: int = 1 << 30
    """So much may come out of however little."""


@dataclass
class _Budget:
    """What has been taken of the bounds so far, and who is told when one is passed."""

    where: str
    bounds: ArchiveLimits
    packed: int
    room: int
    bytes: int = 0
    files: int = 0
    members: int = 0
    header_bytes: int = 0
    folders: set[str] = field(default_factory=set)

    def take_member(self) -> None:
        """One more header, of whatever kind."""
        self.members += 1
        if self.members > 4 * self.bounds.most_files:
            raise self._beyond(f"it has more than {self.members - 1} members")

    def take_header(self, count: int) -> None:
        """A tar's long name or attributes, which its reader keeps in memory."""
        self.header_bytes += count
        if count > _HEADER_BYTES or self.header_bytes > _HEADERS_BYTES:
            raise self._beyond("the headers of its members are too large")

    def take_file(self, name: str) -> None:
        """One more file, and the folders that it needs."""
        parts = name.split("/")
        if len(parts) > self.bounds.most_depth:
            raise _refused(self.where, name[:200], "lies too deep")
        if len(name.encode()) > _NAME_BYTES or max(len(p.encode()) for p in parts) > 255:
            raise _refused(self.where, f"{name[:80]}...", "has too long a name")
        self.folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
        self.files += 1
        if self.files + len(self.folders) > self.bounds.most_files:
            raise self._beyond(f"it holds more than {self.bounds.most_files} files")

    def take_bytes(self, count: int) -> None:
        """So many bytes are about to be written."""
        self.bytes += count
        bounds = self.bounds
        if self.bytes > self.room:
            raise NoSpace(
                f"{self.room} bytes may be written, and it holds more",
                where=self.where,
                remedy="make room",
            )
        if self.bytes > bounds.most_bytes:
            raise self._beyond(f"unpacked it has more than {bounds.most_bytes} bytes")
        if self.bytes > max(bounds.any_ratio_bytes, bounds.ratio * self.packed):
            raise self._beyond(
                f"unpacked it has more than {bounds.ratio} times its {self.packed} bytes"
            )

    def _beyond(self, what: str) -> BadModel:
        return BadModel(what, where=self.where, remedy="pack the model's own files only")


def unpack_archive(
    archive: Path, dest: Path, *, where: str, bounds: ArchiveLimits | None = None
) -> Path:
    """Unpack an archive into an empty folder.

    Args:
        archive: The file.
        dest: The folder; what an error leaves in it is the caller's to remove.
        where: How errors name the archive.
        bounds: Beyond them it is refused. Room on the disk bounds it too, see `room_in`.

    Returns:
        The folder of the model: `dest`, or the only folder in it.

    Raises:
        BadModel: It is no archive, is damaged, or holds something that must not be unpacked.
        NoSpace: There is no room for what it holds.
    """
    budget = _Budget(where, bounds or ArchiveLimits(), archive.stat().st_size, room_in(dest))
    try:
        for name, stream in _members(archive, budget):
            budget.take_file(name)
            path = dest / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with stream, path.open("xb") as target:
                while data := stream.read(_BUFFER_BYTES):
                    budget.take_bytes(len(data))
                    target.write(data)
    except FileExistsError as error:
        name = Path(str(error.filename)).relative_to(dest).as_posix()
        raise _refused(where, name, "is in it twice") from error
    except (NotADirectoryError, IsADirectoryError) as error:
        raise _refused(where, str(error.filename), "is a file and a folder") from error
    except _DAMAGED as error:
        raise _damaged(error, where) from error
    except OSError as error:
        # None is gzip's and bz2's word for it; EINVAL a zip's whose index points before its start,
        # or a name that no disk takes.
        if error.errno in (None, errno.EINVAL):
            raise _damaged(error, where) from error
        raise explain(error, dest) from error
    entries = [path for path in dest.iterdir() if path.name != _IGNORED]
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else dest


def _damaged(error: Exception, where: str) -> BadModel:
    return BadModel(
        f"the archive is damaged: {error}", where=where, remedy="pack or upload it again"
    )


def _members(archive: Path, budget: _Budget) -> Iterator[tuple[str, BinaryIO]]:
    kind = _kind(archive, budget.where)
    return _zip_members(archive, budget) if kind == "zip" else _tar_members(archive, budget)


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


def _header_reader(budget: _Budget) -> type[tarfile.TarInfo]:
    """Members whose extended headers are bounded: tarfile reads them into memory whole."""

    class Header(tarfile.TarInfo):
        def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
            budget.take_member()
            if self.type == tarfile.GNUTYPE_SPARSE:
                raise _refused(budget.where, self.name[:200], "is sparse", _NO_SPARSE)
            if self.type in _EXTENDED:
                budget.take_header(self.size)
            return super()._proc_member(tar)  # type: ignore[misc,no-any-return]

        def _sparse(self, *_: object) -> None:
            # Its map is as long as it says, and read before anything can be counted.
            raise _refused(budget.where, self.name[:200], "is sparse", _NO_SPARSE)

        _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _sparse

    return Header


def _tar_members(archive: Path, budget: _Budget) -> Iterator[tuple[str, BinaryIO]]:
    where = budget.where
    with tarfile.open(archive, "r:*", tarinfo=_header_reader(budget)) as packed:
        for member in packed:
            packed.members.clear()  # type: ignore[attr-defined] # it remembers all of them
            name = _checked(member.name, where)
            if member.isdir() or name.split("/")[0] == _IGNORED:
                continue
            if member.issym() or member.islnk():
                raise _refused(where, name, "is a link", "pack with tar --dereference")
            if member.issparse():
                raise _refused(where, name, "is sparse", _NO_SPARSE)
            if not member.isreg():
                raise _refused(where, name, "is neither a file nor a folder")
            stream = packed.extractfile(member)
            assert stream is not None
            yield name, cast("BinaryIO", stream)


def _zip_members(archive: Path, budget: _Budget) -> Iterator[tuple[str, BinaryIO]]:
    where = budget.where
    _check_directory(archive, budget)
    with zipfile.ZipFile(archive) as packed:
        for info in packed.infolist():
            budget.take_member()
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


def _check_directory(archive: Path, budget: _Budget) -> None:
    """Refuse a zip whose directory, which zipfile reads into memory, is too large."""
    with archive.open("rb") as stream:
        end = zipfile._EndRecData(stream)  # type: ignore[attr-defined] # noqa: SLF001 - as it does
    if end is not None and end[_DIRECTORY_SIZE] > _DIRECTORY_BYTES:
        raise BadModel(
            f"its directory has {end[_DIRECTORY_SIZE]} bytes",
            where=budget.where,
            remedy="pack the model's own files only",
        )


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
