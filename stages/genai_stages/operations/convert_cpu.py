"""Weights of some layers in the form that the CPU model reads.

Inputs: the core graph (`model.onnx`, `facts.json` and the weights files of the chosen layers, and
the embedding's for a tied lm_head) and the source's encodings where it has any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from genai_core.names import Gaps
from genai_core.operations import ConvertCpuConfig
from genai_stages.backends.cpu.quantize import convert_group, gaps, names_read, summary
from genai_stages.graph.core_graph import read_core
from genai_stages.input_folders import core_folder, encodings_of
from genai_stages.stage import Context, Inputs, StageResult

_SHOWN = 3


def run(inputs: Inputs, config: ConvertCpuConfig, out: Path, context: Context) -> StageResult:
    """Write `weights.data` and `fragment.json`."""
    del context
    model, facts = read_core(core_folder(inputs))
    encodings = encodings_of(inputs, of=names_read(model, facts, config))
    fragment = convert_group(model, facts, encodings, config=config, out=out)
    left = {}
    if config.gaps is Gaps.FLOAT:
        left = gaps(model, facts, encodings, config=config)
    names = list(dict.fromkeys(name for missing in left.values() for name in missing))
    return StageResult(
        notes={"linears": summary(fragment), "floatTensors": names},
        warnings=_warning(left, names, len(fragment.linears)),
    )


def _warning(left: Mapping[str, object], names: Sequence[str], linears: int) -> tuple[str, ...]:
    if not left:
        return ()
    shown = ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")
    count = f"{len(names)} tensor{'s' if len(names) > 1 else ''}"
    return (
        f"no encoding for {count}, so {len(left)} of {linears} linears stay in float32: {shown}",
    )
