"""What ingest found out about a model: `facts.json` beside the core graph.

Later stages read shapes, rotary tables and provenance here instead of guessing them again from
the graph. The core graph itself is described in stages/README.md.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from genai_core.files import json_budgets
from genai_core.files.paths import RelativePath

_FROZEN = ConfigDict(frozen=True, extra="forbid")

Role = Literal[
    "query", "key", "value",
    "query_normed", "key_normed",
    "query_rotated", "key_rotated",
    "past_key", "past_value",
    "key_all", "value_all",
    "scores", "scaled", "capped", "masked", "probs",
    "context", "context_flat",
    "key_new", "value_new",
]  # fmt: skip
"""A tensor inside an attention; see `AttentionFacts.roles`."""


class RopeTable(BaseModel):
    """One rotary table: `angle = position * inv_freq`, `cos|sin(angle) * attention_factor`.

    Source: Su et al., RoFormer (2021); scaling variants as in transformers' `modeling_rope_utils`.
    """

    model_config = _FROZEN

    rotary_dim: int
    inv_freq: list[float]
    """rotary_dim / 2 values, radians a position (float32 values)."""
    attention_factor: float = 1.0
    theta: float | None = None
    """The base, where the table follows from one; for Genie's configuration."""
    scaling: dict[str, object] = Field(default_factory=dict)
    """config.json's rope_scaling, for Genie's configuration; empty for plain RoPE."""


class AttentionFacts(BaseModel):
    """One attention layer of the core graph."""

    model_config = _FROZEN

    layer: int
    num_heads: int
    kv_heads: int
    head_dim: int
    window: int = 0
    """0 = full causal; W = a token sees itself and the W - 1 before it."""
    rope: str = "default"
    roles: dict[Role, str] = Field(default_factory=dict)
    """Role -> name of the source's tensor; absent where the source has no such tensor."""


class TensorSource(BaseModel):
    """Which source tensor a tensor stands for, when it does not bear its name."""

    model_config = _FROZEN

    source: str
    rows: tuple[int, int] | None = None
    """Output channels [start, stop) of the source that this tensor holds; None = all."""
    index: tuple[int, ...] | None = None
    """The channels one by one, where they are no single range."""
    head: int | None = None
    """The attention head whose slice of `source` this is."""


class WeightsGroup(BaseModel):
    """One file of weights: the embedding, one layer, or the head."""

    model_config = _FROZEN

    file: RelativePath
    size_bytes: int
    parameters: int


class LoraBranch(BaseModel):
    """A LoRA branch that the source's graph had at a linear, its weights being inputs."""

    model_config = _FROZEN

    a: str
    """Input of the source that was A: [inputs, rank], or [rank, inputs, 1, 1] of a convolution."""
    b: str
    """Input of the source that was B: [rank, outputs], or [outputs, rank, 1, 1]."""
    scale: float
    """What the graph multiplies the branch by."""
    linear: str
    """The source's tensor that the branch was added to."""
    output: str
    """What came of it."""
    inputs: int
    rank: int
    outputs: int
    conv: bool = False
    tensors: tuple[str, ...] = ()
    """What was computed on the branch: the names that its encodings have."""


class HeadFacts(BaseModel):
    """A graph that guesses from another model's hidden states: an EAGLE head.

    Its core graph has these inputs beside `input_ids`, and this output beside `logits`.
    """

    model_config = _FROZEN

    features: str
    """Input of the model's hidden states, [1, T, features_size]."""
    features_size: int
    hidden: str
    """Input of the head's own state while it drafts, [1, T, hidden_size]; with one input for both
    the same name, else the one of the two that is not meant is zeros."""
    feedback: str
    """Output that `hidden` is given next, [1, T, hidden_size]."""
    tokens: int
    """Rows of the embedding table: ids of the model. `vocab_size` is that of the logits."""


class BranchTensors(BaseModel):
    """A linear of the static graphs that takes adapters: names of its inputs and inner tensors.

    y = plain + (scaled = (down = x A) * alpha) B, where `plain` is what the linear itself yields.
    """

    model_config = _FROZEN

    linear: str
    """The core graph's tensor y: what comes of it all keeps this name."""
    a: str
    """Input [inputs, rank]."""
    b: str
    """Input [rank, outputs]."""
    plain: str
    down: str
    scaled: str
    up: str
    inputs: int
    outputs: int


class AdapterInputs(BaseModel):
    """Inputs of a build's static graphs that take adapters, each by its role."""

    model_config = _FROZEN

    rank: Annotated[int, Field(ge=1)]
    """Columns of every A and rows of every B: smaller adapters are padded with zeros."""
    alpha: str
    """Input [1] that scales all branches."""
    branches: tuple[BranchTensors, ...]

    @property
    def names(self) -> frozenset[str]:
        """All inputs."""
        return frozenset({self.alpha}.union(*({one.a, one.b} for one in self.branches)))


class AdapterRanges(BaseModel):
    """The widest values that the inputs and inner tensors of branches take."""

    model_config = _FROZEN

    widest: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]]
    """A, B, `down` and `up` of each branch -> largest absolute value, the spec's reserve in it."""
    norms: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]]
    """Linear -> the largest L2 norm of what it reads for a token."""


class ModelFacts(BaseModel):
    """Identity facts of an ingested model."""

    model_config = _FROZEN

    schema_version: Literal[1] = 1
    architecture: str
    """llama, qwen2 ...; `generic` for one that no rule knows."""
    layers: Annotated[int, Field(ge=0, le=4096)]
    """Bounded, since a plan has a part for each and the file is not everybody's own."""
    hidden_size: int
    vocab_size: int
    parameters: int
    rope: dict[str, RopeTable]
    attention: list[AttentionFacts]
    boundaries: Annotated[list[str], Field(min_length=1)]
    """Core-graph tensors: the one that enters layer 0, 1, ..., and the one leaving the last."""
    groups: dict[str, WeightsGroup]
    """`embed`, `layer_000` ..., `head` -> its file."""
    tied_embedding: bool = False
    provenance: dict[str, TensorSource] = Field(default_factory=dict)
    """Core-graph tensor (activation or weight) -> the source's; absent = its own name."""
    source_form: Literal["dynamic", "static"] = "dynamic"
    native_ar: int | None = None
    """AR of a static source, None for a dynamic one."""
    native_cl: int | None = None
    max_positions: int | None = None
    warnings: list[str] = Field(default_factory=list)
    lora: tuple[LoraBranch, ...] = ()
    """Branches that were taken off; absent from the file where there were none, so that files
    which were written before stay as they are."""
    head: HeadFacts | None = None
    """Of an EAGLE head; absent from other models' files."""

    @model_serializer(mode="wrap")
    def _without_unused(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = serialize(self)
        if not self.lora:
            found.pop("lora", None)
        if self.head is None:
            found.pop("head", None)
        return found

    @classmethod
    def from_bytes(cls, data: bytes) -> ModelFacts:
        """Read `facts.json`.

        Raises:
            ValueError: Not JSON, not the facts of a version known here, or beyond their budget.
        """
        return cls.model_validate_json(json_budgets.FACTS.within(data))
