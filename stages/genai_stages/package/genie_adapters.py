"""Adapters as Genie reads them: for each input of the graphs a file of float32, `<input>.raw`.

`adapters/genie/<name>/` holds those of an adapter or a use case: padded to the graphs' rank, a use
case's alphas in its rows of B. Genie puts the numbers onto the input's own grid.
"""

from __future__ import annotations

from pathlib import Path

from genai_core.container.adapters import AdapterIndex
from genai_core.container.genie_adapters import genie_folder, genie_names
from genai_core.facts import AdapterInputs, AdapterRanges
from genai_runtime.cpu.adapter_files import read_adapter
from genai_runtime.executor.rows import AdapterUse
from genai_runtime.htp.adapters import BranchFeeds

__all__ = ["write_genie_adapters"]


def write_genie_adapters(
    out: Path, index: AdapterIndex, inputs: AdapterInputs, *, ranges: AdapterRanges | None
) -> None:
    """Write the files of all that are not there yet.

    Args:
        out: A container's folder, with its adapters.
        index: Lists them.
        inputs: Of the graphs.
        ranges: Of these; None = they are floating point.

    Raises:
        BadInput: An adapter, or a use case's together, do not fit the graphs.
    """
    weights = {name: read_adapter(out / entry.file) for name, entry in index.adapters.items()}
    feeds = BranchFeeds(inputs, weights, ranges=ranges)
    for chosen in genie_names(index):
        folder = out / genie_folder(chosen)
        if folder.exists():
            continue
        folder.mkdir(parents=True)
        uses = [AdapterUse(worn.name, worn.alpha) for worn in index.worn(chosen)]
        for name, values in feeds.of(uses).items():
            (folder / f"{name}.raw").write_bytes(values.astype("<f4").tobytes())
