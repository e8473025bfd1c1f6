"""Containers out of a store into folders: `<output>/<build>/<target>/`.

A container is written beside its place and then renamed, so that a reader sees the old one or the
new one. Files are copies, verified on the way: onnx.load refuses external data that has a second
name, so links to the store's blobs would not do. A container that is there already, byte for byte,
is left untouched. A folder that holds anything else than what was written here before is
never replaced.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from genai_core.canonical import digest_file
from genai_core.container.manifest import (
    MANIFEST_FILE,
    REPORT_FILE,
    ManifestFile,
    outside_identity,
    read_manifest,
)
from genai_core.container.outside import vouching
from genai_core.errors import BadInput, CorruptBlob, GenAIError, NoSpace
from genai_core.files.paths import check_relative_path
from genai_core.store.blobs import Blobs
from genai_core.store.record_checks import container_fault
from genai_core.tasks.record import SIDECAR_NAME, Blob, Output, Record, sidecar

__all__ = [
    "Delivered",
    "UntrueRecord",
    "check_container",
    "deliver",
    "folder_name",
    "place",
    "refuse_foreign",
    "revision_of",
    "swap_in",
]

_NO_SPACE = {28, 122}
"""ENOSPC and EDQUOT."""


@dataclass(frozen=True)
class Delivered:
    """A container in its folder.

    Attributes:
        revision: `sha256:` and the digest of its canonical manifest.
        size_bytes: Of all its files.
        changed: It was written just now.
    """

    target: str
    path: Path
    revision: str
    size_bytes: int
    changed: bool

    def as_json(self) -> dict[str, object]:
        """The form in which `build --json` shows it."""
        return {
            "path": str(self.path),
            "revision": self.revision,
            "sizeBytes": self.size_bytes,
            "changed": self.changed,
        }


def folder_name(target: str) -> str:
    """A target's folder: `sm8750` as it is, `dsp_arch:v79;soc_model:69` without : and ;."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", target).strip("-.") or "target"


def deliver(
    record: Record,
    store: Blobs,
    path: Path,
    *,
    target: str,
    digest_of: Callable[[Path], str] = digest_file,
    report: Callable[[bytes], bytes] = bytes,
) -> Delivered:
    """Make the folder `path` hold the container of a package record.

    Args:
        record: Of the package task.
        store: Holds its blobs.
        path: The container's folder; replaced unless it holds this revision, byte for byte.
        target: Its name, for the result.
        digest_of: The SHA-256 of a file that is there: `FileCache.digest` reads it once.
        report: Makes the report of the build that hands it out from the packaged one; the report
            is no part of the revision, so another one alone leaves the container unchanged.

    Raises:
        GenAIError: The record is no container.
        CorruptBlob: A blob is missing or wrong, or a file is not the one of the manifest.
        BadInput: `path` holds something else.
        NoSpace: No room at `path`.
    """
    manifest = record.outputs.get(MANIFEST_FILE)
    if manifest is None:
        raise GenAIError("it is no container: it has no manifest", where=f"package {record.key}")
    source = f"package {record.key[:12]}: {MANIFEST_FILE}"
    revision = revision_of(store.read_blob(manifest), where=source)
    check_container(record, store)
    own = _own_report(record, store, report)
    changed = not _holds(path, revision, record.outputs, digest_of)
    if changed:
        place(record, store, path, instead=own)
    else:
        _refresh(path, own)
    return Delivered(
        target=target,
        path=path,
        revision=revision,
        size_bytes=sum(
            len(own[name]) if name in own else output.size
            for name, output in record.outputs.items()
        ),
        changed=changed,
    )


def check_container(record: Record, store: Blobs) -> None:
    """Compare a container's files, as its record names them, with its manifest.

    The revision is the manifest's digest: it would otherwise vouch for files that it never saw.

    Raises:
        CorruptBlob: They differ; names the file.
        BadInput: The manifest is newer than this program.
    """
    if (fault := container_fault(record, store)) is not None:
        raise UntrueRecord(
            f"its record does not name the container that was built: {fault}",
            where=f"{store.location}: {record.operation}/{record.key[:12]}",
            remedy="genai build makes it anew; docs/stores.md says what a writer of a store can do",
        )


class UntrueRecord(CorruptBlob):
    """A package record whose files are not those of its manifest."""


def revision_of(manifest: bytes, *, where: str = MANIFEST_FILE) -> str:
    """The revision that a manifest.json stands for.

    Raises:
        BadInput: It is newer than this program, or no manifest.
    """
    return read_manifest(manifest, where=where).revision()


def refuse_foreign(path: Path, expected: Iterable[str] | None = None) -> None:
    """Refuse to replace a folder unless it is empty, a container or an entry of a store.

    Args:
        path: Need not exist.
        expected: Files that are going to be written, where they are known: a container whose
            manifest was damaged is known by holding nothing else.

    Raises:
        BadInput: What is there would be lost.
    """
    try:
        names = {entry.name for entry in path.iterdir()}
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise BadInput("it is a file", where=str(path), remedy="name a folder") from error
    if not names or _is_ours(path / MANIFEST_FILE, "schema_version", "target", "files"):
        return
    if _is_ours(path / SIDECAR_NAME, "operation", "hash", "record"):
        return
    known = names if expected is None else {name.partition("/")[0] for name in expected}
    if MANIFEST_FILE in names and names <= known:
        return
    raise BadInput(
        "it holds other files, which would be lost",
        where=str(path),
        remedy="name a new or empty folder, or remove it first",
    )


def _is_ours(file: Path, *members: str) -> bool:
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(value, dict) and value.keys() >= set(members)


def _own_report(record: Record, store: Blobs, report: Callable[[bytes], bytes]) -> dict[str, bytes]:
    """The file that is written in the packaged report's place; none where that is no report.

    It vouches for what the manifest does not name, by the digests that the record has.
    """
    packaged = record.outputs.get(REPORT_FILE)
    if packaged is None:
        return {}
    outside = {
        name: ManifestFile(sha256=output.sha256, size=output.size)
        for name, output in record.outputs.items()
        if name != REPORT_FILE and outside_identity(name)
    }
    try:
        return {REPORT_FILE: vouching(report(store.read_blob(packaged)), outside)}
    except ValueError:
        return {}  # of another version: as it is


def _refresh(path: Path, files: Mapping[str, bytes]) -> None:
    """Put small files into a container that is there already."""
    for name, data in files.items():
        dest = path / name
        if dest.is_file() and dest.read_bytes() == data:
            continue
        draft = path / f".{name}.{uuid.uuid4().hex[:8]}"
        draft.write_bytes(data)
        draft.replace(dest)


def place(
    record: Record,
    store: Blobs,
    path: Path,
    *,
    described: bool = False,
    instead: Mapping[str, bytes] | None = None,
    beside: Mapping[str, Blob] | None = None,
) -> None:
    """Write all outputs of a record into a folder, in place of what is there.

    Args:
        record: What to write.
        store: Holds its blobs.
        path: The folder.
        described: As an entry of a store, with its `builder_cache_info.json`.
        instead: Relative path -> content of files that take a blob's place.
        beside: Relative path -> further files.

    Raises:
        BadInput: The folder holds something else, or a file would lie outside of it.
        NoSpace: There is no room.
    """
    _check_names((*(beside or {}), *record.outputs), record, store)
    refuse_foreign(path, record.outputs)
    check_container(record, store)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        for name, output in {**(beside or {}), **record.outputs}.items():
            dest = draft / name
            dest.parent.mkdir(parents=True, exist_ok=True)
            if instead and name in instead:
                dest.write_bytes(instead[name])
                continue
            # A copy: people may change it, and onnx.load refuses data that has a second name.
            store.fetch_blob(output, dest)
        if described:
            draft.mkdir(parents=True, exist_ok=True)
            (draft / SIDECAR_NAME).write_bytes(sidecar(record))
        swap_in(draft, path)
    except OSError as error:
        if error.errno in _NO_SPACE:
            need = sum(output.size for output in record.outputs.values())
            raise NoSpace(
                f"{need} bytes are needed", where=str(path), remedy="free some room"
            ) from error
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _check_names(names: Iterable[str], record: Record, store: Blobs) -> None:
    """Whoever may write the store has chosen them."""
    for name in names:
        try:
            check_relative_path(name)
        except ValueError as error:
            raise BadInput(
                f"its record names a file outside: {error}",
                where=f"{store.location}: {record.operation}/{record.key[:12]}",
                remedy="remove that record; docs/stores.md says what a writer of a store can do",
            ) from error


def swap_in(draft: Path, path: Path) -> None:
    """Put a finished folder, which lies beside it, in a container's place."""
    aside = path.with_name(f"{draft.name}.old")
    try:
        path.rename(aside)
    except FileNotFoundError:
        draft.rename(path)
        return
    try:
        draft.rename(path)
    except BaseException:  # Ctrl-C between the two
        aside.rename(path)
        raise
    if aside.is_symlink():
        aside.unlink()  # what it led to is somebody else's
    else:
        shutil.rmtree(aside, ignore_errors=True)


def _holds(
    path: Path, revision: str, outputs: Mapping[str, Output], digest_of: Callable[[Path], str]
) -> bool:
    """Whether the folder holds this revision: these files with their bytes, and no other.

    The report is outside the revision and not looked at.
    """
    wanted = {name: output for name, output in outputs.items() if name != REPORT_FILE}
    try:
        if revision_of((path / MANIFEST_FILE).read_bytes()) != revision:
            return False
        files = {
            file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()
        }
        files.pop(REPORT_FILE, None)
        sizes = {name: file.stat().st_size for name, file in files.items()}
        return sizes == {name: output.size for name, output in wanted.items()} and all(
            digest_of(files[name]) == output.sha256 for name, output in wanted.items()
        )
    except (OSError, BadInput):
        return False
