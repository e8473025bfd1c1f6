"""The adapters of a build -> the inputs with which its static graphs take them.

Inputs: `core`, the core graph's `model.onnx` and `facts.json` without weights; `adapter_<number>`,
what the import of each left. Output: `adapter_inputs.json`, which says nothing of the adapters'
values: an adapter that changes, its ranks staying within, leaves every graph as it is. With `every`
no adapter is read: all linears have a branch.
"""

from __future__ import annotations

from pathlib import Path

from genai_core.container.adapters import ADAPTER_FILE
from genai_core.errors import InvalidSpec
from genai_core.operations import LoraGraphConfig
from genai_stages.graph.core_graph import read_core
from genai_stages.lora.branch_inputs import INPUTS_FILE, branch_inputs, ranks_of
from genai_stages.lora.modules import places_of
from genai_stages.stage import Context, Inputs, StageResult
from genai_stages.static.static_graph import is_adapter_input


def run(inputs: Inputs, config: LoraGraphConfig, out: Path, context: Context) -> StageResult:
    """Write the inputs' names and sizes.

    Raises:
        InvalidSpec: No linear takes an adapter, or the name of an input is taken.
    """
    del context
    model, facts = read_core(inputs["core"])
    numbers = range(sum(1 for name in inputs if name.startswith("adapter_")))
    adapters = [ranks_of(inputs[f"adapter_{number}"] / ADAPTER_FILE) for number in numbers]
    if not is_adapter_input(config.alpha):
        raise InvalidSpec(
            f"{config.alpha} is an input of every static graph",
            where="spec.lora.alphaTensorName",
            remedy="give another name",
        )
    taken = {value.name or "" for node in model.graph for value in node.outputs}
    taken |= {value.name or "" for value in model.graph.inputs} | set(model.graph.initializers)
    made = branch_inputs(
        places_of(model, facts),
        adapters,
        alpha=config.alpha,
        together=config.together,
        max_rank=config.max_rank,
        target_modules=config.target_modules,
        taken=taken,
        every=config.every,
    )
    (out / INPUTS_FILE).write_text(f"{made.model_dump_json(indent=1)}\n", encoding="utf-8")
    return StageResult(facts={"rank": made.rank, "linears": len(made.branches)})
