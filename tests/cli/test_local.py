"""How the engine judges what becomes of tasks; workers are scripted, the store is real."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

from genai_cli.engine import run as local
from genai_cli.engine.events import (
    BuildWarning,
    Event,
    TaskCached,
    TaskDone,
    TaskFailed,
    TaskStarted,
    TaskWaiting,
)
from genai_cli.engine.run import LocalRun
from genai_cli.engine.work_folders import KeyLock, WorkFolder
from genai_cli.engine.workers import Job, WorkerEnd
from genai_core.canonical import digest_bytes
from genai_core.errors import (
    BadModel,
    CorruptBlob,
    GenAIError,
    NoSpace,
    OutOfMemory,
    StoreUnavailable,
)
from genai_core.names import MODEL, Digest, Key, TaskId
from genai_core.operations import OPERATIONS, ArclConfig, GraphConfig
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.layered import LayeredStore
from genai_core.tasks.task_file import TaskFile, TaskFileInput, TaskResult, Toolchain
from genai_core.testing import record_of_task
from genai_planner.execution.events import FoundResult, TaskStart
from genai_planner.execution.machine import Machine, TaskState
from genai_planner.plan import Demand, FileRef, Plan, Result, Selection, Task
from genai_planner.sources import Source

ID = Digest("0" * 64)
TOOLCHAINS = {(row.name, row.backend): ID for row in OPERATIONS}


def task(name: str, *after: str, memory: int = 1) -> Task:
    inputs = {f"from_{a}": (Selection(TaskId(a), ("*",)),) for a in after}
    return Task(
        id=TaskId(name),
        operation="arcl",
        backend=None,
        config=ArclConfig(graph=GraphConfig(ar=1, cl=2 + sum(name.encode()))),
        inputs=inputs or {"source": (Selection(None, ("*",), MODEL),)},
        demand=Demand(memory, 1.0),
    )


def machine_of(*tasks: Task) -> Machine:
    source = Source({"model.onnx": FileRef(Digest("1" * 64), 1)})
    return Machine(Plan(tasks), sources={MODEL: source}, toolchains=TOOLCHAINS)


def task_file(machine: Machine, start: TaskStart, threads: int) -> TaskFile:
    return TaskFile(
        id=start.task,
        operation="arcl",
        key=start.key,
        code_version=1,
        config=machine.tasks[start.task].config.model_dump(mode="json"),
        inputs={
            name: {
                path: TaskFileInput(sha256=file.sha256, size=file.size)
                for path, file in files.items()
            }
            for name, files in start.inputs.items()
        },
        toolchain=Toolchain(id=ID, versions={}),
        threads=threads,
    )


def commit(store: DirectoryStore, task: TaskFile) -> None:
    """What a worker does: blobs, then the record."""
    blob = store.put_bytes(f"output of {task.key}".encode())
    store.commit(record_of_task(task, {"file": blob}))


Ending = GenAIError | int | None
"""An error in the result file, an exit status without one, or success."""


@dataclass
class ScriptedPool:
    """Ends each attempt as the script says; without a script it succeeds."""

    store: DirectoryStore
    script: dict[str, list[Ending]]
    ran: list[str] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    most: int = 0
    pids: dict[int, int | None] = field(default_factory=dict)
    waiting: list[tuple[int, Job, TaskFile]] = field(default_factory=list)
    hold: Callable[[], bool] = lambda: False

    def submit(self, job: Job) -> int:
        parsed = TaskFile.model_validate_json(job.task.read_text())
        number = len(self.ran) + 1
        self.ran.append(parsed.id)
        self.threads.append(parsed.threads)
        self.waiting.append((number, job, parsed))
        self.most = max(self.most, len(self.waiting))
        return number

    def poll(self, seconds: float) -> list[WorkerEnd]:
        if not self.waiting or self.hold():
            time.sleep(min(seconds, 0.01))
            return []
        number, job, parsed = self.waiting.pop(0)
        script = self.script.get(parsed.id)
        ending = script.pop(0) if script else None
        job.log.write_text(f"log of {parsed.id}")
        if isinstance(ending, int):
            return [WorkerEnd(number, ending, 5)]
        if ending is not None:
            result = TaskResult(
                id=parsed.id,
                outcome="failed",
                error=ending.as_dict(),
                exit_code=ending.exit_code,
            )
        else:
            commit(self.store, parsed)
            result = TaskResult(id=parsed.id, outcome="run", seconds=1.0, warnings=["beware"])
        job.result.write_text(result.model_dump_json(exclude_none=True))
        return [WorkerEnd(number, result.exit_code, 5)]

    def close(self) -> None:
        self.waiting.clear()


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


Build = Callable[..., tuple[LocalRun, ScriptedPool, Machine, list[Event]]]
Kind = TypeVar("Kind", bound=Event)


@pytest.fixture
def build(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Build]:
    works: list[WorkFolder] = []
    monkeypatch.setattr("time.sleep", lambda _seconds: None)

    def start(
        *tasks: Task,
        script: dict[str, list[Ending]] | None = None,
        jobs: int = 2,
        hold: Callable[[], bool] = lambda: False,
        further: DirectoryStore | None = None,
    ) -> tuple[LocalRun, ScriptedPool, Machine, list[Event]]:
        events: list[Event] = []
        works.append(WorkFolder(store))
        shown = LayeredStore(store, [further]) if further is not None else store
        run = LocalRun(shown, works[-1], jobs, task_file, events.append)
        pool = ScriptedPool(store, script or {}, hold=hold)
        run.pool = pool  # type: ignore[assignment]
        machine = machine_of(*tasks)
        try:
            run.drive(machine, machine.begin())
        finally:
            run.close()
        return run, pool, machine, events

    yield start
    for work in works:
        work.close()


def of(events: list[Event], kind: type[Kind]) -> list[Kind]:
    return [event for event in events if isinstance(event, kind)]


CHAIN = (task("a"), task("b", "a"), task("c", "b"))
WIDE = (task("w"), *(task(f"x{n}", "w") for n in range(6)))


def test_every_task_runs_once_and_then_never_again(build: Build, store: DirectoryStore) -> None:
    run, pool, _, events = build(*CHAIN)
    assert pool.ran == ["a", "b", "c"]
    assert run.ran == {"a", "b", "c"}
    assert [event.id for event in of(events, TaskDone)] == ["a", "b", "c"]
    assert list(run.warnings) == ["beware"]
    run, pool, _, events = build(*CHAIN)
    assert pool.ran == []
    assert [event.id for event in of(events, TaskCached)] == ["a", "b", "c"]
    assert run.cached == {"a", "b", "c"}


def test_no_more_tasks_at_once_than_jobs(build: Build) -> None:
    _, pool, _, _ = build(*WIDE, jobs=3)
    assert pool.most == 3


def test_no_more_tasks_at_once_than_fit_in_memory(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "available_bytes", lambda: 1000)
    tasks = (task("w"), *(task(f"x{n}", "w", memory=400) for n in range(4)))
    _, pool, _, events = build(*tasks, jobs=8)
    assert pool.most == 2
    waits = of(events, TaskWaiting)
    assert len(waits) == len({event.id for event in waits}) == 2
    assert "memory" in waits[0].why


def test_cores_are_shared_among_tasks_that_run_together(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "cpu_count", lambda: 8)
    _, pool, _, _ = build(*WIDE, jobs=4)
    assert pool.threads[0] == 8
    assert pool.threads[1:5] == [2, 2, 2, 2]


def test_bad_input_is_final_and_stops_what_depends_on_it(
    build: Build, store: DirectoryStore
) -> None:
    error = BadModel("node has no name", where="model.onnx", remedy="export it again")
    run, pool, machine, events = build(*CHAIN, task("z"), script={"b": [error]})
    assert pool.ran.count("b") == 1
    assert "c" not in pool.ran
    assert machine.states[TaskId("z")] is TaskState.DONE
    (failed,) = of(events, TaskFailed)
    assert failed.id == "b"
    assert str(failed.error) == str(error)
    assert failed.error.exit_code == 2
    assert failed.log is not None
    assert failed.log.read_text() == "log of b"
    assert run.failures == {"b": failed}


def test_killed_worker_gets_a_second_try_alone(build: Build) -> None:
    run, pool, _, events = build(*WIDE, script={"x2": [-signal.SIGKILL]}, jobs=3)
    assert pool.ran.count("x2") == 2
    assert len(pool.ran) == 8
    assert [e.attempt for e in of(events, TaskStarted) if e.id == "x2"] == [1, 2]
    assert any("memory" in e.message for e in of(events, BuildWarning))
    assert not run.failures


def test_several_workers_that_were_killed_get_a_second_try(build: Build) -> None:
    killed: dict[str, list[Ending]] = {name: [-signal.SIGKILL] for name in ("x1", "x2", "x3")}
    run, pool, _, _ = build(*WIDE, script=killed, jobs=3)
    assert [pool.ran.count(name) for name in killed] == [2, 2, 2]
    assert not run.failures


def test_worker_killed_twice_has_failed(build: Build) -> None:
    run, pool, _, _ = build(*CHAIN, script={"a": [-signal.SIGKILL, -signal.SIGKILL]})
    assert pool.ran == ["a", "a"]
    assert "killed twice" in run.failures[TaskId("a")].error.message


def test_crash_is_tried_once_more(build: Build) -> None:
    run, pool, _, _ = build(task("a"), script={"a": [-signal.SIGSEGV]})
    assert pool.ran == ["a", "a"]
    assert not run.failures
    run, pool, _, _ = build(task("b"), script={"b": [-signal.SIGSEGV, -signal.SIGSEGV]})
    assert "SIGSEGV" in run.failures[TaskId("b")].error.message


def test_out_of_memory_inside_python_is_tried_alone(build: Build) -> None:
    run, pool, _, _ = build(task("a"), script={"a": [OutOfMemory("it was out of memory")]})
    assert pool.ran == ["a", "a"]
    assert not run.failures


def test_worker_that_leaves_no_result_has_failed(build: Build) -> None:
    run, pool, _, _ = build(task("a"), script={"a": [1]})
    assert pool.ran == ["a"]
    assert "exit code 1" in run.failures[TaskId("a")].error.message


def test_store_that_does_not_answer_is_tried_again(build: Build) -> None:
    run, pool, _, _ = build(task("a"), script={"a": [StoreUnavailable("busy")] * 3})
    assert len(pool.ran) == 4
    assert not run.failures
    run, pool, _, _ = build(task("b"), script={"b": [StoreUnavailable("busy")] * 9})
    assert len(pool.ran) == 4
    assert run.failures[TaskId("b")].error.code == "StoreNotReady"


def test_task_whose_record_is_removed_again_and_again_has_failed(
    build: Build, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody empties the store as fast as it is filled."""
    monkeypatch.setattr(store, "get_record", lambda *_: None)
    run, pool, _, events = build(task("a"))
    assert pool.ran == ["a"] * 4
    error = run.failures[TaskId("a")].error
    assert "is gone as soon as it was written" in error.message
    assert len(of(events, BuildWarning)) == 3, "each try is told"


def test_full_disk_ends_the_build(build: Build) -> None:
    with pytest.raises(NoSpace, match="no room"):
        build(*CHAIN, script={"a": [NoSpace("no room", where="/store")]})


def test_lost_blob_is_made_again(build: Build, store: DirectoryStore) -> None:
    build(*CHAIN)
    stored = store.get_record("arcl", key_of("b"))
    assert stored is not None
    lost = next(iter(stored.record.outputs.values()))
    forget(store, "c")

    def worker_finds_it_wrong() -> bool:
        store.delete_blob(lost.sha256)
        return False

    run, pool, _, events = build(
        *CHAIN, script={"c": [CorruptBlob("wrong bytes")]}, hold=worker_finds_it_wrong
    )
    assert not run.failures
    assert pool.ran[0] == "c"
    assert "b" in pool.ran
    assert "a" not in pool.ran
    assert any("made again" in e.message for e in of(events, BuildWarning))


def test_build_goes_on_when_all_that_it_made_is_lost(build: Build, store: DirectoryStore) -> None:
    lost: list[Digest] = []

    def wiped_once_c_runs() -> bool:
        if not lost and store.get_record("arcl", key_of("b")) is not None:
            lost.extend(stat.sha256 for stat in list(store.list_blobs()))
            for digest in lost:
                store.delete_blob(digest)
        return False

    missing = CorruptBlob("missing")
    script: dict[str, list[Ending]] = {"b": [None, missing], "c": [missing]}
    run, pool, machine, _ = build(*CHAIN, script=script, hold=wiped_once_c_runs)
    assert pool.ran == ["a", "b", "c", "b", "a", "b", "c"]
    assert not run.failures
    assert machine.states[TaskId("c")] is TaskState.DONE
    assert all(store.head_blob(digest) is not None for digest in lost)


def test_task_that_loses_its_input_again_and_again_has_failed(build: Build) -> None:
    run, pool, _, _ = build(*CHAIN, script={"b": [CorruptBlob("missing")] * 9})
    assert pool.ran.count("b") == 2
    assert run.failures[TaskId("b")].error.code == "CorruptBlob"


def key_of(name: str) -> Key:
    machine = machine_of(*CHAIN)
    looks = list(machine.begin())
    while looks:
        look = looks.pop()
        if look.task == name:
            return look.key
        looks += machine.handle(found(look.task, look.key))
    raise AssertionError(name)


def found(name: TaskId, key: Key) -> FoundResult:
    text = f"output of {key}".encode()
    return FoundResult(name, Result({"file": FileRef(digest_bytes(text), len(text))}))


def forget(store: DirectoryStore, name: str) -> None:
    ref = next(r for r in store.list_records("arcl") if r.key == key_of(name))
    store.delete_record(ref)


def test_task_that_another_process_runs_is_waited_for(
    build: Build, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_ELSEWHERE_SECONDS", 0.05)
    lock = KeyLock(store.scratch / "locks", key_of("a"))
    assert lock.acquire()

    def other_process() -> None:
        threading.Event().wait(0.4)
        commit(store, first_task_file())
        lock.release()

    thread = threading.Thread(target=other_process)
    thread.start()
    run, pool, _, events = build(*CHAIN)
    thread.join()
    assert pool.ran == ["b", "c"]
    assert run.cached == {"a"}
    assert [e.id for e in of(events, TaskWaiting)] == ["a"]


def test_what_turns_up_in_a_further_store_is_brought_to_where_workers_read(
    build: Build, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The other process gave up, and meanwhile a colleague has ended the same task."""
    monkeypatch.setattr(local, "_ELSEWHERE_SECONDS", 0.05)
    further = DirectoryStore(tmp_path / "further")
    lock = KeyLock(store.scratch / "locks", key_of("a"))
    assert lock.acquire()

    def others() -> None:
        threading.Event().wait(0.4)
        commit(further, first_task_file())
        lock.release()

    thread = threading.Thread(target=others)
    thread.start()
    _, pool, _, _ = build(*CHAIN, further=further)
    thread.join()
    assert pool.ran == ["b", "c"]
    assert store.get_record("arcl", key_of("a")) is not None


def test_task_whose_other_process_gave_up_is_run_here(
    build: Build, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_ELSEWHERE_SECONDS", 0.05)
    lock = KeyLock(store.scratch / "locks", key_of("a"))
    assert lock.acquire()
    thread = threading.Timer(0.3, lock.release)
    thread.start()
    _, pool, _, _ = build(*CHAIN)
    thread.join()
    assert pool.ran == ["a", "b", "c"]


def first_task_file() -> TaskFile:
    """The chain's first task, as another process would be given it."""
    return TaskFile(
        id="a",
        operation="arcl",
        key=key_of("a"),
        code_version=1,
        config=CHAIN[0].config.model_dump(mode="json"),
        inputs={"source": {"model.onnx": TaskFileInput(sha256="1" * 64, size=1)}},
        toolchain=Toolchain(id=ID, versions={}),
    )


def test_nothing_is_left_in_the_scratch(
    build: Build, store: DirectoryStore, tmp_path: Path
) -> None:
    run, _, _, _ = build(*CHAIN, script={"b": [BadModel("no")]})
    run.work.close()
    left = [p.relative_to(store.root).parts[0] for p in store.root.rglob("*") if p.is_file()]
    assert set(left) <= {"blobs", "records", "model", "logs"}
    assert json.loads(next((store.root / "records").rglob("*.json")).read_text())
