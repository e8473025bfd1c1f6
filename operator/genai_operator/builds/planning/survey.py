"""One look at a build: plan it, look its keys up, see what its Jobs are doing, say what is next.

Decisions are the planner's (`advance`) and `retries.judge`'s; here their questions are answered
from the store and the watch cache. Runs in a thread, since stores are asked synchronously.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import assert_never

from genai_core.errors import CorruptBlob
from genai_core.facts import ModelFacts
from genai_core.names import Digest, Key, TaskId
from genai_core.store.protocol import RecordRef
from genai_core.tasks.record import Record
from genai_operator.builds.planning.job_requests import job_request
from genai_operator.builds.planning.plans import Plans
from genai_operator.builds.planning.question import Question, Survey
from genai_operator.jobs.attempts import Attempts
from genai_operator.jobs.renewal import Renewal
from genai_operator.jobs.retries import judge
from genai_operator.jobs.verdicts import (
    BackingOff,
    NextAttempt,
    PermanentFailure,
    Renew,
    Retry,
    Running,
    Verdict,
    is_running,
    pause_of,
    retry_of,
)
from genai_operator.kube.job import JobState, JobView
from genai_operator.stores.lookups import Answers, Unanswered
from genai_operator.stores.remembered import check_weight, weight_of
from genai_planner.execution.advance import advance
from genai_planner.execution.events import (
    Event,
    Failed,
    FoundResult,
    Look,
    Missed,
    Taken,
    WorkLimits,
)
from genai_planner.execution.machine import TaskState
from genai_planner.phases import FACTS_FILE, Ingesting, PlanPhase, facts_of, plan_build
from genai_planner.plan import Result

__all__ = ["PLANS_READ", "survey"]

Claim = Callable[[Iterable[RecordRef]], None]

_ANY_MEMORY = 1 << 62
"""The scheduler knows what nodes have left."""
PLANS_READ = (FACTS_FILE,)
"""Outputs that a plan is made from."""
_MOST_LOOKS = 3
_CHAIN_SECONDS = 15.0
"""How often it is looked how far the chains have come: another build may wait for a part."""
_GOOD = frozenset({TaskState.CACHED, TaskState.DONE})
_TO_THE_SECOND = timedelta(seconds=1)


def survey(
    question: Question,
    lookups: Answers,
    *,
    lost: set[str],
    claim: Claim = lambda _refs: None,
    plans: Plans | None = None,
) -> Survey:
    """Look at a build.

    Args:
        question: The build.
        lookups: Of its store.
        lost: UIDs of Jobs whose lost inputs were taken note of; added to.
        claim: Called with what is about to be looked up, so that no gc takes it meanwhile.
        plans: What earlier looks have worked out.

    Raises:
        GenAIError: The spec cannot work, or the store does not answer.
        Unanswered: A Job has to look first.
    """
    planner = (plans or Plans()).of(question.owner, question.setting)
    standing = _Standing(question, lookups, claim)
    for _ in range(_MOST_LOOKS):
        look = _Look(question, plan_build(planner, standing), lookups, claim)
        if look.has_lost(lost):
            lookups.forget()
            continue
        if look.advice.ended and plans is not None:
            plans.forget(question.owner)
        return look.survey()
    raise CorruptBlob("what ingest left keeps being lost", where=lookups.location)


class _Standing:
    """Tells planning what stands; see `phases.Standing`."""

    def __init__(self, question: Question, lookups: Answers, claim: Claim) -> None:
        self._question = question
        self._lookups = lookups
        self._claim = claim

    def look(self, phase: Ingesting) -> Mapping[TaskId, Result]:
        look = _Look(self._question, phase, self._lookups, self._claim)
        # By records: a task is done for planning when what it found can be read.
        return {
            task: phase.result(look.records[key])
            for task, key in look.advice.keys.items()
            if key in look.records
        }

    def read_facts(self, ingested: Result) -> ModelFacts:
        return facts_of(ingested, self._lookups.read_blob, where=self._lookups.location)

    def forget(self) -> None:
        self._lookups.forget()


class _Look:
    """One plan, looked up from its beginning as far as it has come."""

    def __init__(
        self, question: Question, phase: PlanPhase, lookups: Answers, claim: Claim
    ) -> None:
        self._claim = claim
        self._question = question
        self._phase = phase
        self._plan = phase.plan
        self._lookups = lookups
        self._attempts = Attempts(question.jobs, question.pods)
        self._verdicts: dict[TaskId, Verdict] = {}
        self._jobs: dict[TaskId, list[JobView]] = {}
        self._stands: set[TaskId] = set()
        self.records: dict[Key, Record] = {}
        self._weight = 0
        self.advice = advance(
            phase.plan,
            self._answers,
            self._limits,
            sources=phase.request.sources,
            toolchains=phase.request.toolchain_ids,
            known=phase.keys,
        )

    def _limits(self) -> WorkLimits:
        """A worker leaves its last result seconds before it is gone."""
        active = {
            task: {
                job.uid
                for job in jobs
                if job.state is JobState.ACTIVE
                and self._question.owner in job.owners
                and not self._has_ended_well(job)
            }
            for task, jobs in self._jobs.items()
        }
        ended = set().union(*(active[task] for task in active if task in self._stands))
        at_work = set().union(*(active[task] for task in active if task not in self._stands))
        parallelism = self._question.setting.spec.run.parallelism
        return WorkLimits(parallelism, _ANY_MEMORY, busy=len(ended - at_work))

    def _derivation(self, task: TaskId) -> Digest | None:
        return self._phase.derivations[task] if self._attempts.any_chain else None

    def _answers(self, looks: Sequence[Look]) -> list[Event]:
        """Answer from what Jobs do and from the store, asked for all that it has to be at once."""
        wanted: list[Look] = []
        anew: list[Key] = []
        for look in looks:
            verdict = self._judge(look)
            if verdict is None:
                wanted.append(look)
                continue
            running = is_running(verdict)
            if running and not self._may_stand(look.task):
                continue
            wanted.append(look)
            # A worker that ended may have written what was missed before.
            if not running or any(map(self._has_ended_well, self._jobs[look.task])):
                anew.append(look.key)
        refs = {look.task: RecordRef(look.operation, look.key) for look in wanted}
        self._claim(refs.values())
        try:
            answers = self._lookups.look(refs.values(), anew=anew)
        except Unanswered as asked:
            made_of = [
                file.sha256
                for source in self._phase.request.sources.values()
                for file in source.files.values()
            ]
            raise Unanswered(asked.refs, made_of) from None
        return [
            self._answer(look, answers[refs[look.task]] if look.task in refs else "")
            for look in looks
        ]

    def _judge(self, look: Look) -> Verdict | None:
        derivation = self._derivation(look.task)
        attempts = self._attempts.at(look.key, derivation)
        if not attempts:
            return None
        looks, run = self._question.looks, self._question.setting.spec.run
        verdict = judge(
            attempts,
            self._question.pods,
            retries=run.retries,
            now=self._question.now,
            owner=self._question.owner,
            derivation=derivation,
            wanted=looks.of(self._plan.task(look.task)) if looks is not None else None,
            task_seconds=run.active_deadline_seconds,
        )
        self._verdicts[look.task] = verdict
        self._jobs[look.task] = attempts
        return verdict

    def _may_stand(self, task: TaskId) -> bool:
        """Its record may be there though its Job has not ended.

        The Job goes on with other tasks; or its pod has ended well, which the Job controller takes
        seconds to say of the Job.
        """
        active = [job for job in self._jobs[task] if job.state is JobState.ACTIVE]
        return any(job.chain or self._has_ended_well(job) for job in active)

    def _has_ended_well(self, job: JobView) -> bool:
        return any(pod.succeeded for pod in self._question.pods.get(job.name, ()))

    def _answer(self, look: Look, answer: Record | str) -> Event:
        if isinstance(answer, Record):
            if look.key not in self.records:
                self._weight += weight_of(answer)
                check_weight(self._weight, self._lookups.location)
            self.records[look.key] = answer
            self._stands.add(look.task)
            return FoundResult(look.task, self._phase.result(answer))
        match self._verdicts.get(look.task):
            case None:
                return Missed(look.task, answer)
            case NextAttempt(retry=retry):
                return Missed(look.task, retry.why if retry is not None else answer)
            case PermanentFailure(error=error):
                return Failed(look.task, error)
            case Running() | Renew() | BackingOff():
                return Taken(look.task)
            case never:
                assert_never(never)

    def _retries(self) -> dict[TaskId, Retry]:
        """Of the tasks that are tried again, now or after a pause."""
        retries = {task: retry_of(verdict) for task, verdict in self._verdicts.items()}
        return {task: retry for task, retry in retries.items() if retry is not None}

    def _next_attempt(self, task: TaskId) -> NextAttempt:
        """Of a task that is to be started: the planner starts none that is taken or has failed."""
        verdict = self._verdicts.get(task, NextAttempt())
        assert isinstance(verdict, NextAttempt)
        return verdict

    def _log(self, task: TaskId) -> str:
        verdict = self._verdicts.get(task)
        return verdict.log if isinstance(verdict, PermanentFailure) else ""

    def has_lost(self, known: set[str]) -> bool:
        """Whether a worker says that what was found is not there; said once for each Job."""
        lost = {
            self._jobs[task][-1].uid for task, retry in self._retries().items() if retry.inputs_lost
        } - known
        known |= lost
        return bool(lost)

    def survey(self) -> Survey:
        """All that is to be said."""
        advice, plan = self.advice, self._plan
        good = {task for task, state in advice.states.items() if state in _GOOD}
        active: dict[str, JobView] = {}
        for task, jobs in self._jobs.items():
            if task not in good:
                active |= {job.uid: job for job in jobs if job.state is JobState.ACTIVE}
        attempts = {start.task: self._next_attempt(start.task) for start in advice.start}
        pauses = [pause for v in self._verdicts.values() if (pause := pause_of(v)) > 0]
        if any(job.chain for job in active.values()):
            pauses.append(_CHAIN_SECONDS)
        return Survey(
            plan=plan,
            advice=advice,
            start=tuple(
                job_request(
                    self._question.setting,
                    self._phase,
                    advice,
                    start=start,
                    attempt=attempts[start.task],
                )
                for start in advice.start
            ),
            needed=self._needed(good),
            active=tuple(active.values()),
            failed=tuple((task, error, self._log(task)) for task, error in advice.failed.items()),
            containers=self._containers(),
            refs=frozenset(
                RecordRef(plan.task(task).operation, key) for task, key in advice.keys.items()
            ),
            made=self._made(good),
            fidelity=advice.fidelity,
            after=min(pauses) if pauses else None,
            retried={task: attempt for task, attempt in attempts.items() if attempt.retry},
            renewals=self._renewals(good),
            waits_for=tuple(
                retry.waits_for
                for task, retry in self._retries().items()
                if retry.waits_for is not None and task not in good
            ),
            warnings=self._warnings(good),
        )

    def _warnings(self, good: set[TaskId]) -> tuple[str, ...]:
        """As a laptop says them: cached tasks' too, each once."""
        warnings = dict.fromkeys(self._plan.warnings)
        for task in self._plan.tasks:
            if task.id in good:
                record = self.records[self.advice.keys[task.id]]
                warnings |= dict.fromkeys(record.measurements.warnings)
        return tuple(warnings)

    def _renewals(self, good: set[TaskId]) -> tuple[Renewal, ...]:
        renewals = {
            verdict.renewal.job.uid: verdict.renewal
            for task, verdict in self._verdicts.items()
            if isinstance(verdict, Renew) and task not in good
        }
        return tuple(renewals.values())

    def _needed(self, good: set[TaskId]) -> frozenset[str]:
        """UIDs of the Jobs that have to do with this plan."""
        keys = {key: task for task, key in self.advice.keys.items()}
        by_derivation: dict[Digest, TaskId] = {}
        if self._attempts.any_chain:
            by_derivation = {made: task for task, made in self._phase.derivations.items()}
        needed: set[str] = set()
        for job in self._question.jobs:
            ours = [keys[job.key]] if job.key in keys else []
            ours += [
                by_derivation[link.derivation]
                for link in job.chain
                if link.derivation in by_derivation
            ]
            # What it goes on with is others' alone.
            over = job.state is JobState.ACTIVE and good.issuperset(ours)
            over &= any(link.derivation not in by_derivation for link in job.chain)
            if ours and not over:
                needed.add(job.uid)
        return frozenset(needed)

    def _made(self, good: set[TaskId]) -> Counter[str]:
        """Tasks whose result did not stand yet when the build asked for it.

        The record says when it was made, whatever became of its Job. Where a node's clock is slow,
        a Job of the build that ended since says the same.
        """
        since = self._question.since
        worked = {
            job.key
            for job in self._question.jobs
            if self._question.owner in job.owners
            and (job.ended_at is None or job.ended_at >= since)
        }
        made: Counter[str] = Counter()
        for task in good:
            key = self.advice.keys[task]
            if key in worked or self.records[key].created_at >= since + _TO_THE_SECOND:
                made[self._plan.task(task).operation] += 1
        return made

    def _containers(self) -> dict[str, Record]:
        containers: dict[str, Record] = {}
        for target, tasks in self._plan.containers.items():
            for task in tasks:
                key = self.advice.keys.get(task)
                record = self.records.get(key) if key else None
                if record is not None and target in self.advice.containers:
                    containers[target] = record
        return containers
