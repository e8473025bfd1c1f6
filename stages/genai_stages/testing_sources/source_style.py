"""In how many ways one architecture can be written."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Style:
    """Sizes of a model and the way it is written.

    Attributes:
        layers: Number of layers.
        hidden: Width of the residual stream.
        heads: Query heads.
        kv_heads: Key and value heads.
        head_dim: Width of a head.
        intermediate: Width of the MLP.
        vocab: Tokens.
        rotary: Pairs of channels: halves, neighbours, or none at all.
        rotary_dim: Rotated channels, None = all.
        waves: Cosines and sines computed from frequencies, or ready for 512 positions.
        theta: Base of the frequencies; config.json says 10000 whatever it is.
        wave_factor: On cosines and sines.
        norm: How 1 / sqrt is spelled.
        projection: Operator of the projections.
        bias: Biases on query, key and value.
        scale: Where scores are scaled.
        score_scale: By what, None = the root of a head's width.
        mask: How keys are hidden; `new tokens`: by a triangle of the new ones, stretched over all.
        repeat: How key heads are repeated for grouped queries.
        fused: One projection for query, key and value.
        turned_keys: The cache holds keys as [.., D, P].
        positions: An input, or counted from the attention mask.
        past: Whether there is a cache at all.
        tied: The head uses the embedding table.
        window: Sliding window, 0 = none.
        external: Weights in `model.data`.
        half: Weights stored as float16.
        contrib: Norms and attention as ONNX Runtime's own fused operators; with rotary halves or
            neighbours, a past, and fused projections where `fused`. `multi`: as a builder writes
            them for float16 on the CPU: keys repeated before MultiHeadAttention, or, with as many
            key heads as query heads, its own past and bias.
        late: What begins to depend on the position at `late_from`: a factor on queries, new keys,
            new values, all values, scores, probabilities or the stream; a bias on scores; a mask of
            chunks; the window; other frequencies of ready waves; position embeddings.
        late_from: A position.
        seed: Of the weights.
    """

    layers: int = 2
    hidden: int = 32
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 8
    intermediate: int = 48
    vocab: int = 64
    rotary: Literal["halves", "neighbours", "none"] = "halves"
    rotary_dim: int | None = None
    waves: Literal["computed", "ready"] = "computed"
    theta: float = 10000.0
    wave_factor: float = 1.0
    norm: Literal["div", "reciprocal", "power", "quotient"] = "div"
    projection: Literal["matmul", "gemm", "transposed", "conv"] = "matmul"
    bias: bool = False
    scale: Literal["query", "key", "multiply", "divide", "both"] = "divide"
    score_scale: float | None = None
    mask: Literal["infinite", "lowest", "where", "new tokens"] = "lowest"
    repeat: Literal["expand", "broadcast"] = "expand"
    fused: bool = False
    turned_keys: bool = False
    positions: Literal["input", "counted"] = "input"
    past: bool = True
    tied: bool = False
    window: int = 0
    external: bool = False
    half: bool = False
    contrib: Literal[False, True, "multi"] = False
    late: Literal[
        "", "query", "key", "value", "values", "scores", "probs", "stream", "bias", "chunks",
        "window", "waves", "learned",
    ] = ""  # fmt: skip
    late_from: int = 100
    seed: int = 0
