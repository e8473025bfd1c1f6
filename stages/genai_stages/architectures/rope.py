"""Rotary tables from config.json: the plain one and the scaled variants.

Written from the papers and from the meaning of the keys in transformers' config.json (RoFormer;
position interpolation; NTK; YaRN, arXiv 2309.00071; LongRoPE, arXiv 2402.13753; Llama 3.1's
piecewise rule). The graph's own values are compared with these wherever it has any.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_core.errors import BadModel
from genai_core.facts import RopeTable
from genai_stages.architectures.family import Config, Family

Frequencies = npt.NDArray[np.float32]


def head_dim(config: Config) -> int | None:
    """Channels of a head, None where config.json does not tell."""
    given = config.get("head_dim")
    if isinstance(given, int):
        return given
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if isinstance(hidden, int) and isinstance(heads, int) and heads:
        return hidden // heads
    return None


def ropes_of(config: Config, family: Family) -> dict[str, RopeTable]:
    """Tables `default` and, where the family has one, `local`; empty without head sizes.

    Raises:
        BadModel: A rope_scaling that is not known.
    """
    width = head_dim(config)
    if width is None:
        return {}
    nested, local = _parameters(config)
    turned, turned_locally = (
        next((float(stated[key]) for key in family.partial_rotary if key in stated), 1.0)
        for stated in ({**nested, **config}, {**local, **config})
    )
    theta = float(config.get("rope_theta") or nested.get("rope_theta") or
                  config.get("rotary_emb_base") or 10000.0)  # fmt: skip
    scaling = config.get("rope_scaling") or nested
    scaling = dict(scaling) if isinstance(scaling, dict) else {}
    tables = {"default": scaled_table(theta, _rotary(width, turned, scaling), scaling, config)}
    base = local.get("rope_theta") or (family.local_theta and config.get(family.local_theta))
    if base:
        rotary = _rotary(width, turned_locally, local)
        tables["local"] = scaled_table(float(base), rotary, dict(local), config)
    return tables


def _rotary(width: int, fraction: float, scaling: Config) -> int:
    """Channels that a table turns; the proportional one has all, and turns the last by nothing."""
    return int(width * (1.0 if kind_of(scaling) == "proportional" else fraction)) // 2 * 2


def kind_of(scaling: Config) -> str:
    """The type that a rope_scaling entry states."""
    return str(scaling.get("rope_type", scaling.get("type", "default")))


def _parameters(config: Config) -> tuple[Config, Config]:
    """`rope_parameters` of transformers 5: for all layers, and for those with a window.

    It is one entry, or one for each of `layer_types`.
    """
    given = config.get("rope_parameters")
    given = given if isinstance(given, dict) else {}
    if not any(isinstance(entry, dict) for entry in given.values()):
        return given, {}
    full, local = given.get("full_attention") or {}, given.get("sliding_attention") or {}
    return (full, local) if full else (local, {})


def plain_frequencies(theta: float, rotary: int) -> Frequencies:
    """Theta ** (-2 i / rotary), rounded once: float32 powers differ from processor to processor."""
    return (theta ** (-np.arange(0, rotary, 2, dtype=np.float64) / rotary)).astype(np.float32)


def scaled_table(theta: float, rotary: int, scaling: dict[str, Any], config: Config) -> RopeTable:
    """The table of a base under a rope_scaling entry.

    Raises:
        BadModel: Its type is not known, or a key is missing.
    """
    kind = kind_of(scaling)
    rule = _RULES.get(kind)
    if rule is None:
        raise BadModel(
            f"rope_scaling of type {kind} is not known",
            where="config.json: rope_scaling",
            remedy=f"use one of {', '.join(sorted(_RULES))}",
        )
    try:
        inv_freq, factor = rule(theta, rotary, scaling, config)
    except (KeyError, TypeError, ValueError) as error:
        raise BadModel(
            f"rope_scaling of type {kind} lacks {error}",
            where="config.json: rope_scaling",
            remedy="copy config.json from the model again",
        ) from error
    kept = {} if rule is _default and kind != "dynamic" else dict(scaling)
    if rule is _longrope:
        # Where config.json has it beside rope_scaling: a table tells how far its factors hold.
        kept["original_max_position_embeddings"] = _original(scaling, config)
    return RopeTable(
        rotary_dim=rotary,
        inv_freq=inv_freq.tolist(),
        attention_factor=float(np.float32(factor)),
        theta=theta,
        scaling=kept,
    )


def _default(
    theta: float, rotary: int, scaling: dict[str, Any], config: Config
) -> tuple[Frequencies, float]:
    del scaling, config
    return plain_frequencies(theta, rotary), 1.0


def _linear(
    theta: float, rotary: int, scaling: dict[str, Any], config: Config
) -> tuple[Frequencies, float]:
    del config
    return plain_frequencies(theta, rotary) / np.float32(scaling["factor"]), 1.0


def _llama3(
    theta: float, rotary: int, scaling: dict[str, Any], config: Config
) -> tuple[Frequencies, float]:
    del config
    plain = plain_frequencies(theta, rotary).astype(np.float64)
    factor = float(scaling["factor"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = float(scaling["original_max_position_embeddings"]) * plain / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return ((1 - smooth) * plain / factor + smooth * plain).astype(np.float32), 1.0


def _yarn(
    theta: float, rotary: int, scaling: dict[str, Any], config: Config
) -> tuple[Frequencies, float]:
    plain = plain_frequencies(theta, rotary).astype(np.float64)
    original = scaling.get("original_max_position_embeddings") or config["max_position_embeddings"]
    factor = float(scaling["factor"])

    def pair_of(turns: float) -> float:
        return rotary * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = pair_of(float(scaling.get("beta_fast") or 32))
    high = pair_of(float(scaling.get("beta_slow") or 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary - 1)
    ramp = (np.arange(rotary // 2) - low) / max(high - low, 0.001)
    keep = 1 - np.clip(ramp, 0.0, 1.0)
    given = scaling.get("attention_factor")
    if given is None:
        given = 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0
    return (plain / factor * (1 - keep) + plain * keep).astype(np.float32), float(given)


def _longrope(
    theta: float, rotary: int, scaling: dict[str, Any], config: Config
) -> tuple[Frequencies, float]:
    """The short factors: they hold up to the original context length."""
    original = _original(scaling, config)
    factor = float(config["max_position_embeddings"]) / float(original)
    given = scaling.get("attention_factor")
    if given is None:
        given = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    short = np.array(scaling["short_factor"], np.float32)
    return plain_frequencies(theta, rotary) / short, float(given)


def _proportional(
    theta: float, rotary: int, scaling: dict[str, Any], config: Config
) -> tuple[Frequencies, float]:
    """A fraction of the pairs of the whole head's table; the others stand still."""
    fraction = scaling.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    table = plain_frequencies(theta, rotary) / np.float32(scaling.get("factor") or 1.0)
    table[int(float(fraction) * rotary // 2) :] = 0.0
    return table, 1.0


def _original(scaling: dict[str, Any], config: Config) -> int:
    """The context length that a model was made for before it was extended."""
    return int(
        config.get("original_max_position_embeddings")
        or scaling.get("original_max_position_embeddings")
        or config["max_position_embeddings"]
    )


# mrope tells an image's height and width from time: in text all three are the position.
_RULES: dict[str, Callable[[float, int, dict[str, Any], Config], tuple[Frequencies, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _default,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,
    "mrope": _default,
    "proportional": _proportional,
}
