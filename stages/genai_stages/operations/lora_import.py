"""An adapter as its user has it -> matrices of the core graph's linears.

Inputs: `adapter`, PEFT's two files, AIMET's, or a graph; `core`, the core graph's `model.onnx` and
`facts.json` without weights; `assets`, the model's config.json where there is one. Output:
`adapter.safetensors` (see `genai_core.container.adapters`), which says nothing of names or of the
file that it came from, so equal adapters are equal files; `encoded.json` where it came with
encodings, the ranges of its branches (see `genai_stages.lora.importing`).
"""

from __future__ import annotations

import json
from pathlib import Path

from genai_core.container.adapters import ADAPTER_FILE
from genai_core.operations import LoraImportConfig
from genai_core.sources.source_files import CONFIG_ROLE
from genai_stages.graph.core_graph import read_core
from genai_stages.input_folders import find_file
from genai_stages.lora.bounds import check_bounds
from genai_stages.lora.importing import WIDTHS_FILE, import_adapter
from genai_stages.lora.modules import places_of
from genai_stages.lora.readers.forms import read_adapter
from genai_stages.lora.readers.graph_adapter import holds_graph, read_graph_adapter
from genai_stages.lora.trained_on import other_base
from genai_stages.stage import Context, Inputs, StageResult


def run(inputs: Inputs, config: LoraImportConfig, out: Path, context: Context) -> StageResult:
    """Write the adapter in the graph's layout.

    Raises:
        BadAdapter: It is broken, of a kind that cannot be had here, or of another model.
        DriftError: What was written computes something else than PEFT's product.
    """
    model, facts = read_core(inputs["core"])
    config_file = (
        find_file({"assets": inputs["assets"]}, CONFIG_ROLE) if "assets" in inputs else None
    )
    if holds_graph(inputs["adapter"]):
        adapter = read_graph_adapter(
            inputs["adapter"],
            inputs["core"],
            None if config_file is None else config_file.parent,
            context.scratch / "graph",
            "the adapter",
        )
    else:
        adapter = read_adapter(inputs["adapter"], facts.lora, "the adapter")
    check_bounds(adapter, max_rank=config.max_rank, target_modules=config.target_modules)
    made = import_adapter(adapter, places_of(model, facts), out / ADAPTER_FILE)
    if made.widths:
        text = json.dumps(made.widths, indent=1, sort_keys=True)
        (out / WIDTHS_FILE).write_text(f"{text}\n", encoding="utf-8")
    other = None if config_file is None else other_base(adapter.base, config_file)
    return StageResult(
        facts={"rank": made.rank, "linears": made.linears, "base": adapter.base},
        notes={"drift": made.drift, "modules": made.modules, "rank": made.rank},
        warnings=() if other is None else (other,),
    )
