"""Jobs and pods as decisions need them: a few fields out of large objects. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from genai_core.names import Digest, Key
from genai_core.wire import ATTEMPT, CHAIN, KEY, MEMORY, OPERATION, RENDERING, SCOPE, TASK, TTL
from genai_operator.kube.pod import UNREADABLE, PodView, noted_pod
from genai_operator.kube.times import parse_time

__all__ = ["JobState", "JobView", "Link", "Rendering", "job_view"]


_MOST_DIGITS = 20
_LONGEST_TTL = 10 * 365 * 86400
"""A time that far away can still be reckoned with."""
_MOST_TURNS = 1000


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
        digest: See `jobs.job_manifest.appearance`.
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


def job_view(value: Mapping[str, Any]) -> JobView | None:
    """What decisions need; None where the Job is none of ours.

    Whoever may create Jobs may write our notes on them, so what cannot be read is none of ours.
    """
    if KEY not in (value["metadata"].get("annotations") or {}):
        return None
    try:
        return _job_view(value)
    except UNREADABLE:
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
        noted=noted_pod(meta),
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


def _links(text: str) -> tuple[Link, ...]:
    try:
        return tuple(
            Link(str(task), str(name), Digest(str(made)))
            for task, name, made in json.loads(text or "[]")
        )
    except UNREADABLE:  # written by another version; its tasks are looked up anyway
        return ()
