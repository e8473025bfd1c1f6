"""The container that a path means: itself, or the one of a build's folder that can run here."""

from __future__ import annotations

import shlex
from pathlib import Path

from genai_cli.display.output import tell
from genai_core.container.manifest import (
    CHAT_TEMPLATE_FILE,
    EMULATION_FOLDER,
    MANIFEST_FILE,
    read_manifest,
)
from genai_core.errors import BadInput, NotRunnableHere
from genai_core.names import Backend

__all__ = ["best_to_run", "runnable_container", "the_container", "trial_of"]


def best_to_run(folders: list[Path]) -> Path | None:
    """The container that runs here and shows most: the CPU's, else one with an emulation twin."""
    by_speed = {_speed(folder): folder for folder in reversed(folders)}
    by_speed.pop(None, None)
    return min(by_speed.items(), key=lambda item: item[0] or 0)[1] if by_speed else None


def _speed(folder: Path) -> int | None:
    """0: at once, 1: in the emulator, None: not here."""
    try:
        manifest = read_manifest((folder / MANIFEST_FILE).read_bytes())
    except (OSError, BadInput):
        return None
    if manifest.target.backend is Backend.CPU:
        return 0
    return 1 if (folder / EMULATION_FOLDER).is_dir() else None


def trial_of(folder: Path, *, shown: str = "") -> str:
    """The command that tries a container.

    Args:
        folder: The container's.
        shown: How the folder is named in the command; empty = as it is.
    """
    if (folder / CHAT_TEMPLATE_FILE).is_file():
        how = "--chat"
    elif (folder / "tokenizer.json").is_file():
        how = "--prompt 'Once upon a time'"
    else:
        how = "--prompt-tokens 1,2,3"
    return f"genai run {shlex.quote(shown or str(folder))} {how}"


def runnable_container(path: Path) -> Path:
    """The container at `path`, or in the folder of a build the one to run; says which.

    Raises:
        NotRunnableHere: None of a build's containers runs on this machine.
    """
    inside = _containers_in(path)
    if not inside:
        return path
    best = best_to_run(inside)
    names = [folder.name for folder in inside]
    if best is None:
        raise NotRunnableHere(
            f"its containers ({', '.join(names)}) run on devices only",
            where=str(path),
            remedy="build the cpu target",
        )
    others = ", ".join(name for name in names if name != best.name)
    tell(f"container {best}" + (f" (there too: {others})" if others else ""))
    return best


def the_container(path: Path) -> Path:
    """The container at `path`, or the only one in the folder of a build.

    Raises:
        BadInput: There are several.
    """
    inside = _containers_in(path)
    if len(inside) > 1:
        names = ", ".join(str(folder) for folder in inside)
        raise BadInput(
            f"it holds {len(inside)} containers", where=str(path), remedy=f"name one of {names}"
        )
    return inside[0] if inside else path


def _containers_in(path: Path) -> list[Path]:
    """Containers in a folder that is none itself."""
    if (path / MANIFEST_FILE).exists() or not path.is_dir():
        return []
    return [folder for folder in sorted(path.iterdir()) if (folder / MANIFEST_FILE).is_file()]
