"""What wakes a GenAITarget: its user."""

from __future__ import annotations

from typing import Any

from genai_operator.kube.cache import asked_of
from genai_operator.kube.kinds import Kind, Reconciler
from genai_operator.kube.observed import Observed
from genai_operator.kube.projection import lean

__all__ = ["target_kind"]


def target_kind(observed: Observed, reconciler: Reconciler) -> Kind[dict[str, Any]]:
    """The row of GenAITarget in the table of kinds."""
    return Kind(
        "genaitargets",
        observed.targets,
        view=lambda value: lean("genaitargets", value),
        asked=asked_of,
        reconciler=reconciler,
    )
