"""What wakes a GenAIDeployment: its user, its build, store and target, its Deployment and pods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from genai_operator.deployments.states import model_name
from genai_operator.kube.apiserver.projection import lean
from genai_operator.kube.build import BuildView
from genai_operator.kube.pod import PodView, WorkloadView
from genai_operator.kube.values import asked_of
from genai_operator.kube.watch.kinds import Change, Kind, Place, Reconciler
from genai_operator.kube.watch.observed import Observed

__all__ = ["deployment_kind"]


def deployment_kind(observed: Observed, reconciler: Reconciler) -> Kind[dict[str, Any]]:
    """The row of GenAIDeployment in the table of kinds."""

    def those(serves: Callable[[Mapping[str, Any]], bool], namespace: str = "") -> list[Place]:
        """Deployments by their specs."""
        return [
            (value["metadata"]["namespace"], value["metadata"]["name"])
            for value in observed.deployments
            if namespace in {"", value["metadata"]["namespace"]} and serves(value.get("spec") or {})
        ]

    def of_build(change: Change[BuildView]) -> Iterable[Place]:
        """Those that serve what it makes.

        Its status may be known before its event comes, so every event counts.
        """
        namespace, name = change.place
        return those(lambda spec: _origin(spec, "build") == name, namespace)

    def of_store(change: Change[dict[str, Any]]) -> Iterable[Place]:
        """Those whose containers lie there, when it becomes usable or ceases to be."""
        namespace, name = change.place
        return those(lambda spec: _store(spec) == name, namespace)

    def of_target(change: Change[dict[str, Any]]) -> Iterable[Place]:
        """Those that are served with its image."""
        _, name = change.place
        return those(lambda spec: _origin(spec, "target") == name)

    def of_workload(change: Change[WorkloadView]) -> Iterable[Place]:
        """The one of that name."""
        return [change.place]

    def of_pod(change: Change[PodView]) -> Iterable[Place]:
        """The one that it serves for."""
        pod = change.value
        return [(pod.namespace, pod.deployment)] if pod.deployment else ()

    def of_namesake(change: Change[dict[str, Any]]) -> Iterable[Place]:
        """Others that serve a model of the name that it has, or had."""
        namespace, own = change.place
        values = [value for value in (change.before, change.now) if value is not None]
        names = {model_name(value) for value in values}
        if change.before is not None and change.now is not None and len(names) == 1:
            return ()
        return [
            (namespace, value["metadata"]["name"])
            for value in observed.deployments
            if value["metadata"]["namespace"] == namespace
            and value["metadata"]["name"] != own
            and model_name(value) in names
        ]

    return Kind(
        "genaideployments",
        observed.deployments,
        view=lambda value: lean("genaideployments", value),
        asked=asked_of,
        reconciler=reconciler,
        woken_by={
            "genaideployments": of_namesake,
            "genaibuilds": of_build,
            "artifactstores": of_store,
            "genaitargets": of_target,
            "deployments": of_workload,
            "pods": of_pod,
        },
    )


def _origin(spec: Mapping[str, Any], member: str) -> object:
    return (spec.get("from") or {}).get(member)


def _store(spec: Mapping[str, Any]) -> object:
    return (spec.get("store") or {}).get("name", "default")
