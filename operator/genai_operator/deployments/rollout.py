"""How a rollout stands, from what stands now: the Deployment's counts and its pods' words. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from genai_core.errors import BadInput, from_dict
from genai_core.reasons import Reason
from genai_operator.kube.pod import PodView, WorkloadView

__all__ = ["FAILED", "DeploymentStanding", "failure", "standing"]

FAILED = Reason.ROLLOUT_FAILED
_PATIENCE = 3
"""So often may a server end for what may have been chance: a store that did not answer, a node."""
_STORES = {"StoreNotReady", "StoreUnreadable"}
"""No word about the container: the store, or its Secret, is mended without the revision."""


@dataclass(frozen=True)
class DeploymentStanding:
    """What Ready says of a deployment whose objects are applied.

    Attributes:
        ready: True, False or Unknown.
        waits: It may become Ready by itself; else the user must act.
        complete: The rollout came to its end: this revision is good.
    """

    ready: str
    reason: str
    message: str
    waits: bool
    complete: bool = False


def failure(rendering: str, workload: WorkloadView | None, pods: Sequence[PodView]) -> str:
    """Why what is wanted can never be rolled out; empty while it still may.

    Args:
        rendering: Of the pods that are wanted.
        workload: The Deployment, once it was seen.
        pods: Of this deployment, of any rendering.
    """
    own = _own(pods, rendering)
    # Where one serves, whatever became of another is that pod's, or its node's.
    for pod in own if not any(pod.ready for pod in own) else ():
        reason, words = _ended(pod)
        if reason in _STORES:
            continue
        if reason and (pod.restarts >= _PATIENCE or _is_final(pod)):
            return f"{reason}: {words} (pod {pod.name})"
    if workload is not None and _is_current(workload, rendering) and workload.late:
        return f"there was no progress in time{_troubles(own)}"
    return ""


def standing(
    rendering: str,
    workload: WorkloadView | None,
    pods: Sequence[PodView],
    *,
    revision: str,
    settled: bool,
) -> DeploymentStanding:
    """How it stands while nothing has failed.

    Args:
        rendering: Of the pods that are wanted.
        workload: The Deployment, once it was seen.
        pods: Of this deployment, of any rendering.
        revision: Of the container that is wanted, for the message.
        settled: This revision was rolled out before.
    """
    if workload is None or not _is_current(workload, rendering):
        return DeploymentStanding("Unknown", Reason.PROGRESSING, "the rollout begins", waits=True)
    own = _own(pods, rendering)
    short = revision[:19]
    if workload.wanted == 0 and workload.replicas == 0:
        # No pod has shown that this revision is good: it must not become what is gone back to.
        return DeploymentStanding("True", Reason.SCALED_TO_ZERO, "no pod is wanted", waits=False)
    if workload.rolled_out and len([pod for pod in own if pod.ready]) >= workload.wanted:
        message = f"{workload.ready}/{workload.wanted} pods serve {short}"
        return DeploymentStanding("True", Reason.SERVING, message, waits=False, complete=True)
    count = f"{sum(pod.ready for pod in own)}/{workload.wanted} pods serve {short}"
    words = count + _troubles(own)
    if workload.ready == 0 and settled:
        return DeploymentStanding("False", Reason.NO_POD_READY, words, waits=True)
    return DeploymentStanding("Unknown", Reason.PROGRESSING, words, waits=True)


def _own(pods: Sequence[PodView], rendering: str) -> list[PodView]:
    return [pod for pod in pods if pod.rendering == rendering and not pod.deleting]


def _is_current(workload: WorkloadView, rendering: str) -> bool:
    return workload.current and workload.rendering == rendering


def _troubles(pods: Sequence[PodView]) -> str:
    """What pods that do not answer say of themselves, each thing once."""
    said = []
    for pod in pods:
        if pod.ready:
            continue
        reason, words = _ended(pod)
        if reason:
            said.append(f"{reason}: {words}")
        elif pod.waiting:
            said.append(f"{pod.hold}: {pod.waiting}")
    kinds = list(dict.fromkeys(said))
    return f"; {'; '.join(kinds[:3])}" if kinds else ""


def _ended(pod: PodView) -> tuple[str, str]:
    """Why a pod's container ended, in one word and in all; empty where none did."""
    ending = pod.ending
    if ending is None or ending.exit_code == 0:
        return (pod.reason, pod.message) if pod.phase == "Failed" else ("", "")
    told = ending.message.get("error")
    if isinstance(told, dict):
        error = from_dict({str(key): str(text) for key, text in told.items()})
        return error.code, str(error)
    reason = ending.reason if ending.reason not in {"", "Error"} else "ServerFailed"
    if reason == "OOMKilled":
        return reason, "the server needs more memory than spec.resources.limits.memory gives"
    return reason, ending.words or f"it ended with exit code {ending.exit_code}"


def _is_final(pod: PodView) -> bool:
    told = pod.ending.message.get("error") if pod.ending is not None else None
    if not isinstance(told, dict):
        return False
    return isinstance(from_dict({str(key): str(text) for key, text in told.items()}), BadInput)
