"""A container's files, every one of them, against its manifest or its report."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from genai_cli.containers.choice import the_container
from genai_cli.display.output import emit, say
from genai_cli.display.render import busy
from genai_cli.display.words import counted, size
from genai_cli.settings import ProgramSettings
from genai_core.canonical import digest_file
from genai_core.container.adapters import INDEX_FILE, read_index
from genai_core.container.manifest import (
    EMULATION_FOLDER,
    MANIFEST_FILE,
    Manifest,
    outside_identity,
)
from genai_core.errors import BadInput
from genai_core.kinds.lora import BASE
from genai_runtime.container.backend import open_session
from genai_runtime.container.container import load, manifest_of
from genai_runtime.container.verification import (
    FileFault,
    extra_files,
    file_faults,
    index_fault,
    outside_faults,
    outside_files,
    report_fault,
)
from genai_runtime.executor.rows import AdapterUse
from genai_runtime.golden import Replay, replay

__all__ = ["verify"]

_SAID = {"missing": "missing", "size": "wrong", "bytes": "wrong", "extra": "extra"}


def verify(path: Path, settings: ProgramSettings, *, golden: bool = False) -> int:
    """Print what is wrong with a container; returns 0 where nothing is, else 1.

    Args:
        path: The container's folder.
        settings: Of the program.
        golden: Ask the recorded prompts again, of the base and with each adapter and use case.

    Raises:
        BadInput: The folder is no container.
    """
    folder = the_container(path)
    manifest = manifest_of(folder)
    count, total = len(manifest.files), sum(file.size for file in manifest.files.values())
    with busy(f"reading {size(total)}"):
        fault = report_fault(folder)
        outside = {} if fault is not None else outside_files(folder)
        faults = [
            *file_faults(folder, manifest, digest_of=digest_file),
            *extra_files(folder, manifest),
            *outside_faults(folder, outside, digest_of=digest_file),
            *([] if fault is None else [fault]),
        ]
    if not faults and (fault := _of_index(folder, manifest)) is not None:
        faults.append(fault)
    beside = _outside(folder)
    replays: dict[str, Replay] = {}
    if golden and not faults:
        with busy("replaying golden prompts"):
            replays = _replayed(folder)
    wrong = bool(faults) or not all(replayed.passed for replayed in replays.values())
    if settings.json:
        emit(
            {
                "path": str(folder),
                "target": manifest.target.name,
                "revision": manifest.revision(),
                "files": count,
                "bytes": total,
                "faults": [{"file": f.name, "kind": f.kind, "what": f.text} for f in faults],
                "outside": beside,
                "outsideCompared": bool(outside),
                **({"golden": {n: _as_json(r) for n, r in replays.items()}} if golden else {}),
            }
        )
        return 1 if wrong else 0
    for fault in faults:
        why = "" if fault.kind == "missing" else f": {fault.text}"
        say(f"{_SAID[fault.kind]:8} {fault.name}{why}")
    kinds = Counter(_SAID[fault.kind] for fault in faults)
    state = ", ".join(f"{number} {kind}" for kind, number in kinds.items()) or "all is well"
    say(f"{folder}: {counted(count, 'file')}, {size(total)}: {state}")
    say(f"  {manifest.revision()}")
    if beside:
        how = "compared with report.json" if outside else "so nothing to compare with"
        say(f"  outside the revision, {how}: {', '.join(beside)}")
    for name, replayed in replays.items():
        say(f"  golden prompts, {name}: {_said(replayed)}")
    return 1 if wrong else 0


def _replayed(folder: Path) -> dict[str, Replay]:
    """The replay of the base and of each adapter and use case that was asked when it was built.

    Raises:
        BadInput: It has no golden prompts.
        NotRunnableHere: Nothing here can run it.
    """
    opened = load(folder, digest_of=None)  # compared a moment ago
    recorded = opened.golden()
    if recorded is None:
        raise BadInput(
            "it has no golden prompts",
            where=str(folder),
            remedy="build it with golden.prompts, or leave --golden out",
        )
    index = opened.adapters()
    replays: dict[str, Replay] = {}
    for name in (BASE, *recorded.worn):
        entries = () if name == BASE else index.worn(name)
        session = open_session(
            opened, worn=[AdapterUse(adapter.name, adapter.alpha) for adapter in entries]
        )
        try:
            replays[name] = replay(session, recorded if name == BASE else recorded.of(name))
        finally:
            session.close()
    return replays


def _said(replayed: Replay) -> str:
    near = f", {replayed.forgiven} within the tolerance" if replayed.forgiven else ""
    if replayed.passed:
        return f"{counted(replayed.compared, 'token')} as recorded{near}"
    first = replayed.mismatches[0]
    return (
        f"{len(replayed.mismatches)} of {counted(replayed.compared, 'token')} differ{near}: prompt "
        f"{first.prompt} at {first.position} wants {first.expected}, here it is {first.got}"
    )


def _as_json(replayed: Replay) -> dict[str, int]:
    return {
        "tokens": replayed.compared,
        "differ": len(replayed.mismatches),
        "forgiven": replayed.forgiven,
    }


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
