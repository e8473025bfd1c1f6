"""The folder with what a model was trained to forecast with (SSD) -> its one file, with digest."""

from __future__ import annotations

from pathlib import Path

from genai_core.errors import BadModel
from genai_core.names import FORECAST_ROLE
from genai_core.sources.source_files import Digests, SourceFacts, part_facts

__all__ = ["inspect_forecast"]

_SUFFIX = ".safetensors"


def inspect_forecast(
    root: Path,
    cache: Digests,
    *,
    where: str,
    pin: str | None = None,
    tensor_file: str | None = None,
) -> SourceFacts:
    """Find the file and its digest.

    Args:
        root: The folder.
        cache: Spares hashing a file again that has not changed.
        where: Field that names the folder, for messages.
        pin: `sha256:...` that its content must have; None = any.
        tensor_file: Its name; None = the only .safetensors file.

    Raises:
        BadModel: It is missing, unreadable or ambiguous, a pickle, or not what is pinned.
    """
    path = _file(root, where, tensor_file)
    return part_facts(root, lambda: {FORECAST_ROLE: path}, cache, where=where, pin=pin)


def _file(root: Path, where: str, name: str | None) -> Path:
    where = f"{where}: {root}"
    remedy = "name the .safetensors file with forecast_embedding and forecast_prefix in tensorFile"
    if name is not None and not name.endswith(_SUFFIX):
        raise BadModel(
            f"{name} is no .safetensors file; a .pt file is a pickle, which is never opened",
            where=where,
            remedy="save its two tensors with safetensors.torch.save_file",
        )
    if not root.is_dir():
        raise BadModel("there is no such folder", where=where, remedy="correct the source")
    found = [root / name] if name is not None else sorted(root.glob(f"*{_SUFFIX}"))
    if len(found) == 1 and found[0].is_file():
        return found[0]
    if len(found) > 1:
        shown = ", ".join(path.name for path in found[:5])
        raise BadModel(
            f"it holds {len(found)} {_SUFFIX} files: {shown}", where=where, remedy=remedy
        )
    pickled = name is None and any(root.glob("*.pt"))
    raise BadModel(
        f"it holds no {name or _SUFFIX + ' file'}"
        + (" but a .pt file, a pickle, which is never opened" if pickled else ""),
        where=where,
        remedy="save its two tensors with safetensors.torch.save_file" if pickled else remedy,
    )
