"""An adapter's folder as the user has it -> its two files, with digests."""

from __future__ import annotations

from pathlib import Path

from genai_core.errors import BadAdapter
from genai_core.sources.source_files import (
    Digests,
    SourceFacts,
    data_file,
    data_locations,
    part_facts,
)

__all__ = [
    "ADAPTER_ENCODINGS_ROLE",
    "ADAPTER_GRAPH_ROLE",
    "ADAPTER_ROLES",
    "ADAPTER_WEIGHTS_ROLE",
    "inspect_adapter",
]

ADAPTER_ROLES = ("adapter_config.json", "adapter_model.safetensors")
"""PEFT's names, the same everywhere."""
ADAPTER_WEIGHTS_ROLE = "lora.safetensors"
"""Weights by the names of the model's LoRA inputs, as AIMET exports them, whatever their file is
called."""
ADAPTER_ENCODINGS_ROLE = "lora.encodings"
"""Encodings of these."""
ADAPTER_GRAPH_ROLE = "lora.onnx"
"""The model's graph with the adapter's branches in it; its data lies beside it under the names
that it gives them."""


def inspect_adapter(
    root: Path,
    cache: Digests,
    *,
    where: str,
    pin: str | None = None,
    weights: str | None = None,
    encodings: str | None = None,
    graph: str | None = None,
) -> SourceFacts:
    """Find an adapter's files and their digests.

    Args:
        root: Its folder.
        cache: Spares hashing files again that have not changed.
        where: Field that names the folder, for messages.
        pin: `sha256:...` that its content must have; None = any.
        weights: A .safetensors file in it, by the names of the model's inputs; None = PEFT's two
            files.
        encodings: Of these weights; None = there are none.
        graph: An ONNX file in it, of the model with this adapter.

    Raises:
        BadAdapter: A file is missing or unreadable, or the content is not what is pinned.
        BadInput: See `files_at`.
    """
    named = {
        ADAPTER_WEIGHTS_ROLE: weights,
        ADAPTER_ENCODINGS_ROLE: encodings,
        ADAPTER_GRAPH_ROLE: graph,
    }
    paths = {role: root / name for role, name in named.items() if name is not None}
    paths = paths or {name: root / name for name in ADAPTER_ROLES}
    lacking = [path.name for path in paths.values() if not path.is_file()]
    if lacking and (weights or graph) is not None:
        raise BadAdapter(
            f"it holds no {' and no '.join(lacking)}",
            where=f"{where}: {root}",
            remedy="name files below the source",
        )
    if lacking:
        pickled = (root / "adapter_model.bin").is_file()
        raise BadAdapter(
            f"it holds no {' and no '.join(lacking)}"
            + (" but a pickle, which is never opened" if pickled else ""),
            where=f"{where}: {root}",
            remedy="name the folder that save_pretrained(..., safe_serialization=True) wrote",
        )

    def with_data() -> dict[str, Path]:
        if graph is None:
            return paths
        onnx = paths[ADAPTER_GRAPH_ROLE]
        return paths | {name: data_file(onnx, name) for name in data_locations(onnx)}

    return part_facts(root, with_data, cache, where=where, pin=pin, kind=BadAdapter)
