"""Look at the positional part of a source far out, and refuse what the core graph cannot say.

Recognition and comparison see positions below a hundred. A temperature that starts at position
8192, a table whose later rows follow other frequencies, a mask of chunks: all that looks like plain
attention there. So the source is folded again behind long pasts and at chosen positions, and each
attention and everything between is held against what was recognized. Long attention is computed
nowhere: random scores stand for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from genai_core.errors import GenAIError, UnsupportedOperator
from genai_core.facts import RopeTable
from genai_stages.ingest.admission.source_inputs import SourceInputs
from genai_stages.ingest.folding.folded_graph import FoldedGraph
from genai_stages.ingest.folding.fuse_norms import fuse_norms
from genai_stages.ingest.folding.remove_noise import remove_noise
from genai_stages.ingest.folding.specialise import specialise
from genai_stages.ingest.positions.far_attention import Departure, FarAttention
from genai_stages.ingest.positions.far_positions import (
    Far,
    candidates,
    far_passes,
    numbers_of,
    static_passes,
)
from genai_stages.ingest.recognition.attention.attention_parts import AttentionParts
from genai_stages.ingest.recognition.attention.found_attention import Sizes
from genai_stages.ingest.recognition.recognise_layers import MOVEMENTS, Walk
from genai_stages.ingest.recognition.same_graph import difference
from genai_stages.ingest.source.source_model import SourceModel, is_float

_SMALL = 1 << 26
_REMEDIES = {
    "rotary": "export the model with one rotary table for all positions; a scaled one must stand "
    "in config.json's rope_scaling",
    "scale": "export the model without a factor that depends on the position",
    "bias": "export the model without a bias on positions",
    "mask": "export the model with causal or sliding-window attention",
    "graph": "export the model so that it computes the same at every position",
}


@dataclasses.dataclass(frozen=True)
class Looked:
    """What was looked at.

    Attributes:
        last: The furthest position, None = none beyond those of recognition.
        positions: How many.
        warnings: For the user.
    """

    last: int | None
    positions: int
    warnings: tuple[str, ...]


def check_positions(
    source: SourceModel,
    inputs: SourceInputs,
    ropes: Mapping[str, RopeTable],
    config: Mapping[str, object],
    *,
    walk: Walk,
    parts: Sequence[AttentionParts],
) -> Looked:
    """Hold a source at far positions against what was recognized near.

    Args:
        source: The source.
        inputs: Its inputs.
        ropes: config.json's tables.
        config: config.json.
        walk: Over the graph that was recognized.
        parts: Its attentions.

    Raises:
        UnsupportedOperator: It does something else there, with node, position and both values.
    """
    if inputs.native is not None and not inputs.named("positions"):
        # Rotary tables and masks are inputs: the graph itself knows no position.
        turned = any(part.rotation.rotary_dim for part in parts)
        placed = bool(inputs.named("cos")) or not turned
        said = "its positions follow from its fixed sizes: other positions were not looked at"
        return Looked(None, 0, () if placed else (said,))
    return _Check(source, inputs, ropes, walk, parts).run(config)


class _Check:
    def __init__(
        self,
        source: SourceModel,
        inputs: SourceInputs,
        ropes: Mapping[str, RopeTable],
        walk: Walk,
        parts: Sequence[AttentionParts],
    ) -> None:
        self.source = source
        self.inputs = inputs
        self.ropes = ropes
        self.walk = walk
        self.parts = parts
        self.held: tuple[Far, FoldedGraph] | None = None
        self.placed = bool(inputs.named("positions"))
        self.near = frozenset(
            name
            for node in walk.graph.nodes
            for original in (node, *node.replaced)
            for name in original.outputs
        )
        ends = set(walk.ends)
        self.between = {name for name in walk.values if name not in ends}

    def run(self, config: Mapping[str, object]) -> Looked:
        names = positional(self.walk.graph)
        numbers = numbers_of(self.walk.graph, names)
        grain = stored_grain(self.walk.graph, names)
        heads = max(part.heads for part in self.parts)
        width = max(part.width for part in self.parts)
        past = self.inputs.sizes.past if self.inputs.named("past") else None
        warnings: list[str] = []
        for last in candidates(numbers, config):
            plan = partial(
                far_passes,
                numbers,
                last,
                heads=heads,
                width=width,
                known=self.inputs.sizes.total,
                past=past,
            )
            if self.inputs.native is None:
                passes = plan(placed=self.placed)
            else:
                passes = static_passes(numbers, last, self.inputs.sizes, heads=heads)
            try:
                self.fold(passes[-1])
            except GenAIError as error:
                if not warnings and "max_position_embeddings" in config:
                    warnings.append(f"no position near {last} was looked at: {error}")
                continue
            looked = self.look(passes, grain)
            looked = looked or self.look(plan(placed=False), grain)
            assert looked is not None
            return dataclasses.replace(looked, warnings=(*warnings, *looked.warnings))
        return Looked(None, 0, tuple(warnings))

    def look(self, passes: Sequence[Far], grain: float) -> Looked | None:
        """Go through the passes; None where the input of positions is not what counts."""
        seen: set[int] = set()
        missed: list[str] = []
        # The last was folded already, to see whether it can be.
        for far in [*passes[-1:], *passes[:-1]]:
            try:
                graph = self.fold(far)
            except GenAIError as error:
                missed.append(str(error))
                continue
            departure = self.departure(graph, far, grain)
            if departure is not None:
                if not far.is_text and not self.in_text(departure, grain):
                    return None
                raise self.refusal(self.earliest(departure, far, grain, seen))
            seen.update(far.positions.tolist())
        said = [f"some positions could not be looked at: {missed[0]}"] if missed else []
        return Looked(max(seen, default=None), len(seen), tuple(said))

    def in_text(self, departure: Departure, grain: float) -> bool:
        """Whether a token at this place of a text departs too.

        GroupQueryAttention counts positions itself, whatever the input of positions says.
        """
        if self.inputs.native is not None:
            return True
        position = departure.position
        past = position if self.inputs.named("past") else 0
        far = Far(Sizes(position + 1 - past, past, past), scores=departure.kind != "rotary")
        try:
            return self.departure(self.fold(far), far, grain) is not None
        except GenAIError:
            return True

    def fold(self, far: Far) -> FoldedGraph:
        if self.held is not None and self.held[0] is far:
            return self.held[1]
        feeds = self.inputs.feeds(far.sizes, self.ropes, at=far.at)
        graph = specialise(self.source, feeds, self.inputs.open_shapes(far.sizes))
        remove_noise(graph, small=_SMALL)
        fuse_norms(graph)
        self.held = (far, graph)
        return graph

    def departure(self, graph: FoldedGraph, far: Far, grain: float) -> Departure | None:
        """The earliest departure of a pass."""
        tried = FarAttention(
            graph,
            far,
            self.walk.values,
            near=self.near,
            ropes=self.ropes,
            tokens=self.walk.tokens,
            grain=grain,
        )
        tries = [tried.departure(part) for part in self.parts]
        departures = [departure for departure in tries if departure is not None]
        if departures:
            return min(departures, key=lambda departure: departure.position)
        other = difference(
            self.walk.graph, graph, self.between, tokens=(self.walk.tokens, far.sizes.tokens)
        )
        if other is None:
            return None
        node, what = other
        return Departure(int(far.positions.max()), f"it {what}", node.where(), "graph")

    def earliest(self, departure: Departure, far: Far, grain: float, seen: set[int]) -> Departure:
        """The same departure at the first position that has it, found by halving."""
        sound = [*seen, *far.positions.tolist(), self.inputs.sizes.total - 1]
        before = (position for position in sound if position < departure.position)
        good = max(before, default=-1)
        while departure.position - good > 1:
            middle = (departure.position + good) // 2
            probe = self.probe(middle, far)
            try:
                nearer = self.departure(self.fold(probe), probe, grain)
            except GenAIError:
                return departure
            if nearer is None:
                good = middle
            else:
                departure = nearer
        return departure

    def probe(self, position: int, far: Far) -> Far:
        """A pass at one position, of the kind in which the departure was seen."""
        if self.inputs.native is not None:
            return Far(far.sizes, np.full(far.sizes.tokens, position), far.scores)
        if far.at is not None:
            return Far(Sizes(1, far.sizes.past, far.sizes.length), np.array([position]), far.scores)
        if not far.sizes.past:
            return Far(Sizes(position + 1, 0, 0), scores=far.scores)
        return Far(Sizes(1, position, position), scores=far.scores)

    @staticmethod
    def refusal(departure: Departure) -> UnsupportedOperator:
        return UnsupportedOperator(
            f"from position {departure.position} on {departure.what}, which has no form here",
            where=departure.where,
            remedy=_REMEDIES[departure.kind],
        )


def positional(graph: FoldedGraph) -> list[str]:
    """Known tensors that stand in the arithmetic of a folded graph, shapes and weights aside."""
    names: dict[str, None] = {}
    for node in graph.nodes:
        for index, name in enumerate(node.inputs):
            constant = graph.constants.get(name)
            if constant is None or (index and node.op_type in MOVEMENTS):
                continue
            if constant.origin is None:
                names[name] = None
    return list(names)


def stored_grain(graph: FoldedGraph, names: Sequence[str]) -> float:
    """The coarsest rounding of the stored floats that known tensors are made of."""
    grain = 0.0
    for name in names:
        for constant in graph.known_ancestors(name):
            dtype = constant.load().dtype
            if constant.size > 1 and is_float(dtype) and dtype.itemsize == 2:
                grain = max(grain, 2.0**-10 if dtype == np.float16 else 2.0**-7)
    return grain
