"""A static graph -> one part of it, with its heads split.

Input `model`: `ar{A}_cl{C}.onnx` and `provenance.json` of arcl, `facts.json` and the files of this
part's weights. Output: `ar{A}_cl{C}_{k}_of_{N}.onnx`, whose weights stay in those files, and its
`provenance.json`.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from genai_core.errors import BadModel
from genai_core.graphs import graph_name, split_name
from genai_core.operations import TransformConfig
from genai_stages.graph.core_graph import read_facts, write_proto
from genai_stages.graph.provenance import read_provenance, write_provenance
from genai_stages.input_folders import find_file
from genai_stages.stage import Context, Inputs, StageResult
from genai_stages.static.compare_heads import compare_heads
from genai_stages.static.head_regions import head_axes_of
from genai_stages.static.mha_to_sha import mha_to_sha
from genai_stages.static.split import ModelPart, cut
from genai_stages.static.start_points import additional_starts, check_start_points
from genai_stages.static.static_graph import StaticGraph


def run(inputs: Inputs, config: TransformConfig, out: Path, context: Context) -> StageResult:
    """Write one part.

    Raises:
        InvalidSpec: There is no such part.
        BadInput: A start point matches nothing.
        UnsupportedOperator: More than one tensor passes between two layers.
        DriftError: The part computes something else with its heads split.
    """
    ar, cl, split = config.graph.ar, config.graph.cl, config.split
    file = f"{graph_name(ar, cl)}.onnx"
    path = find_file(inputs, file)
    if path is None:
        raise BadModel("the static graph is missing", where=file, remedy="run arcl first")
    folder = path.parent
    facts = read_facts(folder)
    whole = StaticGraph(ir.load(path), read_provenance(folder))
    patterns = [point.tensor for point in config.start_points] if config.mha2sha else []
    warnings = check_start_points(whole, patterns)
    part = ModelPart(split.first, split.last, embedding=split.embedding, lm_head=split.lm_head)
    name = split_name(ar, cl, index=split.index, count=split.count)
    before = cut(whole, facts, part, name=name)
    after, drift = before, 0.0
    if config.mha2sha:
        after = mha_to_sha(before, facts, starts=additional_starts(before, patterns))
        if after is not before:
            drift = compare_heads(
                before, after, facts, part=part, weights=folder, threads=context.threads
            )
    write_proto(after.model, out / f"{name}.onnx")
    write_provenance(out, after.provenance)
    return StageResult(
        facts={
            "graph": name,
            "nodes": sum(1 for _ in after.model.graph),
            "multiHeadMatMuls": sum(1 for node in after.model.graph if head_axes_of(node)),
        },
        notes={"drift": drift},
        warnings=warnings,
    )
