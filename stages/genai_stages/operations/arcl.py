"""Core graph -> the static graph of one AR and CL, checked against it.

Input `model`: the core graph's folder. Output: `ar{A}_cl{C}.onnx`, whose weights stay in the core
graph's files, and `provenance.json`. Input `adapters`, where there are any: the inputs with which
linears take them; the check runs with zeros there, which are the base.
"""

from __future__ import annotations

from pathlib import Path

from genai_core.graphs import check_htp_graphs, graph_name
from genai_core.operations import ArclConfig
from genai_stages.graph.core_graph import read_core, write_proto
from genai_stages.graph.provenance import write_provenance
from genai_stages.input_folders import core_folder
from genai_stages.lora.branch_inputs import read_inputs
from genai_stages.stage import Context, Inputs, StageResult
from genai_stages.static.compare_static import compare_static
from genai_stages.static.static_graph import emit_static


def run(inputs: Inputs, config: ArclConfig, out: Path, context: Context) -> StageResult:
    """Write one static graph.

    Raises:
        InvalidSpec: AR > CL, or CL is too short for Genie.
        UnsupportedOperator: Shapes of the model depend on values.
        DriftError: The static graph computes something else than the core graph.
    """
    ar, cl = config.graph.ar, config.graph.cl
    warnings = check_htp_graphs([ar], [cl])
    folder = core_folder(inputs)
    core, facts = read_core(folder)
    adapters = read_inputs(inputs["adapters"]) if "adapters" in inputs else None
    static = emit_static(core, facts, ar=ar, cl=cl, adapters=adapters)
    compared = compare_static(
        core, facts, static, weights=folder, ar=ar, cl=cl, threads=context.threads
    )
    name = graph_name(ar, cl)
    write_proto(static.model, out / f"{name}.onnx")
    write_provenance(out, static.provenance)
    return StageResult(
        facts={"graph": name, "nodes": sum(1 for _ in static.model.graph)},
        notes={
            "drift": compared.drift,
            "driftLimit": compared.limit,
            "cacheDrift": compared.cache_drift,
            "comparedTokens": compared.tokens,
            "comparedPasses": compared.passes,
        },
        warnings=warnings,
    )
