"""A container's files against its manifest, every one of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from genai_cli.containers.choice import the_container
from genai_cli.display.output import emit, say
from genai_cli.display.render import busy
from genai_cli.display.words import counted, size
from genai_cli.settings import Settings
from genai_core.canonical import digest_file
from genai_core.container.adapters import INDEX_FILE, read_index
from genai_core.container.manifest import (
    EMULATION_FOLDER,
    MANIFEST_FILE,
    Manifest,
    outside_identity,
)
from genai_runtime.container import manifest_of
from genai_runtime.verification import FileFault, extra_files, file_faults, index_fault

__all__ = ["verify"]

_SAID = {"missing": "missing", "size": "wrong", "bytes": "wrong", "extra": "extra"}


def verify(path: Path, settings: Settings) -> int:
    """Print what is wrong with a container; returns 0 where nothing is, else 1.

    Raises:
        BadInput: The folder is no container.
    """
    folder = the_container(path)
    manifest = manifest_of(folder)
    count, total = len(manifest.files), sum(file.size for file in manifest.files.values())
    with busy(f"reading {size(total)}"):
        faults = [
            *file_faults(folder, manifest, digest_of=digest_file),
            *extra_files(folder, manifest),
        ]
    if not faults and (fault := _of_index(folder, manifest)) is not None:
        faults.append(fault)
    unchecked = _outside(folder)
    if settings.json:
        emit(
            {
                "path": str(folder),
                "target": manifest.target.name,
                "revision": manifest.revision(),
                "files": count,
                "bytes": total,
                "faults": [{"file": f.name, "kind": f.kind, "what": f.text} for f in faults],
                "outside": unchecked,
            }
        )
        return 1 if faults else 0
    for fault in faults:
        why = "" if fault.kind == "missing" else f": {fault.text}"
        say(f"{_SAID[fault.kind]:8} {fault.name}{why}")
    found = Counter(_SAID[fault.kind] for fault in faults)
    state = ", ".join(f"{number} {kind}" for kind, number in found.items()) or "all is well"
    say(f"{folder}: {counted(count, 'file')}, {size(total)}: {state}")
    say(f"  {manifest.revision()}")
    if unchecked:
        say(f"  outside the revision, so nothing to compare with: {', '.join(unchecked)}")
    return 1 if faults else 0


def _of_index(folder: Path, manifest: Manifest) -> FileFault | None:
    """What the index of adapters says and the manifest does not."""
    if INDEX_FILE not in manifest.files:
        return None
    text = index_fault(read_index(folder), manifest)
    return FileFault(INDEX_FILE, "bytes", text) if text is not None else None


def _outside(folder: Path) -> list[str]:
    """What is there besides the manifest that it does not vouch for."""
    names = {path.name for path in folder.iterdir() if outside_identity(path.name)}
    names |= {f"{EMULATION_FOLDER}/"} if (folder / EMULATION_FOLDER).is_dir() else set()
    return sorted(names - {MANIFEST_FILE})
