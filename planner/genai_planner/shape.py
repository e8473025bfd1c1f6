"""A model's sizes as planning needs them: how many layers, and how many weights in each group.

Two sources say the same. `facts.json`, which ingest writes, is exact and decides what is built;
config.json is known before anything has run and serves forecasts and early refusals. Every family
of models has its own names in config.json, some of them one level deeper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from genai_core.facts import ModelFacts
from genai_core.names import Digest

__all__ = ["ModelShape", "group_file", "shape_from_config", "shape_from_facts"]

_NESTED = ("text_config", "llm_config", "language_config", "language_model_config", "decoder")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")
_HIDDEN = ("hidden_size", "n_embd", "d_model", "n_embed", "dim", "embed_dim", "model_dim")
_VOCAB = ("vocab_size", "n_vocab", "padded_vocab_size")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_KV_HEADS = (
    "num_key_value_heads",
    "n_head_kv",
    "num_kv_heads",
    "n_kv_heads",
    "multi_query_group_num",
)
_INTERMEDIATE = (
    "intermediate_size",
    "n_inner",
    "ffn_dim",
    "d_ff",
    "ffn_hidden_size",
    "ffn_size",
    "hidden_dim",
)
_POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
    "n_ctx",
    "model_max_length",
)
_MOST = 1 << 31
_MOST_LAYERS = 512
"""Beyond any model: a file that says so says nothing. It is a user's, and whoever plans is not."""

_GATED = ("silu", "swish", "swiglu", "geglu", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class ModelShape:
    """Numbers of weights, and what limits a context.

    Attributes:
        architecture: llama, qwen2 ...; `generic` where no rule knows it.
        hidden_size: Width of the residual stream.
        vocab_size: Tokens.
        embedding: Weights of the embedding table.
        layers: Weights of each layer, in order.
        head: Weights behind the last layer, lm_head included also where it is tied.
        tied: lm_head is the embedding table.
        max_positions: The longest context that the model was made for.
        files: Weights group -> file that ingest writes it to.
        kv_width: Key heads x head size: what one token costs in each layer's cache, twice.
        exact: From ingest, not from config.json.
        features_size: Of an EAGLE head, the width of the hidden states that it reads; else 0.
        tokens: Rows of the embedding table: more than `vocab_size` where a head guesses from fewer.
        caches: (heads, head size) of each layer's keys and values.
        rotary: Name, frequencies and factor of each rotary table; from ingest alone.
        contents: File of weights -> digest; from ingest alone.
    """

    architecture: str
    hidden_size: int
    vocab_size: int
    embedding: int
    layers: tuple[int, ...]
    head: int
    tied: bool
    max_positions: int | None
    files: Mapping[str, str]
    kv_width: int
    exact: bool
    features_size: int = 0
    tokens: int = 0
    caches: tuple[tuple[int, int], ...] = ()
    rotary: tuple[tuple[str, tuple[float, ...], float], ...] = ()
    contents: Mapping[str, Digest] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """All weights, a tied table once."""
        shared = self.vocab_size * self.hidden_size if self.tied else 0
        return self.embedding + sum(self.layers) + self.head - shared

    @property
    def largest(self) -> int:
        """Weights of the largest group: what a stage that streams has in memory."""
        return max((*self.layers, self.embedding, self.head))


def group_file(group: str) -> str:
    """Where ingest puts a weights group: `embed`, `layer_000` ..., `head`."""
    return f"weights/{group}.data"


def shape_from_facts(facts: ModelFacts, contents: Mapping[str, Digest] | None = None) -> ModelShape:
    """The exact shape.

    Args:
        facts: From ingest.
        contents: Files that ingest left -> digest.
    """
    groups = facts.groups
    table = facts.vocab_size * facts.hidden_size
    embedding = groups["embed"].parameters if "embed" in groups else table
    head = groups["head"].parameters if "head" in groups else 0
    layers = tuple(
        groups[name].parameters if (name := f"layer_{i:03d}") in groups else 0
        for i in range(facts.layers)
    )
    widths = [a.kv_heads * a.head_dim for a in facts.attention]
    return ModelShape(
        architecture=facts.architecture,
        hidden_size=facts.hidden_size,
        vocab_size=facts.vocab_size,
        embedding=embedding,
        layers=layers,
        head=head + (table if facts.tied_embedding else 0),
        tied=facts.tied_embedding,
        max_positions=facts.max_positions,
        files={name: group.file for name, group in groups.items()},
        kv_width=max(widths, default=facts.hidden_size),
        exact=True,
        features_size=0 if facts.head is None else facts.head.features_size,
        tokens=facts.vocab_size if facts.head is None else facts.head.tokens,
        caches=tuple((attention.kv_heads, attention.head_dim) for attention in facts.attention),
        rotary=tuple(
            (name, tuple(table.inv_freq), table.attention_factor)
            for name, table in sorted(facts.rope.items())
        ),
        contents={
            file: digest
            for file, digest in (contents or {}).items()
            if file in {group.file for group in groups.values()}
        },
    )


def shape_from_config(config: Mapping[str, Any]) -> ModelShape | None:
    """A forecast from config.json; None where it does not say enough."""
    levels = [config]
    levels += [config[name] for name in _NESTED if isinstance(config.get(name), Mapping)]

    def number(names: tuple[str, ...]) -> int | None:
        for level in levels:
            for name in names:
                value = level.get(name)
                if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST:
                    return value
        return None

    layers, hidden, vocab = number(_LAYERS), number(_HIDDEN), number(_VOCAB)
    if layers is None or hidden is None or vocab is None or layers > _MOST_LAYERS:
        return None
    heads = number(_HEADS) or max(hidden // 64, 1)
    head_dim = number(("head_dim", "kv_channels")) or max(hidden // heads, 1)
    multi_query = any(level.get("multi_query") is True for level in levels)
    kv_heads = number(_KV_HEADS) or (1 if multi_query else heads)
    inner = number(_INTERMEDIATE) or 4 * hidden
    names = ("hidden_act", "hidden_activation", "activation_function")
    act = next((str(a) for level in levels for n in names if (a := level.get(n))), "silu")
    experts = number(("num_local_experts", "num_experts", "n_routed_experts")) or 1
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    feed_forward = hidden * inner * (3 if act.lower() in _GATED else 2) * experts
    tied = any(level.get("tie_word_embeddings") is True for level in levels)
    groups = ["embed", *(f"layer_{i:03d}" for i in range(layers)), "head"]
    return ModelShape(
        architecture=str(levels[-1].get("model_type") or config.get("model_type") or "generic"),
        hidden_size=hidden,
        vocab_size=vocab,
        embedding=vocab * hidden,
        layers=(attention + feed_forward + 2 * hidden,) * layers,
        head=vocab * hidden + hidden,
        tied=tied,
        max_positions=number(_POSITIONS),
        files={group: group_file(group) for group in groups},
        kv_width=kv_heads * head_dim,
        exact=False,
        caches=((kv_heads, head_dim),) * layers,
    )
