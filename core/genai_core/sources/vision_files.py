"""The folder of an encoder of pictures -> its files by role, with digests."""

from __future__ import annotations

from pathlib import Path

from genai_core.errors import BadInput, BadModel
from genai_core.names import VISION_ROLE
from genai_core.sources.source_files import (
    Digests,
    SourceFacts,
    data_file,
    data_locations,
    part_facts,
    stands,
)

__all__ = ["PREPROCESSOR_ROLES", "inspect_vision"]

PREPROCESSOR_ROLES = ("preprocessor_config.json", "config.json")
"""What says how a picture becomes pixels; what the first one leaves out, the second may say."""

_SUFFIX = ".onnx"
_RESERVED = frozenset({VISION_ROLE, *PREPROCESSOR_ROLES})


def inspect_vision(
    root: Path,
    cache: Digests,
    *,
    where: str,
    pin: str | None = None,
    onnx: str | None = None,
) -> SourceFacts:
    """Find the encoder, its data and its preprocessing.

    Args:
        root: The folder.
        cache: Spares hashing a file again that has not changed.
        where: Field that names the folder, for messages.
        pin: `sha256:...` that its content must have; None = any.
        onnx: The encoder's name; None = the only .onnx file.

    Raises:
        BadModel: A file is missing, unreadable or ambiguous, or the content is not what is pinned.
        BadInput: See `files_at`.
    """
    encoder = _encoder(root, where, onnx)
    return part_facts(root, lambda: _files(root, encoder), cache, where=where, pin=pin)


def _files(root: Path, encoder: Path) -> dict[str, Path]:
    """The encoder, its data and its preprocessing, by role."""
    paths = {VISION_ROLE: encoder}
    for location in data_locations(encoder):
        if location in _RESERVED:
            raise BadModel(
                f"its external data is called {location}, which stands for another file",
                where=str(encoder),
                remedy="export the encoder again with another name for its data",
            )
        paths[location] = data_file(encoder, location)
    for name in PREPROCESSOR_ROLES:
        near = (folder / name for folder in dict.fromkeys((encoder.parent, root)))
        found = next((path for path in near if stands(path)), None)
        if found is not None:
            paths[name] = found
    return dict(sorted(paths.items()))


def _encoder(root: Path, where: str, name: str | None) -> Path:
    field = f"{where.removesuffix('.source')}.onnx"
    if not root.is_dir():
        raise BadModel(
            "there is no such folder", where=f"{where}: {root}", remedy="correct the source"
        )
    if name is not None:
        if not (root / name).is_file():
            raise BadInput(
                f"there is no file {root / name}", where=field, remedy=f"name a file below {root}"
            )
        return root / name
    for pattern in (f"*{_SUFFIX}", f"**/*{_SUFFIX}"):
        found = sorted(path for path in root.glob(pattern) if not path.is_dir() and stands(path))
        if len(found) == 1:
            return found[0]
        if found:
            shown = ", ".join(str(path.relative_to(root)) for path in found[:5])
            raise BadModel(
                f"it holds {len(found)} {_SUFFIX} files: {shown}",
                where=f"{where}: {root}",
                remedy=f"name the encoder of pictures in {field}",
            )
    raise BadModel(
        "it holds no .onnx file",
        where=f"{where}: {root}",
        remedy="name the folder of an encoder of pictures in ONNX",
    )
