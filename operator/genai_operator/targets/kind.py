"""What wakes a GenAITarget: its user, and pods that show whether its image can be had."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from genai_operator.kube.apiserver.projection import lean
from genai_operator.kube.pod import PodView
from genai_operator.kube.values import asked_of
from genai_operator.kube.watch.kinds import Change, Kind, Place, Reconciler
from genai_operator.kube.watch.observed import Observed

__all__ = ["target_kind"]


def target_kind(observed: Observed, reconciler: Reconciler) -> Kind[dict[str, Any]]:
    """The row of GenAITarget in the table of kinds."""

    def of_pod(change: Change[PodView]) -> Iterable[Place]:
        """Targets with its image, when it says something else of that."""
        now = change.now
        if now is None or not now.image or _shown(change.before) == _shown(now):
            return ()
        return [
            ("", value["metadata"]["name"])
            for value in observed.targets
            if (value.get("spec") or {}).get("image") == now.image
        ]

    return Kind(
        "genaitargets",
        observed.targets,
        view=lambda value: lean("genaitargets", value),
        asked=asked_of,
        reconciler=reconciler,
        woken_by={"pods": of_pod},
    )


def _shown(pod: PodView | None) -> tuple[bool, bool]:
    return (pod.ran, pod.image_absent) if pod is not None else (False, False)
