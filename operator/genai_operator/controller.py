"""Keeps everything going: events into the mirror and the queue, workers, upkeep.

Any number of replicas watch; only the one that holds the Lease works.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import aiohttp

from genai_operator.api import Api, ApiError, Json
from genai_operator.build import Builds
from genai_operator.decide import outlived
from genai_operator.metrics import (
    BUILDS,
    JOBS_ACTIVE,
    QUEUE_DEPTH,
    QUEUE_SECONDS,
    RECONCILE_SECONDS,
    STORES,
    TARGETS,
    TASK_SECONDS,
    TASKS,
    WATCH_COMPARED,
    WATCH_DEAF,
    WATCH_EVENT,
    WATCH_MISSED,
)
from genai_operator.observed import Kept, Observed, asked_of, lean
from genai_operator.references import References
from genai_operator.settings import Settings
from genai_operator.status import State, ready_of
from genai_operator.stores import Stores
from genai_operator.views import MANAGED, JobState, JobView, PodView, job_view, pod_view
from genai_operator.work_queue import WorkQueue

__all__ = ["SELECTOR", "Controller", "Ref"]

log = logging.getLogger("genai_operator")

SELECTOR = f"{MANAGED}=genai-operator"
_ERRANDS_OF_STORES = frozenset({"probe", "collect"})
_UPKEEP_SECONDS = 5.0
_SETTLE_SECONDS = 5.0
_QUICK_PASS = 0.5
_LONGEST_REST = 5.0
_DEAF_AFTER = 3
"""So many comparisons found something missing since a watch delivered anything."""


@dataclass(frozen=True)
class Ref:
    """What a worker works on: a build, a store or a target."""

    plural: str
    namespace: str
    name: str


class Controller:
    """See the module's docstring."""

    def __init__(self, api: Api, settings: Settings) -> None:
        self._api = api
        self._settings = settings
        self.observed = Observed()
        self.queue: WorkQueue[Ref] = WorkQueue(waited=self._waited)
        self._leading: Callable[[], bool] = lambda: False
        self._working_since = time.monotonic()
        stores = Stores(api, settings, self.observed.stores.get)
        self._builds = Builds(api, self.observed, stores, chain_tasks=settings.chain_tasks)
        self._references = References(
            api, self.observed, stores, collect_seconds=settings.collect_hours * 3600
        )
        self._deaf: dict[str, int] = {}
        self.compared_at = time.monotonic()

    @property
    def deaf(self) -> list[str]:
        """Kinds whose watch does not deliver."""
        return [plural for plural, count in self._deaf.items() if count >= _DEAF_AFTER]

    # What the watches deliver

    def take(self, plural: str, kind: str | None, value: Mapping[str, Any]) -> None:
        """Take one event in; `kind` is ADDED, MODIFIED, DELETED or None for a first listing."""
        if kind is not None:
            WATCH_EVENT.labels(kind=plural).set_to_current_time()
            self._deaf.pop(plural, None)
            WATCH_DEAF.labels(kind=plural).set(0)
        getattr(self, f"_take_{plural}")(value, deleted=kind == "DELETED")

    def _take_genaibuilds(self, value: Mapping[str, Any], *, deleted: bool) -> None:
        meta = value["metadata"]
        ref = Ref("genaibuilds", meta["namespace"], meta["name"])
        if deleted:
            self.observed.builds.drop(ref.namespace, ref.name, meta["uid"])
            self.queue.forget(ref)
            return
        before = self.observed.builds.get(ref.namespace, ref.name)
        self.observed.builds.put(value, lean(value))
        # Our own status comes back as an event: nothing to do.
        if before is None or asked_of(before) != asked_of(value):
            self.queue.add(ref)

    def _take_artifactstores(self, value: Mapping[str, Any], *, deleted: bool) -> None:
        meta = value["metadata"]
        ref = Ref("artifactstores", meta["namespace"], meta["name"])
        before = self.observed.stores.get(ref.namespace, ref.name)
        if deleted:
            self.observed.stores.drop(ref.namespace, ref.name, meta["uid"])
        else:
            self.observed.stores.put(value, lean(value))
            if before is None or asked_of(before) != asked_of(value):
                self.queue.add(ref)
        if before is None or deleted or _readiness(before) != _readiness(value):
            for build in self.observed.builds:
                store = build["spec"].get("store", {}).get("name", "default")
                if build["metadata"]["namespace"] == ref.namespace and store == ref.name:
                    self.queue.add(_ref_of(build))

    def _take_genaitargets(self, value: Mapping[str, Any], *, deleted: bool) -> None:
        name = value["metadata"]["name"]
        before = self.observed.targets.get("", name)
        if deleted:
            self.observed.targets.drop("", name, value["metadata"]["uid"])
        else:
            self.observed.targets.put(value, lean(value))
            if before is not None and asked_of(before) == asked_of(value):
                return
            self.queue.add(Ref("genaitargets", "", name))
        for build in self.observed.builds:
            if name in build["spec"].get("targets", ()):
                self.queue.add(_ref_of(build))

    def _take_jobs(self, value: Mapping[str, Any], *, deleted: bool) -> None:
        view = job_view(value)
        if view is None:
            return
        if deleted:
            self.observed.jobs.drop(view.namespace, view.name, view.uid)
            self.observed.leave(view)
        else:
            before = self.observed.jobs.get(view.namespace, view.name)
            if not self.observed.jobs.put(value, view):
                return
            if before is not None and before.uid == view.uid:
                if before.state is JobState.ACTIVE and view.state is not JobState.ACTIVE:
                    self._count_task(view)
                if replace(before, owners=view.owners, started_at=view.started_at) == view:
                    return
        self._wake_owners(view)

    def _take_pods(self, value: Mapping[str, Any], *, deleted: bool) -> None:
        view = pod_view(value)
        if view is None:
            return
        if deleted:
            self.observed.pods.drop(view.namespace, view.name, view.uid)
            self._wake_left(view)
        else:
            before = self.observed.pods.get(view.namespace, view.name)
            if not self.observed.pods.put(value, view):
                return
            self._wake_left(view)
            job = self.observed.jobs.get(view.namespace, view.job)
            if job is None:
                return
            # The Job may have been seen to fail before the pod's own words arrived.
            late = view.ending is not None and job.state is JobState.FAILED
            # And that it succeeded is known seconds before the Job says so.
            done = view.succeeded and not (before and before.succeeded)
            if late or done or view.waiting != (before.waiting if before else ""):
                self._wake_owners(job)

    def _wake_left(self, pod: PodView) -> None:
        for job in self.observed.left(pod):
            self._wake_owners(job)

    def _count_task(self, job: JobView) -> None:
        """A Job of several tasks that failed does not say here which one: it counts as `chain`."""
        if not self._leading():
            return
        result = job.state.value
        whole = "chain" if job.chain else job.operation
        for operation in job.operations if job.state is JobState.SUCCEEDED else (whole,):
            TASKS.labels(operation=operation, result=result).inc()
        if job.ended_at is not None:
            seconds = (job.ended_at - job.created_at).total_seconds()
            TASK_SECONDS.labels(operation=whole, result=result).observe(seconds)

    def _wake_owners(self, job: JobView) -> None:
        for build in self.observed.builds:
            if build["metadata"]["uid"] in job.owners:
                self.queue.add(_ref_of(build))
        for store in self.observed.stores if job.operation in _ERRANDS_OF_STORES else ():
            meta = store["metadata"]
            if meta["uid"] in job.owners:
                self.queue.add(Ref("artifactstores", meta["namespace"], meta["name"]))

    # Work

    async def run(self, leading: Callable[[], bool]) -> None:
        """Work until cancelled, whenever `leading` says so."""
        self._leading = leading
        await self.compare()
        tasks = [asyncio.create_task(self._worker(leading)) for _ in range(self._settings.workers)]
        tasks.append(asyncio.create_task(self._upkeep(leading)))
        tasks.append(asyncio.create_task(self._comparing()))
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _worker(self, leading: Callable[[], bool]) -> None:
        while True:
            if not leading():
                self._working_since = time.monotonic()
                await asyncio.sleep(0.2)
                continue
            ref = await self.queue.get()
            if not leading():
                self.queue.done(ref)
                self.queue.add(ref, after=0.2)
                continue
            await self._work(ref)

    async def _work(self, ref: Ref) -> None:
        began, result = time.monotonic(), "ok"
        try:
            after = await self._pass(ref)
        except asyncio.CancelledError:
            self.queue.done(ref)
            raise
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            result = "retried"
            pause = self.queue.failed(ref)
            log.warning("a pass failed", extra={"ref": str(ref), "why": str(error), "in": pause})
        except Exception:
            result = "error"
            pause = self.queue.failed(ref)
            log.exception("a pass failed", extra={"ref": str(ref), "in": pause})
        else:
            self.queue.done(ref, rest=_rest(time.monotonic() - began))
            if after is not None:
                self.queue.add(ref, after=after)
        RECONCILE_SECONDS.labels(kind=ref.plural, result=result).observe(time.monotonic() - began)

    async def _pass(self, ref: Ref) -> float | None:
        if ref.plural == "genaibuilds":
            return await self._builds.work(ref.namespace, ref.name)
        if ref.plural == "artifactstores":
            return await self._references.store(ref.namespace, ref.name)
        return await self._references.target(ref.name)

    # Upkeep

    async def _upkeep(self, leading: Callable[[], bool]) -> None:
        while True:
            await asyncio.sleep(_UPKEEP_SECONDS)
            try:
                self._count()
                self._builds.tidy()
                self._references.tidy()
                if leading():
                    await self._remove_ended()
                    await self._give_up_lost_pods()
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                log.warning("upkeep failed", extra={"why": str(error)})
            except Exception:
                log.exception("upkeep failed")

    def _waited(self, ref: Ref, seconds: float) -> None:
        """What a replica holds without working on it, another one has long been at."""
        working = time.monotonic() - self._working_since
        QUEUE_SECONDS.labels(kind=ref.plural).observe(min(seconds, working))

    def _count(self) -> None:
        """Every series stands from the start: what is absent cannot be told from an outage."""
        QUEUE_DEPTH.set(self.queue.overdue() if self._leading() else 0)
        JOBS_ACTIVE.set(sum(job.state is JobState.ACTIVE for job in self.observed.jobs))
        states = Counter(
            (build.get("status") or {}).get("phase") or State.NEW for build in self.observed.builds
        )
        for state in State:
            BUILDS.labels(state=state).set(states[state])
        for gauge, kept in ((STORES, self.observed.stores), (TARGETS, self.observed.targets)):
            ready = Counter(ready_of(value.get("status") or {})[0] for value in kept)
            for status in ("True", "False"):
                gauge.labels(ready=status).set(ready[status])
            gauge.labels(ready="Unknown").set(ready["Unknown"] + ready[""])

    async def _remove_ended(self) -> None:
        """Remove Jobs whose time is over."""
        phases = {
            build["metadata"]["uid"]: (build.get("status") or {}).get("phase", "")
            for build in self.observed.builds
        }
        for job in outlived(self.observed.jobs, phases, datetime.now(UTC)):
            await self._delete_job(job)

    async def _give_up_lost_pods(self) -> None:
        """A pod whose node is gone never ends by itself: its Job is made anew elsewhere.

        Its grace period is not waited for: nobody is there who would keep it.
        """
        works: dict[str, bool] = {}
        for pod in self.observed.pods:
            if not pod.deleting or pod.phase in {"Succeeded", "Failed"} or not pod.node:
                continue
            if pod.node not in works:
                works[pod.node] = await self._may_still_run(pod.node)
            if works[pod.node]:
                continue
            job = self.observed.jobs.get(pod.namespace, pod.job)
            log.warning("a node is gone", extra={"node": pod.node, "pod": pod.name})
            if job is not None and job.state is JobState.ACTIVE:
                await self._delete_job(job)
                self._wake_owners(job)
            await self._api.delete("pods", pod.name, namespace=pod.namespace, uid=pod.uid, grace=0)

    async def _may_still_run(self, name: str) -> bool:
        """Whether a node works, or cannot be asked after: its pods are then Kubernetes' to give up.

        An operator for some namespaces has no right to read nodes.
        """
        try:
            node = await self._api.get("nodes", name)
        except ApiError as error:
            if error.code == 403:
                return True
            raise
        return node is not None and _is_ready(node)

    async def _delete_job(self, job: JobView) -> None:
        await self._api.delete("jobs", job.name, namespace=job.namespace, uid=job.uid)
        self.observed.delete(job)

    # Does the watch deliver?

    async def _comparing(self) -> None:
        while True:
            await asyncio.sleep(self._settings.compare_seconds)
            try:
                await self.compare(settle=_SETTLE_SECONDS)
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                log.warning("comparing failed", extra={"why": str(error)})
            except Exception:
                log.exception("comparing failed")

    async def compare(self, *, settle: float = 0.0) -> None:
        """Compare the mirror with a listing, and mend it.

        Args:
            settle: Seconds that a watch is given to deliver what the listing shows; 0 at the
                start, when nothing can have been delivered yet.
        """
        kinds: tuple[tuple[str, Kept[Any], str], ...] = (
            ("genaitargets", self.observed.targets, ""),
            ("artifactstores", self.observed.stores, ""),
            ("jobs", self.observed.jobs, SELECTOR),
            ("pods", self.observed.pods, SELECTOR),
            ("genaibuilds", self.observed.builds, ""),
        )
        listings: list[tuple[str, Kept[Any], list[Json], int]] = []
        for plural, kept, labels in kinds:
            values: list[Json] = []
            oldest = None
            spaces = ("",) if plural == "genaitargets" else self._settings.namespaces or ("",)
            for namespace in spaces:
                items, version = await self._api.list(
                    plural, namespace=namespace, labels=labels, names_only=settle > 0
                )
                values += items
                oldest = version if oldest is None else min(oldest, version)
            listings.append((plural, kept, values, oldest or 0))
        if settle:
            await asyncio.sleep(settle)
        for plural, kept, values, version in listings:
            await self._mend(plural, kept, values, version=version, counts=settle > 0)
        self.compared_at = time.monotonic()
        WATCH_COMPARED.set_to_current_time()

    async def _mend(
        self, plural: str, kept: Kept[Any], values: list[Json], *, version: int, counts: bool
    ) -> None:
        newer, gone = kept.missed(values)
        listed = {(v["metadata"].get("namespace", ""), v["metadata"]["name"]): v for v in values}
        missed = 0
        for namespace, name in newer:
            missed += 1
            found = [listed[namespace, name]]
            if counts:  # then its metadata alone was listed; the right to list is all there is
                found, _ = await self._api.list(plural, namespace=namespace, name=name, fresh=True)
            for value in found:
                self.take(plural, None, value)
        for namespace, name, uid in gone:
            entry = kept.entry(namespace, name)
            # What was made after the listing is not in it.
            if entry is None or entry.uid != uid or entry.version > version:
                continue
            missed += 1
            self._vanished(plural, namespace, name, uid)
        if counts:
            WATCH_MISSED.labels(kind=plural).inc(missed)
            # Nothing missed proves nothing: our own writes are known without any watch, and where
            # nothing happens there is nothing to miss. Only what a watch delivers clears it.
            self._deaf[plural] = self._deaf.get(plural, 0) + bool(missed)
            WATCH_DEAF.labels(kind=plural).set(plural in self.deaf)

    def _vanished(self, plural: str, namespace: str, name: str, uid: str) -> None:
        if plural == "jobs":
            job = self.observed.jobs.drop(namespace, name, uid)
            if job is not None:
                self.observed.leave(job)
                self._wake_owners(job)
            return
        if plural == "pods":
            pod = self.observed.pods.drop(namespace, name, uid)
            if pod is not None:
                self._wake_left(pod)
            return
        meta = {"namespace": namespace, "name": name, "uid": uid}
        self.take(plural, "DELETED", {"metadata": meta, "spec": {}})


def _rest(seconds: float) -> float:
    """A build of a thousand tasks hears of one every moment, and each pass looks at all of them."""
    return min(seconds, _LONGEST_REST) if seconds > _QUICK_PASS else 0.0


def _ref_of(build: Mapping[str, Any]) -> Ref:
    return Ref("genaibuilds", build["metadata"]["namespace"], build["metadata"]["name"])


def _readiness(value: Mapping[str, Any]) -> object:
    status = value.get("status") or {}
    ready = [c["status"] for c in status.get("conditions") or () if c["type"] == "Ready"]
    return ready, status.get("observedGeneration")


def _is_ready(node: Mapping[str, Any]) -> bool:
    return any(
        c["type"] == "Ready" and c["status"] == "True"
        for c in node.get("status", {}).get("conditions") or ()
    )
