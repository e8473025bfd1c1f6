"""One pass over a GenAIBuild, from the object as it stands to its status.

Level-triggered: whatever happened, a pass starts from the spec, the Jobs and the store, and does
what is missing. Killed anywhere, the next pass goes on: a Job is there or not, a record stands or
not. Its steps: `build_steps`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import aiohttp

from genai_core.errors import SourceChanging, SourceNotFound
from genai_core.reasons import Reason
from genai_core.sources.resolved import RESOLVE
from genai_operator.backoff import Backoff
from genai_operator.builds.build_pass import JOINED_SECONDS, STARTED_SECONDS, BuildPass
from genai_operator.builds.build_steps import BuildContext, BuildSteps
from genai_operator.builds.claims import Claims
from genai_operator.builds.helper_jobs import BuildHelperJobs
from genai_operator.builds.job_changes import JobWriter
from genai_operator.builds.leases import BuildLeases
from genai_operator.builds.references import Loader, begin
from genai_operator.builds.reporter import Reporter
from genai_operator.builds.resolver import Resolver
from genai_operator.builds.rest import Rest
from genai_operator.builds.starter import Starter
from genai_operator.builds.status import Outcome
from genai_operator.errors import Failure
from genai_operator.jobs.applier import Applier
from genai_operator.jobs.helper_jobs import HelperJobs
from genai_operator.kube.apiserver.api import Api, ApiError
from genai_operator.kube.apiserver.projection import PARTIAL
from genai_operator.kube.build import BuildView
from genai_operator.kube.status.conditions import condition_of, ready_of
from genai_operator.kube.status.status_phase import Phase
from genai_operator.kube.values import Json, asked_of
from genai_operator.kube.watch.observed import Observed
from genai_operator.steps import Result, Stall, Wait, run_steps
from genai_operator.stores.open_stores import Stores

__all__ = ["BuildReconciler"]

_ABSENT = frozenset({SourceNotFound.code, SourceChanging.code})
_DOUBTS = frozenset(
    {Reason.STORE_NOT_READY, Reason.SOURCE_UNREADABLE, Reason.SOURCE_NOT_READY, Reason.NO_ANSWER}
)
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
        self._applier = Applier(api, observed)
        self._reporter = Reporter(api, observed)
        self._starter = Starter(self._applier, timing=observed.timing)
        self._helpers = HelperJobs(api, observed, self._applier)
        writer = JobWriter(observed, self._applier, self._starter)
        asked = BuildHelperJobs(self._helpers, observed, writer)
        loader = Loader(observed, stores)
        self._leases = BuildLeases(stores.cluster_name, asked, timing=observed.timing)
        self._resolver = Resolver(observed, stores, helpers=self._helpers, writer=writer)
        self._claims = Claims(observed, self._applier)
        self._rest = Rest(loader, self._leases, self._reporter)
        self._steps = BuildSteps(
            observed,
            stores.policy,
            loader=loader,
            resolver=self._resolver,
            helpers=asked,
            leases=self._leases,
            claims=self._claims,
            writer=writer,
            doubt=doubt,
            chain_tasks=chain_tasks,
        )
        self._failing: set[str] = set()
        self._backoff = Backoff()

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
        """The build with spec and status, which the watch cache does not keep of a large one."""
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
        build = begin(value, self._observed.timing.now())
        rests = (
            isinstance(build, BuildPass) and not build.fresh and ready_of(build.status)[0] == "True"
        )
        if rests or not again:
            return
        why = f"{type(error).__name__}: {error}"
        outcome = Outcome(
            Phase.WAITING,
            Reason.OPERATOR_ERROR,
            f"the operator failed at it and tries again ({why}); its log says more",
        )
        if isinstance(build, BuildPass):
            outcome = replace(outcome, requested_at=build.requested, since=build.since)
        with suppress(ApiError, aiohttp.ClientError, TimeoutError):
            await self._reporter.report(value, outcome)

    async def _pass(self, value: Json) -> float | None:
        build = begin(value, self._observed.timing.now())
        if isinstance(build, Outcome):
            await self._claims.release_all(value["metadata"]["uid"])
            await self._reporter.report(value, build)
            return None
        if await self._rest.holds(build):
            return await self._rest.renewed(build)
        outcome = await self._outcome(build)
        known = replace(
            outcome, requested_at=build.requested, sources=build.sources, since=build.since
        )
        await self._reporter.report(build.value, known)
        if outcome.state in {Phase.SUSPENDED, Phase.STALLED}:
            rest = await self._rest.renewed(build)  # what it has stays until it goes on
            of_source = any(task == RESOLVE for task, _, _ in outcome.failed)
            return min(rest, build.after or rest) if of_source else rest
        if build.started:
            build.look_after(STARTED_SECONDS)
        return JOINED_SECONDS if build.joined else build.after

    async def _outcome(self, build: BuildPass) -> Outcome:
        """Run the steps; what they come to, for the status."""
        if build.spec.run.suspend:
            await self._claims.release_all(build.owner.uid)
            return Outcome(Phase.SUSPENDED, Reason.SUSPENDED, "spec.run.suspend is set")
        context = BuildContext(build)
        result = await run_steps(context, self._steps.all)
        if isinstance(result, Wait) and result.after is not None:
            if result.reason in _DOUBTS:
                self._doubt(build.namespace, build.spec.store.name)
            build.after = self._backoff.after(build.owner.uid, result)
        elif isinstance(result, Stall) and context.known is None:
            await self._claims.keep_failures(build)
            if result.failure is not None and result.failure[0] == RESOLVE:
                # The model may have been looked at while it was being uploaded: nothing tells of
                # that.
                again = Wait(result.reason, "", after=30.0, most=600.0)
                build.after = self._backoff.after(build.owner.uid, again)
        else:
            self._backoff.forget(build.owner.uid)
        return outcome_of(still_missing(result, context), context)

    def tidy(self) -> None:
        """Forget what is known of builds, stores and Jobs that are gone."""
        builds = {build.uid for build in self._observed.builds}
        jobs = {job.uid for job in self._observed.jobs}
        self._leases.keep(builds)
        self._rest.keep(builds)
        self._starter.keep(builds)
        self._failing.intersection_update(builds)
        self._backoff.keep(builds)
        self._steps.keep(builds=builds, jobs=jobs)
        self._helpers.keep(jobs)
        self._stores.keep(self._observed.stores.places())


def still_missing(result: Result, context: BuildContext) -> Result:
    """What is said while a source that was not there, or not whole, is looked at again: that. Pure.

    Else the build would go to and fro between SourceNotFound and Progressing with each look.
    """
    build = context.build
    ready = condition_of(build.status, "Ready")
    missing = ready is not None and ready["reason"] in _ABSENT and not build.fresh
    if not isinstance(result, Wait) or result.reason != Reason.PROGRESSING:
        return result
    if ready is None or not missing or context.question is not None:
        return result
    return replace(result, reason=ready["reason"], message=ready["message"], works=False)


def outcome_of(result: Result, context: BuildContext) -> Outcome:
    """What a pass came to, for the status. Pure."""
    phase = Phase.READY
    failed: tuple[Failure, ...] = ()
    if isinstance(result, Stall):
        phase = Phase.STALLED
        failed = (result.failure,) if result.failure is not None else ()
    elif isinstance(result, Wait):
        phase = Phase.BUILDING if result.works else Phase.WAITING
    waits_early = isinstance(result, Wait) and result.after is not None
    if context.known is None or waits_early:
        store = context.build.store if isinstance(result, Stall) else None
        return Outcome(phase, result.reason, result.message, failed=failed, store=store)
    return replace(context.known, state=phase, reason=result.reason, message=result.message)


def _will_be_said_again(error: ApiError) -> bool:
    return error.code in _REFUSALS or (error.code >= 500 and "webhook" in error.message)
