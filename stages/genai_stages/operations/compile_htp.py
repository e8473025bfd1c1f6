"""All graphs of one split -> one context binary, and a twin that x86 can run where asked.

Inputs: one for each graph (`ar32_cl256` ...), what convert wrote for this split: `<part>.dlc`, and
`<part>.onnx` with its data. Output: `part_k_of_N.bin` with what the vendor's library reads in it
(`part_k_of_N.json`), and `emulation/` with the unshared twin. The twin is run in the emulator
against the quantized graphs on the CPU: a split that drifted fails here, not on a device.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from genai_core import chips
from genai_core import compile_options as options
from genai_core.container.manifest import EMULATION_FOLDER
from genai_core.errors import BadModel
from genai_core.graphs import container_name, graph_name, split_name
from genai_core.operations import CompileHtpConfig, GraphConfig
from genai_runtime.htp.metadata import BinaryMetadata
from genai_stages.backends.htp import compile as htp_compile
from genai_stages.backends.htp import drift
from genai_stages.backends.htp.compile import CompileSource
from genai_stages.stage import Context, Inputs, StageResult


def run(inputs: Inputs, config: CompileHtpConfig, out: Path, context: Context) -> StageResult:
    """Compile one split.

    Raises:
        InvalidSpec: A compile option that cannot be honoured.
        ToolFailed: The vendor's library refused a graph or died.
        BadModel: Graphs keep their cache on different grids.
        DriftError: The emulator's results depart from the quantized graphs'.
    """
    chip = chips.Chip(
        name=f"soc {config.chip.soc_model}",
        soc_model=config.chip.soc_model,
        dsp_arch=config.chip.dsp_arch,
    )
    chosen = {ar: options.parse(own) for ar, own in config.own_options.items()}
    every = options.parse(config.options)
    index, count = config.split.index, config.split.count
    token_ar = min(graph.ar for graph in config.graphs)
    sources: list[CompileSource] = []
    models: dict[str, Path] = {}
    for graph in config.graphs:
        name = container_name(graph.ar, graph.cl, index=index, count=count, token_ar=token_ar)
        part = _part(inputs, graph, index=index, count=count)
        sources.append(
            CompileSource(name, part.with_suffix(".dlc"), chosen.get(str(graph.ar), every))
        )
        models[name] = part
    binary = out / f"part_{index}_of_{count}.bin"
    shared = config.weight_sharing and len(sources) > 1
    done = htp_compile.context_binary(
        sources,
        binary,
        chip=chip,
        scratch=context.scratch,
        weight_sharing=shared,
        native_kv=config.native_kv,
    )
    _check_caches(done.metadata)
    text = done.metadata.model_dump_json(indent=1)
    binary.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    notes: dict[str, object] = {
        **_options_noted(config),
        "sizeBytes": binary.stat().st_size,
        "compileSeconds": round(done.seconds, 2),
        "compilePeakMemoryBytes": done.peak_memory_bytes,
    }
    if config.emulation:
        # The emulator runs graphs of one VTCM size in a context, whose numbers it does not change.
        alike = [replace(source, options=every) for source in sources]
        twin = htp_compile.twin(
            alike, out / EMULATION_FOLDER / binary.name, chip=chip, scratch=context.scratch
        )
        # Float graphs are computed in float16: another arithmetic than the CPU's, told by loss.
        found = drift.emulator_drift(models, twin)
        notes["unsharedSizeBytes"] = twin.path.stat().st_size
        notes["emulatorDecibels"] = {
            graph: {name: _finite(value) for name, value in outputs.items()}
            for graph, outputs in found.items()
        }
        if not config.float16:
            mixed = any(drift.computes_in_float(model) for model in models.values())
            least = drift.LEAST_MIXED_DECIBELS if mixed else drift.LEAST_DECIBELS
            notes["worstDecibels"] = _finite(drift.require_small(found, least=least))
    return StageResult(
        facts={"graphs": [source.name for source in sources], "socModel": done.metadata.soc_model},
        notes=notes,
    )


def _options_noted(config: CompileHtpConfig) -> dict[str, object]:
    """The options of each AR, where they differ: the record's config has them one by one."""
    if not config.own_options:
        return {}
    ars = sorted({graph.ar for graph in config.graphs})
    return {"optionsOfAr": {str(a): config.own_options.get(str(a), config.options) for a in ars}}


def _check_caches(found: BinaryMetadata) -> None:
    """All graphs of a split go on with one cache, raw integers that nobody converts.

    Raises:
        BadModel: Two keep a cache on different grids.
    """
    grids: dict[str, tuple[str, tuple[object, ...]]] = {}
    for graph in found.graphs:
        for tensor in (*graph.inputs, *graph.outputs):
            if not tensor.name.startswith(("past_key_", "past_value_")):
                continue
            name = tensor.name.removesuffix("_in").removesuffix("_out")
            grid = (tensor.dtype, tensor.scale, tensor.offset)
            other, known = grids.setdefault(name, (graph.name, grid))
            if grid != known:
                raise BadModel(
                    f"{other} keeps it as {known}, {graph.name} as {grid}: they go on with one "
                    "cache",
                    where=name,
                    remedy="give the child the model's encodings of its cache",
                )


def _part(inputs: Inputs, graph: GraphConfig, *, index: int, count: int) -> Path:
    """The quantized ONNX of one graph of this split; its DLC lies beside it."""
    name = graph_name(graph.ar, graph.cl)
    part = split_name(graph.ar, graph.cl, index=index, count=count)
    folder = inputs.get(name)
    path = Path() if folder is None else folder / f"{part}.onnx"
    if folder is None or not path.is_file() or not path.with_suffix(".dlc").is_file():
        raise BadModel("the converted part is missing", where=part, remedy="run convert first")
    return path


def _finite(decibels: float) -> float | None:
    """None for equal bits, since JSON has no infinity."""
    return round(decibels, 1) if math.isfinite(decibels) else None
