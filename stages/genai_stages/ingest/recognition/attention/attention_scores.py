"""What happens to an attention's scores before their softmax: scale, soft cap and mask.

The nodes in between are found by walking back from the softmax; what they do is read off the values
that they have on random queries and keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from genai_core.errors import UnsupportedOperator
from genai_core.facts import Role
from genai_stages.ingest.folding import classify_mask
from genai_stages.ingest.folding.folded_graph import FoldedGraph, StaticNode
from genai_stages.ingest.source.source_model import Array

AGREEMENT = 2e-4
"""Largest relative difference between what the source computes and the definition."""
_CHAIN = {"Add", "Sub", "Mul", "Div", "Tanh", "Where", "Reshape", "Cast", "Expand", "Squeeze",
          "Unsqueeze"}  # fmt: skip

MaskAtScale = Callable[[Sequence[StaticNode]], int | None]
"""Nodes from the scores' product to before the softmax -> the window behind a long past."""


class ScoreChain:
    """The nodes from the product of queries and keys to a softmax.

    Args:
        graph: Whose nodes they are.
        producers: Tensor -> its node.
        softmax: Where they end.

    Raises:
        UnsupportedOperator: Something else stands there than arithmetic on scores.
    """

    def __init__(
        self, graph: FoldedGraph, producers: Mapping[str, StaticNode], softmax: StaticNode
    ) -> None:
        self.graph = graph
        self.softmax = softmax
        self.nodes: list[StaticNode] = []
        name = softmax.inputs[0]
        while True:
            node = producers.get(name)
            if node is None:
                raise self.refuse("the scores are an input")
            opened = [one for one in node.inputs if one and one not in graph.constants]
            if node.op_type == "MatMul" and len(opened) == 2:
                break
            if node.op_type not in _CHAIN or len(set(opened)) != 1:
                raise self.refuse(f"{node.where()} stands between the scores and the softmax")
            self.nodes.insert(0, node)
            name = opened[0]
        self.product = node

    def refuse(self, reason: str) -> UnsupportedOperator:
        """An attention that cannot be expressed."""
        return UnsupportedOperator(
            f"this attention has no form here: {reason}",
            where=self.softmax.where(),
            remedy="export a model with causal or sliding-window attention over one KV cache",
        )

    def scaling(
        self,
        raw: npt.NDArray[np.float64],
        tensors: Mapping[str, Array],
        roles: dict[Role, str],
    ) -> tuple[float, float]:
        """Scale and soft cap.

        Args:
            raw: Queries times keys.
            tensors: What the source computes.
            roles: Gets the names of the tensors on the way.
        """
        name = self.product.outputs[0]
        have = tensors[name].reshape(raw.shape)
        factor = float((raw * have).sum() / (raw * raw).sum())
        error = np.abs(have - factor * raw).max() / max(np.abs(have).max(), 1e-30)
        if not error < AGREEMENT:
            raise self.refuse(f"its scores depart by {error:.1e} from query times key")
        factor = meant(factor) or float(f"{factor:.6g}")
        steps = [(name, factor)]
        cap_factor: float | None = None
        for node in self.nodes:
            value = self.number(node)
            if node.op_type == "Tanh":
                if cap_factor is not None:
                    raise self.refuse("scores are capped twice")
                cap_factor = 1.0
            elif node.op_type in ("Mul", "Div") and value is not None:
                value = value if node.op_type == "Mul" else 1.0 / value
                if cap_factor is None:
                    factor *= value
                    steps.append((node.outputs[0], factor))
                else:
                    cap_factor *= value
                    roles["capped"] = node.outputs[0]
        softcap = cap_factor or 0.0
        scale = factor * softcap if softcap else factor
        scale = meant(scale) or scale
        for tensor, reached in steps:
            if math.isclose(reached, 1.0, rel_tol=1e-6):
                roles.setdefault("scores", tensor)
            if math.isclose(reached, scale, rel_tol=1e-6):
                roles.setdefault("scaled", tensor)
        return scale, softcap

    def number(self, node: StaticNode) -> float | None:
        """The constant that a node computes with."""
        for position, name in enumerate(node.inputs):
            constant = self.graph.constants.get(name)
            if constant is not None and constant.size == 1:
                if node.op_type == "Div" and position == 0:
                    raise self.refuse(f"{node.where()} divides by scores")
                return float(constant.array().reshape(-1)[0])
        return None

    def mask(
        self,
        capped: npt.NDArray[np.float64],
        tensors: Mapping[str, Array],
        *,
        past: int,
        at_scale: MaskAtScale | None,
    ) -> tuple[npt.NDArray[np.bool_], int]:
        """Visible keys [T, K] and their window.

        Args:
            capped: Scores before the mask.
            tensors: What the source computes.
            past: Positions before the new tokens.
            at_scale: Computes a window behind a long past; None = the mask is an input.
        """
        given = tensors[self.softmax.inputs[0]].reshape(capped.shape).astype(np.float64)
        change = np.where(np.isfinite(given), given - capped, -np.inf)
        visible = change > classify_mask.HIDDEN
        if not (visible == visible[:1]).all():
            raise self.refuse("heads have masks of their own, as ALiBi gives them")
        shift = np.abs(np.where(visible, change, 0.0)).max()
        if shift > AGREEMENT * max(1.0, np.abs(capped).max()):
            raise self.refuse(f"scores are shifted by up to {shift:.2g} (a bias on positions)")
        window = classify_mask.classify(visible[0], past)
        if at_scale is not None and window == 0:
            window = at_scale([self.product, *self.nodes])
        if window is None:
            raise self.refuse("its mask is neither causal nor a sliding window")
        return visible[0], window

    def mask_inputs(self) -> frozenset[str]:
        """The known inputs that hide keys here."""
        known = {
            constant.name
            for node in self.nodes
            for name in node.inputs
            if name in self.graph.constants
            for constant in self.graph.known_ancestors(name)
        }
        return frozenset(known)


def meant(value: float) -> float | None:
    """The number that a measured factor stands for: a root of a whole number, or of such a root.

    What is measured differs from machine to machine in its last digits, and must not do so in what
    is written.
    """
    for power in (2, 4):
        whole = round(value**-power) if value > 0 else 0
        if whole and math.isclose(value, whole ** (-1 / power), rel_tol=2e-6):
            return float(whole ** (-1 / power))
    return None
