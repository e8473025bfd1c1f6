"""Qwen2 and 2.5: biases on query, key and value; the upper layers may slide."""

from __future__ import annotations

from genai_stages.architectures.family import Config, Family, listed_windows


def _windows(config: Config, layers: int) -> list[int]:
    if not config.get("use_sliding_window"):
        return [0] * layers
    windows = listed_windows(config, layers)
    if config.get("layer_types") is None:
        first = int(config.get("max_window_layers", 0))
        windows = [window if layer >= first else 0 for layer, window in enumerate(windows)]
    return windows


FAMILY = Family(
    name="qwen2",
    model_types=("qwen2",),
    architectures=("Qwen2ForCausalLM",),
    windows=_windows,
)
