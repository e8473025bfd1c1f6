"""One dynamic-T ONNX Runtime model from the fragments of all layers.

Inputs: the core graph with its weights (for the check, and for calibration), the fragments of the
convert tasks, the source's encodings where it has any, and with gaps: Calibrate a folder
`calibration` with tokens or text.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx_ir as ir

from genai_core.errors import BadEncodings
from genai_core.facts import ModelFacts
from genai_core.names import Gaps
from genai_core.operations import CompileCpuConfig
from genai_stages.backends.cpu.activations import (
    ActivationGrid,
    grid_of_encoding,
    grid_of_measured,
)
from genai_stages.backends.cpu.check import verify, verify_head
from genai_stages.backends.cpu.cpu_model import MODEL_FILE, build_model, write_model
from genai_stages.backends.cpu.fragment import FRAGMENT_FILE
from genai_stages.backends.cpu.join import Joined, join_fragments
from genai_stages.backends.cpu.model_graph import MODEL_DATA_FILE
from genai_stages.graph.core_graph import read_core
from genai_stages.graph.linear_sites import SourceEncodings, linear_sites
from genai_stages.input_folders import (
    core_folder,
    encodings_of,
    folders_with,
    token_pieces,
)
from genai_stages.quantize.segments import linear_input_ranges
from genai_stages.stage import Context, Inputs, StageResult

_CALIBRATION_PIECES = 64


def run(inputs: Inputs, config: CompileCpuConfig, out: Path, context: Context) -> StageResult:
    """Write `model.onnx` and `model.data`, and what was measured."""
    core = core_folder(inputs)
    model, facts = read_core(core)
    joined = join_fragments(
        folders_with(inputs, FRAGMENT_FILE), config.precision, out / MODEL_DATA_FILE
    )
    grids, calibrated = _grids(inputs, config, model, facts=facts, joined=joined, context=context)
    write_model(
        build_model(
            model,
            facts,
            precision=config.precision,
            tensors=joined.tensors,
            linears=joined.linears,
            plain=joined.plain,
            grids=grids,
            hidden_states=config.hidden_states,
        ),
        out / MODEL_FILE,
    )
    agreement = (verify if facts.head is None else verify_head)(
        core,
        out / MODEL_FILE,
        context.scratch / "check",
        precision=config.precision,
        vocab=facts.vocab_size if facts.head is None else facts.head.tokens,
        threads=context.threads,
    )
    forms = Counter(linear.form for linear in joined.linears.values())
    notes = {
        "linears": dict(sorted(forms.items())),
        "largestDifference": agreement.largest,
        "sqnrDb": agreement.sqnr_db if agreement.largest else None,
        "chunkedDifference": agreement.chunked,
        "calibratedActivations": calibrated,
    }
    return StageResult(
        facts={"precision": config.precision.value, "vocabSize": facts.vocab_size},
        notes=notes,
    )


def _grids(
    inputs: Inputs,
    config: CompileCpuConfig,
    model: ir.Model,
    *,
    facts: ModelFacts,
    joined: Joined,
    context: Context,
) -> tuple[dict[str, ActivationGrid], int]:
    """Grids of the int8 linears' inputs, and how many had to be calibrated."""
    # The weights are in the fragments already; what has one scale is read in any case.
    lookup = SourceEncodings(encodings_of(inputs, of=()), facts)
    grids: dict[str, ActivationGrid] = {}
    missing: list[str] = []
    for site in linear_sites(model):
        if joined.linears[site.weight].form != "int8" or site.source in grids:
            continue
        encoding = lookup.activation(site.source)
        if encoding is None:
            missing.append(site.source)
        else:
            grids[site.source] = grid_of_encoding(encoding)
    if missing:
        pieces = token_pieces(inputs, "calibration") if config.gaps is Gaps.CALIBRATE else None
        if pieces is None:
            raise BadEncodings(
                "has no encoding and there is no calibration text",
                where=missing[0],
                remedy="set quantization.calibration, or gaps: Float",
            )
        ranges = linear_input_ranges(
            core_folder(inputs),
            context.scratch / "calibration",
            list(pieces[:_CALIBRATION_PIECES]),
            tensors=set(missing),
            threads=context.threads,
        )
        grids |= {name: grid_of_measured(*ranges[name]) for name in missing}
    return grids, len(set(missing))
