"""Norms of an attention's heads: RMSNorm over each head of the queries or the keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genai_core.errors import UnsupportedOperator
from genai_stages.ingest.folding.folded_graph import FoldedGraph, StaticNode
from genai_stages.ingest.recognition.attention.attention_parts import Side
from genai_stages.ingest.recognition.drafts import DraftWeight

__all__ = ["HeadNorm", "apply_norm", "norm_values", "norm_weights"]

_EPSILON = 1e-6
"""Of an attention without norms."""


@dataclass(frozen=True)
class HeadNorm:
    """The norm of one operand's heads.

    Attributes:
        weight: Name of the constant, [D].
        epsilon: Added to the mean of squares.
        output: The tensor that the norm yields.
    """

    weight: str
    epsilon: float
    output: str


def apply_norm(
    graph: FoldedGraph,
    nodes: Iterable[StaticNode],
    heads: npt.NDArray[np.float64],
    refuse: Callable[[str], UnsupportedOperator],
) -> tuple[npt.NDArray[np.float64], HeadNorm | None]:
    """Norm an operand's heads as the source does.

    Args:
        graph: The folded source.
        nodes: Between the projection and the attention.
        heads: [H, T, D] before the norm.
        refuse: Makes an error of a reason.

    Returns:
        The heads behind the norm, and the norm; None where there is none.

    Raises:
        UnsupportedOperator: It is another norm than RMSNorm over each head.
    """
    norms = [node for node in nodes if "Normalization" in node.op_type]
    if not norms:
        return heads, None
    node = norms[0]
    weight = graph.constants.get(node.inputs[1])
    if (
        len(norms) > 1
        or node.op_type != "RMSNormalization"
        or weight is None
        or weight.size != heads.shape[-1]
    ):
        raise refuse(f"{node.where()} normalizes heads in another way than RMSNorm")
    epsilon = float(node.attributes["epsilon"])
    mean = (heads * heads).mean(-1, keepdims=True)
    normed = heads / np.sqrt(mean + epsilon) * weight.array().reshape(-1)
    return normed, HeadNorm(node.inputs[1], epsilon, node.outputs[0])


def norm_weights(
    graph: FoldedGraph,
    norms: Mapping[Side, HeadNorm | None],
    refuse: Callable[[str], UnsupportedOperator],
) -> tuple[tuple[DraftWeight | None, ...], float]:
    """The weights of queries' and keys' norms for the core graph, and their epsilon.

    Raises:
        UnsupportedOperator: The two have different epsilons.
    """
    epsilons = {norm.epsilon for norm in norms.values() if norm is not None}
    if not epsilons:
        return (), _EPSILON
    if len(epsilons) != 1:
        raise refuse("the norms of queries and keys have different epsilons")
    weights: list[DraftWeight | None] = []
    for norm in norms.values():
        if norm is None:
            weights.append(None)
            continue
        constant = graph.constants[norm.weight]
        weights.append(DraftWeight(constant, vector=constant.array().reshape(-1)))
    return tuple(weights), epsilons.pop()


def norm_values(
    graph: FoldedGraph, norms: Mapping[Side, HeadNorm | None]
) -> dict[Side, tuple[npt.NDArray[np.float32], float]]:
    """The same as numbers: weight [D] and epsilon of each side that has a norm."""
    return {
        side: (graph.constants[norm.weight].array().reshape(-1), norm.epsilon)
        for side, norm in norms.items()
        if norm is not None
    }
