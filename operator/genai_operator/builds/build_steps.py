"""The steps of a pass over a build: load, resolve and look up, change Jobs, judge, settle."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from genai_core.errors import StoreUnavailable, StoreUnreadable
from genai_core.helper_jobs import LookFile
from genai_core.names import MODEL, Key, SourceName, TaskId
from genai_core.reasons import Reason
from genai_core.sources.resolved import RESOLVE, ResolvedSource
from genai_core.store.protocol import RecordRef
from genai_operator.builds.build_pass import WATCHED_SECONDS, BuildPass
from genai_operator.builds.claims import Claims
from genai_operator.builds.helper_jobs import BuildHelperJobs
from genai_operator.builds.job_changes import JobChanges, JobWriter, Start, wait_of
from genai_operator.builds.leases import BuildLeases
from genai_operator.builds.planning.job_requests import Looks, Setting
from genai_operator.builds.planning.plans import Plans
from genai_operator.builds.planning.question import Question, Survey
from genai_operator.builds.planning.survey import PLANS_READ, survey
from genai_operator.builds.references import Loader, SourceAccess, accesses_of
from genai_operator.builds.resolver import Resolver
from genai_operator.builds.status import Outcome
from genai_operator.errors import Waiting
from genai_operator.jobs.access import StoreAccess
from genai_operator.jobs.helper_jobs import question_key
from genai_operator.jobs.holds import Standing
from genai_operator.jobs.job_manifest import scope_of
from genai_operator.jobs.verdicts import NextAttempt
from genai_operator.kube.job import JobView
from genai_operator.kube.status.conditions import ready_of
from genai_operator.kube.status.status_phase import Phase
from genai_operator.kube.watch.observed import Observed
from genai_operator.policy import Policy
from genai_operator.steps import DONE, Done, Result, Stall, Step, Wait
from genai_operator.stores.lookups import Lookups, Unanswered
from genai_operator.stores.open_stores import OpenStore
from genai_operator.targets.build_targets import BuildTarget, toolchain_digest, toolchains
from genai_operator.threads import in_thread
from genai_planner.execution.machine import TaskState

__all__ = ["BuildContext", "BuildSteps"]

log = logging.getLogger("genai_operator.builds.build_steps")

_AT_ONCE = 0.5
_MOST_QUESTIONS = 8
"""How often one pass goes on with what a Job has told."""


@dataclass
class BuildContext:
    """What the steps of a pass have found out.

    Attributes:
        targets: Of the build, in its order.
        opened: Its store.
        accesses: How its pods reach the store and each source.
        claimed: Jobs that it claimed when it was surveyed.
        question: What was known when it was surveyed.
        seen: What the survey found.
        known: Of the plan, for its status; None until the plan was judged.
    """

    build: BuildPass
    targets: list[BuildTarget] = field(default_factory=list)
    opened: OpenStore | None = None
    accesses: Mapping[SourceName, SourceAccess] = field(default_factory=dict)
    claimed: list[JobView] = field(default_factory=list)
    question: Question | None = None
    seen: Survey | None = None
    known: Outcome | None = None

    @property
    def store(self) -> OpenStore:
        """Its store, once it is loaded."""
        assert self.opened is not None
        return self.opened

    @property
    def access(self) -> StoreAccess:
        """To the store and the model."""
        return self.accesses[MODEL].access


class BuildSteps:
    """The steps, in their order (`all`).

    Args:
        observed: The watch cache.
        policy: What tenants may name.
        loader: Finds targets and store.
        resolver: Finds out what sources consist of.
        helpers: Sends Jobs that look records up.
        leases: Keep what is needed in the store.
        claims: On Jobs.
        writer: Applies what is asked for.
        doubt: Told of a store that a task has met a fault of.
        chain_tasks: How many tasks one Job may make.
    """

    def __init__(
        self,
        observed: Observed,
        policy: Policy,
        *,
        loader: Loader,
        resolver: Resolver,
        helpers: BuildHelperJobs,
        leases: BuildLeases,
        claims: Claims,
        writer: JobWriter,
        doubt: Callable[[str, str], None],
        chain_tasks: int,
    ) -> None:
        self._observed = observed
        self._policy = policy
        self._loader = loader
        self._resolver = resolver
        self._helpers = helpers
        self._leases = leases
        self._claims = claims
        self._writer = writer
        self._doubt = doubt
        self._chain_tasks = chain_tasks
        self._plans = Plans()
        self._lost: set[str] = set()

    @property
    def all(self) -> tuple[Step[BuildContext], ...]:
        """Of a pass over a build that is not at rest."""
        return (self.take_up, self.load, self.survey, self.change_jobs, self.judge, self.settle)

    def keep(self, *, builds: set[str], jobs: set[str]) -> None:
        """Forget builds and Jobs that are gone, by their UIDs."""
        self._plans.keep(builds)
        self._lost.intersection_update(jobs)

    async def take_up(self, context: BuildContext) -> Result:
        """What failed before is tried again where that was asked for; what fails is noted."""
        if context.build.fresh:  # whatever it has to wait for then: it is not fresh any more after
            await self._claims.forget_failures(context.build)
        await self._claims.note_endings(context.build)
        return DONE

    async def load(self, context: BuildContext) -> Result:
        """What it refers to is there, and may be named."""
        build = context.build
        self._policy.check_run(build.spec.run)
        context.targets = self._loader.targets(build)
        context.opened = await self._loader.store(build)
        build.store = context.opened.where
        context.accesses = accesses_of(build, context.opened)
        await self._leases.claim_upload(build, context.opened)
        return DONE

    async def survey(self, context: BuildContext) -> Result:
        """Its sources are resolved, its keys looked up, its Jobs judged."""
        build = context.build
        for _ in range(_MOST_QUESTIONS):
            try:
                sources = await self._resolver.resolved(
                    build, context.store, context.accesses.values(), target=context.targets[0]
                )
                if isinstance(sources, Wait):
                    return sources
                context.claimed = self._observed.claimed_by(build.owner.uid)
                question = context.question = self._question(context, sources)
                await self._listen(context.store, question)
                context.seen = await in_thread(
                    survey,
                    question,
                    context.store.lookups,
                    lost=self._lost,
                    claim=partial(self._leases.claim, build, context.store),
                    plans=self._plans,
                )
                return DONE
            except Unanswered as asked:
                waits = await self._look(context, asked)
                if waits is not None:
                    return waits
        raise Waiting(Reason.PROGRESSING, "its records are still being looked up", after=5.0)

    def _question(
        self, context: BuildContext, sources: Mapping[SourceName, ResolvedSource]
    ) -> Question:
        build, access = context.build, context.access
        setting = Setting(
            name=build.owner.name,
            namespace=build.namespace,
            spec=build.spec,
            sources=sources,
            places={name: source.place for name, source in context.accesses.items()},
            targets=context.targets,
            toolchains=toolchains(context.targets),
            # What a chain made is told when its Job ends; until then it would be asked for.
            chain_tasks=self._chain_tasks if access.secret else 1,
        )
        accesses = {name: source.access for name, source in context.accesses.items()}
        return Question(
            setting=setting,
            owner=build.owner.uid,
            since=build.since,
            jobs=self._observed.jobs_of(build.namespace, scope_of(access.address, build.spec.run)),
            pods=self._observed.pods_of(build.namespace),
            now=self._observed.timing.now(),
            looks=Looks(setting, accesses, build.owner.uid),
        )

    async def _listen(self, opened: OpenStore, question: Question) -> None:
        """Take in what Jobs told of the records that they left."""
        if opened.told is None:
            return
        for job in self._helpers.jobs.unheard(question.jobs):
            answer = await self._helpers.jobs.hear(job)
            if answer is not None:
                opened.told.take(answer)
            else:
                opened.told.doubt(RecordRef(job.operation, job.key))

    async def _look(self, context: BuildContext, asked: Unanswered) -> Wait | None:
        """Have records looked up by a Job; None when it has told."""
        build, told = context.build, context.store.told
        assert told is not None
        if told.assume_missing(asked):
            return None
        refs = tuple(sorted(map(str, asked.refs)))
        document = LookFile(
            refs=refs,
            known=tuple(sorted(asked.known)),
            read=PLANS_READ,
            lease=self._leases.document(build, context.store),
        )
        answer = await self._helpers.ask(
            build,
            document,
            question_key("look", build.owner.uid, *refs),
            access=context.access,
            target=context.targets[0],
        )
        if isinstance(answer, Standing):
            return wait_of(answer, f"looking {len(refs)} records up in the store")
        told.take(answer, asked.known)
        return None

    async def change_jobs(self, context: BuildContext) -> Result:
        """Jobs are released, made anew, created and claimed, as the survey says."""
        build, seen, question = context.build, context.seen, context.question
        assert seen is not None
        assert question is not None
        if any(isinstance(e, (StoreUnavailable, StoreUnreadable)) for e in seen.waits_for):
            self._doubt(build.namespace, build.spec.store.name)
        # Of those that the survey knew: one that has come to light since was not asked about.
        await self._claims.release(context.claimed, build.owner.uid, keep=seen.needed)
        starts = tuple(
            Start(
                request,
                seen.retried.get(TaskId(request.task), NextAttempt()),
                context.accesses[request.source].access,
            )
            for request in seen.start
        )
        changes = JobChanges(starts, seen.renewals, seen.active)
        await self._writer.apply(build, changes, known={job.uid for job in question.jobs})
        return DONE

    async def judge(self, context: BuildContext) -> Result:
        """Is it built, has it failed, or what does it wait for?"""
        build, seen = context.build, context.seen
        assert seen is not None
        queued = bool(seen.start and build.spec.run.queue_name)
        stands = await self._helpers.jobs.standings.of(build.namespace, seen.active, queued=queued)
        context.known = Outcome(
            Phase.BUILDING,
            stands.reason,
            progress=seen.advice.progress,
            ran=seen.made,
            failed=seen.failed,
            containers=seen.containers,
            fidelity=seen.fidelity,
            targets=build.spec.targets,
            store=context.store.where,
            notes=seen.plan.notes,
            warnings=seen.warnings,
            toolchain=toolchain_digest(context.targets),
        )
        if not seen.advice.ended:
            build.look_after(seen.after or WATCHED_SECONDS)
            build.look_after(stands.after)
            return wait_of(stands, _doing(seen))
        if seen.failed:
            task, error, _ = seen.failed[0]
            said = str(error)
            message = said if said.startswith(f"{task}: ") else f"{task}: {said}"
            return Stall(error.code, message)
        return DONE

    async def settle(self, context: BuildContext) -> Result:
        """It is built: what it needs stays in the store."""
        build, seen = context.build, context.seen
        assert seen is not None
        if not _stood_ready(build) and await self._gone(context, seen):
            build.look_after(_AT_ONCE)
            log.warning("what was built is gone from the store", extra={"build": build.owner.name})
            return Wait(
                Reason.PROGRESSING,
                f"what stood in {context.store.access.address} is gone; it is built again",
                works=True,
            )
        if build.sources:
            resolved = {RecordRef(RESOLVE, Key(entry.record)) for entry in build.sources.values()}
            await self._leases.settle(
                build,
                context.store,
                seen.refs | resolved,
                containers=seen.containers,
                access=context.access,
                target=context.targets[0],
            )
        built = ", ".join(
            f"{name} {str(record.facts.get('revision', ''))[:19]}"
            for name, record in seen.containers.items()
        )
        return Done(Reason.BUILT, f"built {built}")

    @staticmethod
    async def _gone(context: BuildContext, seen: Survey) -> bool:
        """Whether a container that was found before is no longer there."""
        lookups = context.store.lookups
        if not isinstance(lookups, Lookups):  # a Job told it, and only a Job could tell anew
            return False
        refs = [RecordRef(record.operation, record.key) for record in seen.containers.values()]
        return not await in_thread(lookups.still_stand, refs)


def _stood_ready(build: BuildPass) -> bool:
    known = build.status.get("observedGeneration") == build.generation
    return known and ready_of(build.status)[0] == "True"


def _doing(seen: Survey) -> str:
    running = [t for t, s in seen.advice.states.items() if s is TaskState.RUNNING]
    shown = ", ".join(running[:3]) + (f" and {len(running) - 3} more" if len(running) > 3 else "")
    return f"{seen.advice.progress}" + (f": {shown}" if shown else "")
