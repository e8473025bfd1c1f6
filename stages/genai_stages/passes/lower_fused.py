"""Fused attention operators as their elementary nodes."""

from genai_stages.passes.specialise import StaticGraph


def lower_fused(graph: StaticGraph) -> None:
    """Nothing yet."""
