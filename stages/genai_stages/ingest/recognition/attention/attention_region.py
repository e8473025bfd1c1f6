"""Where an attention lies in its graph: between projections, cache inputs and its last product."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genai_stages.ingest.folding.folded_graph import FoldedGraph, StaticNode
from genai_stages.ingest.recognition.attention.attention_operands import SIDES, Operand, Operands
from genai_stages.ingest.recognition.attention.attention_scores import ScoreChain
from genai_stages.ingest.recognition.attention.found_attention import Sizes
from genai_stages.ingest.recognition.drafts import Data, DraftNode
from genai_stages.ingest.recognition.evaluate_region import region_of
from genai_stages.ingest.recognition.recognise_layers import Walk, no_form

__all__ = ["AttentionRegion", "GraphOfAttentions", "find_ends"]


def find_ends(graph: FoldedGraph, sizes: Sizes) -> dict[str, tuple[StaticNode, StaticNode]]:
    """Output of each product of probabilities and values -> that product and its softmax."""
    consumers = graph.consumers()
    ends: dict[str, tuple[StaticNode, StaticNode]] = {}
    for node in graph.nodes:
        if node.op_type != "Softmax":
            continue
        shape = graph.shapes[node.inputs[0]]
        axis = int(node.attributes.get("axis", -1 if graph.opset >= 13 else 1)) % len(shape)
        if axis != len(shape) - 1 or shape[-1] != sizes.total or len(shape) < 3:
            continue
        name = node.outputs[0]
        while True:
            readers = consumers.get(name, [])
            products = [
                reader
                for reader in readers
                if reader.op_type == "MatMul"
                and reader.inputs[0] == name
                and reader.inputs[1] not in graph.constants
            ]
            if products:
                ends[products[0].outputs[0]] = (products[0], node)
                break
            if len(readers) != 1 or readers[0].op_type not in ("Reshape", "Squeeze", "Unsqueeze"):
                break
            name = readers[0].outputs[0]
    return ends


@dataclass(frozen=True)
class GraphOfAttentions:
    """A folded graph as the search for its attentions needs it.

    Attributes:
        walk: The walk that meets them.
        sizes: At which it was folded.
        past_inputs: Names of the cache inputs.
        producers: Tensor -> the node that makes it.
        order: `id` of a node -> its place.
    """

    walk: Walk
    sizes: Sizes
    past_inputs: frozenset[str]
    producers: Mapping[str, StaticNode]
    order: Mapping[int, int]

    @classmethod
    def of(cls, walk: Walk, sizes: Sizes, past_inputs: Iterable[str]) -> GraphOfAttentions:
        """The graph of a walk."""
        return cls(
            walk,
            sizes,
            frozenset(past_inputs),
            walk.graph.producers(),
            {id(node): index for index, node in enumerate(walk.graph.nodes)},
        )


class AttentionRegion:
    """One attention in its graph.

    Args:
        whole: The graph.
        product: Of probabilities and values: its last node.
        softmax: Over its keys.
        known: What the walk knows; it ends there.
    """

    def __init__(
        self,
        whole: GraphOfAttentions,
        product: StaticNode,
        softmax: StaticNode,
        known: dict[str, Data],
    ) -> None:
        self.whole = whole
        self.graph: FoldedGraph = whole.walk.graph
        self.sizes = whole.sizes
        self.product = product
        self.softmax = softmax
        self.known = known
        self.chain = ScoreChain(self.graph, whole.producers, softmax)
        self.refuse = self.chain.refuse

    def operands(self) -> Operands:
        """Queries, keys and values back to their projections, and how many heads they have."""
        tokens, total = self.sizes.tokens, self.sizes.total
        names = dict(zip(SIDES, (*self.chain.product.inputs, self.product.inputs[1]), strict=True))
        walked = {side: self._side(name) for side, name in names.items()}
        pasts = {side: past for side, (_, _, past) in walked.items()}
        if pasts["query"] or len(pasts["key"]) > 1 or len(pasts["value"]) > 1:
            raise self.refuse("the cache does not stand behind keys and values alone")
        q_shape, k_shape = (self.graph.shapes[names[side]] for side in ("query", "key"))
        width = q_shape[-1]
        if k_shape[-2:] != (width, total):
            raise self.refuse(f"keys have the shape {list(k_shape)}")
        sides = {
            side: Operand(names[side], nodes, flat, past, *self._projection(flat, side))
            for side, (nodes, flat, past) in walked.items()
        }
        heads = int(np.prod(q_shape)) // (tokens * width)
        read = {side: len(operand.rows) for side, operand in sides.items()}
        kv_heads = read["key"] // width
        if read["query"] != heads * width or read["key"] != kv_heads * width:
            raise self.refuse("heads do not cover the projection's channels")
        if read["value"] != kv_heads * width or heads % max(kv_heads, 1):
            raise self.refuse("keys and values have heads of different sizes")
        return Operands(sides, heads, kv_heads, width)

    def nodes(self) -> list[StaticNode]:
        """All of its nodes, in the graph's order."""
        return self._behind(self.product.outputs[0])[0]

    def _behind(self, name: str) -> tuple[list[StaticNode], list[str]]:
        """Nodes between a tensor and what is known, in the graph's order; what they read there."""
        nodes, border = region_of(self.whole.producers, [name], lambda tensor: tensor in self.known)
        return sorted(nodes, key=lambda node: self.whole.order[id(node)]), border

    def _side(self, name: str) -> tuple[list[StaticNode], list[str], list[str]]:
        """Nodes behind one operand back to the projections; those, and past inputs."""
        nodes, border = self._behind(name)
        for node in nodes:
            # A projection in here means that what it projects could not be understood.
            weighted = any(tensor in self.graph.constants for tensor in node.inputs[:2])
            if node.op_type in ("MatMul", "Gemm", "Conv") and weighted:
                cause, reason = self.whole.walk.causes[node.outputs[0]]
                raise no_form(cause, reason)
        open_border = [tensor for tensor in border if tensor and tensor not in self.graph.constants]
        flat = [tensor for tensor in open_border if tensor in self.known]
        past = [tensor for tensor in open_border if tensor not in self.known]
        strange = [tensor for tensor in past if tensor not in self.whole.past_inputs]
        if strange:
            _, reason = self.whole.walk.causes.get(strange[0], (self.softmax, "unknown"))
            raise self.refuse(f"{strange[0]} is neither a projection nor a cache input ({reason})")
        return nodes, flat, past

    def _projection(
        self, flat: list[str], role: str
    ) -> tuple[DraftNode, npt.NDArray[np.int64], str]:
        """The one projection behind an operand and the channels that are read."""
        drafts = {id(self.known[name].draft): self.known[name] for name in flat}
        if len(drafts) != 1:
            raise self.refuse(f"the {role} comes from {len(drafts)} projections")
        (data,) = drafts.values()
        channels = [self.known[name].layout.channels() for name in flat]
        rows = np.unique(np.concatenate(channels))
        name = next(
            (self.known[tensor].name for tensor, held in zip(flat, channels, strict=True)
             if len(held) == len(rows)), f"{data.draft.name}.{role}",
        )  # fmt: skip
        return data.draft, rows, name
