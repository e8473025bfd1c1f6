"""Runs a plan on this machine: the shell around the planner's `Machine`.

Everything that is decided is decided there; here keys are looked up, workers are started, and what
came of them is reported. At most `jobs` tasks run at once and never more than the memory bears. A
task that another process on this machine is running is waited for, not run again.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from genai_cli.engine.events import (
    BuildWarning,
    MemorySampled,
    OnEvent,
    TaskCached,
    TaskDone,
    TaskFailed,
    TaskStarted,
    TaskWaiting,
)
from genai_cli.engine.memory import Usage, available_bytes, cpu_count, usage
from genai_cli.engine.plan_lookups import look_all
from genai_cli.engine.work_folders import KeyLock, WorkFolder, writable_store
from genai_cli.engine.worker_ends import another_attempt, failure_of, read_result
from genai_cli.engine.workers import Job, WorkerEnd, WorkerPool
from genai_core.errors import (
    GenAIError,
    NoSpace,
    StoreUnavailable,
    from_dict,
)
from genai_core.names import TaskId
from genai_core.store.layered import brought
from genai_core.store.protocol import Hit, RecordRef, Store
from genai_core.tasks.keys import short_key
from genai_core.tasks.record import Record
from genai_core.tasks.task_file import TaskFile, TaskResult
from genai_planner.execution.events import (
    Crashed,
    Event,
    Failed,
    Finished,
    FoundResult,
    Look,
    TaskStart,
    WorkLimits,
)
from genai_planner.execution.machine import Machine, TaskState
from genai_planner.plan import result_of

__all__ = ["LocalRun"]

_POLL_SECONDS = 0.2
_ELSEWHERE_SECONDS = 0.5
_MEMORY_SHARE = 0.9
"""Of what is available: estimates are estimates, and others live here too."""


@dataclass
class _Attempt:
    """A task whose worker runs."""

    start: TaskStart
    job: Job
    lock: KeyLock
    began: float


@dataclass
class LocalRun:
    """One run of one or more machines with the same workers.

    Attributes:
        store: Where results are looked up and go.
        work: Scratch, locks, logs.
        jobs: Tasks at once.
        task_file: Writes down what a worker has to know.
        on_event: Hears everything.
        on_fidelity: Called when a verdict is in: other tasks may be needed now.
        claim: Called with what is about to be looked up.
        records: Of the tasks whose result stands; added to.
    """

    store: Store
    work: WorkFolder
    jobs: int
    task_file: Callable[[Machine, TaskStart, int], TaskFile]
    on_event: OnEvent
    on_fidelity: Callable[[], None] = lambda: None
    claim: Callable[[Iterable[RecordRef]], None] = lambda _refs: None
    records: dict[TaskId, Record] = field(default_factory=dict)
    ran: set[TaskId] = field(default_factory=set)
    cached: set[TaskId] = field(default_factory=set)
    failures: dict[TaskId, TaskFailed] = field(default_factory=dict)
    warnings: dict[str, None] = field(default_factory=dict)
    peak_memory_bytes: int = 0

    def __post_init__(self) -> None:
        address = writable_store(self.store).location
        self.pool = WorkerPool(address, self.work.path / "server.log")
        self._running: dict[int, _Attempt] = {}
        self._elsewhere: dict[TaskId, KeyLock] = {}
        self._attempts: dict[TaskId, int] = {}
        self._made_at: dict[TaskId, int] = {}
        """The attempt of each task that succeeded last."""
        self._told: dict[TaskId, str] = {}
        self._elsewhere_at = 0.0
        self._used = Usage(0, 0)
        self._cores = cpu_count()

    def drive(self, machine: Machine, looks: tuple[Look, ...]) -> None:
        """Run a machine to its end.

        Raises:
            NoSpace: The disk is full; everything that ran was stopped.
            GenAIError: No worker can be started.
            KeyboardInterrupt: As it came; the caller stops the pool.
        """
        self._look(machine, looks)
        while not machine.ended:
            self._start_tasks(machine)
            if not self._running and not self._elsewhere:
                stuck = sorted(t for t, s in machine.states.items() if s is TaskState.BLOCKED)
                raise GenAIError(f"nothing can run, and {', '.join(stuck[:3])} wait")
            wait = _ELSEWHERE_SECONDS if not self._running else _POLL_SECONDS
            for ended in self.pool.poll(wait):
                self._take(machine, ended)
            self._visit_elsewhere(machine)
            self._sample()

    def close(self) -> None:
        """End the workers and give locks back."""
        self.pool.close()
        for attempt in self._running.values():
            attempt.lock.release()
        self._running.clear()

    # Lookups

    def _look(self, machine: Machine, looks: tuple[Look, ...]) -> None:
        look_all(machine, self.store, looks, on_hit=self._on_hit, claim=self.claim)
        for task, error in machine.errors.items():
            self._report_failure(task, error)

    def _on_hit(self, task: TaskId, hit: Hit) -> None:
        self.records[task] = hit.record
        if task not in self.ran and task not in self.cached:
            self.cached.add(task)
            self.on_event(TaskCached(task, hit.origin))
            self._warn(hit.record.measurements.warnings)

    def _handle(self, machine: Machine, event: Event) -> None:
        self._look(machine, machine.handle(event))
        if machine.tasks[event.task].operation == "fidelity" and isinstance(
            event, FoundResult | Finished
        ):
            self.on_fidelity()

    # Starting

    def _start_tasks(self, machine: Machine) -> None:
        elsewhere = [machine.tasks[task].demand.memory_bytes for task in self._elsewhere]
        room = available_bytes() + self._used.private
        limits = WorkLimits(self.jobs + len(elsewhere), int(room * _MEMORY_SHARE) + sum(elsewhere))
        choice = machine.start(limits)
        for wait in choice.wait:
            if self._told.get(wait.task) is None:
                self._told[wait.task] = wait.why
                self.on_event(TaskWaiting(wait.task, wait.why))
        busy = len(self._running) + len(choice.start)
        for start in choice.start:
            with _room_needed(self.work.path):
                self._start(machine, start, threads=max(1, self._cores // max(1, busy)))

    def _start(self, machine: Machine, start: TaskStart, *, threads: int) -> None:
        lock = KeyLock(self.work.locks, start.key)
        if not lock.acquire():
            self._elsewhere[start.task] = lock
            self.on_event(TaskWaiting(start.task, "another build on this machine runs it"))
            return
        if start.tight:
            need = machine.tasks[start.task].demand.memory_bytes
            self.on_event(
                BuildWarning(f"it may need {need / 1e9:.1f} GB, more than there is", start.task)
            )
        attempt = self._attempts[start.task] = self._attempts.get(start.task, 0) + 1
        # Counted over all tasks: two of them may be at their second attempt.
        folder = self.work.path / str(sum(self._attempts.values()))
        folder.mkdir()
        job = Job(folder / "task.json", folder / "result.json", folder, folder / "task.log")
        task_file = self.task_file(machine, start, threads)
        job.task.write_text(task_file.model_dump_json(), encoding="utf-8")
        self.on_event(TaskStarted(start.task, attempt))
        self._running[self.pool.submit(job)] = _Attempt(start, job, lock, time.monotonic())

    # Ends

    def _take(self, machine: Machine, ended: WorkerEnd) -> None:
        attempt = self._running.pop(ended.number)
        try:
            self._judge(machine, attempt, ended)
        finally:
            attempt.lock.release()

    def _judge(self, machine: Machine, attempt: _Attempt, ended: WorkerEnd) -> None:
        task = attempt.start.task
        result = read_result(attempt.job.result) if ended.status >= 0 else None
        self.peak_memory_bytes = max(self.peak_memory_bytes, ended.peak_memory_bytes)
        error = from_dict(result.error) if result is not None and result.error else None
        if result is not None and error is None and ended.status == 0:
            operation = machine.tasks[task].operation
            store = writable_store(self.store)
            stored = store.get_record(operation, attempt.start.key)
            if stored is not None:
                self._succeeded(machine, task, result, stored.record, peak=ended.peak_memory_bytes)
                return
            # Somebody removes what is written, and may go on doing so.
            error = StoreUnavailable(
                "the record of the task is gone as soon as it was written",
                where=store.location,
                remedy="see who empties the store meanwhile, and run the same command again",
            )
        another = another_attempt(task, ended, error, tried=self._tried(task))
        if another is not None:
            self.on_event(BuildWarning(another.why, task))
            if another.pause:
                time.sleep(another.pause)
            self._handle(machine, another.event)
            return
        if error is None:
            error = failure_of(task, ended)
        name = f"{machine.tasks[task].operation}_{short_key(attempt.start.key)}"
        log = self.work.keep_log(attempt.job.log, name)
        self._report_failure(task, error, seconds=time.monotonic() - attempt.began, log=log)
        if isinstance(error, NoSpace):
            where = error.where if error.where.startswith("/") else str(self.work.path.parent)
            raise NoSpace(
                error.message, where=where, remedy="free some room, or name another store"
            )
        self._handle(machine, Failed(task, error))

    def _tried(self, task: TaskId) -> int:
        """Attempts since it last succeeded: what it made may have been lost since."""
        return self._attempts[task] - self._made_at.get(task, 0)

    def _succeeded(
        self, machine: Machine, task: TaskId, result: TaskResult, record: Record, *, peak: int
    ) -> None:
        self.records[task] = record
        self._made_at[task] = self._attempts[task]
        if result.outcome == "cached":
            self.cached.add(task)
            self.on_event(TaskCached(task, self.store.location))
            self._handle(machine, FoundResult(task, result_of(record)))
            return
        self.ran.add(task)
        self.cached.discard(task)
        self._warn(tuple(result.warnings))
        peak = max(peak, result.peak_memory_bytes)
        self.on_event(TaskDone(task, result.seconds, peak, tuple(result.warnings)))
        self._handle(machine, Finished(task, result_of(record)))

    def _report_failure(
        self, task: TaskId, error: GenAIError, *, seconds: float = 0.0, log: Path | None = None
    ) -> None:
        if task not in self.failures:
            self.failures[task] = TaskFailed(task, error, seconds, log)
            self.on_event(self.failures[task])

    def _warn(self, warnings: tuple[str, ...]) -> None:
        self.warnings |= dict.fromkeys(warnings)

    # Others' tasks, and memory

    def _visit_elsewhere(self, machine: Machine) -> None:
        """See whether another process has ended a task that this build needs too."""
        if not self._elsewhere or time.monotonic() - self._elsewhere_at < _ELSEWHERE_SECONDS:
            return
        self._elsewhere_at = time.monotonic()
        for task, lock in list(self._elsewhere.items()):
            if not lock.acquire():
                continue
            lock.release()
            del self._elsewhere[task]
            operation, key = machine.tasks[task].operation, machine.keys[task]
            answer = brought(self.store, operation, key, self.store.lookup(operation, key))
            if isinstance(answer, Hit):
                self._on_hit(task, answer)
                self._handle(machine, FoundResult(task, result_of(answer.record)))
            else:
                self._handle(machine, Crashed(task, alone=False))

    def _pids(self) -> list[int]:
        return [pid for pid in self.pool.pids.values() if pid is not None]

    def _sample(self) -> None:
        self._used = usage(self._pids())
        if self._running:
            self.peak_memory_bytes = max(self.peak_memory_bytes, self._used.resident)
            self.on_event(MemorySampled(self._used.resident))


@contextmanager
def _room_needed(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise NoSpace(
            "there is no room left", where=str(folder), remedy="free some room"
        ) from error
