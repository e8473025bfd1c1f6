"""Real builds of a tiny model: repeated, damaged, interrupted, killed, two at once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from genai_cli.engine import run as local
from genai_cli.engine import workers
from genai_cli.engine.events import Event, PlanReady, TaskDone, TaskStarted
from genai_cli.engine.local_engine import plan_build, run_plan
from genai_core.errors import (
    BadEncodings,
    GenAIError,
    InvalidSpec,
    NotRunnableHere,
    UnknownTarget,
)
from genai_core.kinds.build import BuildSpec
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.location import open_store
from genai_core.store.protocol import Hit

SOURCE = Path(__file__).parents[1] / "fixtures" / "architectures" / "llama"
SPEC = {
    "model": {"source": "model"},
    "targets": ["cpu"],
    "graphs": {"autoRegression": [1, 8], "contextLengths": [64]},
    "quantization": {"gaps": "Float", "fidelity": {"budgetNats": 0.01}},
}
TASKS = 5  # ingest, convert, compile, fidelity, package

# The engine as a program of its own: prints an event a line, ends with the code that `genai` does.
PROGRAM = """
import json, sys
from pathlib import Path
from genai_cli.engine.local_engine import plan_build, run_plan
from genai_core.errors import GenAIError
from genai_core.kinds.build import BuildSpec
from genai_core.store.location import open_store
base, store, spec = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
def tell(event):
    name = type(event).__name__
    if name != "MemorySampled":
        print(json.dumps([name, getattr(event, "id", "")]), flush=True)
try:
    planned = plan_build(BuildSpec.model_validate(spec), base, open_store(store), name="b")
    result = run_plan(planned, on_event=tell)
except GenAIError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
heavy = sorted({"numpy", "onnx", "onnx_ir", "onnxruntime", "boto3"} & sys.modules.keys())
print(json.dumps(["Result", result.run, result.cached, heavy]), flush=True)
"""


@pytest.fixture(autouse=True)
def private_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model and a store in which it is built."""
    root = tmp_path_factory.mktemp("built")
    copy_model(root)
    planned = plan_build(BuildSpec.model_validate(SPEC), root, DirectoryStore(root / "store"))
    result = run_plan(planned)
    assert result.failures == ()
    assert (result.total, result.run, result.cached) == (TASKS, TASKS, 0)
    assert result.peak_memory_bytes > 50_000_000
    return root


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """A private copy of it, since tests damage theirs."""
    shutil.copytree(built, tmp_path / "copy", copy_function=os.link)
    return tmp_path / "copy"


def copy_model(root: Path) -> None:
    (root / "model").mkdir(parents=True)
    for name in ("model.onnx", "config.json"):
        shutil.copy(SOURCE / name, root / "model" / name)


def build(root: Path, **spec: object) -> tuple[list[str], list[Event]]:
    """Build again; returns the tasks that ran."""
    events: list[Event] = []
    wanted = BuildSpec.model_validate(SPEC | spec)
    planned = plan_build(wanted, root, DirectoryStore(root / "store"), name="again")
    result = run_plan(planned, on_event=events.append)
    assert result.failures == ()
    assert list(result.containers) == ["cpu"]
    return [event.id for event in events if isinstance(event, TaskDone)], events


def test_unchanged_build_starts_no_worker(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(workers.WorkerPool, "_start", refuse)
    ran, events = build(built)
    assert ran == []
    (ready,) = [event for event in events if isinstance(event, PlanReady)]
    assert ready.complete
    assert len(ready.tasks) == TASKS
    assert all(task.cached for task in ready.tasks)


def test_names_of_build_and_files_and_order_of_fields_change_nothing(copy: Path) -> None:
    (copy / "model" / "model.onnx").rename(copy / "model" / "another name.onnx")
    (copy / "model").rename(copy / "moved")
    reordered = dict(reversed(SPEC.items())) | {"model": {"source": "moved"}}
    reordered["graphs"] = {"contextLengths": [64], "autoRegression": [8, 1]}
    ran, _ = build(copy, **reordered)
    assert ran == []


def test_deleted_entry_runs_again_alone(copy: Path) -> None:
    (entry,) = (copy / "store").glob("*/convert_*")
    shutil.rmtree(entry)
    ran, _ = build(copy)
    assert ran == ["convert/cpu/float_1_of_1"]
    assert len(list((copy / "store").glob("*/convert_*"))) == 1


def test_flipped_byte_is_never_served_and_is_built_again(copy: Path) -> None:
    store = DirectoryStore(copy / "store")
    (compiled,) = list(store.list_records("compile"))
    record = store.get_record("compile", compiled.key)
    assert record is not None
    output = record.record.outputs["model.onnx"]
    blob = store.blob_path(output.sha256)
    text = bytearray(blob.read_bytes())
    text[len(text) // 2] ^= 1
    blob.unlink()
    blob.write_bytes(text)
    for operation in ("package", "fidelity"):
        (ref,) = list(store.list_records(operation))
        store.delete_record(ref)
    ran, _ = build(copy)
    assert sorted(ran) == ["compile/cpu/float", "fidelity/cpu/float", "package/cpu/float"]
    assert store.check_blob(output) is None


def test_other_budget_with_the_same_verdict_packs_nothing_again(copy: Path) -> None:
    ran, events = build(copy, quantization={"gaps": "Float", "fidelity": {"budgetNats": 0.02}})
    assert ran == ["fidelity/cpu/float"]
    ready = next(event for event in events if isinstance(event, PlanReady))
    by_id = {task.id: task for task in ready.tasks}
    assert by_id["compile/cpu/float"].cached
    assert not by_id["fidelity/cpu/float"].cached
    last = [event for event in events if isinstance(event, PlanReady)][-1]
    assert all(task.cached for task in last.tasks)


def test_what_another_store_has_is_taken_from_there(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built / "model", tmp_path / "model")
    own = tmp_path / "store"

    def run() -> list[str]:
        events: list[Event] = []
        store = open_store(own, read_from=[built / "store"])
        planned = plan_build(BuildSpec.model_validate(SPEC), tmp_path, store, name="b")
        result = run_plan(planned, on_event=events.append)
        assert result.failures == ()
        assert list(result.containers) == ["cpu"]
        return [event.id for event in events if isinstance(event, TaskDone)]

    assert run() == []
    assert len(list(DirectoryStore(own).list_records())) == TASKS
    # What it has taken is its own: work can go on from it, the other store gone.
    planned = plan_build(
        BuildSpec.model_validate(SPEC | {"golden": {"prompts": [], "maxTokens": 3}}),
        tmp_path,
        DirectoryStore(own),
        name="b",
    )
    result = run_plan(planned)
    assert (result.run, result.cached, result.failures) == (1, TASKS - 1, ())


def test_reasons_name_what_differs(copy: Path) -> None:
    wanted = SPEC | {"quantization": {"gaps": "Float", "fidelity": {"budgetNats": 0.02}}}
    planned = plan_build(
        BuildSpec.model_validate(wanted), copy, DirectoryStore(copy / "store"), name="again"
    )
    why = {task.id: task.why for task in planned.ready.tasks}
    assert why["fidelity/cpu/float"] == "budget_nats is 0.02, not 0.01"
    assert why["package/cpu/float"] == "follows from fidelity/cpu/float"
    assert str(copy / "store") in why["ingest"]


def test_changed_library_runs_everything_again(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from genai_core.tasks import toolchain

    real = toolchain.version_of
    monkeypatch.setattr(
        toolchain, "version_of", lambda name: "9.9" if name == "onnx-ir" else real(name)
    )
    planned = plan_build(
        BuildSpec.model_validate(SPEC), copy, DirectoryStore(copy / "store"), name="b"
    )
    assert not any(task.cached for task in planned.ready.tasks)
    assert "onnx-ir is 9.9" in planned.ready.tasks[0].why


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"targets": ["sm8570"]}, UnknownTarget, "sm8750"),
        ({"targets": ["sm8750", "chipset:SM8750"]}, InvalidSpec, "mean the same"),
        ({"quantization": {}}, BadEncodings, "gaps: Float"),
        ({"targets": ["sm8750"], "splits": {"count": 40}}, InvalidSpec, "the maximum is"),
        ({"model": {"source": "nowhere"}}, GenAIError, "no such folder"),
        ({"model": {"source": "pvc://claim/model"}}, InvalidSpec, "claim"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(
    tmp_path: Path, change: dict[str, object], kind: type[GenAIError], words: str
) -> None:
    copy_model(tmp_path)
    with pytest.raises(kind, match=words) as raised:
        plan_build(
            BuildSpec.model_validate(SPEC | change), tmp_path, DirectoryStore(tmp_path / "store")
        )
    assert raised.value.exit_code == 2
    assert not (tmp_path / "store").exists()


def program(root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(root), str(root / "store"), json.dumps(SPEC)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(process: subprocess.Popen[str], *wanted: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)[: len(wanted)] == list(wanted):
            return
    raise AssertionError(f"{wanted} never came: {process.stderr and process.stderr.read()}")


def descendants(pid: int) -> list[int]:
    children = [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    return children + [d for child in children for d in descendants(child)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def started(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str], list[int]]]:
    """A build in a process of its own whose first worker is at work."""
    copy_model(tmp_path)
    process = program(tmp_path)
    until(process, "TaskStarted", "ingest")
    deadline = time.monotonic() + 60
    while len(descendants(process.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    yield tmp_path, process, descendants(process.pid)
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_build_leaves_no_process_and_nothing_half_written(
    started: tuple[Path, subprocess.Popen[str], list[int]], number: signal.Signals
) -> None:
    root, process, workers = started
    process.send_signal(number)
    assert process.wait(timeout=30) == 130
    assert not any(map(alive, workers))
    store = root / "store"
    assert list((store / "tmp").glob("engine-*")) == []
    opened = DirectoryStore(store)
    for ref in opened.list_records():
        assert isinstance(opened.lookup(ref.operation, ref.key), Hit)


def test_killed_build_leaves_no_process_and_the_next_one_clears_up(
    started: tuple[Path, subprocess.Popen[str], list[int]],
) -> None:
    root, process, workers = started
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))
    scratch = root / "store" / "tmp"
    assert list(scratch.glob("engine-*"))
    ran, _ = build(root)
    assert len(ran) == TASKS
    assert list(scratch.glob("engine-*")) == []
    assert list((scratch / "locks").iterdir()) == []


def test_two_builds_at_once_run_each_task_once(tmp_path: Path) -> None:
    copy_model(tmp_path)
    both = [program(tmp_path), program(tmp_path)]
    outputs = [process.communicate(timeout=240) for process in both]
    lines = [[json.loads(line) for line in out.splitlines()] for out, _ in outputs]
    assert [process.returncode for process in both] == [0, 0], [err for _, err in outputs]
    done = [line[1] for out in lines for line in out if line[0] == "TaskDone"]
    assert sorted(done) == sorted(set(done))
    assert len(done) == TASKS
    results = [out[-1] for out in lines]
    assert sum(result[1] for result in results) == TASKS
    again = program(tmp_path)
    out, _ = again.communicate(timeout=60)
    assert json.loads(out.splitlines()[-1]) == ["Result", 0, TASKS, []]
    assert [json.loads(line)[0] for line in out.splitlines()].count(TaskStarted.__name__) == 0


def test_waiting_for_another_build_is_short() -> None:
    assert local._ELSEWHERE_SECONDS <= 1.0


def test_missing_library_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genai_core.tasks import toolchain

    copy_model(tmp_path)
    real = toolchain.version_of
    monkeypatch.setattr(
        toolchain,
        "version_of",
        lambda name: toolchain.ABSENT if name == "onnxruntime-qnn" else real(name),
    )
    wanted = SPEC | {
        "targets": ["sm8750"],
        "graphs": {"contextLengths": [64], "autoRegression": [1, 8]},
    }
    planned = plan_build(
        BuildSpec.model_validate(wanted), tmp_path, DirectoryStore(tmp_path / "store")
    )
    with pytest.raises(NotRunnableHere, match="onnxruntime-qnn") as raised:
        run_plan(planned)
    assert raised.value.exit_code == 2
    assert not (tmp_path / "store").exists()
