"""A container's files against its manifest, and those outside its revision against its report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from genai_core.container.adapters import AdapterIndex, merged_folder
from genai_core.container.manifest import (
    METADATA_FILE,
    REPORT_FILE,
    Manifest,
    ManifestFile,
    outside_identity,
)
from genai_core.container.outside import read_outside
from genai_core.errors import BadInput, CorruptBlob, GenAIError
from genai_core.files.json_budgets import DOCUMENT
from genai_core.files.paths import inside, links_may_reach
from genai_core.files.regular import read_regular
from genai_core.tasks.record import SIDECAR_NAME

__all__ = [
    "REMEDY",
    "DigestOf",
    "FileFault",
    "extra_files",
    "file_faults",
    "index_fault",
    "outside_faults",
    "outside_files",
    "report_fault",
]

DigestOf = Callable[[Path], str]
"""A file's SHA-256 in lower-case hex: `digest_file`, or `FileCache.digest`, which reads a file
again only where it has changed."""

REMEDY = "fetch the container again"


@dataclass(frozen=True)
class FileFault:
    """A file that is not what the manifest says.

    Attributes:
        name: Relative to the container's folder.
        kind: What is wrong.
        text: In words, e.g. `has 3 bytes, the manifest says 4`.
    """

    name: str
    kind: Literal["missing", "size", "bytes", "extra"]
    text: str

    def error(self, folder: Path) -> GenAIError:
        """The error of a container that has this fault."""
        kind = CorruptBlob if self.kind == "bytes" else BadInput
        return kind(self.text, where=str(folder / self.name), remedy=REMEDY)


def file_faults(
    folder: Path, manifest: Manifest, *, digest_of: DigestOf | None
) -> Iterator[FileFault]:
    """Compare every file of the manifest: sizes of all first, then bytes.

    Args:
        folder: The container's.
        manifest: Its manifest.
        digest_of: How bytes are compared; None = they are not.
    """
    yield from _compared(folder, manifest.files, digest_of, by="the manifest")


def report_fault(folder: Path) -> FileFault | None:
    """Return what is wrong with a report's own bytes, or None; older ones do not tell."""
    try:
        outside_files(folder)
    except GenAIError as error:
        return FileFault(REPORT_FILE, "bytes", error.message)
    return None


def outside_files(folder: Path) -> dict[str, ManifestFile]:
    """What the report vouches for: files outside the revision; none where it does not say.

    Raises:
        CorruptBlob: The report's own bytes were changed.
        BadInput: It cannot be read.
        BadModel: It is a link that leaves the container.
    """
    path = folder / REPORT_FILE
    try:
        inside(path, links_may_reach(folder), str(path), of="container")
        data = read_regular(path, DOCUMENT.most_bytes)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BadInput(str(error.strerror), where=str(path), remedy=REMEDY) from error
    try:
        files = read_outside(data)
    except ValueError as error:
        raise CorruptBlob(f"is no report: {error}", where=str(path), remedy=REMEDY) from error
    return {**(files or {})}


def outside_faults(
    folder: Path,
    files: Mapping[str, ManifestFile],
    *,
    digest_of: DigestOf | None,
    below: str = "",
) -> Iterator[FileFault]:
    """Compare files outside the revision with what the report says of them.

    Args:
        folder: The container's.
        files: `outside_files`; nothing is compared where there are none.
        digest_of: As in `file_faults`.
        below: How the names begin that are looked at.
    """
    if not files:
        return
    chosen = {name: file for name, file in files.items() if name.startswith(below)}
    yield from _compared(folder, chosen, digest_of, by=REPORT_FILE)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        vouched = name in files or name == REPORT_FILE or not outside_identity(name)
        if name.startswith(below) and not vouched and not path.is_dir():
            yield FileFault(name, "extra", f"is not in {REPORT_FILE}")


def _compared(
    folder: Path, files: Mapping[str, ManifestFile], digest_of: DigestOf | None, *, by: str
) -> Iterator[FileFault]:
    whole: list[str] = []
    for name, file in files.items():
        path = folder / name
        if not path.is_file():
            yield FileFault(name, "missing", "is missing")
        elif (size := path.stat().st_size) != file.size:
            yield FileFault(name, "size", f"has {size} bytes, {by} says {file.size}")
        else:
            whole.append(name)
    for name in whole if digest_of else ():
        assert digest_of is not None
        if digest_of(folder / name) != files[name].sha256:
            yield FileFault(name, "bytes", f"its bytes are not those of {by}")


def extra_files(folder: Path, manifest: Manifest) -> Iterator[FileFault]:
    """Files that no manifest names: nothing vouches for them, and nothing reads them.

    But for what belongs to no container: its own manifest, measurements, the twin, and the record
    that `genai cache pull` puts beside.
    """
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        known = name in manifest.files or outside_identity(name) or name == SIDECAR_NAME
        if path.is_dir() or known:
            continue
        yield FileFault(name, "extra", "is not in the manifest")


def index_fault(index: AdapterIndex, manifest: Manifest) -> str | None:
    """Return what an index of adapters says that its container's manifest does not, or None.

    The files of adapters are opened by the index alone, so each must be one of the manifest's.
    """
    for name, entry in index.adapters.items():
        file = manifest.files.get(entry.file)
        if file is None:
            return f"the adapter {name} is {entry.file}, which is not in the manifest"
        if file.sha256 != entry.sha256:
            return f"the adapter {name} is another file than the manifest's {entry.file}"
    for name, case in index.use_cases.items():
        lost = next((w.name for w in case.adapters if w.name not in index.adapters), None)
        if lost is not None:
            return f"the use case {name} names {lost}, which is not among its adapters"
    for name in index.names if index.merged else ():
        if f"{merged_folder(name)}/{METADATA_FILE}" not in manifest.files:
            return f"{name} has no binaries below {merged_folder(name)}"
    return None
