"""Pods of our Jobs, servers' pods and their Deployments, as decisions need them. Pure."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from genai_core.reasons import Reason
from genai_core.wire import DEPLOYMENT, ENDING, JOB_NAME, RENDERING, REVISION, STAGE_CONTAINER
from genai_operator.kube.times import parse_time

__all__ = ["Ending", "PodView", "WorkloadView", "ending_note", "pod_view", "workload_view"]

_MOST_WORDS = 300

UNREADABLE = (
    *(ValueError, TypeError, KeyError, AttributeError),
    *(OverflowError, RecursionError),  # 1e999 as a number, and ten thousand brackets
)
"""What others' words on our objects come to, when they are not ours."""

_STARTING = {"", "ContainerCreating", "PodInitializing"}

_PULLS = {
    *("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"),
    *("ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed"),
}

_ABSENT = ("code = notfound", ": not found", "manifest unknown", "name unknown")
"""What containerd and CRI-O make of a registry's 404."""
_NOT_OF_THE_IMAGE = (
    *("denied", "unauthorized", "authoriz", "authentication", "forbidden", "credential"),
    *("401", "403", "no match for platform", "no such host", "timeout", "refused"),
)
_DIGEST = re.compile(r"sha256:[0-9a-f]+")
_NOISE = (", no new claims to deallocate", " no new claims to deallocate", " preemption:")
"""What the scheduler adds is nothing that a user could act on."""


@dataclass(frozen=True)
class Ending:
    """How a pod's container ended.

    Attributes:
        message: The termination message as JSON values; empty where it left none.
        words: The end of its log, where it left no message.
    """

    exit_code: int
    reason: str
    message: Mapping[str, Any] = field(default_factory=dict)
    words: str = ""

    @property
    def step(self) -> int | None:
        """Which task of its chain it had come to; None where it left no word of it."""
        step = self.message.get("step")
        return step if isinstance(step, int) else None


class OwningJob(Protocol):
    """A Job, as its pods refer to it."""

    @property
    def namespace(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def uid(self) -> str: ...


@dataclass(frozen=True)
class PodView:
    """A pod of such a Job, or a server's.

    Attributes:
        job: Name of its Job; empty: it is a server's.
        deployment: Name of the GenAIDeployment that it serves for.
        revision: Of the container that it serves.
        rendering: How it was written, to tell it from those of another spec.
        ready: It answers.
        restarts: How often its containers ended.
    """

    namespace: str
    name: str
    uid: str
    job: str
    node: str
    phase: str
    created_at: datetime
    deleting: bool = False
    ending: Ending | None = None
    reason: str = ""
    """Of the pod: `DeadlineExceeded`, `Evicted` ..."""
    message: str = ""
    """What that means, in words."""
    waiting: str = ""
    """Why its container does not start, in words: no room on any node, a missing image ..."""
    hold: str = ""
    """The same in one word: Unschedulable, ImagePullFailed, ContainerNotCreated."""
    deployment: str = ""
    revision: str = ""
    rendering: str = ""
    ready: bool = False
    ip: str = ""
    """Its own; empty where it has none, or its node's."""
    restarts: int = 0
    image: str = ""
    """Of its container, as its spec names it."""
    image_absent: bool = False
    """The registry has answered that there is no such image; see `_is_absent`."""
    owners: frozenset[str] = frozenset()
    """UIDs: its Job's is among them, and another Job may have had that name before."""

    def is_of(self, job: OwningJob) -> bool:
        """It is a pod of exactly this Job."""
        same = (self.namespace, self.job) == (job.namespace, job.name)
        return same and (not self.owners or job.uid in self.owners)

    @property
    def ended(self) -> bool:
        """Nothing of it runs any more, nor will."""
        return self.ending is not None or self.phase in {"Succeeded", "Failed"}

    @property
    def started(self) -> bool:
        """Its container runs, or did."""
        return self.ended or self.phase not in {"", "Pending"}

    @property
    def ran(self) -> bool:
        """Its container has begun, so its image has come."""
        return self.ending is not None or self.phase in {"Running", "Succeeded"}

    @property
    def creating(self) -> bool:
        """It has a node, and its container does not run yet, for a reason that only Events tell."""
        return bool(self.node) and not self.started and not self.hold

    @property
    def succeeded(self) -> bool:
        """Its container did what it was to do."""
        return self.ending is not None and self.ending.exit_code == 0


def ending_note(pod: PodView) -> str:
    """How a failed Job's last pod ended, as `ENDING` holds it."""
    note: dict[str, Any] = {
        "pod": pod.name,
        "node": pod.node,
        "reason": pod.reason,
        "message": pod.message,
    }
    if pod.ending is not None:
        note["ending"] = {
            "exitCode": pod.ending.exit_code,
            "reason": pod.ending.reason,
            "message": dict(pod.ending.message),
            "words": pod.ending.words,
        }
    return json.dumps(note)


def noted_pod(meta: Mapping[str, Any]) -> PodView | None:
    try:
        note = json.loads((meta.get("annotations") or {}).get(ENDING, ""))
        ended = note.get("ending")
        ending = ended and Ending(
            int(ended["exitCode"]),
            str(ended["reason"]),
            dict(ended["message"]),
            str(ended["words"]),
        )
        return PodView(
            namespace=meta["namespace"],
            name=str(note["pod"]),
            uid="",
            job=meta["name"],
            node=str(note["node"]),
            phase="Failed",
            created_at=parse_time(meta["creationTimestamp"]),
            ending=ending or None,
            reason=str(note["reason"]),
            message=str(note["message"]),
        )
    except UNREADABLE:  # none, or another version's
        return None


def pod_view(value: Mapping[str, Any]) -> PodView | None:
    """What decisions need; None where the pod belongs to no Job and no deployment."""
    meta, status = value["metadata"], value.get("status") or {}
    labels = meta.get("labels") or {}
    job, deployment = labels.get(JOB_NAME, ""), _served_for(meta)
    if not job and not deployment:
        return None
    ending, waiting = None, _unscheduled(status)
    hold = Reason.UNSCHEDULABLE if waiting else ""
    image, absent = _image(value), False
    parts = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    for container in parts:
        state = container.get("state") or {}
        ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated")
        if ended and not (deployment and ended.get("exitCode") == 0):
            ending = _ending(ended)
        elif "waiting" in state:
            hold, waiting = _not_started(state["waiting"])
            absent = hold == Reason.IMAGE_PULL_FAILED and _is_absent(state["waiting"], image)
    return PodView(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        job=job,
        node=(value.get("spec") or {}).get("nodeName", ""),
        phase=status.get("phase", ""),
        created_at=parse_time(meta["creationTimestamp"]),
        deleting="deletionTimestamp" in meta,
        ending=ending,
        reason=status.get("reason", ""),
        message=status.get("message", "")[:_MOST_WORDS],
        waiting=waiting,
        hold=hold,
        deployment=deployment,
        revision=(meta.get("annotations") or {}).get(REVISION, ""),
        rendering=(meta.get("annotations") or {}).get(RENDERING, ""),
        ready=_is_ready(status),
        ip="" if (value.get("spec") or {}).get("hostNetwork") else str(status.get("podIP") or ""),
        restarts=sum(int(part.get("restartCount") or 0) for part in parts),
        image=image,
        image_absent=absent,
        owners=frozenset(owner["uid"] for owner in meta.get("ownerReferences") or ()),
    )


def _served_for(meta: Mapping[str, Any]) -> str:
    """The GenAIDeployment that a pod serves for; empty where no Deployment has made it.

    Whoever may make pods may give them our labels: a copy for debugging has them too. It is not
    counted, and its end is no word about a rollout.
    """
    name = str((meta.get("labels") or {}).get(DEPLOYMENT, ""))
    made = (owner for owner in meta.get("ownerReferences") or () if owner.get("controller"))
    ours = (
        o.get("kind") == "ReplicaSet" and str(o.get("name")).startswith(f"{name}-") for o in made
    )
    return name if any(ours) else ""


def _is_ready(status: Mapping[str, Any]) -> bool:
    return any(
        condition["type"] == "Ready" and condition.get("status") == "True"
        for condition in status.get("conditions") or ()
    )


def _unscheduled(status: Mapping[str, Any]) -> str:
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition.get("status") == "False":
            words = str(condition.get("message", ""))
            for noise in _NOISE:
                words = words.partition(noise)[0]
            return words[:_MOST_WORDS].rstrip() or str(condition.get("reason", ""))
    return ""


def _not_started(waiting: Mapping[str, Any]) -> tuple[str, str]:
    """Why a container does not start: in one word, and in all."""
    reason, message = str(waiting.get("reason", "")), str(waiting.get("message", ""))
    if reason in _STARTING:
        return "", ""
    if reason in _PULLS:
        # Between two tries the kubelet says that it backs off, with what went wrong behind it.
        words = message.partition(": ErrImagePull: ")[2] or message or reason
        return Reason.IMAGE_PULL_FAILED, words[:_MOST_WORDS]
    words = ": ".join(part for part in (reason, message) if part)
    return Reason.CONTAINER_NOT_CREATED, words[:_MOST_WORDS]


def _image(value: Mapping[str, Any]) -> str:
    containers = (value.get("spec") or {}).get("containers") or ()
    images = [c.get("image") for c in containers if c.get("name") == STAGE_CONTAINER]
    return sys.intern(images[0]) if images and isinstance(images[0], str) else ""


def _is_absent(waiting: Mapping[str, Any], image: str) -> bool:
    """Whether the image cannot be had by anybody, whoever runs the pod.

    The registry must have answered that it has no such image (404). One that denies access, or
    does not answer, says nothing of the image: a pull secret may lack in one namespace. Nor does it
    count that an image is not made for the node's architecture: its pod may have asked for that.
    """
    words = str(waiting.get("message", ""))
    plain = _DIGEST.sub("", words.replace(image, "")).lower()
    if not image or image not in words or any(word in plain for word in _NOT_OF_THE_IMAGE):
        return False
    return any(word in plain for word in _ABSENT)


def _ending(ended: Mapping[str, Any]) -> Ending:
    message = _message(ended)
    words = "" if message else " ".join(str(ended.get("message") or "").split())
    return Ending(
        int(ended.get("exitCode", 0)), ended.get("reason", ""), message, words[-_MOST_WORDS:]
    )


def _message(ended: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        message = json.loads(ended.get("message") or "{}")
    except UNREADABLE:
        return {}
    return message if isinstance(message, dict) else {}


@dataclass(frozen=True)
class WorkloadView:
    """A Deployment.

    Attributes:
        rendering: Of its pods, that are wanted.
        revision: Of the container that they are started with.
        owners: UIDs: its GenAIDeployment's is among them.
        current: Its controller has seen this generation.
        wanted: Pods that there are to be.
        replicas: Pods that there are, of any revision.
        updated: Of the revision that is wanted.
        ready: That answer, of any revision.
        late: Its controller gave the rollout up: no progress for as long as was allowed.
    """

    namespace: str
    name: str
    uid: str
    rendering: str
    revision: str
    owners: frozenset[str]
    current: bool
    wanted: int
    replicas: int
    updated: int
    ready: int
    available: int
    late: bool

    @property
    def rolled_out(self) -> bool:
        """Every pod is of the revision that is wanted, and answers."""
        counts = {self.replicas, self.updated, self.ready}
        return self.current and counts == {self.wanted}


def workload_view(value: Mapping[str, Any]) -> WorkloadView | None:
    """What decisions need; None where it is none of ours."""
    meta, status = value["metadata"], value.get("status") or {}
    if DEPLOYMENT not in (meta.get("labels") or {}):
        return None
    late = any(
        c.get("type") == "Progressing" and c.get("reason") == "ProgressDeadlineExceeded"
        for c in status.get("conditions") or ()
    )
    wanted = (value.get("spec") or {}).get("replicas")
    template = ((value.get("spec") or {}).get("template") or {}).get("metadata") or {}
    return WorkloadView(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        rendering=(meta.get("annotations") or {}).get(RENDERING, ""),
        revision=(template.get("annotations") or {}).get(REVISION, ""),
        owners=frozenset(owner["uid"] for owner in meta.get("ownerReferences") or ()),
        current=status.get("observedGeneration", 0) >= meta.get("generation", 0),
        wanted=1 if wanted is None else int(wanted),
        replicas=int(status.get("replicas") or 0),
        updated=int(status.get("updatedReplicas") or 0),
        ready=int(status.get("readyReplicas") or 0),
        available=int(status.get("availableReplicas") or 0),
        late=late,
    )
