"""Events of Deployments -> the watch cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genai_operator.kube.pod import WorkloadView, workload_view
from genai_operator.kube.watch.cache import Cache
from genai_operator.kube.watch.kinds import Change
from genai_operator.kube.watch.observed import Observed

__all__ = ["WorkloadIntake"]


class WorkloadIntake:
    """Takes in the events of Deployments that serve."""

    def __init__(self, observed: Observed) -> None:
        self._observed = observed

    @property
    def cache(self) -> Cache[WorkloadView]:
        """What is known of them."""
        return self._observed.workloads

    def take(self, value: Mapping[str, Any], *, deleted: bool) -> list[Change[WorkloadView]]:
        """Take in a Deployment."""
        found = workload_view(value)
        if found is None:
            return []
        if deleted:
            return self.vanished(found.namespace, found.name, uid=found.uid)
        place = found.namespace, found.name
        before = self.cache.get(*place)
        if not self.cache.put(value, found):
            return []
        return [Change("deployments", place, before, found)]

    def vanished(self, namespace: str, name: str, *, uid: str) -> list[Change[WorkloadView]]:
        """Take in that one is gone, of which no watch told."""
        gone = self.cache.drop(namespace, name, uid)
        return [] if gone is None else [Change("deployments", (namespace, name), gone, None)]
