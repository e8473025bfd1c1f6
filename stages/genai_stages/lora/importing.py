"""An adapter in the graph's layout, written and checked against its file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from genai_core.container.adapters import ADAPTER_FILE
from genai_core.errors import BadModel, DriftError
from genai_stages.lora.adapter import Adapter
from genai_stages.lora.attach import SiteBranch, attach, rank_of
from genai_stages.lora.modules import LinearPlace, parts_of

__all__ = ["WIDTHS_FILE", "Imported", "import_adapter", "read_widths"]

WIDTHS_FILE = "encoded.json"
"""Linear -> [largest absolute value of x A, of what is added], of an adapter with encodings."""
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Imported:
    """What was written.

    Attributes:
        rank: The largest of its branches.
        linears: How many linears it touches.
        modules: How many modules its file has.
        drift: Largest relative difference to the product of its file's matrices.
        widths: Linear -> largest absolute values of x A and of what is added, where the adapter's
            own encodings say.
    """

    rank: int
    linears: int
    modules: int
    drift: float
    widths: Mapping[str, tuple[float, float]]


def import_adapter(adapter: Adapter, places: Sequence[LinearPlace], path: Path) -> Imported:
    """Write an adapter in the layout of `genai_core.container.adapters`.

    Args:
        adapter: As it was read.
        places: Linears of the graph.
        path: The file to write.

    Raises:
        BadAdapter: It is of another model.
        DriftError: What was written computes something else than its file.
    """
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
    path.write_bytes(save(tensors))
    widths = {name: one.widths for name, one in branches.items() if one.widths is not None}
    return Imported(rank_of(branches), len(branches), len(adapter.branches), drift, widths)


def read_widths(folder: Path) -> dict[str, tuple[float, float]]:
    """What `lora_import` wrote into `WIDTHS_FILE`; nothing where the adapter has no encodings.

    Raises:
        BadModel: It is something else.
    """
    path = folder / WIDTHS_FILE
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_bytes())
        return {str(name): (float(down), float(up)) for name, (down, up) in values.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise BadModel(f"cannot be read: {error}", where=path.name, remedy="build again") from error


def _drift(
    adapter: Adapter, branches: dict[str, SiteBranch], places: Sequence[LinearPlace]
) -> float:
    """Largest relative difference between the file's product and what its linears get together.

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
