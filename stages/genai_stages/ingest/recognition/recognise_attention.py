"""Recognize one attention by what it computes, and name its inner tensors.

A softmax over keys marks an attention; from there the product with the values and the product that
made the scores are found by walking. Everything between the projections and the context is then run
on random numbers, and each property (norms, rotation, scale, soft cap, mask, grouping) is read off
the values. So it does not matter how an exporter wrote it. At the end the definition of
`genai.Attention` must give the same context; a graph that computes something else is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from genai_core.facts import Role, RopeTable
from genai_stages.ingest.folding.folded_graph import FoldedGraph, StaticNode
from genai_stages.ingest.folding.lower_fused import MADE
from genai_stages.ingest.recognition import classify_rotary
from genai_stages.ingest.recognition.attention_norms import (
    HeadNorm,
    apply_norm,
    norm_values,
    norm_weights,
)
from genai_stages.ingest.recognition.attention_operands import SIDES, Operand, Operands, Scores
from genai_stages.ingest.recognition.attention_parts import (
    AttentionParts,
    Floats,
    Joint,
    NewHeads,
    Side,
    new_heads,
)
from genai_stages.ingest.recognition.attention_rotation import (
    KnownRopes,
    RotatedHeads,
    TurnedHeads,
    rotate,
)
from genai_stages.ingest.recognition.attention_scores import AGREEMENT, MaskAtScale, ScoreChain
from genai_stages.ingest.recognition.drafts import Data, DraftNode
from genai_stages.ingest.recognition.evaluate_region import region_of, run_region
from genai_stages.ingest.recognition.layouts import Atom, TensorLayout
from genai_stages.ingest.recognition.name_roles import AttentionCache, RoleNames
from genai_stages.ingest.recognition.recognise_layers import Walk, no_form
from genai_stages.ingest.source.source_model import Array


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes at which a graph was folded.

    Attributes:
        tokens: T.
        past: P, positions before the new tokens.
        length: Slots of the past inputs; P, or P + T where new keys are scattered into them.
    """

    tokens: int
    past: int
    length: int

    @property
    def total(self) -> int:
        """Keys that a score row has."""
        return self.past + self.tokens


@dataclasses.dataclass
class FoundAttention:
    """One recognized attention."""

    layer: int
    draft: DraftNode
    num_heads: int
    kv_heads: int
    head_dim: int
    scale: float
    softcap: float
    window: int
    rotation: classify_rotary.Rotation
    attention_factor: float
    roles: dict[Role, str]
    node: StaticNode
    mask_inputs: frozenset[str] | None
    """Known inputs that hide keys, for a mask that is an input; None = the graph computes it."""


def find_ends(graph: FoldedGraph, sizes: Sizes) -> dict[str, tuple[StaticNode, StaticNode]]:
    """Output of each product of probabilities and values -> that product and its softmax."""
    consumers = graph.consumers()
    found: dict[str, tuple[StaticNode, StaticNode]] = {}
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
                found[products[0].outputs[0]] = (products[0], node)
                break
            if len(readers) != 1 or readers[0].op_type not in ("Reshape", "Squeeze", "Unsqueeze"):
                break
            name = readers[0].outputs[0]
    return found


class AttentionSolver:
    """Recognizes the attentions of one graph, in the order in which the walk meets them.

    Args:
        walk: The walk that asks.
        sizes: Of the graph.
        past_inputs: Names of the cache inputs.
        ropes: Tables to try, from config.json.
        mask_at_scale: Computes a window behind a long past; None = the mask is an input.
    """

    def __init__(
        self,
        walk: Walk,
        sizes: Sizes,
        past_inputs: Iterable[str],
        *,
        ropes: Sequence[RopeTable],
        mask_at_scale: MaskAtScale | None,
    ) -> None:
        self.walk = walk
        self.graph = walk.graph
        self.sizes = sizes
        self.past_inputs = set(past_inputs)
        self.ropes = KnownRopes.of(ropes)
        self.mask_at_scale = mask_at_scale
        self.ends = find_ends(walk.graph, sizes)
        self.producers = walk.graph.producers()
        self.order = {id(node): index for index, node in enumerate(walk.graph.nodes)}
        self.names = RoleNames(walk.graph, walk.values, self.past_inputs, tokens=sizes.tokens)
        self.found: list[FoundAttention] = []
        self.parts: list[AttentionParts] = []
        self.caches: list[AttentionCache] = []

    def finish(self) -> list[FoundAttention]:
        """The attentions, once the walk is over."""
        self.names.cache_outputs(self.caches)
        return self.found

    def __call__(self, node: StaticNode, values: dict[str, Data]) -> Data:
        """See `recognise_layers.Recogniser`."""
        _, softmax = self.ends[node.outputs[0]]
        one = _Attention(self, node, softmax, values)
        found, layout = one.solve(len(self.found))
        self.found.append(found)
        return Data(found.draft, layout, found.draft.name)


class _Attention:
    """One attention while it is recognized: see `solve` for the order."""

    def __init__(
        self,
        solver: AttentionSolver,
        product: StaticNode,
        softmax: StaticNode,
        values: dict[str, Data],
    ) -> None:
        self.solver = solver
        self.graph = solver.graph
        self.sizes = solver.sizes
        self.product = product
        self.softmax = softmax
        self.known = values
        self.chain = ScoreChain(self.graph, solver.producers, softmax)
        self.refuse = self.chain.refuse
        self.tensors: dict[str, Array] = {}

    def side(self, name: str) -> tuple[list[StaticNode], list[str], list[str]]:
        """Nodes behind one operand back to the projections; those, and past inputs."""
        nodes, border = region_of(self.solver.producers, [name], lambda one: one in self.known)
        nodes.sort(key=lambda node: self.solver.order[id(node)])
        for node in nodes:
            # A projection in here means that what it projects could not be understood.
            weighted = any(one in self.graph.constants for one in node.inputs[:2])
            if node.op_type in ("MatMul", "Gemm", "Conv") and weighted:
                cause, reason = self.solver.walk.causes[node.outputs[0]]
                raise no_form(cause, reason)
        open_border = [one for one in border if one and one not in self.graph.constants]
        flat = [one for one in open_border if one in self.known]
        past = [one for one in open_border if one not in self.known]
        strange = [one for one in past if one not in self.solver.past_inputs]
        if strange:
            _, reason = self.solver.walk.causes.get(strange[0], (self.softmax, "unknown"))
            raise self.refuse(f"{strange[0]} is neither a projection nor a cache input ({reason})")
        return nodes, flat, past

    def heads_of(self, flat: list[str], role: str) -> tuple[DraftNode, npt.NDArray[np.int64], str]:
        """The one projection behind an operand and the channels that are read."""
        drafts = {id(self.known[name].draft): self.known[name] for name in flat}
        if len(drafts) != 1:
            raise self.refuse(f"the {role} comes from {len(drafts)} projections")
        (data,) = drafts.values()
        channels = [self.known[name].layout.channels() for name in flat]
        rows = np.unique(np.concatenate(channels))
        name = next(
            (self.known[one].name for one, held in zip(flat, channels, strict=True)
             if len(held) == len(rows)), f"{data.draft.name}.{role}",
        )  # fmt: skip
        return data.draft, rows, name

    def solve(self, layer: int) -> tuple[FoundAttention, TensorLayout]:
        """Recognize the attention; its draft, and the layout of its product's output."""
        operands = self.operands()
        self.evaluate(layer, operands)
        heads = {side: self.heads_before(operands, side) for side in SIDES}
        norms: dict[Side, HeadNorm | None] = {}
        for side in ("query", "key"):
            nodes = operands.sides[side].nodes
            heads[side], norms[side] = apply_norm(self.graph, nodes, heads[side], self.refuse)
        rotated = self.rotate(operands, heads)
        roles: dict[Role, str] = {}
        scores = self.scores(operands, rotated, heads["value"], roles)
        self.keep_parts(layer, operands, rotated, values=heads["value"], norms=norms, scores=scores)
        draft = self.draft(operands, rotated, scores, norms, roles)
        found = FoundAttention(
            layer, draft, operands.heads, operands.kv_heads, operands.width, scores.scale,
            scores.softcap, scores.window, rotated.rotation, rotated.factor,
            {role: name for role, name in roles.items() if MADE not in name}, self.softmax,
            None if self.solver.mask_at_scale is not None else self.chain.mask_inputs(),
        )  # fmt: skip
        self.keep_cache(operands, found.roles)
        return found, self.context_layout(operands.heads, operands.width)

    def operands(self) -> Operands:
        """Queries, keys and values back to their projections, and how many heads they have."""
        tokens, total = self.sizes.tokens, self.sizes.total
        names = dict(zip(SIDES, (*self.chain.product.inputs, self.product.inputs[1]), strict=True))
        walked = {side: self.side(name) for side, name in names.items()}
        pasts = {side: past for side, (_, _, past) in walked.items()}
        if pasts["query"] or len(pasts["key"]) > 1 or len(pasts["value"]) > 1:
            raise self.refuse("the cache does not stand behind keys and values alone")
        q_shape, k_shape = (self.graph.shapes[names[side]] for side in ("query", "key"))
        width = q_shape[-1]
        if k_shape[-2:] != (width, total):
            raise self.refuse(f"keys have the shape {list(k_shape)}")
        sides = {
            side: Operand(names[side], nodes, flat, past, *self.heads_of(flat, side))
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

    def heads_before(self, operands: Operands, side: Side) -> npt.NDArray[np.float64]:
        """The heads [H, T, D] as the projection yields them."""
        operand = operands.sides[side]
        channels = self.canonical[id(operand.draft)][:, operand.rows]
        heads = channels.reshape(self.sizes.tokens, -1, operands.width).transpose(1, 0, 2)
        return heads.astype(np.float64)

    def rotate(
        self, operands: Operands, heads: Mapping[Side, npt.NDArray[np.float64]]
    ) -> RotatedHeads:
        """Queries and new keys as the source rotates them."""
        tokens, total, width = self.sizes.tokens, self.sizes.total, operands.width
        query, key = operands.sides["query"], operands.sides["key"]
        all_queries = self.tensors[query.name].reshape(operands.heads, tokens, width)
        all_keys = np.swapaxes(self.tensors[key.name].reshape(-1, width, total), 1, 2)
        groups = len(all_keys) // operands.kv_heads
        all_keys = all_keys.reshape(operands.kv_heads, groups, total, width)[:, 0]
        return rotate(
            self.graph,
            [*query.nodes, *key.nodes],
            self.chain,
            positions=np.arange(self.sizes.past, total),
            query=TurnedHeads(heads["query"], all_queries),
            key=TurnedHeads(heads["key"], all_keys[:, self.sizes.past :]),
            known=self.solver.ropes,
        )

    def scores(
        self,
        operands: Operands,
        rotated: RotatedHeads,
        values: npt.NDArray[np.float64],
        roles: dict[Role, str],
    ) -> Scores:
        """Scale, soft cap and mask; checks that the definition then yields the source's context.

        Args:
            operands: Of the attention.
            rotated: Queries and new keys.
            values: New values, [KV, T, D].
            roles: Names of the score's tensors are added.
        """
        kv_heads, width = operands.kv_heads, operands.width
        past_k = self.past(operands.sides["key"].past, kv_heads, width, is_key=True)
        past_v = self.past(operands.sides["value"].past, kv_heads, width, is_key=False)
        all_k = np.concatenate([past_k, rotated.key], axis=1)
        all_v = np.concatenate([past_v, values], axis=1)
        repeats = operands.heads // kv_heads
        raw = rotated.query @ np.repeat(all_k, repeats, axis=0).transpose(0, 2, 1)
        scale, softcap = self.chain.scaling(raw, self.tensors, roles)
        capped = np.tanh(raw * scale / softcap) * softcap if softcap else raw * scale
        visible, window = self.chain.mask(
            capped, self.tensors, past=self.sizes.past, at_scale=self.solver.mask_at_scale
        )
        masked = np.where(visible, capped, -np.inf)
        probs = np.exp(masked - masked.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        context = probs @ np.repeat(all_v, repeats, axis=0)
        have = self.tensors[self.product.outputs[0]].reshape(context.shape)
        error = np.abs(context - have).max() / max(np.abs(have).max(), 1e-30)
        if not error < AGREEMENT:
            raise self.refuse(f"its context departs by {error:.1e} from the definition")
        product = self.tensors[self.chain.product.outputs[0]].reshape(raw.shape)
        product_factor = float((raw * product).sum() / (raw * raw).sum())
        return Scores(all_k, all_v, scale, softcap, window, product_factor)

    def keep_parts(
        self,
        layer: int,
        operands: Operands,
        rotated: RotatedHeads,
        *,
        values: Floats,
        norms: Mapping[Side, HeadNorm | None],
        scores: Scores,
    ) -> None:
        """Keep what was learnt, to try it again at other positions."""
        met: dict[str, NewHeads] = {}
        sides: tuple[tuple[str, Side, Floats], ...] = (
            ("keys", "key", rotated.key),
            ("values", "value", values),
        )
        for name, side, new in sides:
            operand = operands.sides[side].name
            joint = Joint(self.graph, self.solver.producers, operand, self.known, new.size)
            held = new_heads(joint, self.tensors, new)
            if held is None:
                raise self.refuse(f"new {name} do not stand by themselves before the past")
            met[name] = held
        self.solver.parts.append(
            AttentionParts(
                layer=layer,
                where=self.softmax.where(),
                product=self.product.outputs[0],
                softmax=self.softmax.outputs[0],
                scores=self.chain.product.outputs[0],
                heads=operands.heads,
                kv_heads=operands.kv_heads,
                width=operands.width,
                rows={side: operand.rows for side, operand in operands.sides.items()},
                norms=norm_values(self.graph, norms),
                rotation=rotated.rotation,
                factor=rotated.factor,
                scale=scores.scale / scores.product_factor,
                softcap=scores.softcap,
                window=scores.window,
                **met,
            )
        )

    def draft(
        self,
        operands: Operands,
        rotated: RotatedHeads,
        scores: Scores,
        norms: Mapping[Side, HeadNorm | None],
        roles: dict[Role, str],
    ) -> DraftNode:
        """The attention as a node of the core graph; names of its inner tensors go to `roles`."""
        projections: dict[str, DraftNode] = {
            side: self.solver.walk.cut(operand.draft, operand.rows, operand.label)
            for side, operand in operands.sides.items()
        }
        query, key, value = (operands.sides[side] for side in SIDES)
        turned = bool(rotated.rotation.rotary_dim)
        names = self.solver.names
        flat_name = names.flat_context(self.product.outputs[0])
        roles |= names.by_value(
            projections,
            {
                "query_rotated": (rotated.query, query.nodes) if turned else None,
                "key_rotated": (rotated.key, key.nodes) if turned else None,
                "key_all": (scores.all_keys, key.nodes),
                "value_all": (scores.all_values, value.nodes),
            },
            self.tensors,
        )
        for side, norm in norms.items():
            if norm is not None:
                roles["query_normed" if side == "query" else "key_normed"] = norm.output
        roles |= {"masked": self.softmax.inputs[0], "probs": self.softmax.outputs[0]}
        roles |= {"context": self.product.outputs[0], "context_flat": flat_name}
        if key.past and value.past:
            roles |= {"past_key": key.past[0], "past_value": value.past[0]}
        weights, epsilon = norm_weights(self.graph, norms, self.refuse)
        return DraftNode(
            flat_name,
            "Attention",
            tuple(projections[side] for side in SIDES),
            operands.heads * operands.width,
            weights=weights,
            made_by=self.softmax.where(),
            attributes={"qk_norm_epsilon": epsilon},
        )

    def keep_cache(self, operands: Operands, roles: dict[Role, str]) -> None:
        """Remember where keys and values come from, to name the cache's outputs."""
        key, value = operands.sides["key"], operands.sides["value"]
        past = frozenset([*key.past, *value.past])
        self.solver.caches.append(
            AttentionCache(roles, frozenset(key.flat), frozenset(value.flat), past)
        )

    def evaluate(self, layer: int, operands: Operands) -> None:
        """Run the whole attention on seeded random projections and past."""
        random = np.random.default_rng(1000 + layer)
        self.canonical: dict[int, npt.NDArray[np.float32]] = {}
        feeds: dict[str, Array] = {}
        sides = operands.sides.values()
        for name in (name for operand in sides for name in operand.flat):
            data = self.known[name]
            if id(data.draft) not in self.canonical:
                shape = (self.sizes.tokens, data.draft.width)
                self.canonical[id(data.draft)] = random.standard_normal(shape, np.float32)
            feeds[name] = np.ascontiguousarray(data.layout.gather(self.canonical[id(data.draft)]))
        for name in (name for operand in sides for name in operand.past):
            feeds[name] = random.standard_normal(self.graph.shapes[name], np.float32)
        nodes, _ = region_of(
            self.solver.producers, [self.product.outputs[0]], lambda one: one in self.known
        )
        nodes.sort(key=lambda node: self.solver.order[id(node)])
        self.tensors = run_region(self.graph, nodes, feeds)

    def past(
        self, names: list[str], kv_heads: int, width: int, *, is_key: bool
    ) -> npt.NDArray[np.float64]:
        """The past of a cache input as [KV, P, D]."""
        if not names:
            if self.sizes.past:
                raise self.refuse("it has no cache")
            return np.zeros((kv_heads, 0, width))
        array = self.tensors[names[0]].astype(np.float64)
        length = self.sizes.length
        if array.shape in ((1, kv_heads, width, length), (kv_heads, 1, width, length)):
            turned = length != width or is_key
            array = np.swapaxes(array, -1, -2) if turned else array
        elif array.shape not in ((1, kv_heads, length, width), (kv_heads, 1, length, width)):
            raise self.refuse(f"the cache input {names[0]} has the shape {list(array.shape)}")
        return array.reshape(kv_heads, length, width)[:, : self.sizes.past]

    def context_layout(self, heads: int, width: int) -> TensorLayout:
        """The product's output in terms of the flat context."""
        head = (Atom("C", heads, width),) if heads > 1 else ()
        channel = (Atom("C", width, 1),) if width > 1 else ()
        token = (Atom("T", self.sizes.tokens, 1),)
        layout = TensorLayout((head, token, channel))
        return layout.reshaped(self.graph.shapes[self.product.outputs[0]])
