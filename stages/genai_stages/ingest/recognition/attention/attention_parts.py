"""What was learnt about one attention, kept so that it can be tried again at other positions.

An attention is recognized at one small size. Whatever it does by position - turning heads, scaling
queries, hiding keys - may be another thing further out, so `check_positions` folds the source there
and holds it against what is noted here. Nothing of the small size is kept but names and factors.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from genai_stages.ingest.folding.folded_graph import FoldedGraph, StaticNode
from genai_stages.ingest.recognition.classify_rotary import Rotation
from genai_stages.ingest.recognition.evaluate_region import region_of

Side = Literal["query", "key", "value"]
Floats = npt.NDArray[np.floating[Any]]


@dataclasses.dataclass(frozen=True)
class NewHeads:
    """New keys or values where they join the past.

    Attributes:
        tensor: Its name; "" = a projection as it is, with nothing between.
        order: Axes of [heads, T, D] in the order in which the tensor has them.
        factor: What it is multiplied with, beyond the definition.
        behind: Operator and output of each node between the joint and the attention's operand.
    """

    tensor: str
    order: tuple[int, ...]
    factor: float
    behind: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class AttentionParts:
    """One attention: where its tensors are, and what it does to them.

    Attributes:
        layer: Its number.
        where: Its softmax, for messages.
        product: The product of probabilities and values, by its output.
        softmax: Likewise.
        scores: The product of queries and keys, likewise.
        heads: Query heads.
        kv_heads: Key and value heads.
        width: Channels of a head.
        rows: Channels of its projection that a side reads.
        norms: RMSNorm of a side's heads: weight and epsilon.
        rotation: Of queries; its scale is theirs.
        factor: On cosine and sine.
        scale: On scores, from their product to before the soft cap.
        softcap: 0 = none.
        window: 0 = none.
        keys: Where new keys join the past.
        values: Likewise.
    """

    layer: int
    where: str
    product: str
    softmax: str
    scores: str
    heads: int
    kv_heads: int
    width: int
    rows: Mapping[Side, npt.NDArray[np.int64]]
    norms: Mapping[Side, tuple[Floats, float]]
    rotation: Rotation
    factor: float
    scale: float
    softcap: float
    window: int
    keys: NewHeads
    values: NewHeads

    def count(self, side: Side) -> int:
        """Heads of a side."""
        return self.heads if side == "query" else self.kv_heads

    def head_values(self, flat: Floats, side: Side) -> Floats:
        """[heads, T, D] of a side from its projection [T, C], normalized; float64."""
        rows = flat[:, self.rows[side]].reshape(len(flat), -1, self.width)
        heads: Floats = rows.transpose(1, 0, 2).astype(np.float64)
        if side not in self.norms:
            return heads
        weight, epsilon = self.norms[side]
        mean = (heads * heads).mean(-1, keepdims=True)
        return np.asarray(heads / np.sqrt(mean + epsilon) * weight)


class Joint:
    """Where new keys or values meet the past, in a graph of any size.

    Args:
        graph: The graph.
        producers: Tensor -> its node.
        operand: What the attention reads.
        known: Tensors at which its region begins.
        size: Elements of the new heads: without a past they are found before they are repeated.
    """

    def __init__(
        self,
        graph: FoldedGraph,
        producers: Mapping[str, StaticNode],
        operand: str,
        known: Collection[str],
        size: int,
    ) -> None:
        nodes, _ = region_of(producers, [operand], lambda one: one in known)
        place = {id(node): index for index, node in enumerate(graph.nodes)}
        nodes.sort(key=lambda node: place[id(node)])
        old: set[str] = {name for name in graph.inputs if name not in known}
        self.tensor = operand
        self.behind: list[StaticNode] = []
        for node in nodes:
            if not old.intersection(node.inputs):
                continue
            fresh = [
                name
                for name in node.inputs
                if name and name not in old and name not in graph.constants
            ]
            if fresh:
                self.tensor, self.behind = fresh[0], []
            elif self.tensor != operand:
                self.behind.append(node)
            old.update(node.outputs)
        self.known = known
        if self.tensor != operand or old.intersection([operand]):
            return
        while self.tensor not in known and _size(graph, self.tensor) != size:
            node = producers[self.tensor]
            opened = [name for name in node.inputs if name and name not in graph.constants]
            if len(opened) != 1:
                return
            self.behind.insert(0, node)
            self.tensor = opened[0]

    @property
    def plain(self) -> bool:
        """Whether what joins is a projection as it is."""
        return self.tensor in self.known

    def steps(self) -> tuple[tuple[str, str], ...]:
        """Operator and output of the nodes behind it."""
        return tuple((node.op_type, node.outputs[0]) for node in self.behind)


def _size(graph: FoldedGraph, name: str) -> int:
    return int(np.prod(graph.shapes[name], dtype=np.int64))


def new_heads(joint: Joint, tensors: Mapping[str, Any], heads: Floats) -> NewHeads | None:
    """How a joint's new tensor holds [heads, T, D]; None where it holds something else."""
    if joint.plain:
        return NewHeads("", (0, 1, 2), 1.0, joint.steps())
    have = np.asarray(tensors[joint.tensor], np.float64)
    if have.size != heads.size:
        return None
    for order in itertools.permutations(range(3)):
        arranged = heads.transpose(order).reshape(have.shape)
        factor = float((arranged * have).sum() / max(float((arranged * arranged).sum()), 1e-30))
        if np.abs(have - factor * arranged).max() < 1e-3 * max(float(np.abs(have).max()), 1e-30):
            return NewHeads(joint.tensor, order, factor, joint.steps())
    return None


def canonical(values: Floats, order: Sequence[int], shape: Iterable[int]) -> Floats:
    """[heads, T, D] of a tensor that holds them in another order of axes."""
    sizes = list(shape)
    arranged = np.asarray(values, np.float64).reshape([sizes[axis] for axis in order])
    return arranged.transpose(np.argsort(order))
