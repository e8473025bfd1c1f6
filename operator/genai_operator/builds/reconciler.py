"""One pass over a GenAIBuild: load, resolve, look, decide, apply, report.

Level-triggered: whatever happened, a pass starts from the spec, the Jobs and the store, and does
what is missing. Killed anywhere, the next pass goes on: a Job is there or not, a record stands or
not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import aiohttp

from genai_core.errors import GenAIError, StoreUnavailable, StoreUnreadable
from genai_core.helper_jobs import LookFile
from genai_core.names import MODEL, Key, SourceName, TaskId
from genai_core.sources.resolved import RESOLVE, ResolvedSource
from genai_core.store.protocol import RecordRef
from genai_core.store.s3.location import S3Location
from genai_operator.builds.backoff import Patience
from genai_operator.builds.build_pass import (
    JOINED_SECONDS,
    STARTED_SECONDS,
    WATCHED_SECONDS,
    BuildPass,
)
from genai_operator.builds.helper_jobs import BuildHelperJobs
from genai_operator.builds.leases import Leases
from genai_operator.builds.plans import Plans
from genai_operator.builds.references import Loader, SourceAccess, accesses_of, begin
from genai_operator.builds.reporter import Reporter
from genai_operator.builds.requests import Looks, Setting
from genai_operator.builds.resolver import Resolver
from genai_operator.builds.starter import Starter
from genai_operator.builds.status import Outcome
from genai_operator.builds.survey import PLANS_READ, Question, Survey, survey
from genai_operator.errors import Stalled, Waiting, of_error
from genai_operator.jobs.access import StoreAccess
from genai_operator.jobs.applier import Applier
from genai_operator.jobs.helper_jobs import HelperJobs, question_key
from genai_operator.jobs.holds import Standing
from genai_operator.jobs.manifest import JobRequest, scope_of
from genai_operator.jobs.verdicts import Verdict
from genai_operator.kube.build import BuildView
from genai_operator.kube.cache import asked_of
from genai_operator.kube.client import Api, ApiError
from genai_operator.kube.conditions import condition_of, ready_of
from genai_operator.kube.job import JobState, JobView
from genai_operator.kube.observed import Observed
from genai_operator.kube.phases import Phase
from genai_operator.kube.projection import PARTIAL
from genai_operator.kube.values import Json
from genai_operator.stores.lookups import Unanswered
from genai_operator.stores.open_stores import OpenStore, Stores
from genai_operator.targets.build_targets import BuildTarget, toolchain_digest, toolchains
from genai_operator.threads import in_thread
from genai_planner.machine import State as TaskState

__all__ = ["BuildReconciler"]

log = logging.getLogger("genai_operator.builds.reconciler")

_MOST_QUESTIONS = 8
"""How often one pass goes on with what a Job has told."""

_CREATED_AT_ONCE = 8
_DOUBTS = frozenset({"StoreNotReady", "SourceUnreadable", "SourceNotReady", "NoAnswer"})
"""Whoever meets one of these has the store tried at once: its status may be minutes old."""
_REFUSALS = frozenset({400, 403, 405, 422})
"""The apiserver will say the same again, until somebody changes something."""


class BuildReconciler:
    """Works on builds, one at a time each."""

    def __init__(
        self,
        api: Api,
        observed: Observed,
        stores: Stores,
        *,
        chain_tasks: int = 1,
        doubt: Callable[[str, str], None] = lambda _namespace, _store: None,
    ) -> None:
        self._api = api
        self._doubt = doubt
        self._observed = observed
        self._stores = stores
        self._chain_tasks = chain_tasks
        self._applier = Applier(api, observed)
        self._reporter = Reporter(api, observed, self._applier)
        self._loader = Loader(observed, stores)
        self._starter = Starter(self._applier)
        self._helpers = HelperJobs(api, observed, self._applier)
        asked = BuildHelperJobs(self._helpers, observed, self._applier, self._starter)
        self._asked = asked
        self._leases = Leases(stores.cluster_name, asked)
        self._resolver = Resolver(
            observed,
            stores,
            applier=self._applier,
            helpers=self._helpers,
            starter=self._starter,
        )
        self._plans = Plans()
        self._lost: set[str] = set()
        self._failing: set[str] = set()
        self._patience = Patience()

    async def reconcile(self, namespace: str, name: str) -> float | None:
        """One pass; returns after how many seconds another one is wanted anyway."""
        seen = self._observed.builds.get(namespace, name)
        value = await self._whole(seen) if seen is not None else None
        if value is None or "deletionTimestamp" in value["metadata"]:
            return None  # its Jobs end with their last claim: the apiserver's garbage collector
        try:
            after = await self._pass(value)
        except (aiohttp.ClientError, TimeoutError):
            raise
        except Exception as error:
            if not isinstance(error, ApiError) or _will_be_said_again(error):
                await self._show(value, error)
            raise
        self._failing.discard(value["metadata"]["uid"])
        now = self._observed.builds.get(namespace, name)
        # The answer to our own write may be the first to tell of an edit: its event is no news.
        return 0.0 if now is not None and now.asked != asked_of(value) else after

    async def _whole(self, seen: BuildView) -> Json | None:
        """The build with its spec and status, which the mirror does not keep of a large one."""
        value = seen.value
        if PARTIAL not in value:
            return value
        found, _ = await self._api.list(
            "genaibuilds", namespace=seen.namespace, name=seen.name, fresh=True
        )
        return found[0] if found else None

    async def _show(self, value: Json, error: Exception) -> None:
        """Say that a pass failed for what time alone does not heal; it is tried again all the same.

        Else only the operator's log would say why nothing goes on. Not the first time, and not of
        a build at rest, which is good all the same.
        """
        uid = value["metadata"]["uid"]
        again = uid in self._failing
        self._failing.add(uid)
        one = begin(value)
        rests = isinstance(one, BuildPass) and not one.fresh and ready_of(one.status)[0] == "True"
        if rests or not again:
            return
        why = f"{type(error).__name__}: {error}"
        outcome = Outcome(
            Phase.WAITING,
            "OperatorError",
            f"the operator failed at it and tries again ({why}); its log says more",
        )
        if isinstance(one, BuildPass):
            outcome = replace(outcome, requested_at=one.requested, since=one.since)
        with suppress(ApiError, aiohttp.ClientError, TimeoutError):
            await self._reporter.report(value, outcome)

    async def _pass(self, value: Json) -> float | None:
        one = begin(value)
        if isinstance(one, Outcome):
            await self._release_all(value["metadata"]["uid"])
            await self._reporter.report(value, one)
            return None
        if not one.fresh and not one.spec.run.suspend and await self._rests(one):
            return await self._renewed(one)
        outcome = await self._outcome(one)
        known = replace(outcome, requested_at=one.requested, sources=one.sources, since=one.since)
        await self._reporter.report(value, known)
        if outcome.state in {Phase.SUSPENDED, Phase.STALLED}:
            rest = await self._renewed(one)  # what it has, and its model, stay until it goes on
            of_source = any(task == RESOLVE for task, _, _ in outcome.failed)
            return min(rest, one.after or rest) if of_source else rest
        if one.started:
            one.look_after(STARTED_SECONDS)
        return JOINED_SECONDS if one.joined else one.after

    def tidy(self) -> None:
        """Forget what is known of builds, stores and Jobs that are gone."""
        builds = {build.uid for build in self._observed.builds}
        jobs = {job.uid for job in self._observed.jobs}
        self._leases.keep(builds)
        self._starter.keep(builds)
        self._failing.intersection_update(builds)
        self._patience.keep(builds)
        self._plans.keep(builds)
        self._helpers.keep(jobs)
        self._lost.intersection_update(jobs)
        self._stores.keep(self._observed.stores.places())

    async def _outcome(self, one: BuildPass) -> Outcome:
        try:
            if one.spec.run.suspend:
                await self._release_all(one.owner.uid)
                return Outcome(Phase.SUSPENDED, "Suspended", "spec.run.suspend is set")
            outcome = await self._progress(one)
            self._patience.forget(one.owner.uid)
            return outcome
        except GenAIError as error:
            problem: Exception = of_error(error)
        except (Stalled, Waiting) as error:
            problem = error
        if isinstance(problem, Waiting):
            if problem.reason in _DOUBTS:
                self._doubt(one.namespace, one.spec.store.name)
            one.after = self._patience.after(one.owner.uid, problem)
            return Outcome(Phase.WAITING, problem.reason, problem.message)
        assert isinstance(problem, Stalled)
        if problem.failure is not None and problem.failure[0] == RESOLVE:
            # The model may have been looked at while it was being uploaded: nothing tells of that.
            one.after = self._patience.after(
                one.owner.uid, Waiting(problem.reason, "", after=30.0, most=600.0)
            )
        # What failed stays: without it the next pass would begin anew.
        claimed = self._observed.claimed_by(one.owner.uid)
        failed = [job.uid for job in claimed if job.state is JobState.FAILED]
        await self._release(claimed, one.owner.uid, keep=failed)
        failures = (problem.failure,) if problem.failure is not None else ()
        return Outcome(
            Phase.STALLED, problem.reason, problem.message, failed=failures, store=one.store
        )

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
            now = toolchain_digest(self._loader.targets(one))
        except (Stalled, Waiting, GenAIError):
            return good
        outdated = one.status.get("toolchain", now) != now
        if not good and not outdated:
            return False
        if outdated != (condition_of(one.status, "ToolchainOutdated") is not None):
            outcome = Outcome(
                Phase.READY if good else Phase.STALLED,
                ready["reason"],
                ready["message"],
                outdated="operations or libraries have other versions by now" if outdated else "",
                notes=one.status.get("plan", ()),
                warnings=one.status.get("warnings", ()),
                requested_at=one.requested,
            )
            await self._reporter.report(one.value, outcome)
        return True

    # The steps

    async def _progress(self, one: BuildPass) -> Outcome:
        if one.fresh:  # whatever it has to wait for then: it is not fresh any more after that
            await self._forget_failures(one)
        for job, pod in self._observed.unnoted(one.owner.uid):
            await self._applier.note_ending(job, pod)
        self._stores.policy.check_run(one.spec.run)
        targets = self._loader.targets(one)
        opened = await self._loader.store(one)
        one.store = opened.where
        accesses = accesses_of(one, opened)
        access = accesses[MODEL].access
        await self._leases.claim_upload(one, opened)
        for _ in range(_MOST_QUESTIONS):
            try:
                found = await self._resolver.resolved(
                    one, opened, accesses.values(), target=targets[0]
                )
                if isinstance(found, Outcome):
                    return found
                claimed = self._observed.claimed_by(one.owner.uid)
                question = self._question(one, found, accesses, targets=targets)
                await self._listen(opened, question)
                seen = await in_thread(
                    survey,
                    question,
                    opened.lookups,
                    lost=self._lost,
                    claim=partial(self._leases.claim, one, opened),
                    plans=self._plans,
                )
                break
            except Unanswered as asked:
                waits = await self._look(one, opened, asked, access=access, target=targets[0])
                if waits is not None:
                    return waits
        else:
            raise Waiting("Progressing", "its records are still being looked up", after=5.0)
        if any(isinstance(e, (StoreUnavailable, StoreUnreadable)) for e in seen.waits_for):
            self._doubt(one.namespace, one.spec.store.name)
        await self._apply(one, seen, claimed, accesses, known={job.uid for job in question.jobs})
        queued = bool(seen.start and one.spec.run.queue_name)
        stands = await self._helpers.standings.of(one.namespace, seen.active, queued=queued)
        outcome = self._judged(one, seen, opened.where, targets, stands)
        if outcome.state is Phase.READY and one.sources:
            resolved = {RecordRef(RESOLVE, Key(entry.record)) for entry in one.sources.values()}
            refs = seen.refs | resolved
            await self._leases.settle(
                one, opened, refs, containers=seen.containers, access=access, target=targets[0]
            )
        return outcome

    def _question(
        self,
        one: BuildPass,
        found: Mapping[SourceName, ResolvedSource],
        accesses: Mapping[SourceName, SourceAccess],
        *,
        targets: list[BuildTarget],
    ) -> Question:
        access = accesses[MODEL].access
        setting = Setting(
            name=one.owner.name,
            namespace=one.namespace,
            spec=one.spec,
            sources=found,
            places={name: access.place for name, access in accesses.items()},
            targets=targets,
            toolchains=toolchains(targets),
            # What a chain made is told when its Job ends; until then it would be asked for.
            chain_tasks=self._chain_tasks if access.secret else 1,
        )
        return Question(
            setting=setting,
            owner=one.owner.uid,
            since=one.since,
            jobs=self._observed.jobs_of(one.namespace, scope_of(access.address, one.spec.run)),
            pods=self._observed.pods_of(one.namespace),
            now=datetime.now(UTC),
            looks=Looks(setting, {name: a.access for name, a in accesses.items()}, one.owner.uid),
        )

    async def _listen(self, opened: OpenStore, question: Question) -> None:
        """Take in what Jobs told of the records that they left."""
        if opened.told is None:
            return
        for job in self._helpers.unheard(question.jobs):
            answer = await self._helpers.hear(job)
            if answer is not None:
                opened.told.take(answer)
            else:
                opened.told.doubt(RecordRef(job.operation, job.key))

    async def _look(
        self,
        one: BuildPass,
        opened: OpenStore,
        asked: Unanswered,
        *,
        access: StoreAccess,
        target: BuildTarget,
    ) -> Outcome | None:
        """Have records looked up by a Job; None when it has told."""
        assert opened.told is not None
        if opened.told.assume_missing(asked):
            return None
        refs = tuple(sorted(map(str, asked.refs)))
        document = LookFile(
            refs=refs,
            known=tuple(sorted(asked.known)),
            read=PLANS_READ,
            lease=self._leases.document(one, opened),
        )
        key = question_key("look", one.owner.uid, *refs)
        answer = await self._asked.ask(one, document, key, access=access, target=target)
        if isinstance(answer, Standing):
            doing = f"looking {len(refs)} records up in the store"
            return Outcome(answer.state, answer.reason, answer.message(doing))
        opened.told.take(answer, asked.known)
        return None

    async def _renewed(self, one: BuildPass) -> float:
        """Look after a build at rest: only its lease has to be kept alive."""
        wait = self._leases.rest(one.owner.uid)
        if wait > 0:
            return wait
        try:
            targets, opened = self._loader.targets(one), await self._loader.store(one)
            access = accesses_of(one, opened)[MODEL].access
            await self._leases.at_rest(one, opened, access=access, target=targets[0])
        except (Stalled, Waiting, GenAIError) as error:
            log.warning("no lease", extra={"build": one.owner.name, "why": str(error)})
        return self._leases.rest(one.owner.uid)

    async def _apply(
        self,
        one: BuildPass,
        seen: Survey,
        claimed: list[JobView],
        accesses: Mapping[SourceName, SourceAccess],
        *,
        known: Collection[str],
    ) -> None:
        # Of those that the survey knew: one that has come to light since was not asked about.
        await self._release(claimed, one.owner.uid, keep=seen.needed)
        free = asyncio.Semaphore(_CREATED_AT_ONCE)

        async def create(request: JobRequest) -> None:
            verdict = seen.retried.get(TaskId(request.task), Verdict())
            async with free:
                access = accesses[request.source].access
                jobs = self._observed.jobs_of(one.namespace, scope_of(access.address, one.spec.run))
                newer = [job for job in jobs if job.uid not in known]
                await self._starter.start(one, request, verdict, access=access, newer=newer)

        renewed = {found.job.uid for found in seen.renewals}
        for found in seen.renewals:
            await self._applier.renew(found, one.owner)
        problems = await asyncio.gather(*map(create, seen.start), return_exceptions=True)
        for job in seen.active:
            if not job.deleting and job.uid not in renewed:
                one.joined |= await self._applier.claim(job, one.owner)
        for problem in problems:
            if problem is not None:
                raise problem

    def _judged(
        self,
        one: BuildPass,
        seen: Survey,
        where: S3Location,
        targets: list[BuildTarget],
        stands: Standing,
    ) -> Outcome:
        outcome = Outcome(
            stands.state,
            stands.reason,
            stands.message(_doing(seen)),
            progress=seen.advice.progress,
            ran=seen.made,
            failed=seen.failed,
            containers=seen.containers,
            fidelity=seen.fidelity,
            targets=one.spec.targets,
            store=where,
            notes=seen.plan.notes,
            warnings=seen.warnings,
            toolchain=toolchain_digest(targets),
        )
        if not seen.advice.ended:
            one.look_after(seen.after or WATCHED_SECONDS)
            one.look_after(stands.after)
            return outcome
        if seen.failed:
            task, error, _ = seen.failed[0]
            said = str(error)
            message = said if said.startswith(f"{task}: ") else f"{task}: {said}"
            return replace(outcome, state=Phase.STALLED, reason=error.code, message=message)
        built = ", ".join(
            f"{name} {str(record.facts.get('revision', ''))[:19]}"
            for name, record in seen.containers.items()
        )
        return replace(outcome, state=Phase.READY, reason="Built", message=f"built {built}")

    async def _forget_failures(self, one: BuildPass) -> None:
        """A new generation, or the user's request, tries again what failed before.

        What other builds claim too stays theirs, and is no failure of this one any more.
        """
        for job in self._observed.claimed_by(one.owner.uid):
            if job.state is JobState.FAILED:
                await self._applier.release(job, one.owner.uid)

    async def _release_all(self, uid: str) -> None:
        await self._release(self._observed.claimed_by(uid), uid, keep=())

    async def _release(self, claimed: list[JobView], uid: str, *, keep: Iterable[str]) -> None:
        """Drop claims on Jobs that are not needed; a Job ends with its last claim."""
        needed = set(keep)
        for job in claimed:
            # One that resolves is at what an earlier generation asked: its answer is known by now.
            ours = job.operation == RESOLVE and job.state is not JobState.ACTIVE
            unwanted = job.uid not in needed and not ours
            if job.state is not JobState.SUCCEEDED and (unwanted or not needed):
                await self._applier.release(job, uid)


def _will_be_said_again(error: ApiError) -> bool:
    return error.code in _REFUSALS or (error.code >= 500 and "webhook" in error.message)


def _doing(seen: Survey) -> str:
    running = [t for t, s in seen.advice.states.items() if s is TaskState.RUNNING]
    shown = ", ".join(running[:3]) + (f" and {len(running) - 3} more" if len(running) > 3 else "")
    return f"{seen.advice.progress}" + (f": {shown}" if shown else "")
