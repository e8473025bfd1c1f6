"""Adapters in a Snapdragon container's `genie_config.json`: the vendor's runtime finds them there.

`adapters/genie/<name>/` holds a file for each input of the graphs, of an adapter or a use case
(Genie's lora-version 1).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from genai_core.container.adapters import ADAPTERS_FOLDER, AdapterIndex

__all__ = ["genie_bytes", "genie_folder", "genie_names", "lora_block", "with_adapters"]


def genie_folder(name: str) -> str:
    """Where the files of an adapter or a use case lie, below the container's folder."""
    return f"{ADAPTERS_FOLDER}/genie/{name}"


def genie_names(index: AdapterIndex) -> tuple[str, ...]:
    """What the configuration lists: adapters, then use cases."""
    return index.names


def lora_block(names: Sequence[str], *, alpha: str) -> dict[str, Any]:
    """The block `lora` of an engine's binary.

    Args:
        names: Of adapters and use cases.
        alpha: The graphs' input that scales all branches.
    """
    return {
        "version": 1,
        "lora-version": 1,
        "alpha-tensor-name": alpha,
        "adapters": [{"version": 1, "name": name, "path": genie_folder(name)} for name in names],
    }


def with_adapters(config: Mapping[str, Any], names: Sequence[str], *, alpha: str) -> dict[str, Any]:
    """A configuration with these adapters and no others; arguments as of `lora_block`."""
    made: dict[str, Any] = copy.deepcopy(dict(config))
    binary = made["dialog"]["engine"]["model"]["binary"]
    binary.pop("lora", None)
    if names:
        binary["lora"] = lora_block(names, alpha=alpha)
    return made


def genie_bytes(config: Mapping[str, Any]) -> bytes:
    """What stands in `genie_config.json`."""
    return (json.dumps(config, indent=1, sort_keys=True) + "\n").encode()
