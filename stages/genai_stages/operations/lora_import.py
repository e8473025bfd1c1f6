"""An adapter as its user has it -> matrices of the core graph's linears.

Inputs: `adapter`, PEFT's folder; `core`, the core graph's `model.onnx` and `facts.json` without
weights. Output: `adapter.safetensors` (see `genai_core.adapters`), which says nothing of names or
of the file that it came from, so equal adapters are equal files.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save

from genai_core.adapters import ADAPTER_FILE
from genai_core.errors import DriftError
from genai_core.operations import LoraImportConfig
from genai_stages.graph.core_graph import read_core
from genai_stages.lora.adapter import Adapter
from genai_stages.lora.attach import SiteBranch, attach, rank_of
from genai_stages.lora.modules import Place, parts_of, places_of
from genai_stages.lora.peft import read_peft
from genai_stages.stage import Context, Inputs, StageResult

_TOLERANCE = 1e-5


def run(inputs: Inputs, config: LoraImportConfig, out: Path, context: Context) -> StageResult:
    """Write the adapter in the graph's layout.

    Raises:
        BadAdapter: It is broken, of a kind that cannot be had here, or of another model.
        DriftError: What was written computes something else than PEFT's product.
    """
    del config, context
    model, facts = read_core(inputs["core"])
    adapter = read_peft(inputs["adapter"], "the adapter")
    places = places_of(model, facts)
    branches = attach(adapter, places)
    drift = _drift(adapter, branches, places)
    if not drift <= _TOLERANCE:
        raise DriftError(
            f"the imported adapter departs from its file by {drift:.2g} of its size",
            where=ADAPTER_FILE,
        )
    tensors = {}
    for output, branch in branches.items():
        tensors[f"{output}.A"] = branch.a
        tensors[f"{output}.B"] = branch.b
    (out / ADAPTER_FILE).write_bytes(save(tensors))
    rank = rank_of(branches)
    return StageResult(
        facts={"rank": rank, "linears": len(branches), "base": adapter.base},
        notes={"drift": drift, "modules": len(adapter.branches), "rank": rank},
    )


def _drift(adapter: Adapter, branches: dict[str, SiteBranch], places: list[Place]) -> float:
    """Largest relative difference between PEFT's product and what its linears get together.

    Computed in float64 on random inputs, for each module; rows that no linear took would be zeros.
    """
    random = np.random.default_rng(0)
    worst = 0.0
    for module, branch in adapter.branches.items():
        x = random.standard_normal((4, branch.a.shape[1]))
        expected = branch.scale * (x @ branch.a.astype(np.float64).T) @ branch.b.T
        found = np.zeros_like(expected)
        for part in parts_of(module, branch.b.shape[0], branch.a.shape[1], places):
            site = branches[part.place.site.output]
            rows = slice(None) if part.rows is None else list(part.rows)
            found[:, rows] = (x @ site.a.astype(np.float64)) @ site.b
        size = float(np.abs(expected).max())
        worst = max(worst, float(np.abs(found - expected).max()) / max(size, 1e-30))
    return worst
