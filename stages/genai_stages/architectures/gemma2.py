"""Gemma 2: soft caps, four norms a layer, every other layer slides."""

from __future__ import annotations

from genai_stages.architectures.family import Config, Family, listed_windows


def _windows(config: Config, layers: int) -> list[int]:
    windows = listed_windows(config, layers)
    if config.get("layer_types") is None:
        windows = [window if layer % 2 == 0 else 0 for layer, window in enumerate(windows)]
    return windows


FAMILY = Family(
    name="gemma2",
    model_types=("gemma2",),
    architectures=("Gemma2ForCausalLM",),
    windows=_windows,
)
