"""Hold one attention at far positions against what was learnt about it near.

Queries, new keys and new values are computed from random projections, scores are random: that shows
every factor, angle and hidden key, and no long attention is computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_core.facts import RopeTable
from genai_runtime.rope import for_context
from genai_stages.ingest.folding import classify_mask
from genai_stages.ingest.folding.folded_graph import FoldedGraph, StaticNode
from genai_stages.ingest.positions.far_positions import Far
from genai_stages.ingest.recognition.attention.attention_parts import (
    AttentionParts,
    Joint,
    NewHeads,
    Side,
    canonical,
)
from genai_stages.ingest.recognition.drafts import Data
from genai_stages.ingest.recognition.evaluate_region import region_of, run_region
from genai_stages.ingest.source.source_model import Array

TOLERANCE = 5e-4
"""Relative difference that counts as none."""
_SCORE = 0.05
_ULP = 4e-7
"""Relative error of an angle: float32 frequencies, and their product with the position."""

Floats = npt.NDArray[np.floating[Any]]


@dataclasses.dataclass(frozen=True)
class Departure:
    """Where the source does something else than near.

    Attributes:
        position: Of the token, the first that was seen.
        what: The rest of the sentence that begins with the position.
        where: Node, for messages.
        kind: What a model would need.
    """

    position: int
    what: str
    where: str
    kind: str


class FarAttention:
    """Tries the attentions of one far graph.

    Args:
        graph: The source, folded at the pass's sizes.
        far: The pass.
        known: What the walk over the near graph knows of its tensors.
        near: Outputs of the near graph's nodes, to name what is new.
        ropes: config.json's tables: one of them may hold up to a context length only.
        tokens: T of the near graph.
        grain: Relative rounding of the source's stored tables.
    """

    def __init__(
        self,
        graph: FoldedGraph,
        far: Far,
        known: Mapping[str, Data],
        *,
        near: frozenset[str],
        ropes: Mapping[str, RopeTable],
        tokens: int,
        grain: float,
    ) -> None:
        self.graph = graph
        self.far = far
        self.known = known
        self.near = near
        self.ropes = ropes
        self.tokens = tokens
        self.tolerance = TOLERANCE + 2 * grain
        self.producers = graph.producers()
        self.place = {id(node): index for index, node in enumerate(graph.nodes)}

    def departure(self, parts: AttentionParts) -> Departure | None:
        """What an attention does otherwise here, the earliest position first; None = nothing."""
        ends = [self.producers.get(name) for name in (parts.scores, parts.softmax, parts.product)]
        if any(end is None for end in ends):
            return self.another(parts, "another branch of the graph is taken")
        scores, softmax, product = (end for end in ends if end is not None)
        candidates = [
            self.queries(parts, scores.inputs[0]),
            self.joined(parts, "key", scores.inputs[1], parts.keys),
            self.joined(parts, "value", product.inputs[1], parts.values),
        ]
        if self.far.scores:
            candidates.append(self.chain(parts, softmax, product))
        departures = [departure for departure in candidates if departure is not None]
        return min(departures, key=lambda departure: departure.position, default=None)

    def another(self, parts: AttentionParts, what: str) -> Departure:
        """A departure of the graph itself, at all positions of this pass."""
        return Departure(int(self.far.positions.max()), what, parts.where, "graph")

    def nodes(self, name: str) -> tuple[list[StaticNode], list[str]]:
        """Nodes behind a tensor, back to what is known, and the open tensors they begin with."""
        nodes, border = region_of(self.producers, [name], lambda tensor: tensor in self.known)
        nodes.sort(key=lambda node: self.place[id(node)])
        return nodes, [tensor for tensor in border if tensor and tensor not in self.graph.constants]

    def compute(
        self, parts: AttentionParts, side: Side, name: str
    ) -> tuple[Floats, Floats, list[StaticNode]] | None:
        """Heads as projected [heads, T, D], the tensor's values, and the nodes between."""
        nodes, opened = self.nodes(name)
        data = [self.known.get(opening) for opening in opened]
        if not opened or any(opening is None for opening in data):
            return None
        random = np.random.default_rng(len(self.far.positions))
        drafts: dict[int, Floats] = {}
        feeds: dict[str, Array] = {}
        for opening, held in zip(opened, data, strict=True):
            assert held is not None
            if id(held.draft) not in drafts:
                shape = (self.far.sizes.tokens, held.draft.width)
                drafts[id(held.draft)] = random.standard_normal(shape, np.float32)
            layout = self.resized(held)
            feeds[opening] = np.ascontiguousarray(layout.gather(drafts[id(held.draft)]))
        if len(drafts) != 1:
            return None
        (flat,) = drafts.values()
        tensors = run_region(self.graph, nodes, feeds) if nodes else feeds
        return parts.head_values(flat, side), np.asarray(tensors[name]), nodes

    def resized(self, data: Data) -> Any:
        """The layout of a tensor at this pass's number of tokens."""
        axes = tuple(
            tuple(
                atom._replace(size=self.far.sizes.tokens)
                if atom.kind == "T" and atom.size == self.tokens
                else atom
                for atom in axis
            )
            for axis in data.layout.axes
        )
        return dataclasses.replace(data.layout, axes=axes)

    def queries(self, parts: AttentionParts, operand: str) -> Departure | None:
        """Queries as scores are made of them."""
        computed = self.compute(parts, "query", operand)
        if computed is None:
            return self.another(parts, "queries come from something else")
        heads, have, nodes = computed
        shaped = np.asarray(have, np.float64).reshape(heads.shape)
        return self.turned(parts, heads, shaped / parts.rotation.scale, nodes, "queries")

    def joined(
        self, parts: AttentionParts, side: Side, operand: str, noted: NewHeads
    ) -> Departure | None:
        """New keys or values."""
        words = "keys" if side == "key" else "values"
        shape = (parts.kv_heads, self.far.sizes.tokens, parts.width)
        joint = Joint(self.graph, self.producers, operand, self.known, int(np.prod(shape)))
        if joint.steps() != noted.behind:
            return self.another(parts, f"{words} are changed behind the past")
        if joint.plain:
            return None if not noted.tensor else self.another(parts, f"{words} are left alone")
        computed = self.compute(parts, side, joint.tensor)
        if computed is None or computed[1].size != int(np.prod(shape)):
            return self.another(parts, f"{words} come from something else")
        heads, have, nodes = computed
        values = canonical(have, noted.order, shape) / noted.factor
        return self.turned(parts, heads, values, nodes, words)

    def turned(
        self,
        parts: AttentionParts,
        heads: Floats,
        have: Floats,
        nodes: list[StaticNode],
        words: str,
    ) -> Departure | None:
        """Compare heads [heads, T, D] with the definition's; both without their factors."""
        pairs = 0 if words == "values" else len(parts.rotation.inv_freq)
        positions = self.far.positions
        best: tuple[int, Departure] | None = None
        for table in self.tables(parts) if pairs else [parts.rotation.inv_freq]:
            expected = self.rotated(parts, heads, table) if pairs else heads
            ratio = _pair_ratios(have, expected, pairs, interleaved=parts.rotation.interleaved)
            rest = _ratio(have[..., 2 * pairs :], expected[..., 2 * pairs :])
            slack = np.full((len(positions), pairs + 1), self.tolerance)
            if pairs:
                slack[:, :pairs] += _ULP * positions[:, None] * table[None].astype(np.float64)
            every = np.concatenate([ratio, rest[:, None]], axis=1)
            if 2 * pairs == parts.width:
                every, slack = every[:, :pairs], slack[:, :pairs]
            wrong = ~(np.abs(every - 1.0) <= slack)
            if not wrong.any():
                return None
            row = int(np.flatnonzero(wrong.any(1))[0])
            column = int(np.flatnonzero(wrong[row])[0])
            where, is_new = self.name(parts, nodes)
            size = abs(every[row, column])
            if abs(size - 1.0) > slack[row, column] or column >= pairs:
                value = size if column < pairs else every[row, column].real
                what, kind = f"{words} are scaled by {value:.6g}, by 1 before", "scale"
            else:
                angle = float(positions[row]) * float(table[column])
                given = angle + float(np.angle(every[row, column]))
                what = (
                    f"pair {column} of {words} is turned by {given:.6g} radians, where the "
                    f"frequencies of small positions give {angle:.6g}"
                )
                kind = "rotary"
            departure = Departure(int(positions[row]), what, where if is_new else parts.where, kind)
            if best is None or row > best[0]:
                best = (row, departure)
        return best[1] if best else None

    def tables(self, parts: AttentionParts) -> list[npt.NDArray[np.float32]]:
        """Frequencies that hold for this pass: LongRoPE has others for long texts."""
        near = parts.rotation.inv_freq
        longest = int(self.far.positions.max()) + 1
        for table in self.ropes.values():
            if len(table.inv_freq) == len(near) and np.allclose(table.inv_freq, near, rtol=1e-4):
                own = table.model_copy(update={"inv_freq": near.tolist()})
                there = np.array(for_context(own, longest).inv_freq, np.float32)
                # An export that was traced with a short text has no other frequencies inside.
                return [near] if np.array_equal(there, near) else [there, near]
        return [near]

    def rotated(
        self, parts: AttentionParts, heads: Floats, table: npt.NDArray[np.float32]
    ) -> Floats:
        """Heads [heads, T, D] turned by the positions of this pass, angles in float64."""
        pairs = len(table)
        angle = self.far.positions.astype(np.float64)[:, None] * table.astype(np.float64)[None]
        left, right = _pairs(pairs, interleaved=parts.rotation.interleaved)
        result = heads.copy()
        turned = (result[..., left] + 1j * result[..., right]) * np.exp(1j * angle) * parts.factor
        result[..., left], result[..., right] = turned.real, turned.imag
        return result

    def chain(
        self, parts: AttentionParts, softmax: StaticNode, product: StaticNode
    ) -> Departure | None:
        """Scale, soft cap, mask and softmax of random scores."""
        nodes, border = region_of(
            self.producers, [product.inputs[0]], lambda tensor: tensor == parts.scores
        )
        nodes.sort(key=lambda node: self.place[id(node)])
        opened = [tensor for tensor in border if tensor and tensor not in self.graph.constants]
        if opened != [parts.scores]:
            return self.another(parts, "scores depend on something else")
        tokens, total = self.far.sizes.tokens, self.far.sizes.total
        random = np.random.default_rng(total)
        scores = random.standard_normal(self.graph.shapes[parts.scores], np.float32)
        # Small, so that a factor on them is told from hiding a key.
        scores *= np.float32(_SCORE / max(abs(parts.scale), 1e-30))
        tensors = run_region(self.graph, nodes, {parts.scores: scores})
        shape = (parts.heads, tokens, total)
        expected = scores.reshape(shape) * np.float32(parts.scale)
        if parts.softcap:
            expected = np.tanh(expected / np.float32(parts.softcap)) * np.float32(parts.softcap)
        given = np.asarray(tensors[softmax.inputs[0]], np.float32).reshape(shape)
        with np.errstate(invalid="ignore"):
            change = np.where(np.isfinite(given), given - expected, -np.inf)
        visible: npt.NDArray[np.bool_] = np.asarray(change > classify_mask.HIDDEN)
        candidates = [self.masked(parts, visible)] if self.far.is_text else []
        candidates.append(self.scaled(parts, given, expected, visible, nodes))
        kept: Floats = np.where(visible, given, -np.inf)
        rows = np.asarray(visible.any(-1))
        with np.errstate(invalid="ignore"):
            probs = np.exp(kept - kept.max(-1, keepdims=True))
        probs /= np.maximum(probs.sum(-1, keepdims=True), 1e-30)
        have = np.asarray(tensors[product.inputs[0]]).reshape(shape)
        apart = np.abs(have - probs).max(-1) / np.maximum(probs.max(-1), 1e-30)
        error = np.where(rows, apart, 0.0).max(0)
        if (wrong := np.flatnonzero(~(error < self.tolerance))).size:
            where, _ = self.name(parts, nodes)
            position = int(self.far.positions[wrong[0]])
            what = "probabilities are changed behind the softmax"
            candidates.append(Departure(position, what, where, "scale"))
        return min(
            (candidate for candidate in candidates if candidate),
            key=lambda candidate: candidate.position,
            default=None,
        )

    def masked(self, parts: AttentionParts, visible: npt.NDArray[np.bool_]) -> Departure | None:
        """Visible keys [heads, T, K] that are not those of the window."""
        sizes = self.far.sizes
        wanted = classify_mask.reference(sizes.tokens, sizes.past, parts.window)
        wrong = visible != wanted[None]
        if not wrong.any():
            return None
        row = int(np.flatnonzero(wrong.any((0, 2)))[0])
        head = int(np.flatnonzero(wrong[:, row].any(1))[0])
        seen, due = int(visible[head, row].sum()), int(wanted[row].sum())
        kind = f"a sliding window of {parts.window}" if parts.window else "a causal mask"
        what = f"a token sees {seen} keys, where {kind} shows {due}"
        return Departure(int(self.far.positions[row]), what, parts.where, "mask")

    def scaled(
        self,
        parts: AttentionParts,
        given: npt.NDArray[np.float32],
        expected: npt.NDArray[np.float32],
        visible: npt.NDArray[np.bool_],
        nodes: list[StaticNode],
    ) -> Departure | None:
        """Scores [heads, T, K] that are larger than expected, or shifted."""
        have = np.where(visible, given, 0.0)
        want = np.where(visible, expected, 0.0)
        top = (want * want).sum((0, 2), dtype=np.float64)
        ratio = (have * want).sum((0, 2), dtype=np.float64) / np.maximum(top, 1e-30)
        ratio[top == 0] = 1.0
        shift = np.abs(have - ratio[None, :, None] * want).max((0, 2))
        largest = np.maximum(1.0, np.abs(want).max((0, 2)))
        off = ~(np.abs(ratio - 1.0) <= self.tolerance)
        moved = ~(shift <= 2 * self.tolerance * largest * np.maximum(1.0, np.abs(ratio)))
        wrong = np.flatnonzero(off | moved)
        if not wrong.size:
            return None
        row = int(wrong[0])
        where, _ = self.name(parts, nodes)
        position = int(self.far.positions[row])
        if off[row] and not moved[row]:
            what = f"scores are scaled by {ratio[row]:.6g}, by 1 before"
            return Departure(position, what, where, "scale")
        what = f"scores are shifted by up to {shift[row]:.3g} (a bias on positions)"
        return Departure(position, what, where, "bias")

    def name(self, parts: AttentionParts, nodes: list[StaticNode]) -> tuple[str, bool]:
        """The node that is not there near, the softmax where there is none."""
        plain = [part for node in nodes for part in (node.replaced or [node])]
        fresh = [node for node in plain if node.outputs[0] not in self.near]
        return (fresh[0].where(), True) if fresh else (parts.where, False)


def _pairs(count: int, *, interleaved: bool) -> tuple[Any, Any]:
    index = np.arange(count)
    return (2 * index, 2 * index + 1) if interleaved else (index, index + count)


def _pair_ratios(
    have: Floats, want: Floats, pairs: int, *, interleaved: bool
) -> npt.NDArray[np.complex128]:
    """How much further and longer each pair is, [T, pairs]."""
    left, right = _pairs(pairs, interleaved=interleaved)
    outside = have[..., left] + 1j * have[..., right]
    inside = want[..., left] + 1j * want[..., right]
    ratios: npt.NDArray[np.complex128] = (outside * inside.conj()).sum(0) / np.maximum(
        (np.abs(inside) ** 2).sum(0), 1e-30
    )
    return ratios


def _ratio(have: Floats, want: Floats) -> npt.NDArray[np.complex128]:
    """How much larger the channels of each token are, [T]; 1 where there are none."""
    if not have.shape[-1]:
        return np.ones(have.shape[1], np.complex128)
    top = (want * want).sum((0, 2))
    ratio = (have * want).sum((0, 2)) / np.maximum(top, 1e-30)
    rest = np.abs(have - ratio[None, :, None] * want).max((0, 2))
    ratio = np.where(rest > 1e-2 * np.abs(want).max((0, 2)), np.nan, ratio)
    return np.asarray(ratio, np.complex128)
