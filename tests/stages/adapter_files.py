"""Adapters for tests: PEFT folders written here, and the merged model that each must equal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

Floats = NDArray[np.float32]
PREFIX = "base_model.model."


def write_peft(
    folder: Path,
    modules: Mapping[str, tuple[int, int]],
    *,
    rank: int | Mapping[str, int] = 4,
    seed: int = 0,
    dtype: Any = np.float32,
    **config: Any,
) -> dict[str, tuple[Floats, Floats]]:
    """Write PEFT's two files.

    Args:
        folder: Made here.
        modules: Name -> (outputs, inputs) of its linear.
        rank: Of all modules, or of each.
        seed: Of the weights.
        dtype: They are stored in.
        config: Further fields of adapter_config.json.

    Returns:
        Module -> A [rank, in], B [out, rank] as stored.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    made, tensors = {}, {}
    for module, (outputs, inputs) in modules.items():
        r = rank if isinstance(rank, int) else rank[module]
        a = (random.standard_normal((r, inputs)) * 0.2).astype(dtype)
        b = (random.standard_normal((outputs, r)) * 0.2).astype(dtype)
        tensors[f"{PREFIX}{module}.lora_A.weight"] = a
        tensors[f"{PREFIX}{module}.lora_B.weight"] = b
        made[module] = (a.astype(np.float32), b.astype(np.float32))
    base: dict[str, Any] = {
        "peft_type": "LORA",
        "r": rank if isinstance(rank, int) else max(rank.values()),
        "lora_alpha": 8,
        "bias": "none",
        "target_modules": sorted({name.rpartition(".")[2] for name in modules}),
        "base_model_name_or_path": "somebody/base",
    }
    (folder / "adapter_config.json").write_text(json.dumps(base | config))
    (folder / "adapter_model.safetensors").write_bytes(save(tensors))
    return made
