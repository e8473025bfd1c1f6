"""Recognize one attention by what it computes, and name its inner tensors.

A softmax over keys marks an attention; from there the product with the values and the product that
made the scores are found by walking. Everything between the projections and the context is then run
on random numbers, and each property (norms, rotation, scale, soft cap, mask, grouping) is read off
the values. So it does not matter how an exporter wrote it. At the end the definition of
`genai.Attention` must give the same context; a graph that computes something else is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from genai_core.facts import Role, RopeTable
from genai_stages.ingest.folding.folded_graph import StaticNode
from genai_stages.ingest.folding.lower_fused import MADE
from genai_stages.ingest.recognition.attention.attention_norms import (
    HeadNorm,
    apply_norm,
    norm_values,
    norm_weights,
)
from genai_stages.ingest.recognition.attention.attention_operands import (
    SIDES,
    Scores,
)
from genai_stages.ingest.recognition.attention.attention_parts import (
    AttentionParts,
    Floats,
    Joint,
    NewHeads,
    Side,
    new_heads,
)
from genai_stages.ingest.recognition.attention.attention_region import (
    AttentionRegion,
    GraphOfAttentions,
    find_ends,
)
from genai_stages.ingest.recognition.attention.attention_rotation import (
    KnownRopes,
    RotatedHeads,
    TurnedHeads,
    rotate,
)
from genai_stages.ingest.recognition.attention.attention_run import AttentionRun
from genai_stages.ingest.recognition.attention.attention_scores import (
    AGREEMENT,
    MaskAtScale,
)
from genai_stages.ingest.recognition.attention.found_attention import FoundAttention, Sizes
from genai_stages.ingest.recognition.drafts import Data, DraftNode
from genai_stages.ingest.recognition.layouts import Atom, TensorLayout
from genai_stages.ingest.recognition.name_roles import AttentionCache, RoleNames
from genai_stages.ingest.recognition.recognise_layers import Walk


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
        self.whole = GraphOfAttentions.of(walk, sizes, past_inputs)
        self.ropes = KnownRopes.of(ropes)
        self.mask_at_scale = mask_at_scale
        self.ends = find_ends(walk.graph, sizes)
        self.names = RoleNames(
            walk.graph, walk.values, set(self.whole.past_inputs), tokens=sizes.tokens
        )
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
        region = AttentionRegion(self.whole, node, softmax, values)
        found, layout = _Attention(self, region, len(self.found)).solve()
        self.found.append(found)
        return Data(found.draft, layout, found.draft.name)


class _Attention:
    """One attention while it is recognized: see `solve` for the order."""

    def __init__(self, solver: AttentionSolver, region: AttentionRegion, layer: int) -> None:
        self.solver = solver
        self.region = region
        self.graph = region.graph
        self.sizes = region.sizes
        self.product = region.product
        self.softmax = region.softmax
        self.chain = region.chain
        self.refuse = region.refuse
        self.layer = layer
        self.operands = region.operands()
        self.run = AttentionRun(region, self.operands, seed=1000 + layer)

    def solve(self) -> tuple[FoundAttention, TensorLayout]:
        """Recognize the attention; its draft, and the layout of its product's output."""
        operands = self.operands
        heads = {side: self.run.heads(side) for side in SIDES}
        norms: dict[Side, HeadNorm | None] = {}
        for side in ("query", "key"):
            nodes = operands.sides[side].nodes
            heads[side], norms[side] = apply_norm(self.graph, nodes, heads[side], self.refuse)
        rotated = self.rotate(heads)
        roles: dict[Role, str] = {}
        scores = self.scores(rotated, heads["value"], roles)
        self.keep_parts(rotated, values=heads["value"], norms=norms, scores=scores)
        draft = self.draft(rotated, scores, norms, roles)
        found = FoundAttention(
            self.layer, draft, operands.heads, operands.kv_heads, operands.width, scores.scale,
            scores.softcap, scores.window, rotated.rotation, rotated.factor,
            {role: name for role, name in roles.items() if MADE not in name}, self.softmax,
            None if self.solver.mask_at_scale is not None else self.chain.mask_inputs(),
        )  # fmt: skip
        self.keep_cache(found.roles)
        return found, self.context_layout(operands.heads, operands.width)

    def rotate(self, heads: Mapping[Side, npt.NDArray[np.float64]]) -> RotatedHeads:
        """Queries and new keys as the source rotates them."""
        query, key = self.operands.sides["query"], self.operands.sides["key"]
        return rotate(
            self.graph,
            [*query.nodes, *key.nodes],
            self.chain,
            positions=np.arange(self.sizes.past, self.sizes.total),
            query=TurnedHeads(heads["query"], self.run.queries()),
            key=TurnedHeads(heads["key"], self.run.new_keys()),
            known=self.solver.ropes,
        )

    def scores(self, rotated: RotatedHeads, values: Floats, roles: dict[Role, str]) -> Scores:
        """Scale, soft cap and mask; checks that the definition then yields the source's context.

        Args:
            rotated: Queries and new keys.
            values: New values, [KV, T, D].
            roles: Names of the score's tensors are added.
        """
        all_k = np.concatenate([self.run.past("key"), rotated.key], axis=1)
        all_v = np.concatenate([self.run.past("value"), values], axis=1)
        repeats = self.operands.heads // self.operands.kv_heads
        raw = rotated.query @ np.repeat(all_k, repeats, axis=0).transpose(0, 2, 1)
        scale, softcap = self.chain.scaling(raw, self.run.tensors, roles)
        capped = np.tanh(raw * scale / softcap) * softcap if softcap else raw * scale
        visible, window = self.chain.mask(
            capped, self.run.tensors, past=self.sizes.past, at_scale=self.solver.mask_at_scale
        )
        masked = np.where(visible, capped, -np.inf)
        probs = np.exp(masked - masked.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        context = probs @ np.repeat(all_v, repeats, axis=0)
        have = self.run.tensors[self.product.outputs[0]].reshape(context.shape)
        error = np.abs(context - have).max() / max(np.abs(have).max(), 1e-30)
        if not error < AGREEMENT:
            raise self.refuse(f"its context departs by {error:.1e} from the definition")
        product = self.run.tensors[self.chain.product.outputs[0]].reshape(raw.shape)
        product_factor = float((raw * product).sum() / (raw * raw).sum())
        return Scores(all_k, all_v, scale, softcap, window, product_factor)

    def keep_parts(
        self,
        rotated: RotatedHeads,
        *,
        values: Floats,
        norms: Mapping[Side, HeadNorm | None],
        scores: Scores,
    ) -> None:
        """Keep what was learnt, to try it again at other positions."""
        operands = self.operands
        met: dict[str, NewHeads] = {}
        sides: tuple[tuple[str, Side, Floats], ...] = (
            ("keys", "key", rotated.key),
            ("values", "value", values),
        )
        for name, side, new in sides:
            operand = operands.sides[side].name
            joint = Joint(
                self.graph, self.region.whole.producers, operand, self.region.known, new.size
            )
            held = new_heads(joint, self.run.tensors, new)
            if held is None:
                raise self.refuse(f"new {name} do not stand by themselves before the past")
            met[name] = held
        self.solver.parts.append(
            AttentionParts(
                layer=self.layer,
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
        rotated: RotatedHeads,
        scores: Scores,
        norms: Mapping[Side, HeadNorm | None],
        roles: dict[Role, str],
    ) -> DraftNode:
        """The attention as a node of the core graph; names of its inner tensors go to `roles`."""
        operands = self.operands
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
            self.run.tensors,
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

    def keep_cache(self, roles: dict[Role, str]) -> None:
        """Remember where keys and values come from, to name the cache's outputs."""
        key, value = self.operands.sides["key"], self.operands.sides["value"]
        past = frozenset([*key.past, *value.past])
        self.solver.caches.append(
            AttentionCache(roles, frozenset(key.flat), frozenset(value.flat), past)
        )

    def context_layout(self, heads: int, width: int) -> TensorLayout:
        """The product's output in terms of the flat context."""
        head = (Atom("C", heads, width),) if heads > 1 else ()
        channel = (Atom("C", width, 1),) if width > 1 else ()
        token = (Atom("T", self.sizes.tokens, 1),)
        layout = TensorLayout((head, token, channel))
        return layout.reshaped(self.graph.shapes[self.product.outputs[0]])
