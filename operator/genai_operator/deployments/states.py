"""How a deployment stands, in one word, for metrics; and who shares its model's name. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from genai_operator.kube.status.conditions import condition_of, ready_of

__all__ = ["DeploymentState", "deployment_state", "model_name", "namesakes"]


class DeploymentState(StrEnum):
    """In one word."""

    NEW = "New"
    """Nobody has looked at it."""
    SERVING = "Serving"
    """All of it is as declared, or no pod is wanted."""
    PROGRESSING = "Progressing"
    """It is being worked on, or waits."""
    DEGRADED = "Degraded"
    """Pods answer, and it is not as declared."""
    UNAVAILABLE = "Unavailable"
    """No pod answers, and it is not as declared."""


def deployment_state(status: Mapping[str, Any]) -> DeploymentState:
    """The word for a status."""
    ready = ready_of(status)[0]
    if ready == "True":
        return DeploymentState.SERVING
    if ready == "False":
        available = condition_of(status, "Available")
        able = available is not None and available["status"] == "True"
        return DeploymentState.DEGRADED if able else DeploymentState.UNAVAILABLE
    return DeploymentState.PROGRESSING if ready else DeploymentState.NEW


def model_name(value: Mapping[str, Any]) -> str:
    """What requests call the base that a deployment serves."""
    server = (value.get("spec") or {}).get("server") or {}
    return str(server.get("modelName") or value["metadata"]["name"])


def namesakes(value: Mapping[str, Any], every: Iterable[Mapping[str, Any]]) -> list[str]:
    """Other deployments of the namespace that serve a model of the same name, by name."""
    meta, called = value["metadata"], model_name(value)
    return sorted(
        other["metadata"]["name"]
        for other in every
        if other["metadata"]["namespace"] == meta["namespace"]
        and other["metadata"]["name"] != meta["name"]
        and model_name(other) == called
    )
