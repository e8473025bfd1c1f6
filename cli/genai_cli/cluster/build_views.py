"""A build, its Jobs and their pods as people see them. Pure: objects of the apiserver in.

What a status does not hold, since it stays small, comes from the Jobs: which task runs where and
since when, and why one does not start.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Literal, TypeAlias, TypeVar

from genai_core.quantity import amount
from genai_core.redaction import hidden_queries
from genai_core.wire import ATTEMPT, CHAIN, JOB_NAME, KEY, OPERATION, REQUESTED_AT, SCOPE, TASK
from genai_planner.execution.progress import StageProgress

__all__ = [
    "Artifact",
    "ClusterBuild",
    "ClusterTask",
    "FailureView",
    "build_view",
    "parse_time",
    "quantity",
    "task_views",
]

_USUAL = {"", "ContainerCreating", "PodInitializing"}

_Entry = TypeVar("_Entry", StageProgress, "FailureView")
ShownState: TypeAlias = Literal["waiting", "running", "done", "failed"]


@dataclass(frozen=True)
class ClusterTask:
    """The latest Job of one task, or of several that follow one another in one pod.

    Attributes:
        id: Of the task in its plan; the first one's.
        then: Ids of those that follow in the same pod.
        key: Of its record.
        owners: UIDs of the builds that need it.
        since: When its pod began to run, else when its Job was made.
        seconds: It took so long, once it has ended.
        pod: Name of the latest pod; empty where it is gone.
        waits: Why it does not start, as far as anybody says.
        said: What its process left: outcome, error, peak memory, the log's digest.
        cpu: Millicores that it asks for.
        memory: Bytes that it asks for.
    """

    namespace: str
    id: str
    key: str
    operation: str
    attempt: int
    state: ShownState
    owners: frozenset[str]
    job: str
    since: datetime
    ended_at: datetime | None = None
    pod: str = ""
    node: str = ""
    waits: str = ""
    said: Mapping[str, Any] = field(default_factory=dict)
    cpu: int = 0
    memory: int = 0
    then: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """Of all its tasks."""
        return (self.id, *self.then)

    @property
    def label(self) -> str:
        """What people read: the task, and how many follow in its pod."""
        return f"{self.id} and {len(self.then)} more" if self.then else self.id

    @property
    def ended_in(self) -> str:
        """The task that it came to; as far as it said."""
        return str(self.said.get("task") or self.label)

    @property
    def active(self) -> bool:
        """It runs, or its pod is about to."""
        return self.state in {"waiting", "running"}

    @property
    def seconds(self) -> float:
        """See the class."""
        if self.ended_at is None:
            return 0.0
        return max((self.ended_at - self.since).total_seconds(), 0.0)


@dataclass(frozen=True)
class FailureView:
    """One failed task; the log's address is empty where it left none."""

    task: str
    reason: str
    message: str
    log: str = ""


@dataclass(frozen=True)
class Artifact:
    """A target's last good container."""

    target: str
    revision: str
    url: str
    size_bytes: int
    built_at: str
    verified: str
    fidelity: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ClusterBuild:
    """A GenAIBuild.

    Attributes:
        taken_up: The operator has seen this generation, and this request.
        ready: Status, reason and message of the condition.
        done: Tasks that ended well, of `total`.
        outdated: What ToolchainOutdated says; empty where it does not stand.
        source: As resolved: address and digest; else as written.
        tasks: Its Jobs' tasks, the oldest first.
    """

    namespace: str
    name: str
    uid: str
    created_at: datetime
    taken_up: bool
    phase: str
    ready: tuple[str, str, str]
    targets: tuple[str, ...]
    store: str
    source: tuple[str, str]
    done: int = 0
    total: int = 0
    cached: int = 0
    stages: tuple[StageProgress, ...] = ()
    failures: tuple[FailureView, ...] = ()
    plan: tuple[str, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    warnings: tuple[str, ...] = ()
    outdated: str = ""
    tasks: tuple[ClusterTask, ...] = ()

    @property
    def settled(self) -> bool:
        """Nothing more happens before somebody changes something."""
        return self.taken_up and (self.ready[0] in {"True", "False"} or self.phase == "Suspended")

    @property
    def running(self) -> tuple[ClusterTask, ...]:
        """Tasks that run or are about to."""
        return tuple(task for task in self.tasks if task.active)


def parse_time(text: str) -> datetime:
    """A time as an apiserver writes it."""
    return datetime.fromisoformat(text)


def build_view(value: Mapping[str, Any], tasks: Sequence[ClusterTask] = ()) -> ClusterBuild:
    """Read a GenAIBuild.

    Args:
        value: As the apiserver sends it; its status may be missing.
        tasks: Of its namespace; its own are picked out.
    """
    meta, spec, status = value["metadata"], value["spec"], value.get("status") or {}
    conditions = {entry["type"]: entry for entry in status.get("conditions") or ()}
    ready = conditions.get("Ready", {})
    requested = (meta.get("annotations") or {}).get(REQUESTED_AT, "")
    taken_up = (
        status.get("observedGeneration", 0) == meta.get("generation", 0)
        and status.get("requestedAt", "") == requested
    )
    done, _, total = str(status.get("progress", "")).partition("/")
    resolved = next(iter(status.get("sources") or ()), None)
    return ClusterBuild(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        created_at=parse_time(meta["creationTimestamp"]),
        taken_up=taken_up,
        phase=str(status.get("phase") or "Pending") if taken_up else "Pending",
        ready=(
            str(ready.get("status", "Unknown")),
            str(ready.get("reason", "")),
            str(ready.get("message", "")),
        ),
        targets=tuple(spec["targets"]),
        store=str((spec.get("store") or {}).get("name") or "default"),
        source=(
            hidden_queries(resolved["uri"] if resolved else spec["model"]["source"]),
            resolved["digest"] if resolved else "",
        ),
        done=int(done) if done.isdigit() else 0,
        total=int(total) if total.isdigit() else 0,
        cached=int(status.get("cached", 0)),
        stages=_each(StageProgress, status.get("stages")),
        failures=_each(FailureView, status.get("failures")),
        plan=tuple(status.get("plan") or ()),
        artifacts=tuple(
            Artifact(
                target=entry["target"],
                revision=entry["revision"],
                url=entry["url"],
                size_bytes=entry["sizeBytes"],
                built_at=entry["builtAt"],
                verified=entry["verified"],
                fidelity=entry.get("fidelity"),
            )
            for entry in status.get("artifacts") or ()
        ),
        warnings=tuple(status.get("warnings") or ()),
        outdated=str(conditions.get("ToolchainOutdated", {}).get("message", "")),
        tasks=tuple(task for task in tasks if meta["uid"] in task.owners),
    )


def _each(kind: type[_Entry], entries: Iterable[Mapping[str, Any]] | None) -> tuple[_Entry, ...]:
    """Entries of a status, without what a newer version of the operator says besides."""
    known = {field.name for field in fields(kind)}
    return tuple(
        kind(**{name: value for name, value in entry.items() if name in known})
        for entry in entries or ()
    )


def task_views(
    jobs: Iterable[Mapping[str, Any]], pods: Iterable[Mapping[str, Any]]
) -> list[ClusterTask]:
    """The latest attempt of every task that has a Job, the oldest first.

    A Job that only bears the operator's label, and makes no sense, is passed over.
    """
    by_job: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for pod in pods:
        meta = pod["metadata"]
        name = (meta.get("labels") or {}).get(JOB_NAME)
        if name:
            by_job.setdefault((meta["namespace"], name), []).append(pod)
    latest: dict[tuple[str, str, str], ClusterTask] = {}
    for job in jobs:
        meta = job["metadata"]
        if TASK not in (meta.get("annotations") or {}):
            continue
        try:
            view = _task(job, by_job.get((meta["namespace"], meta["name"]), ()))
        except (ValueError, TypeError, LookupError):
            continue
        place = (view.namespace, view.key, (meta.get("labels") or {}).get(SCOPE, ""))
        known = latest.get(place)
        if known is None or known.attempt < view.attempt:
            latest[place] = view
    return sorted(latest.values(), key=lambda view: view.since)


def _task(job: Mapping[str, Any], pods: Iterable[Mapping[str, Any]]) -> ClusterTask:
    meta, status = job["metadata"], job.get("status") or {}
    notes, labels = meta["annotations"], meta.get("labels") or {}
    pod = max(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)
    container = _container(pod)
    ran = container.get("running") or container.get("terminated") or {}
    # A process that has ended runs, as long as the Job does not say how it went.
    state: ShownState = "running" if ran else "waiting"
    ended_at = None
    for condition in status.get("conditions") or ():
        if condition["status"] == "True" and condition["type"] in {"Complete", "Failed"}:
            state = "done" if condition["type"] == "Complete" else "failed"
            ended_at = ran.get("finishedAt") or condition["lastTransitionTime"]
    requests = _requests(job)
    return ClusterTask(
        namespace=meta["namespace"],
        id=notes[TASK],
        key=notes.get(KEY, ""),
        operation=labels.get(OPERATION, ""),
        attempt=int(labels.get(ATTEMPT, "1")),
        state=state,
        owners=frozenset(owner["uid"] for owner in meta.get("ownerReferences") or ()),
        job=meta["name"],
        since=parse_time(ran.get("startedAt") or meta["creationTimestamp"]),
        ended_at=parse_time(ended_at) if ended_at else None,
        pod=pod["metadata"]["name"] if pod else "",
        node=((pod or {}).get("spec") or {}).get("nodeName", ""),
        waits=_waits(pod, container) if state == "waiting" else "",
        said=_said(container.get("terminated") or {}),
        cpu=quantity(requests.get("cpu", "0"), scale=1000),
        memory=quantity(requests.get("memory", "0")),
        then=_chained(notes.get(CHAIN, "")),
    )


def _chained(text: str) -> tuple[str, ...]:
    """Ids of the tasks that a Job goes on with: `[[id, operation, derivation], ...]`."""
    try:
        return tuple(str(link[0]) for link in json.loads(text or "[]"))
    except (ValueError, TypeError, LookupError, RecursionError):
        return ()


def _container(pod: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The state of the pod's only container."""
    for entry in ((pod or {}).get("status") or {}).get("containerStatuses") or ():
        found: Mapping[str, Any] = entry.get("state") or {}
        return found
    return {}


def _waits(pod: Mapping[str, Any] | None, container: Mapping[str, Any]) -> str:
    waiting = container.get("waiting") or {}
    reason = str(waiting.get("reason", ""))
    if reason not in _USUAL:
        return f"{reason}: {waiting.get('message', '')}".strip(": ")
    for entry in ((pod or {}).get("status") or {}).get("conditions") or ():
        if entry["type"] == "PodScheduled" and entry["status"] == "False":
            return str(entry.get("message") or entry.get("reason") or "not scheduled")
    return "its pod starts" if pod else "no pod yet"


def _said(ended: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        found = json.loads(ended.get("message") or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _requests(job: Mapping[str, Any]) -> Mapping[str, str]:
    containers = job["spec"]["template"]["spec"]["containers"]
    found: Mapping[str, str] = (containers[0].get("resources") or {}).get("requests") or {}
    return found


def quantity(text: str, *, scale: int = 1) -> int:
    """A Kubernetes quantity as a whole number.

    Raises:
        ValueError, KeyError: It is none.
    """
    return round(amount(text or "0") * scale)
