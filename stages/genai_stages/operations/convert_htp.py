"""One split of one graph with its encodings: QDQ ONNX, then DLC.

Inputs: `model` with the part's `ar{A}_cl{C}_{k}_of_{N}.onnx` and `provenance.json` of transform,
`facts.json` and the part's weights; the source's encodings where it has any, and the core graph's
`model.onnx`; with gaps: Calibrate also its weights, and tokens or text; `adapters` and `ranges`,
the inputs with which linears take adapters and how wide their values are; with `worn` also
`adapter_<number>`, which become part of the graph, and no input is left of them; of a child also
`cache`, a part of the model's graphs as it was converted, whose cache it goes on with. Output:
`<part>.onnx`, `<part>.data` and `<part>.dlc`.

With gaps: Float, what has no encoding stays float, to be computed in float16: the whole part where
the model has no encodings, single tensors and what they meet where its encodings are not complete.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from genai_core.container.adapters import ADAPTER_FILE
from genai_core.errors import BadEncodings, BadInput, BadModel
from genai_core.facts import AdapterInputs, AdapterRanges, ModelFacts
from genai_core.graphs import split_name
from genai_core.names import Gaps
from genai_core.operations import ConvertHtpConfig
from genai_runtime.cpu.adapter_files import read_adapter
from genai_stages.aimet.checks import refuse_infinite_masks
from genai_stages.aimet.model import Encoding, EncodingSet
from genai_stages.backends.htp import dlc
from genai_stages.graph.core_graph import MODEL_FILE, mapped, read_facts, write_proto
from genai_stages.graph.provenance import read_provenance, source_of
from genai_stages.graph.tensor_file import TensorFile
from genai_stages.input_folders import encodings_of, find_file, folders_with, token_pieces
from genai_stages.lora.branch_inputs import read_inputs, read_ranges
from genai_stages.lora.branch_ranges import Combination
from genai_stages.lora.laid_in import lay_in
from genai_stages.lora.reached import read_reached, widened
from genai_stages.quantize.branch_encodings import with_branches, with_constants
from genai_stages.quantize.calibrate import calibrate, missing_in
from genai_stages.quantize.compare_quantized import compare_quantized
from genai_stages.quantize.device_forms import to_device_forms
from genai_stages.quantize.encoding_lookup import EncodingLookup, MissingEncoding
from genai_stages.quantize.kv_encodings import held_caches
from genai_stages.quantize.qdq import Quantized, quantize_graph
from genai_stages.stage import Context, Inputs, StageResult
from genai_stages.static.split import boundary_name
from genai_stages.static.static_graph import rotary_names

CALIBRATION_INPUT = "calibration"
CACHE_INPUT = "cache"
_PIECES = 24
_LENGTH = 96


def run(inputs: Inputs, config: ConvertHtpConfig, out: Path, context: Context) -> StageResult:
    """Write one part's QDQ ONNX and DLC.

    Raises:
        BadEncodings: There are none, they leave a gap, or they do not fit the model.
        BadInput: There is no text to calibrate with.
        UnsupportedOperator: An operator does not run on the Hexagon processor.
        DriftError: The quantized part has lost its signal.
    """
    graph, split = config.graph, config.split
    name = split_name(graph.ar, graph.cl, index=split.index, count=split.count)
    path = find_file(inputs, f"{name}.onnx")
    if path is None:
        raise BadModel("the part is missing", where=f"{name}.onnx", remedy="run transform first")
    provenance = read_provenance(path.parent)
    known = _names(path)
    of = known | {source_of(name, provenance).source for name in known}
    encodings = encodings_of(inputs, of=of)
    worn = _worn(inputs, config)
    if encodings is None and config.gaps is Gaps.FLOAT:
        model = ir.load(path)
        if worn is not None:
            lay_in(model.graph, read_inputs(inputs["adapters"]), worn)
        return _float(model, name, out, context)
    if encodings is None and config.gaps is Gaps.ERROR:
        raise BadEncodings(
            "the model has no encodings",
            where="model.encodings",
            remedy="add AIMET's .encodings file, or set quantization.gaps to Float or Calibrate",
        )
    part = _Part(
        path,
        read_facts(path.parent),
        out,
        gaps_float=config.gaps is Gaps.FLOAT,
        adapters=(read_inputs(inputs["adapters"]), read_ranges(inputs["ranges"]))
        if "adapters" in inputs
        else None,
        worn=worn,
        held=_held(inputs),
    )
    reached = read_reached(inputs["ranges"]) if "ranges" in inputs else {}
    given = encodings or EncodingSet("none", "calibration", {})
    added: list[str] = []
    try:
        quantized = part.quantize(widened(given, reached))
    except MissingEncoding:
        if config.gaps is not Gaps.CALIBRATE:
            raise
        filled = _calibrated(inputs, encodings_of(inputs), context)
        added = missing_in(given, filled)
        quantized = part.quantize(widened(filled, reached))
    ratios = compare_quantized(
        part.written(context.scratch),
        out / f"{name}.onnx",
        part.facts,
        grids=quantized.grids,
        weights=path.parent,
        threads=context.threads,
    )
    converted = dlc.convert(
        out / f"{name}.onnx",
        name,
        out / f"{name}.dlc",
        scratch=context.scratch,
        user_name=lambda tensor: source_of(tensor, part.provenance).source,
    )
    return StageResult(
        facts={"graph": name, "float": False, "weightBits": _text_keys(quantized.bits)},
        warnings=(*_float_warning(quantized.floating), *_beyond_warning(quantized)),
        notes={
            "floatTensors": list(quantized.floating),
            "signalToNoiseDb": ratios,
            "unusedEntries": part.unused(given, quantized, find_file(inputs, MODEL_FILE)),
            "derivedEncodings": dict(quantized.derived),
            "ties": dict(quantized.ties),
            "calibrated": [entry for entry in added if entry in quantized.used],
            "dlcSeconds": round(converted.seconds, 2),
            "dlcPeakMemoryBytes": converted.peak_memory_bytes,
        },
        semantic={f"{name}.dlc": converted.digest},
    )


class _Part:
    """The part, ready to be quantized with some encodings or, where they leave gaps, others."""

    def __init__(
        self,
        path: Path,
        facts: ModelFacts,
        out: Path,
        *,
        gaps_float: bool,
        adapters: tuple[AdapterInputs, AdapterRanges] | None,
        worn: Combination | None = None,
        held: Mapping[str, Encoding] | None = None,
    ) -> None:
        self.held = held
        self.adapters = adapters
        self.worn = worn
        self.path = path
        self.gaps_float = gaps_float
        self.facts = facts
        self.out = out
        self.provenance = read_provenance(path.parent)

    def load(self) -> tuple[ir.Model, dict[str, NDArray[np.float32]]]:
        """The float graph, adapters in it that are worn, and the weights that these became."""
        model = ir.load(self.path)
        if self.worn is None or self.adapters is None:
            return model, {}
        return model, lay_in(model.graph, self.adapters[0], self.worn)

    def written(self, scratch: Path) -> Path:
        """The float graph as a file; its weights lie beside the part all the same."""
        if self.worn is None:
            return self.path
        model, _ = self.load()
        write_proto(model, scratch / self.path.name)
        return scratch / self.path.name

    def quantize(self, encodings: EncodingSet) -> Quantized:
        facts = self.facts
        names = {role for attention in facts.attention for role in attention.roles.values()}
        names |= {source.source for source in facts.provenance.values()}
        masked = [
            attention.roles["masked"]
            for attention in facts.attention
            if "masked" in attention.roles
        ]
        refuse_infinite_masks(encodings, masked)
        boundaries = {boundary_name(at): name for at, name in enumerate(facts.boundaries)}
        model, weights = self.load()
        if self.adapters is not None and self.worn is not None:
            encodings = with_constants(
                model.graph,
                encodings,
                *self.adapters,
                weights=weights,
                provenance=self.provenance,
            )
        elif self.adapters is not None:
            encodings = with_branches(
                model.graph, encodings, *self.adapters, provenance=self.provenance
            )
        lookup = EncodingLookup(encodings, self.provenance, names, otherwise=boundaries)
        data = self.out / f"{self.path.stem}.data"
        data.unlink(missing_ok=True)
        return quantize_graph(
            self.path,
            self.out,
            lookup,
            rotary_limits=_rotary_limits(facts),
            gaps_float=self.gaps_float,
            held=self.held,
            model=model,
        )

    def unused(self, encodings: EncodingSet, quantized: Quantized, core: Path | None) -> list[str]:
        """Entries that nothing used; where the core graph is at hand, without other parts' own."""
        elsewhere: set[str] = set()
        if core is not None:
            roles = {
                role for attention in self.facts.attention for role in attention.roles.values()
            }
            sources = {source.source for source in self.facts.provenance.values()}
            elsewhere = (_names(core) | roles | sources) - {
                source_of(name, self.provenance).source for name in _names(self.path)
            }
        used = quantized.used
        return [name for name in encodings.listed if name not in used and name not in elsewhere]


def _worn(inputs: Inputs, config: ConvertHtpConfig) -> Combination | None:
    """The adapters that become part of the graph."""
    if not config.worn:
        return None
    files = [inputs[f"adapter_{at}"] / ADAPTER_FILE for at in range(len(config.worn))]
    return Combination([read_adapter(file) for file in files], [float(a) for a in config.worn])


def _held(inputs: Inputs) -> dict[str, Encoding]:
    """The encodings of the model's cache, where a child goes on with it."""
    folder = inputs.get(CACHE_INPUT)
    if folder is None:
        return {}
    return {
        name: encoding
        for path in sorted(folder.glob("*.onnx"))
        for name, encoding in held_caches(path).items()
    }


def _beyond_warning(quantized: Quantized) -> tuple[str, ...]:
    if not quantized.beyond:
        return ()
    name = max(
        quantized.beyond, key=lambda cache: quantized.beyond[cache][0] / quantized.beyond[cache][1]
    )
    own, held = quantized.beyond[name]
    count = f"{len(quantized.beyond)} cache{'s' if len(quantized.beyond) > 1 else ''}"
    said = (
        f"{count} of this child reach further than the model's, which both share: what lies beyond "
        f"is cut off; the most at {name}, +-{own:.4g} against +-{held:.4g}"
    )
    return (said,)


def _float_warning(floating: tuple[str, ...]) -> tuple[str, ...]:
    if not floating:
        return ()
    names = ", ".join(floating[:3]) + (" ..." if len(floating) > 3 else "")
    count = f"{len(floating)} tensor{'s' if len(floating) > 1 else ''}"
    return (f"no encoding for {count}, which stay in float16 with what they meet: {names}",)


def _names(model: Path) -> set[str]:
    """All tensors of a graph."""
    graph = onnx.load(str(model), load_external_data=False).graph  # noqa: TID251 - structure only
    names = {value.name for value in (*graph.input, *graph.initializer)}
    return names | {name for node in graph.node for name in node.output}


def _rotary_limits(facts: ModelFacts) -> dict[str, float]:
    """Input -> largest value of its table: the attention factor of scaled rotary embeddings."""
    return {
        name: max(1.0, abs(table.attention_factor))
        for key, table in facts.rope.items()
        for name in rotary_names(key)
    }


def _float(model: ir.Model, name: str, out: Path, context: Context) -> StageResult:
    """The part as it is, with its weights in one file beside it."""
    to_device_forms(model)
    with TensorFile(out / f"{name}.data") as data:
        for value in model.graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                stored = data.add(value.name or "", mapped(value.const_value))
                value.const_value = stored.const_value
    write_proto(model, out / f"{name}.onnx")
    converted = dlc.convert(
        out / f"{name}.onnx", name, out / f"{name}.dlc", scratch=context.scratch, float16=True
    )
    return StageResult(
        facts={"graph": name, "float": True},
        notes={
            "dlcSeconds": round(converted.seconds, 2),
            "dlcPeakMemoryBytes": converted.peak_memory_bytes,
        },
        semantic={f"{name}.dlc": converted.digest},
    )


def _calibrated(inputs: Inputs, encodings: EncodingSet | None, context: Context) -> EncodingSet:
    """The encodings with all gaps filled."""
    folders = folders_with(inputs, MODEL_FILE)
    if not folders:
        raise BadModel("no input is the core graph", where=MODEL_FILE, remedy="run ingest first")
    pieces = token_pieces(inputs, CALIBRATION_INPUT)
    if pieces is None:
        raise BadInput(
            "there is no text to calibrate with",
            where="quantization.calibration",
            remedy="name a .npy of token ids or a text file of the model's source",
        )
    scratch = context.scratch / "calibrate"
    scratch.mkdir()
    chosen = [np.asarray(piece[:_LENGTH]) for piece in pieces[:_PIECES]]
    return calibrate(folders[0], encodings, chosen, scratch=scratch, threads=context.threads)


def _text_keys(counts: Mapping[int, int]) -> dict[str, int]:
    return {str(bits): count for bits, count in sorted(counts.items())}
