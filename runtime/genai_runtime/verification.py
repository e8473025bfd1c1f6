"""A container's files against its manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from genai_core.container.adapters import AdapterIndex, merged_folder
from genai_core.container.manifest import METADATA_FILE, Manifest, outside_identity
from genai_core.errors import BadInput, CorruptBlob, GenAIError
from genai_core.tasks.record import SIDECAR_NAME

__all__ = ["REMEDY", "DigestOf", "FileFault", "extra_files", "file_faults", "index_fault"]

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
    whole: list[str] = []
    for name, file in manifest.files.items():
        path = folder / name
        if not path.is_file():
            yield FileFault(name, "missing", "is missing")
        elif (size := path.stat().st_size) != file.size:
            yield FileFault(name, "size", f"has {size} bytes, the manifest says {file.size}")
        else:
            whole.append(name)
    for name in whole if digest_of else ():
        assert digest_of is not None
        if digest_of(folder / name) != manifest.files[name].sha256:
            yield FileFault(name, "bytes", "its bytes are not those of the manifest")


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
