"""Puts the emulation twins of all splits into one folder, as the emulator's executor wants them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from genai_core.container.manifest import EMULATION_FOLDER
from genai_core.facts import RopeTable
from genai_stages.stage import Inputs


def place(source: Path, dest: Path) -> None:
    """Link a file, or copy it where that is not possible; inputs are never written to."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), dest)
    except OSError:
        shutil.copyfile(source, dest)


def gather_twin(inputs: Inputs, folder: Path, rope: Mapping[str, RopeTable]) -> bool:
    """Link every input's `emulation/` files into `folder` and describe them.

    Returns:
        Whether there were any; without, `folder` is not made.
    """
    from genai_runtime.htp import emulation

    found = False
    for name in sorted(inputs):
        source = inputs[name] / EMULATION_FOLDER
        if not source.is_dir():
            continue
        for path in sorted(source.iterdir()):
            if path.is_file() and path.name != emulation.METADATA:
                found = True
                place(path, folder / path.name)
    if found:
        emulation.describe(folder, rope)
    return found
