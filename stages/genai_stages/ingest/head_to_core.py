"""An EAGLE head -> a core graph: a decoder that reads a model's hidden states beside token ids.

What a head has beside a language model: inputs [1, T, width] of hidden states, an output
[1, T, hidden] that is given back while it drafts, and logits that may be of a smaller vocabulary
(Li et al., EAGLE, 2024; EAGLE-3, 2025). Its graph is recognized as any other; hidden states may be
added to what comes of token ids, or stand beside it along the channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from genai_core.errors import BadModel, DriftError
from genai_core.facts import HeadFacts, ModelFacts, RopeTable
from genai_core.files.foreign import boundary
from genai_stages.architectures.family import Family
from genai_stages.architectures.rope import ropes_of
from genai_stages.graph.core_graph import CoreWriter, read_core, write_facts
from genai_stages.graph.expand_attention import expand
from genai_stages.ingest.admission.check_config import check_config, text_config
from genai_stages.ingest.admission.refuse_source import logits_name
from genai_stages.ingest.admission.source_inputs import SourceInput, SourceInputs, read_inputs
from genai_stages.ingest.folding.folded_graph import StaticNode
from genai_stages.ingest.folding.fuse_norms import fuse_norms
from genai_stages.ingest.folding.remove_noise import remove_noise
from genai_stages.ingest.folding.specialise import specialise
from genai_stages.ingest.output.compare_source import TOLERANCE, core_session, source_session
from genai_stages.ingest.output.write_core import Identity, write_core
from genai_stages.ingest.recognition.attention.found_attention import Sizes
from genai_stages.ingest.recognition.attention.recognise_attention import AttentionSolver
from genai_stages.ingest.recognition.drafts import Data, DraftNode
from genai_stages.ingest.recognition.find_boundaries import Cuts, live_drafts
from genai_stages.ingest.recognition.layouts import LayoutError, token_major
from genai_stages.ingest.recognition.name_ropes import name_ropes
from genai_stages.ingest.recognition.recognise_layers import Walk
from genai_stages.ingest.source.source_model import Array, SourceModel

_CONFIG = "it has a value that fits no model"
_EXPORT = (
    "export the head with input_ids, its hidden states, position_ids and past_key_values, and "
    "with logits and its own hidden state as outputs"
)
_PASSES = (Sizes(11, 13, 13), Sizes(7, 0, 0), Sizes(1, 611, 611))
"""What is compared: tokens and past."""


@dataclasses.dataclass(frozen=True)
class IngestedHead:
    """A written core graph.

    Attributes:
        facts: As written; `facts.head` is there.
        drift: Largest difference of logits and of the state that is given back, relative.
    """

    facts: ModelFacts
    drift: float


def head_to_core(source: SourceModel, family: Family, out: Path, *, threads: int) -> IngestedHead:
    """Recognize a head, write its core graph into `out`, and compare the two.

    Args:
        source: The source.
        family: What its config.json means.
        out: An empty folder.
        threads: Of ONNX Runtime.

    Raises:
        BadModel: It is no head, or disagrees with config.json.
        UnsupportedOperator: A part of the graph has no form here.
        DriftError: The core graph computes something else.
    """
    config = text_config(source.config)
    inputs = read_inputs(source, head=True)
    if inputs.native is not None or not inputs.named("past"):
        raise BadModel(
            "a head has dynamic lengths and a past of its own",
            where=source.path.name,
            remedy=_EXPORT,
        )
    with boundary("config.json", what=_CONFIG):
        ropes = ropes_of(config, family)
    inputs = inputs.settled(source, ropes)
    walk, solver = _walked(source, inputs, ropes)
    final = walk.settle(walk.final(logits_name(source)))
    feedback, head = _roles(source, inputs, walk, final)
    cuts, embedding = _cuts(
        source, final.draft, feedback, [attention.draft for attention in solver.found]
    )
    head = head.model_copy(update={"tokens": embedding.weights[0].constant.shape[0]})  # type: ignore[union-attr]
    with boundary("config.json", what=_CONFIG):
        check_config(config, solver.found, final, embedding.weights)
    layer_ropes, tables = name_ropes(solver.found, ropes)
    limit = config.get("max_position_embeddings")
    identity = Identity(family.name, "dynamic", None, limit if isinstance(limit, int) else None, ())
    with CoreWriter(out) as writer:
        facts = write_core(
            writer,
            cuts,
            solver.found,
            layer_ropes,
            tables=tables,
            identity=identity,
            outputs=[feedback],
        )
    named = str(read_core(out)[0].graph.outputs[1].name)
    facts = write_facts(
        out, facts.model_copy(update={"head": head.model_copy(update={"feedback": named})})
    )
    return IngestedHead(facts, _compared(source, inputs, ropes, out, head, threads=threads))


class _HeadWalk(Walk):
    """A walk that also joins tensors along their channels."""

    def _visit(self, node: StaticNode) -> None:
        if node.op_type != "Concat":
            super()._visit(node)
            return
        parts = [self.data(name) for name in node.inputs]
        shape = self.graph.shapes[node.outputs[0]]
        widths = [part.draft.width for part in parts]
        width = sum(widths)
        plain = all(
            part.layout == token_major(self.tokens, wide)
            for part, wide in zip(parts, widths, strict=True)
        )
        if not plain or tuple(shape) != (1, self.tokens, width):
            raise LayoutError("tensors are joined, but not along their channels")
        draft = DraftNode(
            node.outputs[0],
            "Concat",
            tuple(part.draft for part in parts),
            width,
            attributes={"axis": -1},
            made_by=node.where(),
        )
        layout = token_major(self.tokens, width)
        self.values[node.outputs[0]] = Data(draft, layout, node.outputs[0])


def _walked(
    source: SourceModel, inputs: SourceInputs, ropes: dict[str, RopeTable]
) -> tuple[_HeadWalk, AttentionSolver]:
    sizes = inputs.sizes
    graph = specialise(source, inputs.feeds(sizes, ropes), inputs.open_shapes(sizes))
    remove_noise(graph)
    fuse_norms(graph)
    walk = _HeadWalk(graph, sizes.tokens, inputs.tokens, {})
    for state in inputs.named("states"):
        width = int(state.dims[-1])
        draft = DraftNode(state.name, "Input", (), width)
        walk.values[state.name] = Data(draft, token_major(sizes.tokens, width), state.name)
    past = [cache.name for cache in inputs.named("past")]
    solver = AttentionSolver(walk, sizes, past, ropes=list(ropes.values()), mask_at_scale=None)
    if not solver.ends:
        raise BadModel("no attention was found", where=source.path.name, remedy=_EXPORT)
    walk.ends = dict.fromkeys(solver.ends, solver)
    walk.run()
    solver.finish()
    return walk, solver


def _roles(
    source: SourceModel, inputs: SourceInputs, walk: Walk, final: Data
) -> tuple[DraftNode, HeadFacts]:
    """The state that is given back, and which input is what."""
    live = live_drafts(final.draft)
    given = _given_back(source, walk, live)
    width = given.width
    states = inputs.named("states")
    hidden = [state for state in states if state.dims[-1] == width]
    if not 1 <= len(states) <= 2 or not hidden:  # one for both, or one each
        shown = ", ".join(f"{state.name} {list(state.dims)}" for state in states) or "none"
        raise BadModel(
            f"a head reads hidden states in one input or two, one of them {width} wide as its own "
            f"state; this one has {shown}",
            where=source.path.name,
            remedy=_EXPORT,
        )
    features = _features(states, hidden)
    return given, HeadFacts(
        features=features.name,
        features_size=int(features.dims[-1]),
        hidden=next(
            state for state in reversed(hidden) if state is not features or len(states) == 1
        ).name,
        feedback="",
        tokens=0,
    )


def _features(states: Sequence[SourceInput], hidden: Sequence[SourceInput]) -> SourceInput:
    """The input of the model's hidden states: the wider one, else the one that is named so."""
    wider = [state for state in states if state not in hidden]
    named = [state for state in states if "feature" in state.name.lower()]
    return (wider or named or list(states))[0]


def _given_back(source: SourceModel, walk: Walk, live: Sequence[DraftNode]) -> DraftNode:
    """The draft of the one output [1, T, width] beside the logits."""
    known = {id(draft) for draft in live}
    logits = logits_name(source)
    drafts = []
    for name, held in walk.graph.outputs.items():
        data = walk.values.get(held)
        if name == logits or data is None or id(data.draft) not in known or not data.is_whole:
            continue
        if walk.graph.shapes.get(held) == (1, walk.tokens, data.draft.width):
            drafts.append(data.draft)
    if len(drafts) != 1:
        raise BadModel(
            f"it has {len(drafts)} outputs [1, T, width] beside the logits; the one that is given "
            "back while it drafts is needed",
            where=source.path.name,
            remedy=_EXPORT,
        )
    return drafts[0]


def _cuts(
    source: SourceModel, final: DraftNode, feedback: DraftNode, attentions: Sequence[DraftNode]
) -> tuple[Cuts, DraftNode]:
    """Live drafts by group, and the embedding."""
    order = live_drafts(final)
    tables = [draft for draft in order if draft.op_type == "Embedding"]
    if len(tables) != 1:
        raise BadModel(
            f"it has {len(tables)} embedding tables behind its token ids",
            where=source.path.name,
            remedy="export the head with a copy of the model's embedding table",
        )
    places = {id(draft): place for place, draft in enumerate(order)}
    ends = [places[id(draft)] for draft in attentions]
    groups = []
    for place, draft in enumerate(order):
        if draft is tables[0]:
            groups.append(-1)
        elif place > places[id(feedback)] and place > ends[-1]:
            groups.append(len(ends))
        else:
            groups.append(min(sum(end < place for end in ends[:-1]), len(ends) - 1))
    return Cuts(order, [feedback], groups), tables[0]


def _compared(
    source: SourceModel,
    inputs: SourceInputs,
    ropes: dict[str, RopeTable],
    core: Path,
    head: HeadFacts,
    *,
    threads: int,
) -> float:
    """Run both on random tokens and hidden states; the largest difference.

    Raises:
        DriftError: They differ.
    """
    model, facts = read_core(core)
    assert facts.head is not None
    original = source_session(source, threads)
    written = core_session(expand(model, facts), core, threads)
    theirs = [value.name for value in original.get_outputs() if "present" not in value.name]
    kinds = {value.name: value.type for value in original.get_inputs()}
    worst = 0.0
    for seed, sizes in enumerate(_PASSES):
        random = np.random.default_rng(seed)
        given: dict[str, Any] = {
            "input_ids": random.integers(0, head.tokens, (1, sizes.tokens)),
            **{
                state.name: random.standard_normal(
                    (1, sizes.tokens, int(state.dims[-1])), np.float32
                )
                for state in inputs.named("states")
            },
        }
        feeds: dict[str, Any] = {**inputs.feeds(sizes, ropes), **given}
        feeds[inputs.tokens] = feeds.pop("input_ids")
        for attention in facts.attention:
            shape = (1, attention.kv_heads, sizes.past, attention.head_dim)
            for kind in ("key", "value"):
                values = random.standard_normal(shape, np.float32)
                given[f"past_{kind}_{attention.layer}"] = values
                name = attention.roles["past_key" if kind == "key" else "past_value"]
                turned = inputs.past_shape(
                    next(cache for cache in inputs.named("past") if cache.name == name),
                    sizes.length,
                )
                feeds[name] = values if turned == shape else np.swapaxes(values, 2, 3)
        feeds = {
            name: np.ascontiguousarray(feeds[name]).astype(_NUMPY[kind])
            for name, kind in kinds.items()
        }
        wanted = dict(zip(theirs, original.run(theirs, feeds), strict=True))
        names = ["logits", facts.head.feedback]
        given = {value.name: given[value.name] for value in written.get_inputs()}
        have = written.run(names, given)
        for name, mine in zip(names, have, strict=True):
            other = _of_shape(wanted, mine.shape, name)
            drift = float(np.abs(other - mine).max() / max(1.0, float(np.abs(other).max())))
            worst = max(worst, drift)
            if not drift <= TOLERANCE:
                raise DriftError(
                    f"the core graph departs from the source by {drift:.1e} of the largest value "
                    f"({sizes.tokens} tokens behind {sizes.past}), more than {TOLERANCE:.0e}",
                    where=name,
                    remedy="report this head's exporter and version",
                )
    return worst


def _of_shape(outputs: dict[str, Array], shape: tuple[int, ...], name: str) -> Array:
    if name in outputs:
        return outputs[name]
    return next(value for value in outputs.values() if value.shape == shape)


_NUMPY = {
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
