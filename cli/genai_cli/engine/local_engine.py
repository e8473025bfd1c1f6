"""The local engine as the commands see it: plan a build, run the plan, run one task again.

    planned = plan_build(spec, base_dir, store, name="tiny-llama")    # reads, hashes, looks up
    planned.ready                                                     # the tasks: `genai graph`
    result = run_plan(planned, on_event=render, jobs=4)               # runs what is not cached
    result = run_task(task_file, store)                               # one task: `genai replay`

`plan_build(spec, base_dir, store, *, name="model")` raises a `GenAIError` (exit code 2) for
whatever is wrong before anything runs: the spec, the model's folder, a target. It starts no
process and imports neither numpy nor onnx.

`run_plan(planned, *, on_event, jobs=None)` returns a `BuildResult` also when tasks failed (see its
`failures`: the exit code is that of the first), raises `Interrupted` after Ctrl-C or SIGTERM, when
every child has ended, and `NoSpace` when the store's disk is full. `on_event` is called in the
caller's thread. Calling it again with the same `planned` looks everything up anew.

`run_task(task, store, *, on_event)` runs a `TaskFile` in a worker of its own and returns its
`TaskResult`; an error is in the result.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import FrameType

from genai_cli.engine.events import BuildResult, Event, OnEvent, PlanReady, TaskCached
from genai_cli.engine.local_plan import LocalPlan, read_plan
from genai_cli.engine.memory import cpu_count
from genai_cli.engine.run import LocalRun
from genai_cli.engine.work_folders import WorkFolder
from genai_cli.engine.workers import Job, WorkerEnd, WorkerPool
from genai_core.errors import GenAIError, Interrupted, NotRunnableHere
from genai_core.kinds.build import BuildSpec
from genai_core.operations import operation_of
from genai_core.store.protocol import RecordRef, Store
from genai_core.tasks.record import Record
from genai_core.tasks.task_file import TaskFile, TaskResult
from genai_core.tasks.toolchain import ABSENT
from genai_planner.execution.machine import Machine, TaskState
from genai_planner.fidelity import measured
from genai_planner.phases import Exact

__all__ = ["PlannedBuild", "plan_build", "run_plan", "run_task"]

_GRACE_SECONDS = 5.0


def _nobody(_event: Event) -> None:
    """Listen to nothing."""


@dataclass(frozen=True)
class PlannedBuild:
    """A spec with what was found out about it.

    Attributes:
        name: The build's; a label, part of no key.
        spec: As written, defaults filled in.
        base_dir: Folder of the YAML file: relative sources count from it.
        store: Where results are looked up and go.
        source_digest: `sha256:...` of the model's files and their roles.
        local: What `run_plan` works on.
        warnings: Sentences for the user.
    """

    name: str
    spec: BuildSpec
    base_dir: Path
    store: Store
    source_digest: str
    local: LocalPlan = field(repr=False)
    warnings: tuple[str, ...] = ()

    @cached_property
    def ready(self) -> PlanReady:
        """The tasks as far as they are known before anything runs, each with its reason."""
        return self.local.ready(explain=True)


def plan_build(
    spec: BuildSpec,
    base_dir: Path,
    store: Store,
    *,
    name: str = "model",
    claim: Callable[[Iterable[RecordRef]], None] = lambda _refs: None,
    bring: bool = True,
) -> PlannedBuild:
    """See the module's docstring.

    Args:
        spec: As written.
        base_dir: Folder of the YAML file.
        store: Where results are looked up and go.
        name: Of the build.
        claim: Called with what is about to be looked up.
        bring: Copy what another store has; a plan that is only shown needs none of it.

    Raises:
        GenAIError: Whatever is wrong before anything runs.
    """
    local = read_plan(spec, base_dir, store, name=name, claim=claim, bring=bring)
    return PlannedBuild(
        name=name,
        spec=spec,
        base_dir=base_dir,
        store=store,
        source_digest=local.source.digest,
        local=local,
        warnings=local.plan.warnings,
    )


def run_plan(
    planned: PlannedBuild, *, on_event: OnEvent = _nobody, jobs: int | None = None
) -> BuildResult:
    """See the module's docstring.

    Raises:
        Interrupted: By the user; every worker has ended.
        NoSpace: The disk is full.
        GenAIError: No worker can be started at all.
    """
    began = time.monotonic()
    local = planned.local
    if local.used:
        local.look_up()
    local.used = True
    on_event(local.ready())
    for task, state in local.machine.states.items():
        if state is TaskState.CACHED:
            on_event(TaskCached(task, local.origins.get(task, local.store.location)))
    if local.machine.ended and not local.machine.errors:
        return _result(local, None, began)
    _check_libraries(local)
    work = WorkFolder(local.store)
    run = LocalRun(
        store=local.store,
        work=work,
        jobs=jobs or cpu_count(),
        task_file=local.task_file,
        on_event=on_event,
        on_fidelity=lambda: on_event(local.ready()),
        claim=local.claim,
        records=local.records,
    )
    run.cached |= {t for t, s in local.machine.states.items() if s is TaskState.CACHED}
    try:
        with _interruptible():
            _drive(local, run, on_event)
    except KeyboardInterrupt:
        run.pool.stop(_GRACE_SECONDS)
        raise Interrupted(
            "stopped", where=planned.name, remedy="the same command goes on where it stopped"
        ) from None
    finally:
        run.close()
        work.close()
    return _result(local, run, began)


def _check_libraries(local: LocalPlan) -> None:
    """Refuse to start what this environment cannot finish."""
    for task in local.machine.needed():
        if local.machine.states[task.id] is TaskState.CACHED:
            continue
        row = operation_of(task.operation, task.backend)
        versions = local.toolchains[row.name, row.backend].versions
        absent = sorted(name for name, version in versions.items() if version == ABSENT)
        if absent:
            what = f"the target {task.target}" if task.target else f"the operation {row.name}"
            raise NotRunnableHere(
                f"{what} needs {', '.join(absent)}, not installed here",
                where=task.id,
                remedy="pip install 'genai-operator[all]' (the vendor's wheel exists for Linux "
                "x86-64 with glibc 2.35), or leave the target out",
            )


def _drive(local: LocalPlan, run: LocalRun, on_event: OnEvent) -> None:
    run.pool.warm_up()
    if not isinstance(local.phase, Exact):
        forecast, local.machine = local.machine, local.planner.ingesting.machine()
        run.drive(local.machine, local.machine.begin())
        if len(local.machine.results) < len(local.machine.tasks):
            errors = local.machine.errors
            local.machine = forecast  # so that the total is that of the whole build
            local.machine.errors.update(errors)
            return
        local.use_exact()
        on_event(local.ready())
        for task, state in local.machine.states.items():
            if state is TaskState.CACHED and task not in run.ran:
                run.cached.add(task)
                on_event(TaskCached(task, local.origins.get(task, local.store.location)))
    run.drive(local.machine, ())


def _result(local: LocalPlan, run: LocalRun | None, began: float) -> BuildResult:
    machine = local.machine
    warnings = dict.fromkeys(local.plan.warnings) | local.said
    containers = _containers(local, machine)
    return BuildResult(
        containers=containers,
        total=len(machine.needed()),
        run=len(run.ran) if run else 0,
        cached=len(run.cached) if run else machine.counts[TaskState.CACHED],
        seconds=time.monotonic() - began,
        peak_memory_bytes=run.peak_memory_bytes if run else 0,
        failures=tuple(run.failures.values()) if run else (),
        warnings=tuple(warnings | run.warnings if run else warnings),
        made_of={target: _made_of(local, machine, target) for target in containers},
        fidelity={
            target: facts
            for target in containers
            if (facts := measured(machine.plan, machine.results, machine.container(target)))
            is not None
        },
        ran=frozenset(run.ran) if run else frozenset(),
    )


def _made_of(local: LocalPlan, machine: Machine, target: str) -> dict[str, Record]:
    """The records of this build's own tasks before a container's package."""
    package = machine.container(target)
    assert package is not None
    return {
        task.id: record
        for task in machine.plan.made_of(package)
        if (record := local.records.get(task.id)) is not None
        and record.key == machine.keys.get(task.id)
    }


def _containers(local: LocalPlan, machine: Machine) -> dict[str, Record]:
    found: dict[str, Record] = {}
    for target in machine.plan.containers:
        task = machine.container(target)
        if task is None:
            continue
        stored = local.store.get_record(machine.tasks[task].operation, machine.keys[task])
        if stored is not None:
            found[target] = stored.record
    return found


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM and a closed terminal do what Ctrl-C does."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_task(task: TaskFile, store: Store, *, on_event: OnEvent = _nobody) -> TaskResult:
    """Run one task in a worker of its own, whatever the plan around it was.

    Raises:
        Interrupted: By the user.
        GenAIError: The worker left no result.
    """
    del on_event
    work = WorkFolder(store)
    pool = WorkerPool(store.location, work.path / "server.log")
    job = Job(work.path / "task.json", work.path / "result.json", work.path, work.path / "task.log")
    try:
        job.task.write_text(task.model_dump_json(), encoding="utf-8")
        with _interruptible():
            pool.submit(job)
            ended: list[WorkerEnd] = []
            while not ended:
                ended = pool.poll(1.0)
        if ended[0].status < 0 or not job.result.is_file():
            raise GenAIError(f"its worker ended with status {ended[0].status}", where=task.id)
        return TaskResult.model_validate_json(job.result.read_bytes())
    except KeyboardInterrupt:
        pool.stop(_GRACE_SECONDS)
        raise Interrupted("stopped", where=task.id) from None
    finally:
        pool.close()
        work.close()
