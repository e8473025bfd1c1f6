"""Compare config.json with the graph.

The graph is what is computed, so it wins where both speak; but numbers that cannot belong to one
model mean that two models were mixed, and a property that only config.json has was lost by the
exporter: the user hears of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from genai_core.errors import BadModel
from genai_core.facts import RopeTable
from genai_stages.architectures.family import Family
from genai_stages.ingest.recognition.attention.found_attention import FoundAttention
from genai_stages.ingest.recognition.drafts import Data


def text_config(config: Mapping[str, object]) -> Mapping[str, object]:
    """The language model's part of a multimodal config.json."""
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, dict) else config


def check_config(
    config: Mapping[str, object],
    attentions: Sequence[FoundAttention],
    final: Data,
    embedding: Sequence[object],
) -> None:
    """Compare config.json's numbers with the graph's.

    Raises:
        BadModel: Two numbers differ.
    """
    first = attentions[0]
    rows = getattr(getattr(embedding[0], "constant", None), "shape", (final.draft.width, 0))
    graph = {
        "num_hidden_layers": {len(attentions)},
        "num_attention_heads": {attention.num_heads for attention in attentions},
        "num_key_value_heads": {attention.kv_heads for attention in attentions},
        "head_dim": {first.head_dim},
        "hidden_size": {rows[1]},
        "vocab_size": {final.draft.width, rows[0]},
    }
    for key, have in graph.items():
        stated = config.get(key)
        if isinstance(stated, int) and not isinstance(stated, bool) and stated not in have:
            shown = " or ".join(str(number) for number in sorted(have))
            raise BadModel(
                f"{key} is {stated} here and {shown} in the graph",
                where=f"config.json: {key}",
                remedy="put the config.json and the ONNX file of one model together",
            )


def disagreements(
    config: Mapping[str, object],
    family: Family,
    attentions: Sequence[FoundAttention],
    *,
    ropes: Mapping[str, RopeTable],
) -> list[str]:
    """Sentences on what config.json promises and the graph does not compute."""
    said: list[str] = []
    cap = config.get("attn_logit_softcapping")
    capless = [attention.layer for attention in attentions if not attention.softcap]
    if cap and capless:
        said.append(
            f"config.json has attn_logit_softcapping {cap}, layer {capless[0]} of the graph has no "
            "soft cap: the exporter dropped it"
        )
    for attention, window in zip(attentions, family.windows(config, len(attentions)), strict=True):
        if attention.mask_inputs is None and attention.window != window:
            said.append(
                f"config.json gives layer {attention.layer} the window {window or 'none'}, "
                f"the graph's mask has {attention.window or 'none'}, which is used"
            )
            break
    for attention in attentions:
        table = attention.rotation.inv_freq
        known = [
            len(rope.inv_freq) == len(table) and np.allclose(rope.inv_freq, table, rtol=1e-4)
            for rope in ropes.values()
        ]
        if len(table) and known and not any(known):
            said.append(
                f"the rotary table of layer {attention.layer} is not the one that config.json "
                "describes; the graph's is used"
            )
            break
    return said
