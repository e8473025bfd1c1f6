"""Mistral: Llama with a sliding window in all layers, or none."""

from __future__ import annotations

from genai_stages.architectures.family import Family, listed_windows

FAMILY = Family(
    name="mistral",
    model_types=("mistral", "ministral"),
    architectures=("MistralForCausalLM",),
    windows=listed_windows,
)
