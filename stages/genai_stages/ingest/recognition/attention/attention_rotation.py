"""How an attention rotates its queries and keys: by which table, read off the numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from genai_core.errors import UnsupportedOperator
from genai_core.facts import RopeTable
from genai_stages.ingest.folding.folded_graph import FoldedGraph, StaticNode
from genai_stages.ingest.recognition import classify_rotary
from genai_stages.ingest.recognition.attention.attention_parts import Floats
from genai_stages.ingest.recognition.attention.attention_scores import ScoreChain

__all__ = ["KnownRopes", "RotatedHeads", "TurnedHeads", "rotate"]

_Table = npt.NDArray[np.float32]
_Waves = dict[str, npt.NDArray[np.floating]]


@dataclass
class KnownRopes:
    """Rotary tables to try: config.json's, then those of the layers before.

    Attributes:
        factors: On cosine and sine, of config.json's tables.
        tables: Radians a position, [pairs].
    """

    factors: list[float] = field(default_factory=list)
    tables: list[_Table] = field(default_factory=list)

    @classmethod
    def of(cls, ropes: Sequence[RopeTable]) -> KnownRopes:
        """Begin with the tables that config.json describes."""
        return cls(
            [table.attention_factor for table in ropes],
            [np.array(table.inv_freq, np.float32) for table in ropes],
        )

    def learn(self, table: _Table) -> None:
        """Remember a table that was measured: two layers that differ in noise share one."""
        if len(table) and not any(np.array_equal(table, one) for one in self.tables):
            self.tables.append(table)


@dataclass(frozen=True)
class TurnedHeads:
    """Heads before and behind the rotation, [H, T, D]; as the source computes them."""

    before: npt.NDArray[np.float64]
    after: Floats


@dataclass(frozen=True)
class RotatedHeads:
    """Queries and new keys as the definition rotates them.

    Attributes:
        query: [H, T, D].
        key: [KV, T, D].
        rotation: Of both.
        factor: On cosine and sine.
    """

    query: Floats
    key: Floats
    rotation: classify_rotary.Rotation
    factor: float


def rotate(
    graph: FoldedGraph,
    nodes: Sequence[StaticNode],
    chain: ScoreChain,
    *,
    positions: npt.NDArray[np.int64],
    query: TurnedHeads,
    key: TurnedHeads,
    known: KnownRopes,
) -> RotatedHeads:
    """Find how queries and keys are rotated, and rotate them so.

    Args:
        graph: The folded source.
        nodes: Between the projections of queries and keys and their product.
        chain: Makes the errors.
        positions: [T] of the new tokens.
        query: The queries.
        key: The new keys.
        known: Tables to try; one that is new is added.

    Raises:
        UnsupportedOperator: They are turned in another way, or each in its own.
    """
    waves = _waves_of(graph, nodes, len(positions))
    rounding = _rounding_of(graph, waves)
    factor, tables = _tables_of(graph, waves, rounding, known)

    def turn_of(heads: TurnedHeads, tables: Sequence[_Table]) -> classify_rotary.Rotation:
        found = classify_rotary.find_rotation(
            heads.before, heads.after, positions, tables=tables, factor=factor, rounding=rounding
        )
        if found is None:
            raise _no_rotation(chain, rounding)
        return found

    turn_q = turn_of(query, tables)
    turn_k = turn_of(key, [turn_q.inv_freq, *tables] if len(turn_q.inv_freq) else tables)
    if not np.array_equal(turn_q.inv_freq, turn_k.inv_freq) or (
        turn_q.interleaved != turn_k.interleaved
    ):
        raise chain.refuse("queries and keys are rotated differently")
    if not len(turn_q.inv_freq):
        factor = 1.0
    known.learn(turn_q.inv_freq)
    if turn_q.rounding:
        # What follows is held against the source's own heads, as strictly as elsewhere.
        return RotatedHeads(query.after / turn_q.scale, key.after / turn_k.scale, turn_q, factor)
    rotated_q = turn_q.apply(query.before, positions)
    rotated_k = turn_k.apply(key.before, positions)
    rotated_q[..., : turn_q.rotary_dim] *= factor
    rotated_k[..., : turn_k.rotary_dim] *= factor
    return RotatedHeads(rotated_q, rotated_k, turn_q, factor)


def _no_rotation(chain: ScoreChain, rounding: float) -> UnsupportedOperator:
    if not rounding:
        return chain.refuse("heads are neither rotated by position nor left alone")
    return UnsupportedOperator(
        "its rotary table is stored in 16 bits, which is too coarse to tell frequencies "
        "by, and config.json describes no table that fits",
        where=chain.softmax.where(),
        remedy="put the model's own config.json beside it: rope_theta, head_dim, rope_scaling",
    )


def _waves_of(graph: FoldedGraph, nodes: Iterable[StaticNode], tokens: int) -> _Waves:
    """Cosines and sines, and what else has a value for each token."""
    waves: _Waves = {}
    for node in nodes:
        for name in node.inputs:
            constant = graph.constants.get(name)
            if (
                constant is not None
                and constant.size > 1
                and constant.dtype == np.float32
                and tokens in constant.shape
            ):
                waves[name] = constant.array()
    return waves


def _rounding_of(graph: FoldedGraph, waves: Mapping[str, npt.NDArray[np.floating]]) -> float:
    """Of the tables of cosines and sines that the source stores; frequencies are no such."""
    width = max((wave.shape[-1] for wave in waves.values()), default=0)
    stored = [one for name in waves for one in graph.known_ancestors(name)]
    return max((one.rounding for one in stored if one.size > width), default=0.0)


def _tables_of(
    graph: FoldedGraph,
    waves: Mapping[str, npt.NDArray[np.floating]],
    rounding: float,
    known: KnownRopes,
) -> tuple[float, list[_Table]]:
    """The factor on cosine and sine, and frequencies that they may come from."""
    tables: dict[bytes, _Table] = {}
    limit = max((wave.shape[-1] for wave in waves.values()), default=0)
    for name in waves:
        for constant in graph.known_ancestors(name):
            if constant.dtype == np.float32 and 1 < constant.size <= limit:
                table = constant.array().reshape(-1).astype(np.float32)
                if (table >= 0).all() and table[0] > 0:
                    tables[table.tobytes()] = table
    factor = classify_rotary.attention_factor(
        list(waves.values()), known=known.factors, rounding=rounding
    )
    return factor, [*tables.values(), *known.tables]
