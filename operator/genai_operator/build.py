"""One pass over a GenAIBuild: load, resolve, look, decide, apply, report.

Level-triggered: whatever happened, a pass starts from the spec, the Jobs and the store, and does
what is missing. Killed anywhere, the next pass goes on: a Job is there or not, a record stands or
not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from genai_core.errors import GenAIError
from genai_core.kinds.base import API_VERSION, REQUESTED_AT
from genai_core.kinds.build import BuildSpec
from genai_core.kinds.reading import read_model
from genai_core.names import Key, TaskId
from genai_core.record import Record
from genai_core.resolved import RESOLVE, ResolvedSource
from genai_core.store.protocol import RecordRef
from genai_core.store.s3_location import S3Location
from genai_operator.api import Api, Json
from genai_operator.apply import Applier
from genai_operator.decide import Verdict, group, judge
from genai_operator.errors import Stalled, Waiting, of_error
from genai_operator.jobs import JobRequest, Owner, StoreAccess, given_memory, scope_of
from genai_operator.metrics import BUILD_SECONDS, BUILDS_ENDED, TASK_RETRIES, TASKS
from genai_operator.observed import Observed, lean
from genai_operator.requests import Setting
from genai_operator.sources import list_source, source_location
from genai_operator.status import (
    Outcome,
    State,
    build_status,
    condition_of,
    ready_of,
    same_status,
)
from genai_operator.stores import OpenStore, Stores
from genai_operator.survey import Question, Survey, survey
from genai_operator.targets import BuildTarget, build_target, toolchain_digest, toolchains
from genai_operator.views import JobState, JobView, PodView, parse_time
from genai_planner.machine import State as TaskState

__all__ = ["BuildPass", "Builds"]

log = logging.getLogger("genai_operator.build")

_RESOLVE_BYTES = 512 << 20
_WATCHED_SECONDS = 60.0
"""A build in progress is looked at that often even if nothing seems to happen."""


@dataclass
class BuildPass:
    """What one pass works on."""

    value: Json
    spec: BuildSpec
    owner: Owner
    namespace: str
    generation: int
    requested: str
    status: Mapping[str, Any]
    after: float | None = None
    source: tuple[str, str, str] | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def fresh(self) -> bool:
        """Nothing was decided yet for this generation and request."""
        return (
            self.status.get("observedGeneration") != self.generation
            or self.status.get("requestedAt", "") != self.requested
        )


class Builds:
    """Works on builds, one at a time each."""

    def __init__(
        self, api: Api, observed: Observed, stores: Stores, *, chain_tasks: int = 1
    ) -> None:
        self._api = api
        self._observed = observed
        self._stores = stores
        self._chain_tasks = chain_tasks
        self._applier = Applier(api, observed)
        self._lost: set[str] = set()

    async def work(self, namespace: str, name: str) -> float | None:
        """One pass; returns after how many seconds another one is wanted anyway."""
        value = self._observed.builds.get(namespace, name)
        if value is None or "deletionTimestamp" in value["metadata"]:
            return None  # its Jobs end with their last claim: the apiserver's garbage collector
        one = _begin(value)
        if isinstance(one, Outcome):
            await self._release(value["metadata"]["uid"], keep=())
            await self._report(value, one)
            return None
        if not one.fresh and not one.spec.run.suspend and await self._rests(one):
            return None
        outcome = await self._outcome(one)
        await self._report(value, replace(outcome, requested_at=one.requested, source=one.source))
        return one.after

    async def _outcome(self, one: BuildPass) -> Outcome:
        try:
            if one.spec.run.suspend:
                await self._release(one.owner.uid, keep=())
                return Outcome(State.SUSPENDED, "Suspended", "spec.run.suspend is set")
            return await self._progress(one)
        except GenAIError as error:
            problem: Exception = of_error(error)
        except (Stalled, Waiting) as error:
            problem = error
        if isinstance(problem, Waiting):
            one.after = problem.after
            return Outcome(State.WAITING, problem.reason, problem.message)
        assert isinstance(problem, Stalled)
        await self._release(one.owner.uid, keep=())
        return Outcome(State.STALLED, problem.reason, problem.message)

    async def _rests(self, one: BuildPass) -> bool:
        """Whether nothing is to be done unasked; shows a toolchain that is not the current one.

        A build that is Ready rests. So does one whose tasks failed when the toolchain, or the
        operator itself, has changed since: with other keys all of it would begin anew.
        """
        ready = condition_of(one.status, "Ready")
        if ready is None:
            return False
        good: bool = ready["status"] == "True"
        if not good and not (ready["status"] == "False" and one.status.get("failures")):
            return False
        try:
            now = toolchain_digest(self._targets(one))
        except (Stalled, Waiting, GenAIError):
            return good
        outdated = one.status.get("toolchain", now) != now
        if not good and not outdated:
            return False
        if outdated != (condition_of(one.status, "ToolchainOutdated") is not None):
            outcome = Outcome(
                State.READY if good else State.STALLED,
                ready["reason"],
                ready["message"],
                outdated="operations or libraries have other versions by now" if outdated else "",
                notes=one.status.get("plan", ()),
                warnings=one.status.get("warnings", ()),
                requested_at=one.requested,
            )
            await self._report(one.value, outcome)
        return True

    # The steps

    async def _progress(self, one: BuildPass) -> Outcome:
        targets = self._targets(one)
        chains = toolchains(targets)
        opened = await self._store(one)
        folder = source_location(one.spec, opened.where)
        access = opened.access
        if one.spec.model.secret_ref is not None:
            access = replace(access, source_secret=one.spec.model.secret_ref.name)
        if one.fresh:
            await self._forget_failures(one)
        scope = scope_of(access.address, one.spec.run)
        found = await self._resolved(one, opened, folder, access=access, targets=targets)
        if isinstance(found, Outcome):
            return found
        question = Question(
            setting=Setting(
                name=one.owner.name,
                namespace=one.namespace,
                spec=one.spec,
                source=found,
                folder=folder,
                targets=targets,
                toolchains=chains,
                chain_tasks=self._chain_tasks,
            ),
            owner=one.owner.uid,
            jobs=self._observed.jobs_of(one.namespace, scope),
            pods=self._observed.pods_of(one.namespace),
            now=datetime.now(UTC),
        )
        seen = await asyncio.to_thread(survey, question, opened.lookups, lost=self._lost)
        await self._apply(one, seen, access)
        return self._judged(one, seen, opened.where, targets)

    def _targets(self, one: BuildPass) -> list[BuildTarget]:
        found = []
        for name in one.spec.targets:
            value = self._observed.targets.get("", name)
            if value is None:
                raise Waiting("TargetNotFound", f"there is no GenAITarget {name}", after=60.0)
            try:
                found.append(build_target(name, value))
            except Stalled as error:  # mended in the target, not in the build
                raise Waiting(
                    "TargetNotReady", f"{error.message} ({error.reason})", after=60.0
                ) from error
        return found

    async def _store(self, one: BuildPass) -> OpenStore:
        name = one.spec.store.name
        value = self._observed.stores.get(one.namespace, name)
        if value is None:
            raise Waiting("StoreNotReady", f"there is no ArtifactStore {name}", after=60.0)
        try:
            opened = await self._stores.open(value)
        except Stalled as error:
            raise Waiting("StoreNotReady", f"ArtifactStore {name}: {error.message}") from error
        except Waiting as error:
            raise Waiting("StoreNotReady", f"ArtifactStore {name}: {error.message}") from error
        status = value.get("status") or {}
        ready, reason = ready_of(status)
        if ready != "True" or status.get("observedGeneration") != value["metadata"]["generation"]:
            why = next(
                (c["message"] for c in status.get("conditions") or () if c["type"] == "Ready"),
                "it was not tried yet",
            )
            raise Waiting(
                "StoreNotReady", f"ArtifactStore {name} is not ready ({reason}): {why}", after=30.0
            )
        return opened

    async def _resolved(
        self,
        one: BuildPass,
        opened: OpenStore,
        folder: S3Location,
        *,
        access: StoreAccess,
        targets: list[BuildTarget],
    ) -> ResolvedSource | Outcome:
        """What the source consists of, once for each generation; an outcome while it is asked."""
        await self._stores.check_endpoint(folder.endpoint)
        ref = self._known_source(one, folder)
        record = await asyncio.to_thread(_look, opened, ref) if ref else None
        if ref is None or record is None:
            keys = opened.credentials
            if one.spec.model.secret_ref is not None:
                keys = await self._stores.credentials(one.namespace, one.spec.model.secret_ref.name)
            key, asked = await asyncio.to_thread(
                list_source, one.spec, folder, keys, ca=opened.where.ca
            )
            ref = RecordRef(RESOLVE, key)
            scope = scope_of(access.address, one.spec.run)
            attempts = group(self._observed.jobs_of(one.namespace, scope)).get(key, [])
            record = await asyncio.to_thread(_look, opened, ref, anew=bool(attempts))
            if record is None:
                request = JobRequest(
                    namespace=one.namespace,
                    key=key,
                    operation=RESOLVE,
                    task=RESOLVE,
                    document=asked,
                    image=targets[0].image,
                    memory_bytes=given_memory(one.spec.run) or _RESOLVE_BYTES,
                    node_selector=targets[0].node_selector,
                    reads_source=True,
                )
                return await self._resolving(one, request, attempts, access)
        found = ResolvedSource.model_validate(record.facts)
        pinned = one.spec.model.digest
        if pinned is not None and pinned != found.digest:
            raise Stalled(
                "BadModel",
                f"the content of {folder} is {found.digest}, not the {pinned} that "
                "spec.model.digest pins",
            )
        one.source = (str(folder), found.digest, ref.key)
        return found

    def _known_source(self, one: BuildPass, folder: S3Location) -> RecordRef | None:
        if one.fresh:
            return None
        for entry in one.status.get("sources") or ():
            if entry["uri"] == str(folder) and "record" in entry:
                one.source = (entry["uri"], entry["digest"], entry["record"][7:])
                return RecordRef(RESOLVE, Key(entry["record"].removeprefix("sha256:")))
        return None

    async def _resolving(
        self, one: BuildPass, request: JobRequest, attempts: list[JobView], access: StoreAccess
    ) -> Outcome:
        verdict = Verdict()
        if attempts:
            pods = self._observed.pods_of(one.namespace)
            verdict = judge(attempts, pods, retries=one.spec.run.retries, now=datetime.now(UTC))
        if verdict.error is not None:
            problem = of_error(verdict.error)
            reason = problem.reason if isinstance(problem, Stalled) else verdict.error.code
            raise Stalled(reason, str(verdict.error))
        if not verdict.running:
            request = replace(
                request,
                attempt=verdict.attempt,
                memory_bytes=max(request.memory_bytes, verdict.memory_bytes),
            )
            await self._applier.create(request, one.owner, run=one.spec.run, access=access)
            if attempts:
                _count_retry(request, verdict)
        elif attempts[-1].state is JobState.ACTIVE:
            await self._applier.claim(attempts[-1], one.owner)
        one.after = verdict.pause or _WATCHED_SECONDS
        held_up = _held_up(attempts, self._observed.pods_of(one.namespace))
        message = f"resolving {one.spec.model.source}{held_up}"
        return Outcome(State.BUILDING, "Progressing", message)

    async def _apply(self, one: BuildPass, seen: Survey, access: StoreAccess) -> None:
        # First of all, so that none of what is made below can be taken for something unneeded.
        await self._release(one.owner.uid, keep=seen.needed)
        for request in seen.start:
            await self._applier.create(request, one.owner, run=one.spec.run, access=access)
            verdict = seen.retried.get(TaskId(request.task))
            if verdict is not None:
                _count_retry(request, verdict)
        for job in seen.active:
            await self._applier.claim(job, one.owner)

    def _judged(
        self,
        one: BuildPass,
        seen: Survey,
        where: S3Location,
        targets: list[BuildTarget],
    ) -> Outcome:
        pods = self._observed.pods_of(one.namespace)
        outcome = Outcome(
            State.BUILDING,
            "Progressing",
            _doing(seen) + _held_up(seen.active, pods),
            progress=seen.advice.progress,
            ran=seen.made,
            failed=seen.failed,
            containers=seen.containers,
            targets=one.spec.targets,
            store=where,
            notes=seen.plan.notes,
            warnings=seen.plan.warnings,
            toolchain=toolchain_digest(targets),
        )
        if not seen.advice.ended:
            one.after = min(seen.after or _WATCHED_SECONDS, _WATCHED_SECONDS)
            return outcome
        if seen.failed:
            task, error, _ = seen.failed[0]
            message = f"{task}: {error}"
            return replace(outcome, state=State.STALLED, reason=error.code, message=message)
        built = ", ".join(
            f"{name} {str(record.facts.get('revision', ''))[:19]}"
            for name, record in seen.containers.items()
        )
        return replace(outcome, state=State.READY, reason="Built", message=f"built {built}")

    # What is written

    async def _forget_failures(self, one: BuildPass) -> None:
        """A new generation, or the user's request, tries again what failed before."""
        for job in self._observed.claimed_by(one.owner.uid):
            if job.state is JobState.FAILED and job.owners == {one.owner.uid}:
                await self._applier.delete(job)

    async def _release(self, uid: str, *, keep: Iterable[str]) -> None:
        """Drop claims on Jobs that are not needed; a Job ends with its last claim."""
        needed = set(keep)
        for job in self._observed.claimed_by(uid):
            unwanted = job.uid not in needed and job.operation != RESOLVE
            if job.state is not JobState.SUCCEEDED and (unwanted or not needed):
                await self._applier.release(job, uid)

    async def _report(self, value: Json, outcome: Outcome) -> None:
        """Write the status if it changed, and an event of what that means to people."""
        meta = value["metadata"]
        previous = value.get("status") or {}
        generation = meta.get("generation", 0)
        status = build_status(outcome, previous, generation=generation, now=datetime.now(UTC))
        if same_status(status, previous):
            return
        written = await self._api.apply_status(
            "genaibuilds",
            {
                "apiVersion": API_VERSION,
                "kind": "GenAIBuild",
                "metadata": {"name": meta["name"], "namespace": meta["namespace"]},
                "status": status,
            },
            namespace=meta["namespace"],
        )
        self._observed.builds.put(written, lean(written))
        if _stands(previous) != _stands(status):
            _count_end(meta, previous, status)
            reason = ready_of(status)[1]
            log.info(
                "build changed",
                extra={"build": f"{meta['namespace']}/{meta['name']}", "reason": reason},
            )
            await self._applier.event(
                value,
                "GenAIBuild",
                reason=reason,
                message=outcome.message,
                warning=outcome.state in {State.STALLED, State.WAITING},
            )
        newer = condition_of(status, "ToolchainOutdated")
        if newer is not None and condition_of(previous, "ToolchainOutdated") is None:
            await self._applier.event(
                value, "GenAIBuild", reason=newer["reason"], message=newer["message"]
            )


def _begin(value: Json) -> BuildPass | Outcome:
    meta = value["metadata"]
    try:
        spec = read_model(BuildSpec, value["spec"], where="spec")
    except GenAIError as error:
        return Outcome(State.STALLED, error.code, str(error))
    return BuildPass(
        value=value,
        spec=spec,
        owner=Owner(meta["name"], meta["uid"]),
        namespace=meta["namespace"],
        generation=meta.get("generation", 0),
        requested=(meta.get("annotations") or {}).get(REQUESTED_AT, "")[:256],
        status=value.get("status") or {},
    )


def _stands(status: Mapping[str, Any]) -> tuple[object, ...]:
    """What an event tells of: Ready, its reason, and of which generation and request."""
    return (*ready_of(status), status.get("observedGeneration"), status.get("requestedAt", ""))


def _count_end(
    meta: Mapping[str, Any], previous: Mapping[str, Any], status: Mapping[str, Any]
) -> None:
    """A generation came to its end, whatever that is."""
    ready, reason = ready_of(status)
    if ready == "Unknown":
        return
    BUILDS_ENDED.labels(reason=reason).inc()
    if ready != "True":
        return
    for stage in status.get("stages", ()):
        TASKS.labels(operation=stage["operation"], result="cached").inc(stage["cached"])
    before = condition_of(previous, "Ready")
    # A spec that changed and was built already: no pass found it unfinished.
    if before is None or before["status"] != "True":
        since = before["lastTransitionTime"] if before else meta["creationTimestamp"]
        BUILD_SECONDS.observe((datetime.now(UTC) - parse_time(since)).total_seconds())


def _count_retry(request: JobRequest, verdict: Verdict) -> None:
    log.info("task tried again", extra={"task": request.task, "why": verdict.retried})
    TASK_RETRIES.labels(operation=request.operation, reason=verdict.retried_for).inc()


def _look(opened: OpenStore, ref: RecordRef, *, anew: bool = False) -> Record | None:
    answer = opened.lookups.look([ref], anew=[ref.key] if anew else [])[ref]
    return answer if isinstance(answer, Record) else None


def _doing(seen: Survey) -> str:
    running = [t for t, s in seen.advice.states.items() if s is TaskState.RUNNING]
    shown = ", ".join(running[:3]) + (f" and {len(running) - 3} more" if len(running) > 3 else "")
    return f"{seen.advice.progress}" + (f": {shown}" if shown else "")


def _held_up(jobs: Iterable[JobView], pods: Mapping[str, list[PodView]]) -> str:
    """Why a task does not begin though it has a Job: the first such reason."""
    for job in jobs:
        for pod in pods.get(job.name, ()):
            if job.state is JobState.ACTIVE and pod.waiting:
                return f"; {job.task} waits: {pod.waiting}"
    return ""
