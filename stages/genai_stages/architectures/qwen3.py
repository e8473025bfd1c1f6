"""Qwen3: norms on each query and key head."""

from __future__ import annotations

from genai_stages.architectures.family import Family, listed_windows

FAMILY = Family(
    name="qwen3",
    model_types=("qwen3",),
    architectures=("Qwen3ForCausalLM",),
    windows=listed_windows,
)
