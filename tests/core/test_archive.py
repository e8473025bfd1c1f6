"""Archives from elsewhere: what comes out, and what must not."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from genai_core.errors import BadModel, NoSpace
from genai_core.sources.archive import ArchiveLimits, unpack_archive

FILES = {"model.onnx": b"graph" * 100, "onnx/model.onnx_data": b"w" * 3000, "config.json": b"{}"}
Pack = Callable[[Path, dict[str, bytes]], None]


def pack_zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in files.items():
            packed.writestr(name, data)


def pack_tar(mode: Literal["w", "w:gz", "w:bz2", "w:xz"]) -> Pack:
    def pack(path: Path, files: dict[str, bytes]) -> None:
        with tarfile.open(path, mode) as packed:
            for name, data in files.items():
                packed.addfile(member(name, data), io.BytesIO(data))

    return pack


def member(name: str, data: bytes = b"", **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


PACKS: dict[str, Pack] = {
    "zip": pack_zip,
    "tar": pack_tar("w"),
    "gz": pack_tar("w:gz"),
    "bz2": pack_tar("w:bz2"),
    "xz": pack_tar("w:xz"),
}


def unpack(archive: Path, folder: Path, bounds: ArchiveLimits | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    return unpack_archive(archive, folder, where="https://h/a", bounds=bounds)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.mark.parametrize("kind", PACKS)
@pytest.mark.parametrize("top", ["", "tiny-llama/", "./"])
def test_every_kind_comes_out_whatever_it_is_called(tmp_path: Path, kind: str, top: str) -> None:
    archive = tmp_path / "download"
    PACKS[kind](archive, {f"{top}{name}": data for name, data in FILES.items()})
    assert tree(unpack(archive, tmp_path / "out")) == FILES


@pytest.mark.parametrize("kind", ["zip", "gz"])
@pytest.mark.parametrize(
    "name", ["../evil", "/etc/evil", "a/../../evil", "a\\..\\evil", "a//b", "C:\\evil", "a\nb"]
)
def test_nothing_leaves_the_folder(tmp_path: Path, kind: str, name: str) -> None:
    archive = tmp_path / "download"
    PACKS[kind](archive, {"model.onnx": b"x", name: b"evil"})
    with pytest.raises(BadModel, match="its member"):
        unpack(archive, tmp_path / "out")
    assert {p.name for p in tmp_path.rglob("*")} <= {"download", "out", "model.onnx", "a"}


@pytest.mark.parametrize(
    "entry",
    [
        member("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("link", type=tarfile.SYMTYPE, linkname="model.onnx"),
        member("link", type=tarfile.LNKTYPE, linkname="model.onnx"),
        member("pipe", type=tarfile.FIFOTYPE),
        member("disk", type=tarfile.BLKTYPE, devmajor=8),
    ],
    ids=["out", "inside", "hard", "pipe", "device"],
)
def test_only_files_and_folders_come_out(tmp_path: Path, entry: tarfile.TarInfo) -> None:
    archive = tmp_path / "download"
    with tarfile.open(archive, "w:gz") as packed:
        packed.addfile(member("model.onnx", b"x"), io.BytesIO(b"x"))
        packed.addfile(entry)
    with pytest.raises(BadModel, match=f"its member {entry.name} is"):
        unpack(archive, tmp_path / "out")
    assert not os.path.lexists(tmp_path / "out" / entry.name)


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "download"
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr(info, "/etc/passwd")
    with pytest.raises(BadModel, match="its member link is a link"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("kind", ["zip", "gz", "xz"])
def test_a_bomb_is_stopped_while_it_goes_off(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / "download"
    PACKS[kind](archive, {"model.onnx": bytes(30 << 20)})
    assert archive.stat().st_size < 100_000
    with pytest.raises(BadModel, match="more than 1000000 bytes"):
        unpack(archive, tmp_path / "out", ArchiveLimits(most_bytes=1_000_000))
    assert sum(p.stat().st_size for p in (tmp_path / "out").rglob("*")) <= 1_000_000
    PACKS[kind](archive, {f"{n}": b"" for n in range(30)})
    with pytest.raises(BadModel, match="more than 20 files"):
        unpack(archive, tmp_path / "many", ArchiveLimits(most_files=20))


def test_a_size_that_lies_is_not_believed(tmp_path: Path) -> None:
    """A zip whose directory says one byte, while three thousand come out."""
    archive = tmp_path / "download"
    pack_zip(archive, {"model.onnx": b"w" * 3000})
    data = archive.read_bytes()
    lied = data.replace((3000).to_bytes(4, "little"), (1).to_bytes(4, "little"))
    assert lied != data
    archive.write_bytes(lied)
    with pytest.raises(BadModel, match="damaged"):
        unpack(archive, tmp_path / "out")


def test_twice_the_same_name_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "download"
    with tarfile.open(archive, "w") as packed:
        for data in (b"checked", b"swapped"):
            packed.addfile(member("model.onnx", data), io.BytesIO(data))
    with pytest.raises(BadModel, match=r"model\.onnx is in it twice"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", b"\x28\xb5\x2f\xfd" + bytes(300)])
def test_what_is_no_archive_is_said_to_be_none(tmp_path: Path, data: bytes) -> None:
    archive = tmp_path / "download"
    archive.write_bytes(data)
    with pytest.raises(BadModel, match=r"it is (no archive|packed with zstd).*\.tar\.gz or \.zip"):
        unpack(archive, tmp_path / "out")


@settings(max_examples=400, deadline=None)
@example(cut=363, kind="zip", flip=True)  # the index points before the file's start
@given(cut=st.integers(0, 3000), kind=st.sampled_from(sorted(PACKS)), flip=st.booleans())
def test_damage_is_an_error_or_harmless_never_a_traceback(cut: int, kind: str, flip: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="damage-") as name:
        _unpack_damaged(Path(name), cut, kind, flip)


def _unpack_damaged(folder: Path, cut: int, kind: str, flip: bool) -> None:
    archive = folder / "download"
    PACKS[kind](archive, FILES)
    data = bytearray(archive.read_bytes())
    at = cut % len(data)
    data[at:] = bytes([data[at] ^ 0xFF]) + data[at + 1 :] if flip else b""
    archive.write_bytes(data)
    with suppress(BadModel):
        unpack(archive, folder / "out")
    assert {p.name for p in folder.iterdir()} == {"download", "out"}


# What a reader would keep in memory, or a disk would not hold


def header(kind: bytes, size: int, name: str = "x") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def write_gz(archive: Path, *pieces: bytes) -> None:
    import gzip

    with gzip.open(archive, "wb") as stream:
        for piece in pieces:
            stream.write(piece)


@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
)
def test_unpack_refuses_a_header_that_fills_the_memory(tmp_path: Path, kind: bytes) -> None:
    archive = tmp_path / "download"
    size = 64 << 20
    write_gz(archive, header(kind, size), bytes(size), header(tarfile.REGTYPE, 0, "model.onnx"))
    tracemalloc.start()
    with pytest.raises(BadModel, match="headers of its members are too large"):
        unpack(archive, tmp_path / "out")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_unpack_refuses_headers_that_fill_the_memory_together(tmp_path: Path) -> None:
    archive = tmp_path / "download"
    one = header(tarfile.GNUTYPE_LONGNAME, 60 << 10) + b"n" * (60 << 10)
    write_gz(archive, *[one + header(tarfile.REGTYPE, 0, f"f{n}") for n in range(400)])
    with pytest.raises(BadModel, match=r"too large|too long"):
        unpack(archive, tmp_path / "out")


def test_unpack_calls_a_chain_of_headers_damaged(tmp_path: Path) -> None:
    archive = tmp_path / "download"
    write_gz(archive, header(tarfile.GNUTYPE_LONGNAME, 0) * 3000)
    with pytest.raises(BadModel, match=r"damaged|members"):
        unpack(archive, tmp_path / "out")


def test_unpack_refuses_sparse_members_of_every_format(tmp_path: Path) -> None:
    archive = tmp_path / "download"
    write_gz(archive, header(tarfile.GNUTYPE_SPARSE, 0, "model.onnx"), bytes(1024))
    with pytest.raises(BadModel, match=r"is sparse.*without --sparse"):
        unpack(archive, tmp_path / "out")
    for fields in (
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9" * 12},
        {"GNU.sparse.map": "0,1,2,3", "GNU.sparse.size": "9" * 12},
        {"GNU.sparse.size": "9" * 12, "GNU.sparse.numblocks": "1"},
    ):
        with tarfile.open(archive, "w:gz", format=tarfile.PAX_FORMAT) as packed:
            info = member("model.onnx", b"9999999999\n" + bytes(501))
            info.pax_headers = fields
            packed.addfile(info, io.BytesIO(b"9999999999\n" + bytes(501)))
        with pytest.raises(BadModel, match="is sparse"):
            unpack(archive, tmp_path / f"out{len(fields)}{min(fields)}")


@pytest.mark.parametrize("kind", ["zip", "gz"])
def test_unpack_counts_folders_depth_and_lengths_of_names(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / "download"
    PACKS[kind](archive, {"/".join(f"{n}-{d}" for d in range(20)) + "/f": b"" for n in range(10)})
    with pytest.raises(BadModel, match="more than 100 files"):
        unpack(archive, tmp_path / "folders", ArchiveLimits(most_files=100))
    PACKS[kind](archive, {"d/" * 40 + "f": b""})
    with pytest.raises(BadModel, match="lies too deep"):
        unpack(archive, tmp_path / "deep")
    for name in ("n" * 256, "/".join(["n" * 200] * 6)):
        PACKS[kind](archive, {name: b""})
        with pytest.raises(BadModel, match="has too long a name"):
            unpack(archive, tmp_path / f"long{len(name)}")


def test_unpack_counts_members_that_are_left_out(tmp_path: Path) -> None:
    archive = tmp_path / "download"
    write_gz(archive, *[header(tarfile.DIRTYPE, 0, f"d{n}") for n in range(200)])
    with pytest.raises(BadModel, match="more than 80 members"):
        unpack(archive, tmp_path / "out", ArchiveLimits(most_files=20))


def test_unpack_refuses_a_zip_whose_directory_fills_the_memory(tmp_path: Path) -> None:
    archive = tmp_path / "download"
    with zipfile.ZipFile(archive, "w") as packed:
        for n in range(700):
            info = zipfile.ZipInfo(f"f{n}")
            info.comment = b"c" * 10_000
            packed.writestr(info, b"")
    with pytest.raises(BadModel, match="its directory has 7"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("kind", ["zip", "gz", "bz2", "xz"])
def test_unpack_refuses_what_is_out_of_proportion(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / "download"
    PACKS[kind](archive, {"model.onnx": bytes(8 << 20)})
    bounds = ArchiveLimits(any_ratio_bytes=1 << 20)
    with pytest.raises(BadModel, match="more than 100 times its"):
        unpack(archive, tmp_path / "out", bounds)
    PACKS[kind](archive, {"model.onnx": os.urandom(2 << 20)})
    assert tree(unpack(archive, tmp_path / "whole", bounds))


def test_unpack_leaves_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "download"
    pack_zip(archive, {"model.onnx": os.urandom(3 << 20)})
    usage = type(shutil.disk_usage(tmp_path))
    for total, free, fits in ((40 << 20, 4 << 20, False), (40 << 20, 6 << 20, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, t=total, f=free: usage(t, t - f, f))
        folder = tmp_path / f"out{free}"
        if fits:
            unpack(archive, folder)
        else:
            with pytest.raises(NoSpace, match="2097152 bytes may be written"):
                unpack(archive, folder)
