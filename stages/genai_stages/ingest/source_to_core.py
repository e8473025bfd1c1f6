"""Source graph -> core graph: the passes in their order."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from genai_core.errors import BadInput, BadModel
from genai_core.facts import ModelFacts, RopeTable
from genai_core.files.foreign import boundary
from genai_stages.architectures.family import Family
from genai_stages.architectures.rope import ropes_of
from genai_stages.graph.core_graph import CoreWriter
from genai_stages.ingest.admission.check_config import check_config, disagreements, text_config
from genai_stages.ingest.admission.refuse_source import logits_name, no_logits
from genai_stages.ingest.admission.source_inputs import SourceInputs, read_inputs
from genai_stages.ingest.folding.folded_graph import FoldedGraph
from genai_stages.ingest.folding.fuse_norms import fuse_norms
from genai_stages.ingest.folding.remove_noise import remove_noise
from genai_stages.ingest.folding.resize_static import LARGE, resize, resized_sizes
from genai_stages.ingest.folding.specialise import specialise
from genai_stages.ingest.output.write_core import Identity, write_core
from genai_stages.ingest.positions.check_positions import check_positions
from genai_stages.ingest.positions.mask_at_scale import MaskAtScale
from genai_stages.ingest.recognition.attention.found_attention import FoundAttention, Sizes
from genai_stages.ingest.recognition.attention.recognise_attention import AttentionSolver
from genai_stages.ingest.recognition.drafts import Data
from genai_stages.ingest.recognition.find_boundaries import find_boundaries
from genai_stages.ingest.recognition.name_ropes import name_ropes
from genai_stages.ingest.recognition.recognise_layers import Walk
from genai_stages.ingest.source.source_model import SourceModel

_CONFIG = "it has a value that fits no model"


@dataclasses.dataclass(frozen=True)
class Ingested:
    """A written core graph and what was learnt on the way.

    Attributes:
        facts: As written.
        source: The source, at smaller sizes where its own are large.
        inputs: Its inputs.
        ropes: config.json's rotary tables.
    """

    facts: ModelFacts
    source: SourceModel
    inputs: SourceInputs
    ropes: Mapping[str, RopeTable]


def source_to_core(
    source: SourceModel,
    family: Family,
    out: Path,
    *,
    warnings: Sequence[str] = (),
    large: int = LARGE,
) -> Ingested:
    """Recognize a source and write its core graph into `out`.

    Args:
        source: The source.
        family: What its config.json means.
        out: An empty folder.
        warnings: Sentences for the facts.
        large: See `resize_static.resized_sizes`.

    Raises:
        UnsupportedOperator: A part of the graph has no form here.
        BadModel: It is no decoder-only language model, or disagrees with config.json.
    """
    config = text_config(source.config)
    notes = list(warnings)
    inputs = read_inputs(source)
    native = inputs.native
    if native is not None:
        smaller = resized_sizes(source.stripped(), native, large=large)
        if smaller is not None:
            source = source.changed(partial(resize, sizes=smaller))
            inputs = read_inputs(source)
        layers = len(inputs.named("past")) // 2
        with boundary("config.json", what=_CONFIG):
            windows = family.windows(config, layers)
        inputs, warning = inputs.layer_windows(windows)
        notes += [] if warning is None else [warning]
    ropes, unknown = _described_ropes(config, family, needed=native is not None)
    notes += unknown
    inputs = inputs.settled(source, ropes)
    sizes = inputs.sizes
    output = logits_name(source)
    graph = _folded(source, inputs, sizes, ropes)
    remove_noise(graph)
    fuse_norms(graph)
    walk = Walk(graph, sizes.tokens, inputs.tokens, {})
    scale = None if native is not None else MaskAtScale(source, inputs, ropes, config, graph)
    solver = AttentionSolver(
        walk,
        sizes,
        [cache.name for cache in inputs.named("past")],
        ropes=list(ropes.values()),
        mask_at_scale=scale,
    )
    if not solver.ends:
        raise BadModel(
            "no attention was found: no softmax over past and new keys whose result multiplies "
            "values",
            where=source.path.name,
            remedy="export a decoder-only language model",
        )
    walk.ends = dict.fromkeys(solver.ends, solver)
    walk.run()
    attentions = solver.finish()
    final = _logits(walk, source, output, sizes=sizes)
    cuts = find_boundaries(final.draft, [attention.draft for attention in attentions])
    if native is not None:
        attentions = [
            dataclasses.replace(attention, window=_given_window(attention, inputs.windows))
            for attention in attentions
        ]
    with boundary("config.json", what=_CONFIG):
        check_config(config, attentions, final, cuts.order[0].weights)
    looked = check_positions(source, inputs, ropes, config, walk=walk, parts=solver.parts)
    notes += looked.warnings
    layer_ropes, tables = name_ropes(attentions, ropes)
    limit = config.get("max_position_embeddings")
    with boundary("config.json", what=_CONFIG):
        notes += disagreements(config, family, attentions, ropes=ropes)
    identity = Identity(
        family.name,
        "dynamic" if native is None else "static",
        native,
        limit if isinstance(limit, int) else None,
        tuple(notes),
    )
    with CoreWriter(out) as writer:
        facts = write_core(writer, cuts, attentions, layer_ropes, tables=tables, identity=identity)
    rounding = max(attention.rotation.rounding for attention in attentions)
    return Ingested(facts, dataclasses.replace(source, rounding=rounding), inputs, ropes)


def _folded(
    source: SourceModel, inputs: SourceInputs, sizes: Sizes, ropes: Mapping[str, RopeTable]
) -> FoldedGraph:
    """The graph at fixed sizes.

    Raises:
        UnsupportedOperator: A node that is needed has no known meaning.
        BadModel: Shapes that do not fit together; said of prompts where an empty cache mends it.
    """

    def at(wanted: Sizes) -> FoldedGraph:
        return specialise(source, inputs.feeds(wanted, ropes), inputs.open_shapes(wanted))

    try:
        return at(sizes)
    except BadModel as error:
        if inputs.native is not None or not inputs.named("past"):
            raise
        try:
            at(Sizes(sizes.tokens, 0, 0))
        except BadInput:
            raise error from None
        raise BadModel(
            f"several tokens go through it only while the cache is empty: {sizes.tokens} tokens "
            f"behind {sizes.past} do not ({error.message})",
            where=error.where,
            remedy="export a model that goes on with a text in passes of any length; "
            "onnxruntime-genai's builder writes them with GroupQueryAttention (-p fp32 or int4 for "
            "-e cpu, -p fp16 for -e cuda), not with MultiHeadAttention (-p fp16 for -e cpu)",
        ) from error


def _described_ropes(
    config: Mapping[str, object], family: Family, *, needed: bool
) -> tuple[dict[str, RopeTable], list[str]]:
    """config.json's tables, and a warning where it describes none that is known.

    Only a source that takes its rotary tables as inputs needs them.
    """
    try:
        with boundary("config.json", what=_CONFIG):
            return ropes_of(config, family), []
    except BadModel as error:
        if needed:
            raise
        return {}, [f"config.json: {error.message}: the graph's own rotary table is used"]


def _given_window(attention: FoundAttention, windows: Mapping[str, int]) -> int:
    """The window of the mask input that an attention reads."""
    return max((windows.get(name, 0) for name in attention.mask_inputs or ()), default=0)


def stated_vocabulary(source: SourceModel) -> int | None:
    """The last dimension of the logits, where the graph states it."""
    name = logits_name(source)
    shape = next(value.shape for value in source.model.graph.outputs if value.name == name)
    last = shape[-1] if shape is not None and len(shape) else None
    return last if isinstance(last, int) else None


def _logits(walk: Walk, source: SourceModel, output: str, *, sizes: Sizes) -> Data:
    held = walk.graph.outputs[output]
    shape = walk.graph.shapes.get(held, ())
    if len(shape) != 3 or shape[1] != sizes.tokens:
        raise BadModel(
            f"its output has the shape {list(shape)} for {sizes.tokens} tokens, not one row of "
            "logits for each",
            where=output,
            remedy="export a causal language model with logits of all tokens",
        )
    final = walk.settle(walk.final(output))
    if final.draft.op_type in ("RMSNormalization", "LayerNormalization"):
        raise no_logits(source, [output])
    if final.layout.shape != shape or final.draft.op_type == "Embedding":
        raise BadModel("it is not a row of logits for each token", where=output)
    return final
