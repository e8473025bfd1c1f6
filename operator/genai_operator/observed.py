"""What the watches delivered so far, in as few bytes as decisions need.

Watches can lose things (an object that vanished while a connection was down leaves no event), so
the mirror is compared with a listing now and then: what is gone is dropped, what is newer is
fetched, and a watch that keeps missing things is called deaf.
"""

from __future__ import annotations

import json
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from genai_core.kinds.base import REQUESTED_AT
from genai_operator.projection import lean
from genai_operator.status import ready_of
from genai_operator.views import JobState, JobView, PodView

__all__ = ["BuildView", "Entry", "Kept", "Observed", "asked_of", "build_view", "version_of"]

V = TypeVar("V")

_UNSEEN_SECONDS = 3.0
"""So long the Job controller may take to hear that a Job is gone: it makes no pod of it after."""
_MOST_GONE = 10_000
"""How many vanished objects are remembered, so that a listing from before does not revive them."""


@dataclass(frozen=True)
class Entry(Generic[V]):
    """One object and the version it was seen in."""

    uid: str
    version: int
    value: V


def version_of(value: Mapping[str, Any]) -> int:
    """A resourceVersion as the number that it is (etcd's revision)."""
    text = str(value["metadata"].get("resourceVersion", "0"))
    return int(text) if text.isdigit() else 0


class Kept(Generic[V]):
    """Objects of one kind by (namespace, name)."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], Entry[V]] = {}
        self._gone: dict[str, None] = {}

    def put(self, value: Mapping[str, Any], view: V) -> bool:
        """Keep an object unless a newer version of it is known; tells whether it was kept."""
        meta = value["metadata"]
        place = (meta.get("namespace", ""), meta["name"])
        known = self._entries.get(place)
        version = version_of(value)
        if meta["uid"] in self._gone:  # a late answer or listing; it does not come back
            return False
        if known is not None and known.uid == meta["uid"] and known.version > version:
            return False
        self._entries[place] = Entry(meta["uid"], version, view)
        return True

    def amend(self, namespace: str, name: str, view: V) -> None:
        """Change what is known of an object, as of the version that it was seen in."""
        known = self._entries[namespace, name]
        self._entries[namespace, name] = replace(known, value=view)

    def drop(self, namespace: str, name: str, uid: str) -> V | None:
        """Forget exactly that object, for good; returns what was known of it."""
        self._gone[uid] = None
        if len(self._gone) > _MOST_GONE:
            del self._gone[next(iter(self._gone))]
        known = self._entries.get((namespace, name))
        if known is None or known.uid != uid:
            return None
        del self._entries[namespace, name]
        return known.value

    def get(self, namespace: str, name: str) -> V | None:
        """What is known of an object."""
        entry = self._entries.get((namespace, name))
        return entry.value if entry else None

    def entry(self, namespace: str, name: str) -> Entry[V] | None:
        """The same with its version."""
        return self._entries.get((namespace, name))

    def __iter__(self) -> Iterator[V]:
        """All objects."""
        return iter([entry.value for entry in self._entries.values()])

    def __len__(self) -> int:
        """How many."""
        return len(self._entries)

    def places(self) -> list[tuple[str, str]]:
        """(namespace, name) of all."""
        return list(self._entries)

    def missed(
        self, listed: Iterable[Mapping[str, Any]]
    ) -> tuple[list[tuple[str, str]], list[tuple[str, str, str]]]:
        """Compare with a listing that was begun after the last event was taken in.

        Returns:
            (namespace, name) of what is newer than known, and (namespace, name, uid) of what is
            known and not listed.
        """
        newer, seen = [], set()
        for value in listed:
            meta = value["metadata"]
            place = (meta.get("namespace", ""), meta["name"])
            seen.add(place)
            if meta["uid"] in self._gone:
                continue
            known = self._entries.get(place)
            if known is None or known.uid != meta["uid"] or known.version < version_of(value):
                newer.append(place)
        gone = [
            (place[0], place[1], entry.uid)
            for place, entry in self._entries.items()
            if place not in seen
        ]
        return newer, gone


@dataclass(frozen=True, slots=True)
class BuildView:
    """A build: what events ask about it, and the rest as text until it is worked on.

    Attributes:
        asked: See `asked_of`.
        targets: Names of the GenAITargets that it is built for.
        store: Of the ArtifactStore.
        phase: As its status says.
        reason: Of its condition Ready.
    """

    namespace: str
    name: str
    uid: str
    asked: tuple[object, ...]
    targets: tuple[str, ...]
    store: str
    phase: str
    reason: str
    text: bytes

    @property
    def value(self) -> dict[str, Any]:
        """The object, as much of it as is kept."""
        found: dict[str, Any] = json.loads(zlib.decompress(self.text))
        return found


def build_view(value: Mapping[str, Any]) -> BuildView:
    """Of a build as the apiserver sends it."""
    kept = lean("genaibuilds", value)
    meta, spec, status = kept["metadata"], kept.get("spec") or {}, kept.get("status") or {}
    return BuildView(
        namespace=sys.intern(meta["namespace"]),
        name=meta["name"],
        uid=meta["uid"],
        asked=asked_of(kept),
        targets=tuple(sys.intern(name) for name in spec.get("targets", ())),
        store=sys.intern((spec.get("store") or {}).get("name", "default")),
        phase=sys.intern(status.get("phase") or ""),
        reason=sys.intern(ready_of(status)[1]),
        text=zlib.compress(json.dumps(kept).encode(), 1),
    )


def asked_of(value: Mapping[str, Any]) -> tuple[object, ...]:
    """What a user can change about an object."""
    meta = value["metadata"]
    return (
        meta["uid"],
        meta.get("generation", 0),
        (meta.get("annotations") or {}).get(REQUESTED_AT, ""),
        "deletionTimestamp" in meta,
    )


@dataclass
class Observed:
    """The mirror."""

    builds: Kept[BuildView] = field(default_factory=Kept)
    stores: Kept[dict[str, Any]] = field(default_factory=Kept)
    targets: Kept[dict[str, Any]] = field(default_factory=Kept)
    deployments: Kept[dict[str, Any]] = field(default_factory=Kept)
    jobs: Kept[JobView] = field(default_factory=Kept)
    pods: Kept[PodView] = field(default_factory=Kept)
    leaving: dict[str, tuple[JobView, float]] = field(default_factory=dict)
    """UID -> a Job that is deleted and whose pods still run, or may, and until when that is
    thought of one whose pods were not seen: its tasks must not begin again yet."""
    _unseen: set[str] = field(default_factory=set)
    """UIDs of those whose pods were not seen: only the apiserver can say that there are none."""

    def jobs_of(self, namespace: str, scope: str) -> list[JobView]:
        """Jobs that a build of this namespace and scope may use, or must wait for."""
        self._forget_left()
        left = [job for job, _ in self.leaving.values()]
        return [
            job for job in (*self.jobs, *left) if job.namespace == namespace and job.scope == scope
        ]

    def leave(self, job: JobView) -> None:
        """A Job is deleted: remember it while a pod of it runs.

        Pods come by another watch: one that was begun a moment ago may not have been seen.
        """
        self._forget_left()
        unseen = job.state is JobState.ACTIVE and not job.suspended and not self._has_pods(job)
        if unseen or self._runs(job):
            gone = replace(job, state=JobState.ACTIVE, deleting=True)
            until = time.monotonic() + (_UNSEEN_SECONDS if unseen else 0.0)
            if job.uid not in self.leaving:
                self.leaving[job.uid] = (gone, until)
                if unseen:
                    self._unseen.add(job.uid)

    def is_leaving(self, namespace: str, name: str) -> bool:
        """A Job of that name is deleted, and its pods may still run."""
        self._forget_left()
        places = ((job.namespace, job.name) for job, _ in self.leaving.values())
        return (namespace, name) in places

    def left(self, pod: PodView) -> list[JobView]:
        """Deleted Jobs that ended with this pod; they are forgotten."""
        gone = [job for job, _ in self.leaving.values() if pod.is_of(job) and not self._runs(job)]
        for job in gone:
            self._forget(job.uid)
        return gone

    def doubtful(self) -> list[JobView]:
        """Deleted Jobs whose pods should have been seen by now, and were not."""
        now = time.monotonic()
        known = ((uid, self.leaving[uid]) for uid in self._unseen)
        return [job for _, (job, until) in known if until < now and not self._runs(job)]

    def settle(self, uid: str) -> bool:
        """Its pods, if any, were asked for and are known; tells whether it has left with that."""
        self._unseen.discard(uid)
        there = uid in self.leaving
        self._forget_left()
        return there and uid not in self.leaving

    def _forget_left(self) -> None:
        now = time.monotonic()
        over = [
            uid
            for uid, (job, until) in self.leaving.items()
            if until < now and uid not in self._unseen and not self._runs(job)
        ]
        for uid in over:
            self._forget(uid)

    def _forget(self, uid: str) -> None:
        del self.leaving[uid]
        self._unseen.discard(uid)

    def _runs(self, job: JobView) -> bool:
        return any(not pod.ended for pod in self._pods(job))

    def _has_pods(self, job: JobView) -> bool:
        return any(True for _ in self._pods(job))

    def _pods(self, job: JobView) -> Iterator[PodView]:
        return (pod for pod in self.pods if pod.is_of(job))

    def claimed_by(self, uid: str) -> list[JobView]:
        """Jobs that a build claims."""
        return [job for job in self.jobs if uid in job.owners]

    def pods_of(self, namespace: str) -> dict[str, list[PodView]]:
        """Job's name -> pods; where those of a failed one are gone, what was noted of them."""
        found: dict[str, list[PodView]] = {}
        for pod in self.pods:
            if pod.namespace != namespace:
                continue
            job = self.jobs.get(namespace, pod.job)
            if job is None or pod.is_of(job):
                found.setdefault(pod.job, []).append(pod)
        for job in self.jobs:
            if job.noted is not None and job.namespace == namespace:
                pods = found.setdefault(job.name, [])
                if not any(pod.ended for pod in pods):
                    pods.append(job.noted)
        return found

    def unnoted(self, uid: str) -> list[tuple[JobView, PodView]]:
        """Failed Jobs of a build, with their last pods, where that is not noted on them yet."""
        found = []
        for job in self.claimed_by(uid):
            if job.state is not JobState.FAILED or job.noted is not None or job.deleting:
                continue
            pods = [pod for pod in self._pods(job) if pod.ended]
            if pods:
                last = max(pods, key=lambda pod: (pod.ending is not None, pod.created_at))
                found.append((job, last))
        return found

    def delete(self, job: JobView) -> None:
        """It was deleted by us; the watch will say so a moment later."""
        self.jobs.drop(job.namespace, job.name, job.uid)
        self.leave(job)
