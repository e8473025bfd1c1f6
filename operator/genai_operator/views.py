"""Jobs and pods as decisions need them: a few fields out of large objects. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from genai_core.kinds.base import GROUP
from genai_core.names import Digest, Key

__all__ = [
    "ATTEMPT",
    "CHAIN",
    "ENDING",
    "JOB_NAME",
    "KEY",
    "MANAGED",
    "MEMORY",
    "OPERATION",
    "RENDERING",
    "SCOPE",
    "SELECTOR",
    "TASK",
    "TTL",
    "Ending",
    "JobState",
    "JobView",
    "Link",
    "PodView",
    "Rendering",
    "ending_note",
    "job_view",
    "parse_time",
    "pod_view",
]

MANAGED = "app.kubernetes.io/managed-by"
SELECTOR = f"{MANAGED}=genai-operator"
"""Of our Jobs and their pods."""
OPERATION = f"{GROUP}/operation"
SCOPE = f"{GROUP}/scope"
ATTEMPT = f"{GROUP}/attempt"
KEY = f"{GROUP}/key"
TASK = f"{GROUP}/task"
MEMORY = f"{GROUP}/memory"
TTL = f"{GROUP}/ttl-seconds"
CHAIN = f"{GROUP}/chain"
ENDING = f"{GROUP}/ending"
"""How a failed Job's pod ended: the pod may go long before the Job does."""
RENDERING = f"{GROUP}/rendering"
"""What its pod is given beside its tasks, and for whom it was written: see `Rendering`."""
JOB_NAME = "batch.kubernetes.io/job-name"

_MOST_WORDS = 300
_UNREADABLE = (
    *(ValueError, TypeError, KeyError, AttributeError),
    *(OverflowError, RecursionError),  # 1e999 as a number, and ten thousand brackets
)
"""What others' words on our objects come to, when they are not ours."""
_MOST_DIGITS = 20
_LONGEST_TTL = 10 * 365 * 86400
"""A time that far away can still be reckoned with."""
_MOST_TURNS = 1000
_STARTING = {"", "ContainerCreating", "PodInitializing"}
_PULLS = {
    *("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"),
    *("ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed"),
}
_NOISE = (", no new claims to deallocate", " no new claims to deallocate", " preemption:")
"""What the scheduler adds is nothing that a user could act on."""


class JobState(StrEnum):
    """Of a Job."""

    ACTIVE = "active"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


@dataclass(frozen=True)
class Link:
    """A task that a Job goes on with after its first.

    Attributes:
        derivation: What it will make; it has a key only when those before it have ended.
    """

    task: str
    operation: str
    derivation: Digest


@dataclass(frozen=True)
class Rendering:
    """How a Job was written.

    Attributes:
        digest: See `jobs.appearance`.
        turn: How many others' renderings of the same Job could not start before it.
        author: UID of the build, or store, that it was written for.
    """

    digest: str
    turn: int
    author: str

    def __str__(self) -> str:
        """As it stands on a Job."""
        return f"{self.digest}.{self.turn}.{self.author}"


@dataclass(frozen=True)
class JobView:
    """A Job of ours.

    Attributes:
        key: Of its first task.
        scope: Which store, queue and priority it serves; tasks are shared only within one.
        attempt: From 1.
        memory_bytes: What its pod may use.
        owners: UIDs of the builds that claim it.
        started_at: When the Job controller took it up, or a queue let it go on; its creation where
            nobody has said: of a Job without a pod the controller writes no status.
        ended_at: When it succeeded or failed.
        reason: Of the failure, the Job controller's word.
        deleting: It is on its way out.
    """

    namespace: str
    name: str
    uid: str
    key: Key
    operation: str
    task: str
    scope: str
    attempt: int
    memory_bytes: int
    owners: frozenset[str]
    state: JobState
    created_at: datetime
    ended_at: datetime | None = None
    reason: str = ""
    message: str = ""
    ttl_seconds: int = 600
    deleting: bool = False
    suspended: bool = False
    """A queue has not admitted it yet, or has taken its turn back."""
    chain: tuple[Link, ...] = ()
    started_at: datetime | None = None
    noted: PodView | None = None
    """Its last pod, as noted on it when it failed."""
    rendering: Rendering | None = None
    """None: an earlier version wrote it."""
    deadline_seconds: int = 0
    """How long its pod may run; 0 = it does not say."""

    @property
    def makes(self) -> frozenset[str]:
        """The key of its first task and the derivations of those that follow."""
        return frozenset((self.key, *(link.derivation for link in self.chain)))

    @property
    def task_seconds(self) -> int:
        """How long each of its tasks may run; 0 = it does not say."""
        return self.deadline_seconds // (1 + len(self.chain))

    @property
    def operations(self) -> tuple[str, ...]:
        """Of all its tasks."""
        return (self.operation, *(link.operation for link in self.chain))


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
        found = self.message.get("step")
        return found if isinstance(found, int) else None


@dataclass(frozen=True)
class PodView:
    """A pod of such a Job."""

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
    owners: frozenset[str] = frozenset()
    """UIDs: its Job's is among them, and another Job may have had that name before."""

    def is_of(self, job: JobView) -> bool:
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
    def succeeded(self) -> bool:
        """Its container did what it was to do."""
        return self.ending is not None and self.ending.exit_code == 0


def parse_time(text: str) -> datetime:
    """A time as the apiserver writes it."""
    return datetime.fromisoformat(text)


def job_view(value: Mapping[str, Any]) -> JobView | None:
    """What decisions need; None where the Job is none of ours.

    Whoever may create Jobs may write our notes on them, so what cannot be read is none of ours.
    """
    if KEY not in (value["metadata"].get("annotations") or {}):
        return None
    try:
        return _job_view(value)
    except _UNREADABLE:
        return None


def _job_view(value: Mapping[str, Any]) -> JobView:
    meta = value["metadata"]
    notes, labels = meta.get("annotations") or {}, meta.get("labels") or {}
    state, ended, reason, message = JobState.ACTIVE, None, "", ""
    started: str | None = (value.get("status") or {}).get("startTime") or meta["creationTimestamp"]
    for condition in value.get("status", {}).get("conditions") or ():
        if condition["type"] == "Suspended" and "startTime" not in value["status"]:
            resumed = condition.get("status") == "False"
            started = condition["lastTransitionTime"] if resumed else None
        if condition.get("status") != "True" or condition["type"] not in {"Complete", "Failed"}:
            continue
        done = condition["type"] == "Complete"
        state = JobState.SUCCEEDED if done else JobState.FAILED
        ended = parse_time(condition["lastTransitionTime"])
        reason, message = condition.get("reason", ""), condition.get("message", "")
    return JobView(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        key=Key(notes[KEY]),
        operation=labels.get(OPERATION, ""),
        task=notes.get(TASK, ""),
        scope=labels.get(SCOPE, ""),
        attempt=_number(labels.get(ATTEMPT, "1")),
        memory_bytes=_number(notes.get(MEMORY, "0")),
        owners=frozenset(owner["uid"] for owner in meta.get("ownerReferences") or ()),
        state=state,
        created_at=parse_time(meta["creationTimestamp"]),
        ended_at=ended,
        reason=reason,
        message=message,
        ttl_seconds=min(_number(notes.get(TTL, "600")), _LONGEST_TTL),
        deleting="deletionTimestamp" in meta,
        suspended=(value.get("spec") or {}).get("suspend") is True,
        chain=_links(notes.get(CHAIN, "")),
        started_at=parse_time(started) if started else None,
        noted=_noted(meta),
        rendering=_rendering(notes.get(RENDERING, "")),
        deadline_seconds=_deadline(value),
    )


def _rendering(text: str) -> Rendering | None:
    digest, _, rest = text.partition(".")
    turn, _, author = rest.partition(".")
    return Rendering(digest, min(int(turn), _MOST_TURNS), author) if turn.isdecimal() else None


def _deadline(value: Mapping[str, Any]) -> int:
    template = (value.get("spec") or {}).get("template") or {}
    return int((template.get("spec") or {}).get("activeDeadlineSeconds") or 0)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < _MOST_DIGITS):
        raise ValueError(f"{text[:32]} is no number")
    return int(text)


def ending_note(pod: PodView) -> str:
    """How a failed Job's last pod ended, as `ENDING` holds it."""
    found: dict[str, Any] = {
        "pod": pod.name,
        "node": pod.node,
        "reason": pod.reason,
        "message": pod.message,
    }
    if pod.ending is not None:
        found["ending"] = {
            "exitCode": pod.ending.exit_code,
            "reason": pod.ending.reason,
            "message": dict(pod.ending.message),
            "words": pod.ending.words,
        }
    return json.dumps(found)


def _noted(meta: Mapping[str, Any]) -> PodView | None:
    try:
        found = json.loads((meta.get("annotations") or {}).get(ENDING, ""))
        told = found.get("ending")
        ending = told and Ending(
            int(told["exitCode"]), str(told["reason"]), dict(told["message"]), str(told["words"])
        )
        return PodView(
            namespace=meta["namespace"],
            name=str(found["pod"]),
            uid="",
            job=meta["name"],
            node=str(found["node"]),
            phase="Failed",
            created_at=parse_time(meta["creationTimestamp"]),
            ending=ending or None,
            reason=str(found["reason"]),
            message=str(found["message"]),
        )
    except _UNREADABLE:  # none, or another version's
        return None


def _links(text: str) -> tuple[Link, ...]:
    try:
        return tuple(
            Link(str(task), str(name), Digest(str(made)))
            for task, name, made in json.loads(text or "[]")
        )
    except _UNREADABLE:  # written by another version; its tasks are looked up anyway
        return ()


def pod_view(value: Mapping[str, Any]) -> PodView | None:
    """What decisions need; None where the pod belongs to no Job."""
    meta, status = value["metadata"], value.get("status") or {}
    job = (meta.get("labels") or {}).get(JOB_NAME)
    if not job:
        return None
    ending, waiting = None, _unscheduled(status)
    hold = "Unschedulable" if waiting else ""
    for container in status.get("containerStatuses") or ():
        state = container.get("state") or {}
        ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated")
        if ended:
            ending = _ending(ended)
        elif "waiting" in state:
            hold, waiting = _not_started(state["waiting"])
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
        owners=frozenset(owner["uid"] for owner in meta.get("ownerReferences") or ()),
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
        return "ImagePullFailed", words[:_MOST_WORDS]
    words = ": ".join(part for part in (reason, message) if part)
    return "ContainerNotCreated", words[:_MOST_WORDS]


def _ending(ended: Mapping[str, Any]) -> Ending:
    message = _message(ended)
    words = "" if message else " ".join(str(ended.get("message") or "").split())
    return Ending(
        int(ended.get("exitCode", 0)), ended.get("reason", ""), message, words[-_MOST_WORDS:]
    )


def _message(ended: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        found = json.loads(ended.get("message") or "{}")
    except _UNREADABLE:
        return {}
    return found if isinstance(found, dict) else {}
