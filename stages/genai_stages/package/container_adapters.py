"""Adapters of a container: each file under its name, and the index that lists them."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open

from genai_core.canonical import digest_file
from genai_core.container.adapters import (
    ADAPTER_FILE,
    INDEX_FILE,
    AdapterEntry,
    AdapterIndex,
    UseCaseEntry,
    WornEntry,
    file_of,
)
from genai_core.operations import PackageConfig
from genai_stages.stage import Inputs
from genai_stages.twin_folder import place

__all__ = ["entry_of", "place_adapters"]


def place_adapters(inputs: Inputs, config: PackageConfig, out: Path) -> AdapterIndex:
    """Write `adapters/` into a container's folder.

    Args:
        inputs: `adapter_<number>` holds the adapter of that place in the config.
        config: Names them.
        out: The container's folder.
    """
    entries = {}
    for number, name in enumerate(config.adapters):
        file = file_of(name)
        place(inputs[f"adapter_{number}"] / ADAPTER_FILE, out / file)
        entries[name] = entry_of(out / file, file)
    use_cases = {
        case.name: UseCaseEntry(
            adapters=tuple(
                WornEntry(name=worn.name, alpha=float(worn.alpha)) for worn in case.adapters
            )
        )
        for case in config.use_cases
    }
    index = AdapterIndex.bounded(config.max_rank, config.target_modules).model_copy(
        update={"adapters": entries, "use_cases": use_cases}
    )
    if config.merged is not None:
        index = index.with_merged(config.merged)
    (out / INDEX_FILE).write_bytes(index.to_bytes())
    return index


def entry_of(path: Path, file: str) -> AdapterEntry:
    """What the index says of an adapter.

    Args:
        path: The adapter, in the graph's layout.
        file: Where it lies below the container's folder.
    """
    with safe_open(path, framework="np") as opened:
        names = [name for name in list(opened.keys()) if name.endswith(".A")]
        ranks = [opened.get_slice(name).get_shape()[1] for name in names]
    return AdapterEntry(
        file=file, sha256=digest_file(path), rank=max(ranks, default=0), linears=len(ranks)
    )
