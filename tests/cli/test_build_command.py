"""`genai build`, `graph` and `replay` on a small float model: real processes, real stages."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from genai_cli.engine.leases import Claim
from genai_cli.testing import InProcess, Program, Ran, environment
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.tasks.record import Output

MODEL = Path(__file__).parents[1] / "fixtures" / "architectures" / "llama"
BUILD = """\
apiVersion: genai-operator.dev/v1alpha1
kind: GenAIBuild
metadata: {name: small}
spec:
  model: {source: models/llama}
  targets: [cpu]
  graphs: {contextLengths: [32]}
  quantization: {gaps: Float, cpuPrecision: Float}
"""
OPERATIONS = ["ingest", "convert", "compile", "fidelity", "package"]


def prepared(folder: Path) -> Path:
    """A user's folder: the model, the spec."""
    model = folder / "models" / "llama"
    model.mkdir(parents=True)
    for name in ("model.onnx", "config.json"):
        shutil.copy(MODEL / name, model / name)
    (folder / "b.yaml").write_text(BUILD)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def first(home: Path) -> Ran:
    """The first build, with nothing in the store."""
    return Program(home).ok("build", "-f", "b.yaml", "--json", "-j", "1")


@pytest.fixture
def call(home: Path, first: Ran) -> InProcess:
    """`genai` where the first build has been."""
    assert first.code == 0
    return InProcess(home)


def entries(home: Path) -> dict[str, Path]:
    """The entries' folders by operation."""
    store = home / ".cache" / "genai-operator" / "store"
    found = {path.name.split("_")[0]: path for path in store.glob("*/*_*") if path.is_dir()}
    return {name: path for name, path in found.items() if name in OPERATIONS}


def test_a_build_ends_with_its_containers(first: Ran, home: Path) -> None:
    value = first.json
    assert value["name"] == "small"
    assert value["tasks"] == {"total": 5, "run": 5, "cached": 0, "failed": 0}
    assert value["seconds"] > 0
    assert value["peakMemoryBytes"] > 10**7
    (container,) = value["containers"].values()
    path = home / "containers" / "small" / "cpu"
    assert container["path"] == str(path)
    assert container["revision"].startswith("sha256:")
    sizes = [file.stat().st_size for file in path.rglob("*") if file.is_file()]
    assert container["sizeBytes"] == sum(sizes)
    (warning,) = value["warnings"]
    assert warning.startswith("the model has no tokenizer.json")
    assert first.errors == []
    assert "done     package/cpu/float" in first.err


def test_the_default_store_is_in_the_user_s_cache(first: Ran, home: Path) -> None:
    assert first.code == 0
    assert set(entries(home)) == set(OPERATIONS)


def test_again_nothing_runs_and_the_container_stays(first: Ran, home: Path) -> None:
    container = home / "containers" / "small" / "cpu"
    before = container.stat()
    ran = Program(home).ok("build", "-f", "b.yaml", "--json")
    assert ran.json["tasks"] == {"total": 5, "run": 0, "cached": 5, "failed": 0}
    assert ran.json["warnings"] == first.json["warnings"]
    (again,) = ran.json["containers"].values()
    assert again["revision"] == first.json["containers"]["cpu"]["revision"]
    assert not again["changed"]
    after = container.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def forge(store: DirectoryStore, name: str) -> None:
    """Have the package record name other bytes for a file of the container."""
    (ref,) = store.list_records("package")
    stored = store.get_record(ref.operation, ref.key)
    assert stored is not None
    evil = store.put_bytes(b"{{ of another writer }}")
    outputs = {**stored.record.outputs, name: Output(sha256=evil.sha256, size=evil.size)}
    store.delete_record(ref)
    store.commit(stored.record.model_copy(update={"outputs": outputs}))


@pytest.mark.parametrize("name", ["config.json", "chat_template.jinja"])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_record_that_names_other_files_is_never_delivered(
    call: InProcess, home: Path, first: Ran, tmp_path: Path, name: str, *, read_only: bool
) -> None:
    """The revision vouches for its files, in the own store and in one that is only read."""
    copy = tmp_path / "store"
    shutil.copytree(home / ".cache" / "genai-operator" / "store", copy, symlinks=True)
    forge(DirectoryStore(copy), name)
    told = call("cache", "verify", "--store", copy)
    assert told.code != 0
    assert f"{name} " in told.out + told.err
    where: list[str | Path] = ["--store", copy]
    if read_only:
        where = ["--store", tmp_path / "own", "--read-from", copy]
    ran = call("build", "-f", "b.yaml", "--json", "--output", tmp_path / "out", *where)
    assert ran.code == 0, ran.err
    container = ran.json["containers"]["cpu"]
    assert container["revision"] == first.json["containers"]["cpu"]["revision"]
    assert ran.json["tasks"]["run"] == 1
    good = home / "containers" / "small" / "cpu"
    for file in good.iterdir():
        if file.name not in {"report.json", "golden.json"}:
            assert (Path(container["path"]) / file.name).read_bytes() == file.read_bytes()
    assert call("verify", container["path"]).code == 0
    if not read_only:
        again = call("cache", "verify", "--store", copy)
        assert again.code == 0, "the record was healed"


def test_a_wrong_byte_in_the_store_is_never_delivered(
    call: InProcess, home: Path, first: Ran, tmp_path: Path
) -> None:
    file = max(entries(home)["compile"].glob("*"), key=lambda path: path.stat().st_size)
    file.chmod(0o644)
    with file.open("r+b") as stream:
        stream.seek(1000)
        (byte,) = stream.read(1)
        stream.seek(1000)
        stream.write(bytes([byte ^ 1]))
    ran = call("build", "-f", "b.yaml", "--json", "--output", tmp_path)
    assert ran.code == 0, ran.err
    assert "its task runs again" in ran.err
    assert ran.json["tasks"]["run"] >= 1
    container = ran.json["containers"]["cpu"]
    assert container["revision"] == first.json["containers"]["cpu"]["revision"]
    good = home / "containers" / "small" / "cpu" / file.name
    assert (Path(container["path"]) / file.name).read_bytes() == good.read_bytes()
    assert (entries(home)["compile"] / file.name).read_bytes() == good.read_bytes()


def test_people_read_paths_revisions_and_costs(call: InProcess, first: Ran) -> None:
    ran = call("build", "-f", "b.yaml")
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines[0].startswith("✓ small: 5 tasks (0 run, 5 cached) in ")
    assert lines[1].split() == ["cpu", "containers/small/cpu"]
    assert lines[2].split()[0] == first.json["containers"]["cpu"]["revision"]
    assert lines[2].split()[-1] == "unchanged"
    assert lines[3].split()[0] == "warning"
    assert lines[4] == "  try cpu  genai run containers/small/cpu --prompt-tokens 1,2,3"


def test_another_name_place_and_order_is_the_same_build(
    call: InProcess, home: Path, tmp_path: Path, first: Ran
) -> None:
    shutil.copytree(home / "models" / "llama", tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "model.onnx").rename(tmp_path / "elsewhere" / "net.onnx")
    ran = call(
        "build", tmp_path / "elsewhere", "--precision", "float", "--gaps", "FLOAT", "--cl", "32",
        "-t", "cpu", "--name", "other", "--output", tmp_path / "out", "--json",
    )  # fmt: skip
    assert ran.json["tasks"]["cached"] == 5
    container = ran.json["containers"]["cpu"]
    assert container["path"] == str(tmp_path / "out" / "other" / "cpu")
    assert container["revision"] == first.json["containers"]["cpu"]["revision"]


def test_the_plan_shows_what_is_cached_and_why_a_task_runs(call: InProcess) -> None:
    value = call("graph", "-f", "b.yaml", "--json").json
    tasks = {task["operation"]: task for task in value["tasks"]}
    assert list(tasks) == OPERATIONS
    assert all(task["cached"] for task in tasks.values())
    assert set(tasks["ingest"]) == {
        "id", "operation", "target", "graph", "split", "key", "after", "cached", "why"
    }  # fmt: skip
    changed = call("graph", "-f", "b.yaml", "--cl", "48", "--json").json["tasks"]
    state = {task["operation"]: task["cached"] for task in changed}
    assert state == {name: name != "package" for name in OPERATIONS}
    (package,) = (task for task in changed if task["operation"] == "package")
    ran = call("graph", "-f", "b.yaml", "--cl", "48", "--explain", package["id"])
    assert package["why"] in ran.out
    assert "context_length" in package["why"]


def test_showing_a_plan_copies_nothing_out_of_further_stores(
    call: InProcess, first: Ran, home: Path, tmp_path: Path
) -> None:
    theirs = home / ".cache" / "genai-operator" / "store"
    own = tmp_path / "own"
    ran = call("graph", "-f", "b.yaml", "--store", own, "--read-from", theirs, "--json")
    assert all(task["cached"] for task in ran.json["tasks"])
    assert not list(own.rglob("*.json")), "looking is not using"


def test_the_plan_is_a_table_and_a_page(call: InProcess) -> None:
    rows = [line.split() for line in call("graph", "-f", "b.yaml").out.splitlines()]
    assert [row[0] for row in rows if "cached" in row[2:3]] == [
        task["id"] for task in call("graph", "-f", "b.yaml", "--json").json["tasks"]
    ]
    page = call("graph", "-f", "b.yaml", "--html").out
    assert page.startswith("<!doctype html>")
    assert page.count('class="task cached"') == 5


def test_an_unknown_task_is_named(call: InProcess) -> None:
    ran = call("graph", "-f", "b.yaml", "--explain", "packag/cpu/float")
    assert ran.code == 2
    assert ran.errors[0].startswith(
        "error: --explain packag/cpu/float: there is no such task in the plan; did you mean package"
    )


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_replayed_stage_writes_the_same(call: InProcess, home: Path, operation: str) -> None:
    ran = call("replay", entries(home)[operation], "--json")
    assert ran.code == 0, ran.out + ran.err
    assert ran.json["same"]
    assert ran.json["sameKey"]
    assert {item["verdict"] for item in ran.json["outputs"].values()} == {"same"}


def test_a_changed_option_is_a_new_entry_beside_the_old(call: InProcess, home: Path) -> None:
    old = entries(home)["package"]
    before = (old / "builder_cache_info.json").read_bytes()
    ran = call("replay", old, "--set", "context_length=24", "--json")
    assert ran.code == 0, ran.err
    new = Path(ran.json["entry"])
    assert ran.json["outcome"] == "run"
    assert new.parent == old.parent
    assert new != old
    assert json.loads((new / "manifest.json").read_text())["context_length"] == 24
    assert (old / "builder_cache_info.json").read_bytes() == before
    assert call("replay", old, "--set", "context_length=24", "--json").json["outcome"] == "cached"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("contxt_length=3", "--set contxt_length: unknown option; did you mean context_length?"),
        ("context_length=x", "--set context_length: input should be a valid integer"),
        ("context_length", "--set: 'context_length' is not KEY=VALUE"),
    ],
)
def test_a_wrong_option_of_a_replay_is_named(
    call: InProcess, home: Path, change: str, said: str
) -> None:
    ran = call("replay", entries(home)["package"], "--set", change)
    assert ran.code == 2
    assert ran.errors[0].startswith(f"error: {said}")


def test_a_replay_says_what_differs(call: InProcess, home: Path, tmp_path: Path) -> None:
    """An entry whose record claims other bytes than its stage writes."""
    entry = tmp_path / "entry"
    entry.mkdir()
    value: dict[str, Any] = json.loads(
        (entries(home)["convert"] / "builder_cache_info.json").read_text()
    )
    name, output = next(iter(value["record"]["outputs"].items()))
    output["sha256"] = "0" * 64
    output.pop("semantic", None)
    (entry / "builder_cache_info.json").write_text(json.dumps(value))
    store = home / ".cache" / "genai-operator" / "store"
    ran = call("replay", entry, "--store", store, "--json")
    assert ran.code == 1
    assert not ran.json["same"]
    assert ran.json["outputs"][name]["verdict"] == "differs"


def _path_above(record: dict[str, Any]) -> None:
    files = next(iter(record["inputs"].values()))
    files["../../x"] = files.popitem()[1]


def _other_digest(record: dict[str, Any]) -> None:
    files = next(iter(record["inputs"].values()))
    files[next(iter(files))] = "0" * 64


@pytest.mark.parametrize("command", ["replay", "cache pull"])
@pytest.mark.parametrize(
    "edit",
    [
        _path_above,
        _other_digest,
        lambda record: record.update(key="1" * 64),
        lambda record: record.update(operation="package"),
        lambda record: record["inputs"].update({"/etc": {"passwd": "0" * 64}}),
        lambda record: record["toolchain"].update(id="2" * 64),
    ],
)
def test_replay_and_pull_refuse_an_entry_that_was_edited(
    call: InProcess,
    home: Path,
    tmp_path: Path,
    edit: Callable[[dict[str, Any]], None],
    command: str,
) -> None:
    """It would run as another task, and its result would be compared with this one's."""
    entry = tmp_path / "entry"
    entry.mkdir()
    value = json.loads((entries(home)["convert"] / "builder_cache_info.json").read_text())
    edit(value["record"])
    (entry / "builder_cache_info.json").write_text(json.dumps(value))
    store = home / ".cache" / "genai-operator" / "store"
    ran = call(*command.split(), entry, "--store", store)
    assert ran.code == 2
    assert "its key is not that of its options and inputs" in ran.errors[0]
    assert "--set" in ran.errors[0]


def test_replay_names_no_model_s_folder_when_an_entry_names_a_whole_disk(
    call: InProcess, home: Path, tmp_path: Path
) -> None:
    """`source` is for people and enters no key, so anything may stand there."""
    value = json.loads((entries(home)["ingest"] / "builder_cache_info.json").read_text())
    value["record"]["source"] = "/"
    (tmp_path / "builder_cache_info.json").write_text(json.dumps(value))
    store = home / ".cache" / "genai-operator" / "store"
    ran = call("replay", tmp_path, "--store", store)
    assert ran.code == 2
    assert "/ holds more than 10000 files, so it is no model's folder" in ran.errors[0]


def test_a_replay_of_ingest_needs_the_model(call: InProcess, home: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(home / "models" / "llama", moved)
    aside = home / "models" / "away"
    (home / "models" / "llama").rename(aside)
    try:
        ran = call("replay", entries(home)["ingest"])
        assert ran.code == 2
        assert ran.errors[0].endswith("name the model's folder with --source, or build again")
        assert call("replay", entries(home)["ingest"], "--source", moved).code == 0
    finally:
        aside.rename(home / "models" / "llama")


def test_gc_keeps_what_a_build_needs(call: InProcess, home: Path) -> None:
    """Entries that no build reaches go at once; here those of the changed replays."""
    store = DirectoryStore(home / ".cache" / "genai-operator" / "store")
    assert call("build", "-f", "b.yaml", "--json").json["tasks"]["cached"] == 5
    name = Claim(store, "small", home / "containers" / "small").lease_name
    (lease,) = (lease for lease in store.list_leases() if lease.name == name)
    assert {ref.operation for ref in lease.records} == set(OPERATIONS)
    assert lease.expires_at - datetime.now(UTC) > timedelta(days=29)
    done = call("cache", "gc", "--keep-days", "0", "--json").json
    assert done["records"]["kept"] == 5
    assert call("build", "-f", "b.yaml", "--json").json["tasks"]["cached"] == 5


def test_a_failed_task_is_reported_with_reason_remedy_and_log(genai: Program) -> None:
    folder = prepared(genai.folder)
    model = folder / "models" / "llama" / "model.onnx"
    model.write_bytes(model.read_bytes()[:50_000])
    ran = genai("build", "-f", "b.yaml", "--json")
    assert ran.code == 2
    (failure,) = ran.json["failures"]
    assert failure["task"] == "ingest"
    assert failure["code"] == "BadModel"
    assert Path(failure["log"]).is_file()
    assert ran.json["containers"] == {}
    assert ran.errors == [
        f"error: ingest: {failure['where']}: {failure['message']}; {failure['remedy']}"
    ]
    ran = InProcess(folder)("build", "-f", "b.yaml")
    assert ran.code == 2
    assert ran.out.startswith("✗ small: 5 tasks (0 run, 0 cached, 1 failed, 4 not started)")
    assert f"what to do: {failure['remedy']}" in ran.out


def test_a_folder_of_the_users_is_refused_before_anything_runs(genai: Program) -> None:
    mine = prepared(genai.folder) / "containers" / "small" / "cpu"
    mine.mkdir(parents=True)
    (mine / "thesis.tex").write_text("the only copy")
    ran = genai("build", "-f", "b.yaml")
    assert ran.code == 2
    assert "it holds other files, which would be lost" in ran.errors[0]
    assert "start " not in ran.err
    assert (mine / "thesis.tex").read_text() == "the only copy"


def test_a_place_that_cannot_be_written_is_refused_before_anything_runs(genai: Program) -> None:
    folder = prepared(genai.folder)
    (folder / "file").write_text("")
    ran = genai("build", "-f", "b.yaml", "--output", "file")
    assert ran.code == 2
    assert ran.errors[0].startswith("error: file/small: containers cannot be written there: ")
    assert not (folder / ".cache").exists()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A build of which a task has just been started."""
    folder = prepared(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-m", "genai_cli", "build", "-f", "b.yaml"],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("start "):
                break
        yield process
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_an_interrupted_build_goes_on_where_it_stopped(
    running: subprocess.Popen[str], tmp_path: Path
) -> None:
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert out == ""
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].endswith("the same command goes on where it stopped")
    assert "Traceback" not in err
    assert not (tmp_path / "containers" / "small" / "cpu").exists()
    again = Program(tmp_path).ok("build", "-f", "b.yaml", "--json")
    assert again.json["tasks"]["failed"] == 0
    assert (tmp_path / "containers" / "small" / "cpu" / "manifest.json").is_file()
