"""Baichuan 7B: one projection for query, key and value."""

from __future__ import annotations

from genai_stages.architectures.family import Family

FAMILY = Family(
    name="baichuan",
    model_types=("baichuan",),
    architectures=("BaichuanForCausalLM", "BaiChuanForCausalLM"),
)
