"""What wakes a GenAIDeployment: its user."""

from __future__ import annotations

from typing import Any

from genai_operator.kube.cache import asked_of
from genai_operator.kube.kinds import Kind, Reconciler
from genai_operator.kube.observed import Observed
from genai_operator.kube.projection import lean

__all__ = ["deployment_kind"]


def deployment_kind(observed: Observed, reconciler: Reconciler) -> Kind[dict[str, Any]]:
    """The row of GenAIDeployment in the table of kinds."""
    return Kind(
        "genaideployments",
        observed.deployments,
        view=lambda value: lean("genaideployments", value),
        asked=asked_of,
        reconciler=reconciler,
    )
