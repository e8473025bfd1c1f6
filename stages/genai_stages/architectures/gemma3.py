"""Gemma 3 (text): most layers slide and have a rotary table of their own."""

from __future__ import annotations

from genai_stages.architectures.family import Config, Family, listed_windows


def _windows(config: Config, layers: int) -> list[int]:
    windows = listed_windows(config, layers)
    if config.get("layer_types") is None:
        period = int(config.get("sliding_window_pattern", 6))
        windows = [0 if (layer + 1) % period == 0 else each for layer, each in enumerate(windows)]
    return windows


FAMILY = Family(
    name="gemma3",
    model_types=("gemma3_text", "gemma3"),
    architectures=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    windows=_windows,
    local_theta="rope_local_base_freq",
)
