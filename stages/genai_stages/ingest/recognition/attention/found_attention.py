"""The sizes of a folded graph, and what is known of an attention once it is recognized."""

from __future__ import annotations

import dataclasses

from genai_core.facts import Role
from genai_stages.ingest.folding.folded_graph import StaticNode
from genai_stages.ingest.recognition import classify_rotary
from genai_stages.ingest.recognition.drafts import DraftNode


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
