"""Give the rotary tables that attentions were seen to use their names and their origin.

Values are the graph's. Where config.json describes the same table, its base and scaling go along,
since Genie's configuration is written in those terms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from genai_core.facts import RopeTable
from genai_stages.architectures.rope import plain_frequencies
from genai_stages.ingest.recognition.attention.found_attention import FoundAttention


def name_ropes(
    attentions: Sequence[FoundAttention], configured: Mapping[str, RopeTable]
) -> tuple[dict[int, str], dict[str, RopeTable]]:
    """Layer -> name of its table ("" = not rotated), and the tables.

    The table that config.json calls the default one keeps that name; so does the first that it
    does not describe. Further ones are `local` where all of their layers have a window.
    """
    ropes: dict[int, str] = {}
    tables: dict[str, RopeTable] = {}
    keys: dict[tuple[bytes, float], list[FoundAttention]] = {}
    for attention in attentions:
        if not attention.rotation.rotary_dim:
            ropes[attention.layer] = ""
            continue
        key = (attention.rotation.inv_freq.tobytes(), attention.attention_factor)
        keys.setdefault(key, []).append(attention)
    described = {key: _described(users[0], configured) for key, users in keys.items()}
    ordered = sorted(
        keys,
        key=lambda key: (
            described[key] != "default",
            all(attention.window for attention in keys[key]),
        ),
    )
    for key in ordered:
        users = keys[key]
        name = described[key] or (
            "local" if all(attention.window for attention in users) else "default"
        )
        if not tables and "default" not in described.values():
            name = "default"
        if name in tables:
            name = f"rope_{len(tables)}"
        tables[name] = _table(users[0], configured.get(described[key]))
        for attention in users:
            ropes[attention.layer] = name
    return ropes, dict(sorted(tables.items()))


def _described(attention: FoundAttention, configured: Mapping[str, RopeTable]) -> str:
    """The name of config.json's table with these frequencies, "" = none."""
    table = attention.rotation.inv_freq
    for name, known in configured.items():
        if len(known.inv_freq) == len(table) and np.allclose(known.inv_freq, table, rtol=1e-4):
            return name
    return ""


def _table(attention: FoundAttention, known: RopeTable | None) -> RopeTable:
    inv_freq = attention.rotation.inv_freq
    theta, scaling = (known.theta, known.scaling) if known is not None else (None, {})
    if theta is None and len(inv_freq) > 1 and inv_freq[0] == 1.0:
        guess = float(inv_freq[1]) ** (-attention.rotation.rotary_dim / 2)
        guess = float(f"{guess:.5g}")
        if np.allclose(
            plain_frequencies(guess, attention.rotation.rotary_dim), inv_freq, rtol=1e-5
        ):
            theta = guess
    return RopeTable(
        rotary_dim=attention.rotation.rotary_dim,
        inv_freq=inv_freq.tolist(),
        attention_factor=attention.attention_factor,
        theta=theta,
        scaling=dict(scaling),
    )
