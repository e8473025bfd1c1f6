"""Run the source and the core graph on the same tokens and past, and compare.

Both get random tokens and, where the source has a cache, a random past: once short, once none, so
masks, positions and the past's layout are all in it. A large model is compared layer group by layer
group: each part of both starts from the source's own tensor at the boundary, so that never more
than a few layers are in memory.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from genai_core.errors import BadModel, DriftError
from genai_core.facts import ModelFacts, RopeTable
from genai_stages.graph.core_graph import read_core
from genai_stages.graph.expand_attention import expand
from genai_stages.ingest.admission.refuse_source import logits_name
from genai_stages.ingest.admission.source_inputs import SourceInputs
from genai_stages.ingest.output.source_part import locate, part_of
from genai_stages.ingest.recognition.attention.found_attention import Sizes
from genai_stages.ingest.source.source_model import Array, SourceModel

TOLERANCE = 1e-4
"""Largest difference of logits, relative to the largest logit (at least 1)."""
ROUNDED_TABLES = 8
"""How much larger it may be for each rounding of the rotary tables that a source stores."""
WHOLE_BYTES = 256 << 20
"""Models with less weights than this are compared in one part."""


@dataclasses.dataclass(frozen=True)
class SourceComparison:
    """What the comparison measured.

    Attributes:
        drift: Largest difference of the parts' ends, relative to their largest value.
        parts: In how many parts the model was compared.
        passes: Tokens and past of each pass.
    """

    drift: float
    parts: int
    passes: tuple[tuple[int, int], ...]


def compare_source(
    source: SourceModel,
    inputs: SourceInputs,
    ropes: Mapping[str, RopeTable],
    core: Path,
    *,
    threads: int = 1,
    whole_bytes: int = WHOLE_BYTES,
) -> SourceComparison:
    """Compare a source with the core graph made from it.

    Args:
        source: The source.
        inputs: Its inputs.
        ropes: config.json's tables, for a source that takes them as inputs.
        core: Folder of the core graph.
        threads: Of ONNX Runtime.
        whole_bytes: Above this the model is compared in parts.

    Raises:
        DriftError: They differ.
    """
    model, facts = read_core(core)
    parts = _parts(source, facts, whole_bytes)
    passes = _passes(inputs)
    worst = 0.0
    tolerance = TOLERANCE + ROUNDED_TABLES * source.rounding
    states: list[Array | None] = [None] * len(passes)
    feeders = [_Feeder(inputs, ropes, facts, sizes, seed) for seed, sizes in enumerate(passes)]
    for start, end in parts:
        original = _source_session(source, start, end, threads)
        written = core_session(expand(model, facts, start=start, end=end), core, threads)
        for index, feeder in enumerate(feeders):
            state = states[index]
            given = feeder.source_feeds(original, start, state)
            wanted = _run_source(source, original, given)
            first = feeder.tokens if state is None else state.astype(np.float32)
            (have,) = written.run(
                [written.get_outputs()[0].name], feeder.core_feeds(written, first)
            )
            drift = _drift(wanted, have, feeder.rows)
            worst = max(worst, drift)
            if not drift <= tolerance:
                raise DriftError(
                    f"the core graph departs from the source by {drift:.1e} of the largest value "
                    f"({feeder.sizes.tokens} tokens behind {feeder.sizes.past}), more than "
                    f"{tolerance:.0e}",
                    where=end or "logits",
                    remedy="report this model's exporter and version",
                )
            states[index] = wanted
    return SourceComparison(worst, len(parts), tuple((one.tokens, one.past) for one in passes))


def _run_source(source: SourceModel, session: Any, feeds: Mapping[str, Array]) -> Array:
    try:
        (result,) = session.run(None, feeds)
    except Exception as error:
        raise BadModel(
            f"ONNX Runtime cannot run it ({str(error).splitlines()[0]})",
            where=source.path.name,
            remedy="export it so that onnxruntime.InferenceSession runs it",
        ) from error
    return np.asarray(result)


def _drift(wanted: Array, have: Array, rows: slice) -> float:
    wanted, have = wanted.astype(np.float32)[:, rows], have[:, rows]
    if not np.isfinite(wanted).all():
        raise BadModel(
            "the source itself gives values that are not finite",
            where="logits",
            remedy="export weights without NaN or infinity, and in float32 where float16 overflows",
        )
    return float(np.abs(wanted - have).max() / max(1.0, float(np.abs(wanted).max())))


def _passes(inputs: SourceInputs) -> list[Sizes]:
    if inputs.native is not None:
        tokens, total = inputs.native
        past = total - tokens if inputs.named("past") else 0
        return [Sizes(tokens, past, total if inputs.scattered else past)]
    if not inputs.named("past"):
        return [Sizes(17, 0, 0)]
    return [Sizes(11, 13, 13), Sizes(7, 0, 0), Sizes(1, 29, 29)]


def _parts(
    source: SourceModel, facts: ModelFacts, whole_bytes: int
) -> list[tuple[str | None, str | None]]:
    """(start, end) of each part; None = the graph's own beginning or end."""
    sizes = {name: group.size_bytes for name, group in facts.groups.items()}
    if sum(sizes.values()) <= whole_bytes:
        return [(None, None)]
    shapes = {value.name: value.name for node in source.model.graph for value in node.outputs}
    usable = [name for name in facts.boundaries if name in shapes]
    limit = max(sizes.values())
    cuts: list[str] = []
    held = sizes.get("embed", 0)
    for layer, name in enumerate(facts.boundaries):
        layer_size = sizes.get(f"layer_{layer:03d}", sizes.get("head", 0))
        if held + layer_size > limit and name in usable:
            cuts.append(name)
            held = 0
        held += layer_size
    ends: list[str | None] = [None, *cuts, None]
    return list(itertools.pairwise(ends))


class _Feeder:
    """Seeded inputs of one pass, for both graphs."""

    def __init__(
        self,
        inputs: SourceInputs,
        ropes: Mapping[str, RopeTable],
        facts: ModelFacts,
        sizes: Sizes,
        seed: int,
    ) -> None:
        self.inputs = inputs
        self.facts = facts
        self.sizes = sizes
        self.rows = slice(None)
        random = np.random.default_rng(seed)
        self.tokens = random.integers(0, facts.vocab_size, (1, sizes.tokens))
        self.known = inputs.feeds(sizes, ropes)
        self.past: dict[str, Array] = {}
        self.source_past: dict[str, Array] = {}
        shapes = {one.name: inputs.past_shape(one, sizes.length) for one in inputs.named("past")}
        for attention in facts.attention:
            for kind in ("key", "value"):
                name = attention.roles.get("past_key" if kind == "key" else "past_value", "")
                shape = (1, attention.kv_heads, sizes.past, attention.head_dim)
                values = random.standard_normal(shape, np.float32)
                self.past[f"past_{kind}_{attention.layer}"] = values
                if name:
                    self.source_past[name] = _as_source(
                        values, shapes[name], sizes, is_key=kind == "key"
                    )

    def source_feeds(
        self, session: Any, start: str | None, state: Array | None
    ) -> dict[str, Array]:
        available = {**self.known, **self.source_past}
        available[self.inputs.tokens] = self.tokens
        if start is not None and state is not None:
            available[start] = state
        feeds: dict[str, Array] = {}
        for wanted in session.get_inputs():
            kind = _NUMPY[wanted.type]
            feeds[wanted.name] = np.ascontiguousarray(available[wanted.name]).astype(kind)
        return feeds

    def core_feeds(self, session: Any, first: Array) -> dict[str, Array]:
        names = [wanted.name for wanted in session.get_inputs()]
        return {names[0]: first, **{name: self.past[name] for name in names[1:]}}


def _as_source(values: Array, shape: Sequence[int], sizes: Sizes, *, is_key: bool) -> Array:
    """A past [1, KV, P, D] in the source's layout; unused slots hold zeros."""
    _, heads, _, width = values.shape
    full = np.zeros((heads, sizes.length, width), np.float32)
    full[:, : sizes.past] = values[0]
    # Where both are one number, keys are turned, as in the vendor's form; the recognizer agrees.
    if tuple(shape[-2:]) == (width, sizes.length) and (width != sizes.length or is_key):
        full = full.swapaxes(1, 2)
    return np.ascontiguousarray(full.reshape(shape))


_NUMPY = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


def _options(folder: Path, threads: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder)
    )
    return options


def core_session(model: ir.Model, core: Path, threads: int) -> Any:
    """A session of an expanded core graph."""
    data = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(data, _options(core, threads), providers=["CPUExecutionProvider"])


def source_session(source: SourceModel, threads: int) -> Any:
    """A session of a whole source, with all of its outputs.

    Raises:
        BadModel: ONNX Runtime refuses it.
    """
    outputs = [str(value.name) for value in source.model.graph.outputs]
    return _session_of(source, None, outputs, threads)


def _source_session(source: SourceModel, start: str | None, end: str | None, threads: int) -> Any:
    return _session_of(source, start, [end if end is not None else logits_name(source)], threads)


def _session_of(
    source: SourceModel, start: str | None, outputs: Sequence[str], threads: int
) -> Any:
    model = part_of(source.stripped(), start, outputs, element=partial(_element, source))
    folder = locate(model, [source.path.parent])
    options = _options(folder, threads)
    # Further levels join dequantized weights with their products, and round activations to 8 bits.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        return ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise BadModel(
            f"ONNX Runtime refuses it ({str(error).splitlines()[0]})",
            where=source.path.name,
            remedy="export it so that onnxruntime.InferenceSession loads it",
        ) from error


def _element(source: SourceModel, name: str) -> int:
    """The element type of a tensor; float where the file does not say."""
    for node in source.model.graph:
        for value in node.outputs:
            if value.name == name and value.dtype is not None:
                half = value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
                return int(ir.DataType.FLOAT if half else value.dtype)
    return int(onnx.TensorProto.FLOAT)
