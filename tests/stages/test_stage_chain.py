"""Chains as a pod runs them: each task committed by itself, nothing fetched that lies there."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from genai_core.errors import BadModel
from genai_core.names import Digest, Key
from genai_core.operations import operation_of
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.protocol import Hit
from genai_core.tasks.chain import ChainFile, ChainStep, MadeFiles, StepCondition, task_file
from genai_core.tasks.keys import task_key
from genai_core.tasks.record import Blob, Record
from genai_core.tasks.task_file import TaskFile, TaskFileInput, Toolchain, pack
from genai_core.tasks.toolchain import toolchain_of
from genai_stages.stage import Context, Inputs, StageResult
from genai_stages.worker import job, runner
from genai_stages.worker.chain import run_chain

SECONDS = 60
"""Long enough for what happens at once, on any machine."""
CONFIGS: dict[str, dict[str, Any]] = {
    "arcl": {"graph": {"ar": 1, "cl": 2}},
    "transform": {
        "graph": {"ar": 1, "cl": 2},
        "split": {
            "index": 1, "count": 1, "first": 0, "last": 1, "embedding": True, "lm_head": True,
        },
    },
    "fidelity": {"backend": "Cpu"},
}  # fmt: skip


class Stages:
    """Operations that write what they read, in upper case, and count what was asked of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[str] = []
        self.fails = ""
        for name in CONFIGS:
            module = ModuleType(name)
            module.run = self.operation(name)  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, f"genai_stages.operations.{name}", module)

    def operation(self, name: str) -> Any:
        def run(inputs: Inputs, _config: Any, out: Path, _context: Context) -> StageResult:
            self.ran.append(name)
            if self.fails == name:
                raise BadModel("no good", where="model.onnx")
            read = [
                path.read_text()
                for folder in sorted(inputs)
                for path in sorted(inputs[folder].rglob("*.txt"))
            ]
            (out / "a.txt").write_text(name + "".join(read).upper())
            (out / "b.bin").write_bytes(name.encode() * 3)
            return StageResult(facts={"within": name != "fidelity"})

        return run


class CountingStore(DirectoryStore):
    """Knows what was fetched from it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.fetched: list[str] = []

    def fetch_blob(self, blob: Blob, dest: Path, *, shared: bool = False) -> None:
        self.fetched.append(dest.name)
        super().fetch_blob(blob, dest, shared=shared)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    return Stages(monkeypatch)


@pytest.fixture
def store(tmp_path: Path) -> CountingStore:
    return CountingStore(tmp_path / "store")


def toolchain(operation: str) -> Toolchain:
    return toolchain_of(operation_of(operation))


def chain(store: DirectoryStore, *, when: StepCondition | None = None) -> ChainFile:
    blob = store.put_bytes(b"seed")
    seed = TaskFileInput(sha256=blob.sha256, size=blob.size)
    inputs = {"model": {"seed.txt": seed}}
    key = task_key(
        "arcl", operation_of("arcl").code_version, toolchain_id=Digest(toolchain("arcl").id),
        config=CONFIGS["arcl"], inputs={"model": {"seed.txt": blob.sha256}},
    )  # fmt: skip
    first = TaskFile(
        id="arcl/x", operation="arcl", key=key, code_version=operation_of("arcl").code_version,
        config=CONFIGS["arcl"], inputs=inputs, toolchain=toolchain("arcl"),
    )  # fmt: skip
    steps = [
        ChainStep(
            id=f"{name}/x", operation=name, code_version=operation_of(name).code_version,
            config=CONFIGS[name], inputs=inputs, toolchain=toolchain(name),
            made={"made": (MadeFiles(step=number, patterns=("*.txt",)),)},
            when=when if name == "fidelity" else None,
        )
        for number, name in enumerate(("transform", "fidelity"))
    ]  # fmt: skip
    return ChainFile(first=first, then=tuple(steps))


def run(chain: ChainFile, store: DirectoryStore, scratch: Path) -> list[tuple[int, str]]:
    scratch.mkdir()
    begun: list[tuple[int, str]] = []
    run_chain(chain, store, scratch, begin=lambda number, name: begun.append((number, name)))
    return begun


def test_a_chain_leaves_what_its_tasks_leave_one_by_one(
    stages: Stages, store: CountingStore, tmp_path: Path
) -> None:
    document = chain(store)
    begun = run(document, store, tmp_path / "scratch")
    assert begun == [(0, "arcl/x"), (1, "transform/x"), (2, "fidelity/x")]
    assert stages.ran == ["arcl", "transform", "fidelity"]
    assert store.fetched == ["seed.txt"], "the rest lay there"

    alone = DirectoryStore(tmp_path / "other")
    records: list[Record] = []
    one = chain(alone)
    for number, step in enumerate((None, *one.then)):
        task = task_file(step, one, records) if step else one.first
        (tmp_path / f"alone{number}").mkdir()
        runner.run_task(task, alone, tmp_path / f"alone{number}")
        found = alone.lookup(task.operation, Key(task.key))
        assert isinstance(found, Hit)
        records.append(found.record)
    assert {r.key: r.identities() for r in records} == {
        ref.key: hit.record.identities()
        for ref in store.list_records()
        if isinstance(hit := store.lookup(ref.operation, ref.key), Hit)
    }


def test_the_disk_holds_only_what_a_later_task_reads(
    stages: Stages, store: CountingStore, tmp_path: Path
) -> None:
    del stages
    held: list[set[str]] = []
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    def begin(_number: int, _name: str) -> None:
        held.append({p.read_text() for p in scratch.rglob("*") if p.is_file()})

    run_chain(chain(store), store, scratch, begin=begin)
    assert held[0] == set()
    assert "seed" in held[1]
    assert "arclarclarcl" in held[1], "any file of a maker that is read from may be wanted"
    assert "arclarclarcl" not in held[2], "the last task reads from the second alone"
    assert not [path for path in scratch.rglob("*") if path.is_file()]


def test_a_killed_chain_goes_on_with_the_first_that_has_no_record(
    stages: Stages, store: CountingStore, tmp_path: Path
) -> None:
    document = chain(store)
    stages.fails = "transform"
    with pytest.raises(BadModel):
        run(document, store, tmp_path / "one")
    stages.fails = ""
    run(document, store, tmp_path / "two")
    assert stages.ran == ["arcl", "transform", "transform", "fidelity"]


def test_what_is_not_wanted_is_not_run(
    stages: Stages, store: CountingStore, tmp_path: Path
) -> None:
    document = chain(store, when=StepCondition(step=0, within=False))
    assert len(run(document, store, tmp_path / "scratch")) == 2
    assert stages.ran == ["arcl", "transform"]


def test_a_file_that_was_not_made_is_named(
    stages: Stages, store: CountingStore, tmp_path: Path
) -> None:
    del stages
    document = chain(store)
    step = document.then[0].model_copy(
        update={"made": {"made": (MadeFiles(step=0, patterns=("c.txt",)),)}}
    )
    broken = document.model_copy(update={"then": (step,)})
    with pytest.raises(Exception, match=r"transform/x: arcl left no c\.txt"):
        run(broken, store, tmp_path / "scratch")


@pytest.fixture
def pod(store: CountingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Run a document as a Job; returns exit code and termination message."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("GENAI_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("GENAI_SCRATCH", str(tmp_path / "scratch"))

    def run_job(document: ChainFile) -> tuple[int, dict[str, Any]]:
        monkeypatch.setenv("GENAI_TASK", pack(document))
        code = job.run_job(tmp_path / "words")
        return code, json.loads((tmp_path / "words").read_text())

    yield run_job
    assert not list((tmp_path / "scratch").iterdir()), "scratch was left behind"


def test_a_failure_names_its_task_and_its_place(
    stages: Stages, store: CountingStore, pod: Any
) -> None:
    stages.fails = "transform"
    code, words = pod(chain(store))
    assert (code, words["step"], words["task"]) == (2, 1, "transform/x")
    assert words["error"]["where"] == "model.onnx"
    assert store.head_blob(words["log"]) is not None
    stages.fails = ""
    code, words = pod(chain(store))
    assert (code, words["outcome"], words["step"]) == (0, "run", 2)
    assert pod(chain(store))[1]["outcome"] == "cached"


def test_a_task_that_hangs_is_ended_by_name(
    stages: Stages, store: CountingStore, pod: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    del stages
    monkeypatch.setenv("GENAI_TASK_SECONDS", "1")
    hanging, left = threading.Event(), threading.Event()
    ended: list[tuple[int, dict[str, Any]]] = []

    class Alarm(threading.Timer):
        """Its second is over once a task hangs, however long those before it took."""

        def run(self) -> None:
            assert self.interval == 1
            if hanging.wait(SECONDS) and not self.finished.is_set():
                self.function()

    def leave(code: int) -> None:
        ended.append((code, json.loads((tmp_path / "words").read_text())))
        left.set()

    def hang(_inputs: Inputs, _config: Any, _out: Path, _context: Context) -> StageResult:
        hanging.set()
        assert left.wait(SECONDS)
        return StageResult()

    monkeypatch.setattr(threading, "Timer", Alarm)
    monkeypatch.setattr(os, "_exit", leave)
    slow = ModuleType("slow")
    slow.run = hang  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "genai_stages.operations.transform", slow)
    pod(chain(store))
    code, words = ended[0]  # the process is gone then
    assert (code, words["task"], words["step"]) == (1, "transform/x", 1)
    assert "activeDeadlineSeconds" in words["error"]["message"]


def test_run_task_commits_nothing_when_the_user_s_file_changed_meanwhile(
    stages: Stages, store: CountingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that read half of the old file and half of the new must not become an artifact."""
    source = tmp_path / "seed.txt"
    source.write_text("seed")
    task = chain(store).first
    file = task.inputs["model"]["seed.txt"].model_copy(update={"path": str(source)})
    task = task.model_copy(update={"inputs": {"model": {"seed.txt": file}}})
    plain = sys.modules["genai_stages.operations.arcl"].run

    def changing(*given: Any) -> StageResult:
        result: StageResult = plain(*given)
        source.write_text("SEED, longer")
        return result

    monkeypatch.setattr(sys.modules["genai_stages.operations.arcl"], "run", changing)
    (tmp_path / "scratch").mkdir()
    with pytest.raises(BadModel, match=r"seed\.txt: it changed while"):
        runner.run_task(task, store, tmp_path / "scratch")
    assert not isinstance(store.lookup("arcl", Key(task.key)), Hit)
    monkeypatch.setattr(sys.modules["genai_stages.operations.arcl"], "run", plain)
    source.write_text("seed")
    (tmp_path / "again").mkdir()
    assert runner.run_task(task, store, tmp_path / "again").outcome == "run"
    assert stages.ran == ["arcl", "arcl"]
