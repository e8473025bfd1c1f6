"""What wakes an ArtifactStore: its user, and its helper Jobs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from genai_operator.kube.apiserver.projection import lean
from genai_operator.kube.job import JobView
from genai_operator.kube.values import asked_of
from genai_operator.kube.watch.kinds import Change, Kind, Place, Reconciler
from genai_operator.kube.watch.observed import Observed

__all__ = ["store_kind"]

_HELPERS = frozenset({"probe", "collect"})


def store_kind(observed: Observed, reconciler: Reconciler) -> Kind[dict[str, Any]]:
    """The row of ArtifactStore in the table of kinds."""

    def of_job(change: Change[JobView]) -> Iterable[Place]:
        """Stores that sent it."""
        if change.value.operation not in _HELPERS:
            return ()
        owners = change.value.owners
        metas = (store["metadata"] for store in observed.stores)
        return [(meta["namespace"], meta["name"]) for meta in metas if meta["uid"] in owners]

    return Kind(
        "artifactstores",
        observed.stores,
        view=lambda value: lean("artifactstores", value),
        asked=asked_of,
        reconciler=reconciler,
        woken_by={"jobs": of_job},
    )
