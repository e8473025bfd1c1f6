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
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_core.errors import UnsupportedOperator
from genai_core.facts import Role, RopeTable
from genai_stages.ingest.folding.folded_graph import FoldedGraph, StaticNode
from genai_stages.ingest.folding.lower_fused import MADE
from genai_stages.ingest.recognition import classify_rotary
from genai_stages.ingest.recognition.attention_parts import (
    AttentionParts,
    Joint,
    NewHeads,
    Side,
    new_heads,
)
from genai_stages.ingest.recognition.attention_scores import AGREEMENT, MaskAtScale, ScoreChain
from genai_stages.ingest.recognition.drafts import Data, DraftNode, DraftWeight
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
        self.factors = [table.attention_factor for table in ropes]
        self.tables = [np.array(table.inv_freq, np.float32) for table in ropes]
        """To try: config.json's, then those of layers before."""
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
        tokens, total = self.sizes.tokens, self.sizes.total
        q_operand, k_operand = self.chain.product.inputs
        v_operand = self.product.inputs[1]
        q_nodes, q_flat, q_past = self.side(q_operand)
        k_nodes, k_flat, k_past = self.side(k_operand)
        v_nodes, v_flat, v_past = self.side(v_operand)
        if q_past or len(k_past) > 1 or len(v_past) > 1:
            raise self.refuse("the cache does not stand behind keys and values alone")
        q_shape, k_shape = self.graph.shapes[q_operand], self.graph.shapes[k_operand]
        width = q_shape[-1]
        if k_shape[-2:] != (width, total):
            raise self.refuse(f"keys have the shape {list(k_shape)}")
        heads = int(np.prod(q_shape)) // (tokens * width)
        sides = {"query": q_flat, "key": k_flat, "value": v_flat}
        drafts, rows, labels = {}, {}, {}
        for role, flat in sides.items():
            drafts[role], rows[role], labels[role] = self.heads_of(flat, role)
        kv_heads = len(rows["key"]) // width
        if len(rows["query"]) != heads * width or len(rows["key"]) != kv_heads * width:
            raise self.refuse("heads do not cover the projection's channels")
        if len(rows["value"]) != kv_heads * width or heads % max(kv_heads, 1):
            raise self.refuse("keys and values have heads of different sizes")

        self.evaluate(layer, [*sides.values()], [*k_past, *v_past], kv_heads, width)
        heads_of = {
            role: self.canonical[id(draft)][:, rows[role]]
            .reshape(tokens, -1, width)
            .transpose(1, 0, 2)
            .astype(np.float64)
            for role, draft in drafts.items()
        }
        norms = {
            "query": self.norm(q_nodes, heads_of, "query"),
            "key": self.norm(k_nodes, heads_of, "key"),
        }
        positions = np.arange(self.sizes.past, total)
        waves = self.waves_of([*q_nodes, *k_nodes])
        rounding = self.rounding_of(waves)
        factor, tables = self.tables_of(waves, rounding)
        query = self.tensors[q_operand].reshape(heads, tokens, width)
        keys = np.swapaxes(self.tensors[k_operand].reshape(-1, width, total), 1, 2)
        groups = len(keys) // kv_heads
        keys = keys.reshape(kv_heads, groups, total, width)[:, 0]
        turned = partial(self.rotation, positions=positions, factor=factor, rounding=rounding)
        turn_q = turned(heads_of["query"], query, tables=tables)
        tables = [turn_q.inv_freq, *tables] if len(turn_q.inv_freq) else tables
        new_k = keys[:, self.sizes.past :]
        turn_k = turned(heads_of["key"], new_k, tables=tables)
        if not np.array_equal(turn_q.inv_freq, turn_k.inv_freq) or (
            turn_q.interleaved != turn_k.interleaved
        ):
            raise self.refuse("queries and keys are rotated differently")
        if not len(turn_q.inv_freq):
            factor = 1.0
        elif not any(np.array_equal(turn_q.inv_freq, one) for one in self.solver.tables):
            # Two layers that were measured differ in noise: they are to have one table.
            self.solver.tables.append(turn_q.inv_freq)
        rotated_q = turn_q.apply(heads_of["query"], positions)
        rotated_k = turn_k.apply(heads_of["key"], positions)
        rotated_q[..., : turn_q.rotary_dim] *= factor
        rotated_k[..., : turn_k.rotary_dim] *= factor
        if turn_q.rounding:
            # What follows is held against the source's own heads, as strictly as elsewhere.
            rotated_q, rotated_k = query / turn_q.scale, new_k / turn_k.scale
        past_k = self.past(k_past, kv_heads, width, is_key=True)
        past_v = self.past(v_past, kv_heads, width, is_key=False)
        all_k = np.concatenate([past_k, rotated_k], axis=1)
        all_v = np.concatenate([past_v, heads_of["value"]], axis=1)
        repeats = heads // kv_heads
        raw = rotated_q @ np.repeat(all_k, repeats, axis=0).transpose(0, 2, 1)
        roles: dict[Role, str] = {}
        scale, softcap = self.chain.scaling(raw, self.tensors, roles)
        capped = np.tanh(raw * scale / softcap) * softcap if softcap else raw * scale
        at_scale = self.solver.mask_at_scale
        visible, window = self.chain.mask(
            capped, self.tensors, past=self.sizes.past, at_scale=at_scale
        )
        masked = np.where(visible, capped, -np.inf)
        probs = np.exp(masked - masked.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        context = probs @ np.repeat(all_v, repeats, axis=0)
        have = self.tensors[self.product.outputs[0]].reshape(context.shape)
        error = np.abs(context - have).max() / max(np.abs(have).max(), 1e-30)
        if not error < AGREEMENT:
            raise self.refuse(f"its context departs by {error:.1e} from the definition")
        met: dict[str, NewHeads] = {}
        for side, operand, new in (
            ("keys", k_operand, rotated_k),
            ("values", v_operand, heads_of["value"]),
        ):
            joint = Joint(self.graph, self.solver.producers, operand, self.known, new.size)
            held = new_heads(joint, self.tensors, new)
            if held is None:
                raise self.refuse(f"new {side} do not stand by themselves before the past")
            met[side] = held
        product_factor = float((raw * self.tensors[self.chain.product.outputs[0]].reshape(
            raw.shape)).sum() / (raw * raw).sum())  # fmt: skip
        self.solver.parts.append(
            AttentionParts(
                layer=layer,
                where=self.softmax.where(),
                product=self.product.outputs[0],
                softmax=self.softmax.outputs[0],
                scores=self.chain.product.outputs[0],
                heads=heads,
                kv_heads=kv_heads,
                width=width,
                rows={"query": rows["query"], "key": rows["key"], "value": rows["value"]},
                norms=self.norm_values(norms),
                rotation=turn_q,
                factor=factor,
                scale=scale / product_factor,
                softcap=softcap,
                window=window,
                **met,
            )
        )

        projections = {
            role: self.solver.walk.cut(draft, rows[role], labels[role])
            for role, draft in drafts.items()
        }
        names = self.solver.names
        flat_name = names.flat_context(self.product.outputs[0])
        roles |= names.by_value(
            projections,
            {
                "query_rotated": (rotated_q, q_nodes) if turn_q.rotary_dim else None,
                "key_rotated": (rotated_k, k_nodes) if turn_q.rotary_dim else None,
                "key_all": (all_k, k_nodes),
                "value_all": (all_v, v_nodes),
            },
            self.tensors,
        )
        for role, norm in norms.items():
            if norm is not None:
                roles["query_normed" if role == "query" else "key_normed"] = norm[2]
        roles |= {"masked": self.softmax.inputs[0], "probs": self.softmax.outputs[0]}
        roles |= {"context": self.product.outputs[0], "context_flat": flat_name}
        if k_past and v_past:
            roles |= {"past_key": k_past[0], "past_value": v_past[0]}
        weights, epsilon = self.norm_weights(norms)
        draft = DraftNode(
            flat_name,
            "Attention",
            tuple(projections[role] for role in ("query", "key", "value")),
            heads * width,
            weights=weights,
            made_by=self.softmax.where(),
            attributes={"qk_norm_epsilon": epsilon},
        )
        roles = {role: name for role, name in roles.items() if MADE not in name}
        self.solver.caches.append(
            AttentionCache(
                roles, frozenset(k_flat), frozenset(v_flat), frozenset([*k_past, *v_past])
            )
        )
        found = FoundAttention(
            layer, draft, heads, kv_heads, width, scale, softcap, window, turn_q, factor, roles,
            self.softmax, None if at_scale is not None else self.chain.mask_inputs(),
        )  # fmt: skip
        return found, self.context_layout(heads, width)

    def evaluate(
        self, layer: int, flats: Sequence[list[str]], past: list[str], kv_heads: int, width: int
    ) -> None:
        """Run the whole attention on seeded random projections and past."""
        random = np.random.default_rng(1000 + layer)
        self.canonical: dict[int, npt.NDArray[np.float32]] = {}
        feeds: dict[str, Array] = {}
        for name in (name for flat in flats for name in flat):
            data = self.known[name]
            if id(data.draft) not in self.canonical:
                shape = (self.sizes.tokens, data.draft.width)
                self.canonical[id(data.draft)] = random.standard_normal(shape, np.float32)
            feeds[name] = np.ascontiguousarray(data.layout.gather(self.canonical[id(data.draft)]))
        for name in past:
            feeds[name] = random.standard_normal(self.graph.shapes[name], np.float32)
        nodes, _ = region_of(
            self.solver.producers, [self.product.outputs[0]], lambda one: one in self.known
        )
        nodes.sort(key=lambda node: self.solver.order[id(node)])
        self.tensors = run_region(self.graph, nodes, feeds)

    def norm(
        self, nodes: list[StaticNode], heads_of: dict[str, Any], role: str
    ) -> tuple[str, float, str] | None:
        """Apply the norm of an operand's heads to `heads_of`; its weight, epsilon and output."""
        norms = [node for node in nodes if "Normalization" in node.op_type]
        if not norms:
            return None
        node = norms[0]
        heads = heads_of[role]
        weight = self.graph.constants.get(node.inputs[1])
        if (
            len(norms) > 1
            or node.op_type != "RMSNormalization"
            or weight is None
            or weight.size != heads.shape[-1]
        ):
            raise self.refuse(f"{node.where()} normalizes heads in another way than RMSNorm")
        epsilon = float(node.attributes["epsilon"])
        mean = (heads * heads).mean(-1, keepdims=True)
        heads_of[role] = heads / np.sqrt(mean + epsilon) * weight.array().reshape(-1)
        return node.inputs[1], epsilon, node.outputs[0]

    def norm_weights(
        self, norms: dict[str, tuple[str, float, str] | None]
    ) -> tuple[tuple[DraftWeight | None, ...], float]:
        given = [norm for norm in norms.values() if norm is not None]
        if not given:
            return (), 1e-6
        if len({norm[1] for norm in given}) != 1:
            raise self.refuse("the norms of queries and keys have different epsilons")
        weights = []
        for norm in norms.values():
            constant = None if norm is None else self.graph.constants[norm[0]]
            weights.append(
                None
                if constant is None
                else DraftWeight(constant, vector=constant.array().reshape(-1))
            )
        return tuple(weights), given[0][1]

    def norm_values(
        self, norms: dict[str, tuple[str, float, str] | None]
    ) -> dict[Side, tuple[npt.NDArray[np.float32], float]]:
        sides: tuple[Side, ...] = ("query", "key")
        return {
            side: (self.graph.constants[norm[0]].array().reshape(-1), norm[1])
            for side in sides
            if (norm := norms[side]) is not None
        }

    def waves_of(self, nodes: Iterable[StaticNode]) -> dict[str, npt.NDArray[np.floating]]:
        """Cosines and sines, and what else has a value for each token."""
        waves: dict[str, npt.NDArray[np.floating]] = {}
        for node in nodes:
            for name in node.inputs:
                constant = self.graph.constants.get(name)
                if (
                    constant is not None
                    and constant.size > 1
                    and constant.dtype == np.float32
                    and self.sizes.tokens in constant.shape
                ):
                    waves[name] = constant.array()
        return waves

    def rounding_of(self, waves: Mapping[str, npt.NDArray[np.floating]]) -> float:
        """Of the tables of cosines and sines that the source stores; frequencies are no such."""
        width = max((wave.shape[-1] for wave in waves.values()), default=0)
        stored = [one for name in waves for one in self.graph.known_ancestors(name)]
        return max((one.rounding for one in stored if one.size > width), default=0.0)

    def tables_of(
        self, waves: Mapping[str, npt.NDArray[np.floating]], rounding: float
    ) -> tuple[float, list[npt.NDArray[np.float32]]]:
        """The factor on cosine and sine, and frequencies that they may come from."""
        tables: dict[bytes, npt.NDArray[np.float32]] = {}
        limit = max((wave.shape[-1] for wave in waves.values()), default=0)
        for name in waves:
            for constant in self.graph.known_ancestors(name):
                if constant.dtype == np.float32 and 1 < constant.size <= limit:
                    table = constant.array().reshape(-1).astype(np.float32)
                    if (table >= 0).all() and table[0] > 0:
                        tables[table.tobytes()] = table
        factor = classify_rotary.attention_factor(
            list(waves.values()), known=self.solver.factors, rounding=rounding
        )
        return factor, [*tables.values(), *self.solver.tables]

    def rotation(
        self,
        before: npt.NDArray[np.floating],
        after: npt.NDArray[np.floating],
        *,
        positions: npt.NDArray[np.int64],
        tables: Sequence[npt.NDArray[np.float32]],
        factor: float,
        rounding: float,
    ) -> classify_rotary.Rotation:
        found = classify_rotary.find_rotation(
            before, after, positions, tables=tables, factor=factor, rounding=rounding
        )
        if found is None and rounding:
            raise UnsupportedOperator(
                "its rotary table is stored in 16 bits, which is too coarse to tell frequencies "
                "by, and config.json describes no table that fits",
                where=self.softmax.where(),
                remedy="put the model's own config.json beside it: rope_theta, head_dim, "
                "rope_scaling",
            )
        if found is None:
            raise self.refuse("heads are neither rotated by position nor left alone")
        return found

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
