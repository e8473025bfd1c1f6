"""Source graph -> core graph: the passes in their order."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from genai_core.errors import BadModel
from genai_core.facts import ModelFacts, RopeTable
from genai_stages.architectures.family import Family
from genai_stages.architectures.rope import ropes_of
from genai_stages.core_graph import CoreWriter
from genai_stages.passes import classify_mask
from genai_stages.passes.drafts import Data
from genai_stages.passes.evaluate_region import run_region
from genai_stages.passes.find_boundaries import find_boundaries
from genai_stages.passes.fuse_norms import fuse_norms
from genai_stages.passes.lower_fused import CAUSAL, MADE, lower_fused
from genai_stages.passes.name_ropes import name_ropes
from genai_stages.passes.recognise_attention import AttentionSolver, Found, Sizes
from genai_stages.passes.recognise_layers import Walk
from genai_stages.passes.remove_noise import remove_noise
from genai_stages.passes.source_inputs import SourceInputs, read_inputs
from genai_stages.passes.specialise import StaticGraph, StaticNode, specialise
from genai_stages.passes.write_core import Identity, write_core
from genai_stages.source_model import Constant, SourceModel

_LONGEST = 1 << 18
"""Positions; numbers above this in a mask's arithmetic are limits of integers, not windows."""


@dataclasses.dataclass(frozen=True)
class Ingested:
    """A written core graph and what was learnt on the way."""

    facts: ModelFacts
    inputs: SourceInputs
    ropes: Mapping[str, RopeTable]


def source_to_core(
    source: SourceModel, family: Family, out: Path, *, warnings: Sequence[str] = ()
) -> Ingested:
    """Recognize a source and write its core graph into `out`.

    Raises:
        UnsupportedOperator: A part of the graph has no form here.
        BadModel: It is no decoder-only language model, or disagrees with config.json.
    """
    config = text_config(source.config)
    inputs = read_inputs(source)
    ropes = ropes_of(config, family)
    sizes = inputs.sizes
    output = logits_name(source)
    opened = open_shapes(inputs, sizes)
    graph = specialise(source, inputs.feeds(sizes, ropes), opened)
    lower_fused(graph)
    remove_noise(graph)
    fuse_norms(graph)
    walk = Walk(graph, sizes.tokens, inputs.tokens, {})
    scale = None if inputs.native else _MaskAtScale(source, inputs, ropes, config, graph)
    solver = AttentionSolver(
        walk,
        sizes,
        [one.name for one in inputs.named("past")],
        tables=[np.array(table.inv_freq, np.float32) for table in ropes.values()],
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
    final = _logits(walk, output, sizes)
    cuts = find_boundaries(final.draft, [one.draft for one in solver.found])
    found = solver.found
    if inputs.native:
        windows = family.windows(config, len(found))
        found = [
            dataclasses.replace(one, window=window)
            for one, window in zip(found, windows, strict=True)
        ]
    check_config(config, found, final, cuts.order[0].weights)
    layer_ropes, tables = name_ropes(found, ropes)
    limit = config.get("max_position_embeddings")
    identity = Identity(
        family.name,
        "static" if inputs.native else "dynamic",
        inputs.native,
        limit if isinstance(limit, int) else None,
        tuple(warnings),
    )
    with CoreWriter(out) as writer:
        facts = write_core(writer, cuts, found, layer_ropes, tables=tables, identity=identity)
    return Ingested(facts, inputs, ropes)


def text_config(config: Mapping[str, object]) -> Mapping[str, object]:
    """The language model's part of a multimodal config.json."""
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, dict) else config


def open_shapes(inputs: SourceInputs, sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Static shapes of token ids and past."""
    shapes: dict[str, tuple[int, ...]] = {inputs.tokens: (1, sizes.tokens)}
    for one in inputs.named("past"):
        shapes[one.name] = inputs.past_shape(one, sizes.length)
    return shapes


def logits_name(source: SourceModel) -> str:
    """The output of logits: named so, or the only one that is no cache."""
    names = [str(value.name) for value in source.model.graph.outputs]
    if "logits" in names:
        return "logits"
    plain = [
        name for name in names if not any(word in name for word in ("present", "past", "cache"))
    ]
    if len(plain) != 1:
        raise BadModel(
            f"none of its outputs is called logits: {', '.join(names[:5])}",
            where=source.path.name,
            remedy="export a language model with its head",
        )
    return plain[0]


def _logits(walk: Walk, output: str, sizes: Sizes) -> Data:
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
    if final.layout.shape != shape or final.draft.op_type == "Embedding":
        raise BadModel("it is not a row of logits for each token", where=output)
    return final


def check_config(
    config: Mapping[str, object],
    found: Sequence[Found],
    final: Data,
    embedding: Sequence[object],
) -> None:
    """Compare config.json's numbers with the graph's.

    Raises:
        BadModel: Two numbers differ.
    """
    first = found[0]
    rows = getattr(getattr(embedding[0], "constant", None), "shape", (final.draft.width, 0))
    graph = {
        "num_hidden_layers": {len(found)},
        "num_attention_heads": {one.num_heads for one in found},
        "num_key_value_heads": {one.kv_heads for one in found},
        "head_dim": {first.head_dim},
        "hidden_size": {rows[1]},
        "vocab_size": {final.draft.width, rows[0]},
    }
    for key, have in graph.items():
        stated = config.get(key)
        if isinstance(stated, int) and not isinstance(stated, bool) and stated not in have:
            shown = " or ".join(str(number) for number in sorted(have))
            raise BadModel(
                f"{key} is {stated} here and {shown} in the graph",
                where=f"config.json: {key}",
                remedy="put the config.json and the ONNX file of one model together",
            )


class _MaskAtScale:
    """Computes a mask once more behind a past that is longer than any window."""

    def __init__(
        self,
        source: SourceModel,
        inputs: SourceInputs,
        ropes: Mapping[str, RopeTable],
        config: Mapping[str, object],
        graph: StaticGraph,
    ) -> None:
        self.source = source
        self.inputs = inputs
        self.ropes = ropes
        self.config = config
        self.graph = graph

    def __call__(self, nodes: Sequence[StaticNode]) -> int | None:
        first, *chain = nodes
        inner = {name for node in nodes for name in node.outputs}
        wanted = list(
            dict.fromkeys(
                name for node in chain for name in node.inputs if name and name not in inner
            )
        )
        longest = self.longest(wanted)
        if longest <= self.inputs.sizes.past:
            return 0
        sizes = Sizes(2, longest, longest)
        feeds = self.inputs.feeds(sizes, self.ropes)
        shapes = open_shapes(self.inputs, sizes)
        made = [name for name in wanted if name.startswith(MADE)]
        graph = specialise(self.source, feeds, shapes, wanted=set(wanted).difference(made))
        for name in made:
            causal = classify_mask.reference(sizes.tokens, sizes.past, 0)
            graph.constants[name] = (
                Constant.of(name, causal) if name.startswith(CAUSAL) else self.graph.constants[name]
            )
        shape = (*self.graph.shapes[first.outputs[0]][:-2], sizes.tokens, sizes.total)
        tensors = run_region(graph, chain, {first.outputs[0]: np.zeros(shape, np.float32)})
        given = tensors[chain[-1].outputs[0]].reshape(-1, sizes.tokens, sizes.total)[0]
        return classify_mask.classify(given > classify_mask.HIDDEN, sizes.past)

    def longest(self, names: Sequence[str]) -> int:
        """A past beyond config.json's window and any number in the masks' arithmetic."""
        window = self.config.get("sliding_window")
        numbers = [window] if isinstance(window, int) else []
        for name in names:
            for constant in self.graph.known_ancestors(name):
                if constant.size == 1 and constant.shape in ((), (1,)):
                    value = constant.array().reshape(-1)[0]
                    if np.isfinite(value):
                        numbers.append(int(value))
        near = [abs(number) for number in numbers if abs(number) <= _LONGEST]
        return max(near, default=0) + 7 if max(near, default=0) > self.inputs.sizes.past else 0
