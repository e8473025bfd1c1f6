"""What a container reads pictures with."""

from __future__ import annotations

from pathlib import Path

from genai_core.container.vision_info import VISION_FOLDER
from genai_stages.measured import MEASURED_FILE
from genai_stages.twin_folder import place

__all__ = ["place_vision"]


def place_vision(source: Path, out: Path) -> None:
    """Put the encoder and what drives it into a container's folder.

    Args:
        source: As vision_import wrote it.
        out: The container's folder.
    """
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.name != MEASURED_FILE:
            place(path, out / VISION_FOLDER / path.relative_to(source))
