"""What an attention reads, and what becomes of its scores: values of the steps of recognition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genai_stages.ingest.folding.folded_graph import StaticNode
from genai_stages.ingest.recognition.attention.attention_parts import Floats, Side
from genai_stages.ingest.recognition.drafts import DraftNode

__all__ = ["SIDES", "Operand", "Operands", "Scores"]

SIDES: tuple[Side, Side, Side] = ("query", "key", "value")


@dataclass(frozen=True)
class Operand:
    """Queries, keys or values between their projection and the attention.

    Attributes:
        name: The tensor that the product reads.
        nodes: Between both, in the graph's order.
        flat: Outputs of the projection that are read.
        past: The cache input beside them, where there is one.
        draft: The projection.
        rows: Its channels that are read.
        label: What these channels are called.
    """

    name: str
    nodes: list[StaticNode]
    flat: list[str]
    past: list[str]
    draft: DraftNode
    rows: npt.NDArray[np.int64]
    label: str


@dataclass(frozen=True)
class Operands:
    """The three operands of an attention, its heads and their width."""

    sides: Mapping[Side, Operand]
    heads: int
    kv_heads: int
    width: int


@dataclass(frozen=True)
class Scores:
    """What becomes of the scores.

    Attributes:
        all_keys: [KV, P + T, D], the past's first.
        all_values: [KV, P + T, D].
        scale: On the raw product of queries and keys.
        softcap: Zero = none.
        window: Keys that a token sees; zero = all.
        product_factor: The part of the scale that the product itself yields.
    """

    all_keys: Floats
    all_values: Floats
    scale: float
    softcap: float
    window: int
    product_factor: float
