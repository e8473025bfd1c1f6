"""Keeps everything going: events into the mirror and the queue, workers at what is due.

Any number of replicas watch; only the one that holds the Lease works.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from genai_operator.builds.reconciler import Builds
from genai_operator.deployments.reconciler import DeploymentReconciler
from genai_operator.jobs.terminating import Leaving
from genai_operator.kube.build import BuildView, build_view
from genai_operator.kube.cache import asked_of
from genai_operator.kube.client import Api, ApiError
from genai_operator.kube.job import JobState, JobView, job_view
from genai_operator.kube.observed import Observed
from genai_operator.kube.pod import PodView, pod_view
from genai_operator.kube.projection import lean
from genai_operator.kube.relist import Comparing
from genai_operator.manager.upkeep import Upkeep
from genai_operator.manager.work_queue import WorkQueue
from genai_operator.metric_labels import operation_label
from genai_operator.metrics import (
    QUEUE_SECONDS,
    RECONCILE_SECONDS,
    TASK_SECONDS,
    TASKS,
)
from genai_operator.settings import Settings
from genai_operator.stores.open_stores import Stores
from genai_operator.stores.reconciler import StoreReconciler
from genai_operator.targets.reconciler import TargetReconciler
from genai_operator.threads import Threads

__all__ = ["Controller", "Ref"]

log = logging.getLogger("genai_operator")

_ERRANDS_OF_STORES = frozenset({"probe", "collect"})
_UPKEEP_SECONDS = 5.0
_QUICK_PASS = 0.1
"""Seconds of CPU; what a pass waits for a store costs nobody anything."""
_RESTS = 2.0
"""Times as long as it computed."""
_LONGEST_REST = 5.0
_SLOW_PASS = 5.0
"""Seconds after which a pass leaves its worker to others."""
_LONGEST_PASS = 600.0
"""Seconds after which it is given up."""
_MOST_SLOW = 64
"""Passes that go on without a worker."""


@dataclass(frozen=True)
class Ref:
    """What a worker works on: a build, a store, a target or a deployment."""

    plural: str
    namespace: str
    name: str


class Controller:
    """See the module's docstring."""

    def __init__(self, api: Api, settings: Settings) -> None:
        self._settings = settings
        self.observed = Observed()
        self.queue: WorkQueue[Ref] = WorkQueue(
            waited=self._waited, group=lambda ref: ref.namespace or None
        )
        self._threads = Threads()
        self._slow: set[asyncio.Task[None]] = set()
        self._leading: Callable[[], bool] = lambda: False
        self._working_since = time.monotonic()
        stores = Stores(api, settings, self.observed.stores.get)
        self._builds = Builds(
            api, self.observed, stores, chain_tasks=settings.chain_tasks, doubt=self._doubt
        )
        self._stores = StoreReconciler(
            api, self.observed, stores, collect_seconds=settings.collect_hours * 3600
        )
        self._targets = TargetReconciler(api, self.observed)
        self._deployments = DeploymentReconciler(api, self.observed)
        self.upkeep = Upkeep(api, self.observed, wake=self._wake_owners)
        self._leaving = Leaving(
            api,
            self.observed,
            take_pod=lambda value: self._take_pods(value, deleted=False),
            left=self._wake_owners,
        )
        self.comparing = Comparing(api, self.observed, self, namespaces=settings.namespaces)

    @property
    def due(self) -> int:
        """Objects that wait for a worker here; those of a replica that does not work wait not."""
        return self.queue.overdue() if self._leading() else 0

    # What the watches deliver

    def take(self, plural: str, kind: str | None, value: Mapping[str, Any]) -> None:
        """Take one event in; `kind` is ADDED, MODIFIED, DELETED or None for a first listing."""
        if kind is not None:
            self.comparing.heard(plural)
        getattr(self, f"_take_{plural}")(value, deleted=kind == "DELETED")

    def vanished(self, plural: str, namespace: str, name: str, *, uid: str) -> None:
        """Take in that something is gone, of which no watch told."""
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
        getattr(self, f"_take_{plural}")({"metadata": meta, "spec": {}}, deleted=True)

    def _take_genaibuilds(self, value: Mapping[str, Any], *, deleted: bool) -> None:
        meta = value["metadata"]
        ref = Ref("genaibuilds", meta["namespace"], meta["name"])
        if deleted:
            self.observed.builds.drop(ref.namespace, ref.name, meta["uid"])
            # Its successor may be known already, from an answer that was quicker than the watch.
            if self.observed.builds.get(ref.namespace, ref.name) is None:
                self.queue.forget(ref)
            return
        before = self.observed.builds.get(ref.namespace, ref.name)
        now = build_view(value)
        self.observed.builds.put(value, now)
        # Our own status comes back as an event: nothing to do.
        if before is None or before.asked != now.asked:
            self.queue.add(ref)

    def _take_artifactstores(self, value: Mapping[str, Any], *, deleted: bool) -> None:
        meta = value["metadata"]
        ref = Ref("artifactstores", meta["namespace"], meta["name"])
        before = self.observed.stores.get(ref.namespace, ref.name)
        if deleted:
            self.observed.stores.drop(ref.namespace, ref.name, meta["uid"])
        else:
            self.observed.stores.put(value, lean("artifactstores", value))
            if before is None or asked_of(before) != asked_of(value):
                self.queue.add(ref)
        if before is None or deleted or _readiness(before) != _readiness(value):
            for build in self.observed.builds:
                if (build.namespace, build.store) == (ref.namespace, ref.name):
                    self.queue.add(_ref_of(build))

    def _take_genaitargets(self, value: Mapping[str, Any], *, deleted: bool) -> None:
        name = value["metadata"]["name"]
        before = self.observed.targets.get("", name)
        if deleted:
            self.observed.targets.drop("", name, value["metadata"]["uid"])
        else:
            self.observed.targets.put(value, lean("genaitargets", value))
            if before is not None and asked_of(before) == asked_of(value):
                return
            self.queue.add(Ref("genaitargets", "", name))
        for build in self.observed.builds:
            if name in build.targets:
                self.queue.add(_ref_of(build))

    def _take_genaideployments(self, value: Mapping[str, Any], *, deleted: bool) -> None:
        meta = value["metadata"]
        ref = Ref("genaideployments", meta["namespace"], meta["name"])
        if deleted:
            self.observed.deployments.drop(ref.namespace, ref.name, meta["uid"])
            return
        before = self.observed.deployments.get(ref.namespace, ref.name)
        self.observed.deployments.put(value, lean("genaideployments", value))
        if before is None or asked_of(before) != asked_of(value):
            self.queue.add(ref)

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
                owners = before.owners | view.owners  # a claim of ours may be newer than this event
                if replace(before, owners=view.owners, started_at=view.started_at) == view:
                    owners = view.owners - before.owners  # what they joined was told to others
                view = replace(view, owners=owners)
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
            TASKS.labels(operation=operation_label(operation), result=result).inc()
        if job.ended_at is not None:
            seconds = (job.ended_at - job.created_at).total_seconds()
            TASK_SECONDS.labels(operation=operation_label(whole), result=result).observe(seconds)

    def _wake_owners(self, job: JobView) -> None:
        for build in self.observed.builds:
            if build.uid in job.owners:
                self.queue.add(_ref_of(build))
        for store in self.observed.stores if job.operation in _ERRANDS_OF_STORES else ():
            meta = store["metadata"]
            if meta["uid"] in job.owners:
                self.queue.add(Ref("artifactstores", meta["namespace"], meta["name"]))

    # Work

    async def run(self, leading: Callable[[], bool]) -> None:
        """Work until cancelled, whenever `leading` says so."""
        self._leading = leading
        await self.comparing.compare()
        tasks = [asyncio.create_task(self._worker(leading)) for _ in range(self._settings.workers)]
        tasks.append(asyncio.create_task(self._upkeep(leading)))
        tasks.append(asyncio.create_task(self._leaving.run()))
        seconds = self._settings.compare_seconds
        tasks.append(asyncio.create_task(self.comparing.run(seconds)))
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in (*tasks, *self._slow):
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
            await self._until_slow(ref)

    async def _until_slow(self, ref: Ref) -> None:
        """Work on it; one that waits for its own server must not keep the worker from others."""
        task = asyncio.create_task(self._work(ref))
        try:
            done, _ = await asyncio.wait({task}, timeout=_SLOW_PASS)
            if not done and len(self._slow) < _MOST_SLOW:
                self.queue.slow(ref)
                self._slow.add(task)
                task.add_done_callback(self._slow.discard)
            else:
                await task
        except asyncio.CancelledError:
            task.cancel()
            raise

    async def _work(self, ref: Ref) -> None:
        began, cost, result = time.monotonic(), time.process_time(), "ok"
        try:
            async with asyncio.timeout(_LONGEST_PASS):
                with self._threads.working_on(ref):
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
            self.queue.done(ref, rest=_rest(time.process_time() - cost))
            if after is not None:
                self.queue.add(ref, after=after)
        RECONCILE_SECONDS.labels(kind=ref.plural, result=result).observe(time.monotonic() - began)

    async def _pass(self, ref: Ref) -> float | None:
        if ref.plural == "genaibuilds":
            return await self._builds.work(ref.namespace, ref.name)
        if ref.plural == "artifactstores":
            return await self._stores.reconcile(ref.namespace, ref.name)
        if ref.plural == "genaideployments":
            return await self._deployments.reconcile(ref.namespace, ref.name)
        return await self._targets.reconcile(ref.namespace, ref.name)

    def _doubt(self, namespace: str, name: str) -> None:
        """A build has met a fault of its store."""
        if self._stores.doubt(namespace, name):
            self.queue.add(Ref("artifactstores", namespace, name))

    async def _upkeep(self, leading: Callable[[], bool]) -> None:
        while True:
            await asyncio.sleep(_UPKEEP_SECONDS)
            try:
                self.upkeep.count(self.due)
                self._builds.tidy()
                self._stores.tidy()
                if leading():
                    await self.upkeep.clear()
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                log.warning("upkeep failed", extra={"why": str(error)})
            except Exception:
                log.exception("upkeep failed")

    def _waited(self, ref: Ref, seconds: float) -> None:
        """What a replica holds without working on it, another one has long been at."""
        working = time.monotonic() - self._working_since
        QUEUE_SECONDS.labels(kind=ref.plural).observe(min(seconds, working))


def _rest(seconds: float) -> float:
    """A build of a thousand tasks hears of one every moment, and each pass looks at all of them."""
    return min(_RESTS * seconds, _LONGEST_REST) if seconds > _QUICK_PASS else 0.0


def _ref_of(build: BuildView) -> Ref:
    return Ref("genaibuilds", build.namespace, build.name)


def _readiness(value: Mapping[str, Any]) -> object:
    status = value.get("status") or {}
    ready = [c["status"] for c in status.get("conditions") or () if c["type"] == "Ready"]
    return ready, status.get("observedGeneration")
