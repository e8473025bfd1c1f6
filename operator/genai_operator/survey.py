"""One look at a build: plan it, look its keys up, see what its Jobs are doing, say what is next.

Decisions are the planner's (`advance`) and `decide.judge`'s; here their questions are answered from
the store and the mirror. Runs in a thread, since stores are asked synchronously.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath

from genai_core.errors import CorruptBlob, GenAIError
from genai_core.facts import ModelFacts
from genai_core.kinds.build import BuildSpec
from genai_core.names import Backend, Digest, Key, TaskId
from genai_core.operations import operation_of
from genai_core.record import Blob, Record, model_slug
from genai_core.resolved import ResolvedSource
from genai_core.store.protocol import RecordRef
from genai_core.store.s3_location import S3Location
from genai_core.task import TaskFile, TaskFileInput, Toolchain
from genai_operator import targets as target_rules
from genai_operator.decide import Verdict, group, judge
from genai_operator.jobs import JobRequest, given_memory
from genai_operator.sources import file_address
from genai_operator.stores import Lookups
from genai_operator.targets import BuildTarget
from genai_operator.views import JobView, PodView
from genai_planner.advance import Advice, Known, advance
from genai_planner.events import Limits, Start
from genai_planner.expand import expand
from genai_planner.graph import FileRef, Plan, Result
from genai_planner.inputs import INGEST
from genai_planner.shape import ModelShape, shape_from_config, shape_from_facts
from genai_planner.source_view import SourceView

__all__ = ["Question", "Survey", "survey"]

_ANY_MEMORY = 1 << 62
"""The scheduler knows what nodes have left."""
_HEADROOM = 1.25
_LEAST_BYTES = 384 << 20
_FACTS_FILE = "facts.json"
_SAYS_NOTHING = {"", "model", "models", "onnx", "base"}
_MOST_LOOKS = 3


@dataclass(frozen=True)
class Question:
    """A build, as far as it is known without looking.

    Attributes:
        jobs: Of the build's namespace and scope.
        pods: Job's name -> pods.
    """

    name: str
    namespace: str
    spec: BuildSpec
    source: ResolvedSource
    folder: S3Location
    targets: Sequence[BuildTarget]
    toolchains: Mapping[tuple[str, Backend | None], Toolchain]
    jobs: Sequence[JobView]
    pods: Mapping[str, list[PodView]]
    now: datetime


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        start: Jobs that are to be created.
        keys: Of all tasks that have one: Jobs for other keys are not needed any more.
        active: Keys that a Job is at.
        failed: (task, error, digest of the log) in the plan's order.
        containers: Target -> the record of its package.
        after: Seconds until it has to be looked at again, whatever happens.
        retried: Why tasks are tried again.
    """

    plan: Plan
    advice: Advice
    start: tuple[JobRequest, ...]
    keys: frozenset[Key]
    active: frozenset[Key]
    failed: tuple[tuple[TaskId, GenAIError, str], ...]
    containers: Mapping[str, Record]
    after: float | None = None
    retried: Mapping[TaskId, str] = field(default_factory=dict)


def survey(question: Question, lookups: Lookups, *, lost: set[str]) -> Survey:
    """Look at a build.

    Args:
        question: The build.
        lookups: Of its store.
        lost: UIDs of Jobs whose lost inputs were taken note of; added to.

    Raises:
        GenAIError: The spec cannot work, or the store does not answer.
    """
    attempts = group(question.jobs)
    verdicts = {
        key: judge(jobs, question.pods, retries=question.spec.run.retries, now=question.now)
        for key, jobs in attempts.items()
    }
    for key, verdict in verdicts.items():
        uid = attempts[key][-1].uid
        if verdict.inputs_lost and uid not in lost:
            lost.add(uid)
            lookups.forget()
    for _ in range(_MOST_LOOKS):
        forecast = _expand(question, shape_from_config(question.source.config))
        advice, records = _advance(question, forecast, lookups, verdicts)
        ingested = records.get(advice.keys[INGEST])
        if ingested is None:
            return _found(question, forecast, advice, records, verdicts)
        try:
            plan = _expand(question, _exact_shape(_result(ingested), lookups))
        except CorruptBlob:
            lookups.forget()  # reading took the wrong bytes away: now ingest is a miss
            continue
        advice, records = _advance(question, plan, lookups, verdicts)
        return _found(question, plan, advice, records, verdicts)
    raise CorruptBlob("what ingest left keeps being lost", where=lookups.store.location)


def _expand(question: Question, shape: ModelShape | None) -> Plan:
    source = question.source
    view = SourceView(
        frozenset(source.files),
        sum(file.size for file in source.files.values()),
        source.weight_bits,
    )
    return expand(
        question.spec,
        targets=[target.target for target in question.targets],
        source=view,
        shape=shape,
    )


def _exact_shape(ingested: Result, lookups: Lookups) -> ModelShape:
    file = ingested.outputs[_FACTS_FILE]
    text = lookups.blobs.get(file.sha256)
    if text is None:
        text = lookups.store.read_blob(Blob(sha256=file.sha256, size=file.size))
        lookups.blobs[file.sha256] = text
    return shape_from_facts(ModelFacts.model_validate_json(text))


def _advance(
    question: Question, plan: Plan, lookups: Lookups, verdicts: Mapping[Key, Verdict]
) -> tuple[Advice, dict[Key, Record]]:
    records: dict[Key, Record] = {}
    results: dict[Key, Result] = {}
    missing: dict[Key, str] = {}
    failed: dict[Key, GenAIError] = {}
    running = {key for key, verdict in verdicts.items() if verdict.running}
    known = Known(results, missing, running, failed)
    source = {role: FileRef(Digest(f.sha256), f.size) for role, f in question.source.files.items()}
    chains = {row: Digest(chain.id) for row, chain in question.toolchains.items()}
    limits = Limits(question.spec.run.parallelism, _ANY_MEMORY)
    while True:
        advice = advance(plan, known, limits, source=source, toolchains=chains)
        if not advice.look:
            return advice, records
        refs = [RecordRef(look.operation, look.key) for look in advice.look]
        # A Job that ended may have written what was missed before.
        for ref, answer in lookups.look(refs, anew=verdicts).items():
            verdict = verdicts.get(ref.key)
            if isinstance(answer, Record):
                results[ref.key] = _result(answer)
                records[ref.key] = answer
            elif verdict is not None and verdict.error is not None:
                failed[ref.key] = verdict.error
            else:
                why = verdict.retried if verdict else ""
                missing[ref.key] = why or answer


def _result(record: Record) -> Result:
    return Result(
        {p: FileRef(o.sha256, o.size, o.semantic) for p, o in record.outputs.items()},
        record.facts,
    )


def _found(
    question: Question,
    plan: Plan,
    advice: Advice,
    records: Mapping[Key, Record],
    verdicts: Mapping[Key, Verdict],
) -> Survey:
    keys = frozenset(advice.keys.values())
    pauses = [v.pause for key, v in verdicts.items() if key in keys and v.pause > 0]
    containers: dict[str, Record] = {}
    for target, tasks in plan.containers.items():
        for task in tasks:
            key = advice.keys.get(task)
            record = records.get(key) if key else None
            if record is not None and target in advice.containers:
                containers[target] = record
    logs = {key: verdict.log for key, verdict in verdicts.items()}
    return Survey(
        plan=plan,
        advice=advice,
        start=tuple(_request(question, plan, start, verdicts) for start in advice.start),
        keys=keys,
        active=frozenset(key for key in keys if key in verdicts and verdicts[key].running),
        failed=tuple(
            (task, error, logs.get(advice.keys[task], "") if task in advice.keys else "")
            for task, error in advice.failed.items()
        ),
        containers=containers,
        after=min(pauses) if pauses else None,
        retried={
            start.task: verdicts[start.key].retried
            for start in advice.start
            if start.key in verdicts and verdicts[start.key].retried
        },
    )


def _request(
    question: Question, plan: Plan, start: Start, verdicts: Mapping[Key, Verdict]
) -> JobRequest:
    task = plan.task(start.task)
    row = operation_of(task.operation, task.backend)
    target = target_rules.runs_in(task, question.targets)
    verdict = verdicts.get(start.key, Verdict())
    from_source = {
        name for name, parts in task.inputs.items() if any(p.task is None for p in parts)
    }
    document = TaskFile(
        id=task.id,
        operation=task.operation,
        backend=task.backend,
        key=start.key,
        code_version=row.code_version,
        config=task.config.model_dump(mode="json"),
        inputs={
            name: _files(question, files, from_source=name in from_source)
            for name, files in start.inputs.items()
        },
        toolchain=question.toolchains[task.operation, row.backend],
        slug=_slug(question),
        source=question.spec.model.source,
    )
    planned = max(int(task.demand.memory_bytes * _HEADROOM), _LEAST_BYTES)
    return JobRequest(
        namespace=question.namespace,
        key=start.key,
        operation=task.operation,
        task=task.id,
        document=document,
        image=target.image,
        memory_bytes=max(given_memory(question.spec.run) or planned, verdict.memory_bytes),
        seconds=task.demand.seconds,
        attempt=verdict.attempt,
        node_selector=target.node_selector,
        reads_source=bool(from_source),
    )


def _files(
    question: Question, files: Mapping[str, FileRef], *, from_source: bool
) -> dict[str, TaskFileInput]:
    return {
        path: TaskFileInput(
            sha256=file.sha256,
            size=file.size,
            semantic=file.semantic,
            path=(
                file_address(question.folder, question.source.files[path].path)
                if from_source
                else None
            ),
        )
        for path, file in files.items()
    }


def _slug(question: Question) -> str:
    folder = PurePosixPath(question.folder.prefix).name
    return model_slug(question.name if folder.lower() in _SAYS_NOTHING else folder)
