"""What a model family's config.json says, as data.

The graph is the authority on what is computed; a family says how config.json names things, where
windows and rotary tables apply when they are inputs of the graph, and which name the architecture
has. One small module a family.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

Config = Mapping[str, Any]
Windows = Callable[[Config, int], list[int]]


def full_attention(config: Config, layers: int) -> list[int]:
    """No layer has a window."""
    del config
    return [0] * layers


def listed_windows(config: Config, layers: int) -> list[int]:
    """`layer_types` tells which layers slide; without it all do, if there is a window at all."""
    window = config.get("sliding_window")
    if not isinstance(window, int) or config.get("use_sliding_window") is False:
        return [0] * layers
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        return [window if "sliding" in str(kind) else 0 for kind in kinds]
    return [window] * layers


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        name: As it stands in status and manifests.
        model_types: config.json's `model_type`.
        architectures: config.json's `architectures`.
        windows: Sliding window of each layer, 0 = none.
        partial_rotary: Keys of the rotated fraction of a head.
        local_theta: Key of the base of a second rotary table, for layers with a window.
    """

    name: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    windows: Windows = full_attention
    partial_rotary: tuple[str, ...] = ("partial_rotary_factor", "rotary_pct")
    local_theta: str | None = None
