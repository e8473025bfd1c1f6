"""The adapters of a build -> how wide their values are on the static graphs.

Inputs: `core`, the core graph with its weights; `adapters`, the inputs with which graphs take
adapters; `adapter_<number>`; with gaps: Calibrate tokens or text and the tokenizer, else the text
is one that the float model writes. Output: `adapter_ranges.json`; with `reached` also
`reached.json`, the extremes of every tensor of the model that wears the adapters.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genai_core.container.adapters import ADAPTER_FILE
from genai_core.operations import LoraRangesConfig
from genai_runtime.cpu.adapter_files import read_adapter
from genai_stages.fidelity.written_text import write_pieces
from genai_stages.input_folders import token_pieces
from genai_stages.lora.branch_inputs import RANGES_FILE, read_inputs
from genai_stages.lora.branch_ranges import Combination, adapter_ranges, input_norms
from genai_stages.lora.importing import read_widths
from genai_stages.lora.laid_in import touched
from genai_stages.lora.reached import REACHED_FILE, reached
from genai_stages.stage import Context, Inputs, StageResult

_PIECES, _LENGTH = 12, 64


def run(inputs: Inputs, config: LoraRangesConfig, out: Path, context: Context) -> StageResult:
    """Measure all adapters and use cases.

    Raises:
        BadModel: The model yields values that are not finite.
    """
    core = inputs["core"]
    numbers = range(sum(1 for name in inputs if name.startswith("adapter_")))
    adapters = [read_adapter(inputs[f"adapter_{number}"] / ADAPTER_FILE) for number in numbers]
    widths = [read_widths(inputs[f"adapter_{number}"]) for number in numbers]
    groups = list(config.together)
    groups += [((number, "1.0"),) for number in numbers] if config.alone else []
    combinations = [
        Combination(
            [adapters[number] for number, _ in group],
            [float(a) for _, a in group],
            # Where adapters share graphs, later ones are held to what their matrices alone bound.
            () if config.alone else [widths[number] for number, _ in group],
        )
        for group in groups
    ]
    scratch = context.scratch / "ranges"
    scratch.mkdir()
    pieces = _text(inputs, core, context)
    branches = read_inputs(inputs["adapters"])
    if not config.alone:
        (worn,) = combinations
        branches = touched(branches, worn)
        if config.reached:
            spans = reached(core, worn, pieces, scratch=scratch, threads=context.threads)
            text = json.dumps(spans, indent=1, sort_keys=True)
            (out / REACHED_FILE).write_text(f"{text}\n", encoding="utf-8")
    norms = input_norms(core, branches, pieces, scratch=scratch, threads=context.threads)
    found = adapter_ranges(branches, combinations, norms, reserve=float(config.reserve))
    (out / RANGES_FILE).write_text(f"{found.model_dump_json(indent=1)}\n", encoding="utf-8")
    return StageResult(facts={"tokens": sum(len(piece) for piece in pieces)})


def _text(inputs: Inputs, core: Path, context: Context) -> Sequence[NDArray[np.integer]]:
    given = token_pieces(inputs, "calibration")
    if given is not None:
        return [np.asarray(piece[:_LENGTH]) for piece in given[:_PIECES]]
    scratch = context.scratch / "text"
    scratch.mkdir()
    return list(
        write_pieces(core, scratch, pieces=_PIECES, length=_LENGTH, threads=context.threads).tokens
    )
