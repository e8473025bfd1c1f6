"""Phi-3 and Phi-4: fused projections, longrope."""

from __future__ import annotations

from genai_stages.architectures.family import Family, listed_windows

FAMILY = Family(
    name="phi3",
    model_types=("phi3",),
    architectures=("Phi3ForCausalLM",),
    windows=listed_windows,
)
