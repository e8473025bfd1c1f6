"""An adapter's folder as the user has it -> its two files, with digests."""

from __future__ import annotations

from pathlib import Path

from genai_core.errors import BadAdapter
from genai_core.paths import inside, links_may_reach
from genai_core.source import Digests, SourceFacts, SourceFile

__all__ = ["ADAPTER_ROLES", "inspect_adapter"]

ADAPTER_ROLES = ("adapter_config.json", "adapter_model.safetensors")
"""PEFT's names, the same everywhere."""


def inspect_adapter(
    root: Path, cache: Digests, *, where: str, pin: str | None = None
) -> SourceFacts:
    """Find an adapter's files and their digests.

    Args:
        root: Its folder.
        cache: Spares hashing files again that have not changed.
        where: Field that names the folder, for messages.
        pin: `sha256:...` that its content must have; None = any.

    Raises:
        BadAdapter: A file is missing or unreadable, or the content is not what is pinned.
    """
    paths = {name: root / name for name in ADAPTER_ROLES}
    lacking = [name for name, path in paths.items() if not path.is_file()]
    if lacking:
        pickled = (root / "adapter_model.bin").is_file()
        raise BadAdapter(
            f"it holds no {' and no '.join(lacking)}"
            + (" but a pickle, which is never opened" if pickled else ""),
            where=f"{where}: {root}",
            remedy="name the folder that save_pretrained(..., safe_serialization=True) wrote",
        )
    try:
        for path in paths.values():
            inside(path, links_may_reach(root), str(path))
        files = {
            name: SourceFile(path, cache.digest(path), path.stat().st_size)
            for name, path in paths.items()
        }
    except OSError as error:
        raise BadAdapter(
            f"it cannot be read: {error.strerror or error}",
            where=str(error.filename or root),
            remedy="check the file and its permissions",
        ) from error
    facts = SourceFacts(root, files)
    if pin not in {None, facts.digest}:
        raise BadAdapter(
            f"its content is {facts.digest}, not the {pin} that {where} pins",
            where=str(root),
            remedy="correct the digest, or restore the adapter that it stands for",
        )
    return facts
