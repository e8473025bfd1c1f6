"""Keeps everything going: events into the watch cache and the queue, workers at what is due.

Any number of replicas watch; only the one that holds the Lease works.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import aiohttp

from genai_operator.deployments.intake import WorkloadIntake
from genai_operator.jobs.intake import JobIntake, PodIntake, told
from genai_operator.jobs.terminating import TerminatingJobs
from genai_operator.kube.apiserver.api import Api, ApiError
from genai_operator.kube.build import BuildView
from genai_operator.kube.job import JobState, JobView
from genai_operator.kube.watch.kinds import Change, Intake, KindIntake, Ref
from genai_operator.kube.watch.observed import Observed
from genai_operator.kube.watch.relist import Relister
from genai_operator.manager.kinds import kinds_of
from genai_operator.manager.metrics_at_zero import begin_at_zero
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
from genai_operator.threads import Threads
from genai_operator.timing import SYSTEM, Cost, Metered, Timing

__all__ = ["Controller"]

log = logging.getLogger("genai_operator")

_QUESTIONS_OF_STORES = frozenset({"probe", "collect"})
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


class Controller:
    """See the module's docstring."""

    def __init__(self, api: Api, settings: Settings, *, timing: Timing = SYSTEM) -> None:
        self._settings = settings
        self._timing = timing
        self.observed = Observed(timing)
        self.queue: WorkQueue[Ref] = WorkQueue(
            timing=timing, waited=self._waited, group=lambda ref: ref.namespace or None
        )
        self._threads = Threads()
        self._slow: set[asyncio.Task[None]] = set()
        self._leading: Callable[[], bool] = lambda: False
        self._working_since = self._timing.monotonic()
        kinds = kinds_of(api, settings, self.observed, wake=self.queue.add)
        self.kinds = {kind.plural: kind for kind in kinds}
        self._intakes: dict[str, Intake] = {kind.plural: KindIntake(kind) for kind in kinds}
        self._intakes["jobs"] = JobIntake(self.observed, ended=self._count_task)
        self._intakes["pods"] = PodIntake(self.observed)
        self._intakes["deployments"] = WorkloadIntake(self.observed)
        self.upkeep = Upkeep(api, self.observed, wake=self._tell_of_job)
        self._terminating = TerminatingJobs(
            api,
            self.observed,
            take_pod=lambda value: self._wake(self._intakes["pods"].take(value, deleted=False)),
            left=self._tell_of_job,
        )
        caches = {plural: intake.cache for plural, intake in self._intakes.items()}
        begin_at_zero(self.kinds, caches)
        self.relister = Relister(api, caches, self, namespaces=settings.namespaces, timing=timing)

    @property
    def due(self) -> int:
        """Objects that wait for a worker here; those of a replica that does not work wait not."""
        return self.queue.overdue() if self._leading() else 0

    # What the watches deliver

    def take(self, plural: str, kind: str | None, value: Mapping[str, Any]) -> None:
        """Take one event in; `kind` is ADDED, MODIFIED, DELETED or None for a first listing."""
        if kind is not None:
            self.relister.heard(plural)
        self._wake(self._intakes[plural].take(value, deleted=kind == "DELETED"))

    def vanished(self, plural: str, namespace: str, name: str, *, uid: str) -> None:
        """Take in that something is gone, of which no watch told."""
        self._wake(self._intakes[plural].vanished(namespace, name, uid=uid))

    def _wake(self, changes: Iterable[Change[Any]]) -> None:
        """Have everything looked at that a change concerns."""
        for change in changes:
            if change.now is None and change.plural in self.kinds:
                self.queue.forget(Ref(change.plural, *change.place))
            for kind in self.kinds.values():
                for ref in kind.woken(change):
                    self.queue.add(ref)

    def _tell_of_job(self, job: JobView) -> None:
        self._wake([told(job)])

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

    # Work

    async def run(self, leading: Callable[[], bool]) -> None:
        """Work until cancelled, whenever `leading` says so."""
        self._leading = leading
        await self.relister.compare()
        tasks = [asyncio.create_task(self._worker(leading)) for _ in range(self._settings.workers)]
        tasks.append(asyncio.create_task(self._upkeep(leading)))
        tasks.append(asyncio.create_task(self._terminating.run()))
        seconds = self._settings.compare_seconds
        tasks.append(asyncio.create_task(self.relister.run(seconds)))
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in (*tasks, *self._slow):
                task.cancel()

    async def _worker(self, leading: Callable[[], bool]) -> None:
        while True:
            if not leading():
                self._working_since = self._timing.monotonic()
                await self._timing.sleep(0.2)
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
        began, cost, result = self._timing.monotonic(), Cost(), "ok"
        reconciler = self.kinds[ref.plural].reconciler
        try:
            async with asyncio.timeout(_LONGEST_PASS):
                with self._threads.working_on(ref):
                    work = reconciler.reconcile(ref.namespace, ref.name)
                    after = await Metered(work, cost, self._timing)
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
            self.queue.done(ref, rest=_rest(cost.seconds))
            if after is not None:
                self.queue.add(ref, after=after)
        RECONCILE_SECONDS.labels(kind=ref.plural, result=result).observe(
            self._timing.monotonic() - began
        )

    async def _upkeep(self, leading: Callable[[], bool]) -> None:
        while True:
            await self._timing.sleep(_UPKEEP_SECONDS)
            try:
                self.upkeep.count(self.due)
                for kind in self.kinds.values():
                    kind.reconciler.tidy()
                if leading():
                    await self.upkeep.clear()
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                log.warning("upkeep failed", extra={"why": str(error)})
            except Exception:
                log.exception("upkeep failed")

    def _waited(self, ref: Ref, seconds: float) -> None:
        """What a replica holds without working on it, another one has long been at."""
        working = self._timing.monotonic() - self._working_since
        QUEUE_SECONDS.labels(kind=ref.plural).observe(min(seconds, working))


def _rest(seconds: float) -> float:
    """A build of a thousand tasks hears of one every moment, and each pass looks at all of them."""
    return min(_RESTS * seconds, _LONGEST_REST) if seconds > _QUICK_PASS else 0.0


def _ref_of(build: BuildView) -> Ref:
    return Ref("genaibuilds", build.namespace, build.name)
