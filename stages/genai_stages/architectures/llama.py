"""Llama 2 and 3, and what shares their config.json."""

from __future__ import annotations

from genai_stages.architectures.family import Family

FAMILY = Family(
    name="llama",
    model_types=("llama",),
    architectures=("LlamaForCausalLM",),
)
