"""What wakes a GenAIBuild: its user, its store, its targets, its Jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from genai_operator.kube.build import BuildView, build_view
from genai_operator.kube.job import JobView
from genai_operator.kube.values import asked_of
from genai_operator.kube.watch.kinds import Change, Kind, Place, Reconciler
from genai_operator.kube.watch.observed import Observed

__all__ = ["build_kind"]


def build_kind(observed: Observed, reconciler: Reconciler) -> Kind[BuildView]:
    """The row of GenAIBuild in the table of kinds."""

    def of_store(change: Change[dict[str, Any]]) -> Iterable[Place]:
        """Builds with that store, when it becomes usable or ceases to be."""
        if _same(_readiness, change):
            return ()
        return [_place(b) for b in observed.builds if (b.namespace, b.store) == change.place]

    def of_target(change: Change[dict[str, Any]]) -> Iterable[Place]:
        """Builds for that target, when it is another one."""
        if _same(asked_of, change):
            return ()
        _, name = change.place
        return [_place(build) for build in observed.builds if name in build.targets]

    def of_job(change: Change[JobView]) -> Iterable[Place]:
        """Builds that claim it."""
        owners = change.value.owners
        return [_place(build) for build in observed.builds if build.uid in owners]

    return Kind(
        "genaibuilds",
        observed.builds,
        view=build_view,
        asked=lambda build: build.asked,
        reconciler=reconciler,
        woken_by={"artifactstores": of_store, "genaitargets": of_target, "jobs": of_job},
    )


def _place(build: BuildView) -> Place:
    return build.namespace, build.name


def _readiness(value: Mapping[str, Any]) -> object:
    status = value.get("status") or {}
    ready = [c["status"] for c in status.get("conditions") or () if c["type"] == "Ready"]
    return ready, status.get("observedGeneration")


def _same(part: Callable[[Mapping[str, Any]], object], change: Change[dict[str, Any]]) -> bool:
    before, now = change.before, change.now
    return before is not None and now is not None and part(before) == part(now)
