"""`genai cache ...` on a real store."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from genai_cli.testing import InProcess, Program, Ran
from genai_core.names import Digest, Key
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.protocol import AccessDenied, Lease, RecordRef, Store
from genai_core.tasks.keys import task_key
from genai_core.tasks.record import Measurements, Output, Record, ToolchainUsed, entry_folder
from genai_core.testing import s3_server

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def entry(store: Store, name: str, *, operation: str = "convert", **config: Any) -> Record:
    """Commit a record with two files and a log."""
    files = {f"{name}.onnx": f"graph {name}".encode(), "deep/x.bin": name.encode() * 100}
    outputs = {}
    for path, data in files.items():
        blob = store.put_bytes(data)
        outputs[path] = Output(sha256=blob.sha256, size=blob.size)
    config["seed"] = name
    record = Record(
        operation=operation,
        key=task_key(operation, 1, toolchain_id=Digest("0" * 64), config=config, inputs={}),
        model="tiny",
        source="/models/tiny",
        config=config,
        outputs=outputs,
        toolchain=ToolchainUsed(id=Digest("0" * 64), versions={"onnx": "1.2.3"}),
        created_at=NOW,
        measurements=Measurements(
            seconds=1.5, peak_memory_bytes=10**8, log=store.put_bytes(f"log of {name}\n".encode())
        ),
    )
    store.commit(record)
    return record


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def cache(tmp_path: Path) -> Any:
    """`genai cache ... --store store`."""
    run = InProcess(tmp_path)
    return lambda command, *rest: run("cache", command, *rest, "--store", "store")


def test_entries_are_listed_with_what_tells_them_apart(cache: Any, store: DirectoryStore) -> None:
    entry(store, "a", graph={"ar": 1, "cl": 256}, split={"index": 2, "count": 3}, backend="Htp")
    package = entry(store, "b", operation="package", target="cpu")
    ran = cache("ls")
    assert ran.code == 0
    rows = [line.split() for line in ran.out.splitlines()]
    assert rows[0][:3] == ["operation", "model", "key"]
    listed = {row[0]: row for row in rows[1:3]}
    assert listed["convert"][-3:] == ["ar1_cl256", "2_of_3", "Htp"]
    assert listed["package"][2] == package.key[:12]
    assert "2 entries" in ran.out
    only = cache("ls", "--operation", "package", "--json").json
    assert [item["key"] for item in only["entries"]] == [package.key]


def test_the_store_can_come_from_the_environment(
    genai: Program, store: DirectoryStore, tmp_path: Path
) -> None:
    entry(store, "a")
    ran = genai("cache", "ls", "--json", env={"GENAI_STORE": str(tmp_path / "store")})
    assert len(ran.json["entries"]) == 1


@pytest.mark.parametrize(
    ("terms", "found"),
    [
        (["tiny"], "ab"),
        (["operation=convert"], "ab"),
        (["graph.ar=1"], "a"),
        (["config.graph.ar=32", "model=tiny"], "b"),
        (["backend=cpu"], "b"),
        (["a.onnx"], "a"),
        (["graph.ar=3"], "b"),
        (["graph.ar=2"], ""),
        (["operation=compile"], ""),
    ],
)
def test_entries_are_found_by_what_they_are(
    cache: Any, store: DirectoryStore, terms: list[str], found: str
) -> None:
    one = entry(store, "a", graph={"ar": 1}, backend="Htp")
    other = entry(store, "b", graph={"ar": 32}, backend="Cpu")
    keys = {one.key: "a", other.key: "b"}
    shown = cache("find", *terms, "--json").json["entries"]
    assert sorted(keys[item["key"]] for item in shown) == list(found)


def test_a_file_leads_to_the_task_that_made_it(
    cache: Any, store: DirectoryStore, tmp_path: Path
) -> None:
    entry(store, "a")
    other = entry(store, "b")
    (tmp_path / "found.bin").write_bytes(b"graph b")
    (found,) = cache("find", "found.bin", "--json").json["entries"]
    assert found["key"] == other.key


def test_one_entry_is_shown_by_key_prefix_or_folder(
    cache: Any, store: DirectoryStore, tmp_path: Path
) -> None:
    record = entry(store, "a", graph={"ar": 1})
    folder = entry_folder(record)
    names = [record.key, record.key[:8], f"convert/{record.key[:6]}", f"store/{folder}"]
    shown = [cache("show", name) for name in names]
    assert len({ran.out for ran in shown}) == 1
    assert f"entry      {folder}" in shown[0].out
    assert "graph.ar = 1" in shown[0].out
    assert "onnx 1.2.3" in shown[0].out
    assert "deep/x.bin" in shown[0].out
    assert cache("show", record.key[:8], "--json").json["folder"] == folder
    assert cache("show", record.key[:8], "--log").out == "log of a\n"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("abc", "a key needs at least 4 digits"),
        ("ffffffff", "there is no such entry"),
        ("arcl/{key}", "there is no such entry"),
        ("konvert/{key}", "no operation is called 'konvert'; did you mean convert? known: "),
        ("xyzt", "it is no key and no entry's folder"),
    ],
)
def test_an_unknown_entry_is_bad_input(
    cache: Any, store: DirectoryStore, wrong: str, says: str
) -> None:
    record = entry(store, "a")
    ran = cache("show", wrong.format(key=record.key[:8]))
    assert ran.code == 2
    assert len(ran.errors) == 1
    assert says in ran.errors[0]


@pytest.mark.parametrize("command", [["cache", "show"], ["cache", "pull"], ["replay"]])
def test_an_ambiguous_prefix_lists_the_candidates(
    genai: Program, store: DirectoryStore, command: list[str]
) -> None:
    one = entry(store, "a", operation="convert")
    other = entry(store, "b", operation="compile")
    key = Key(one.key[:10] + other.key[10:])
    alike = other.model_copy(update={"key": key})
    store.commit(alike)
    ran = genai(*command, one.key[:8], "--store", str(store.root))
    assert ran.code == 2
    (error,) = ran.errors
    assert error.startswith(f"error: {one.key[:8]}: 2 entries begin so: ")
    assert f"convert/{one.key[:12]}" in error
    assert f"compile/{key[:12]}" in error
    assert genai("cache", "show", f"compile/{one.key[:8]}", "--store", str(store.root)).code == 0


@pytest.mark.parametrize("command", [["ls"], ["export", "out"]])
def test_an_unknown_operation_lists_the_known(cache: Any, command: list[str]) -> None:
    ran = cache(*command, "--operation", "comple")
    assert ran.code == 2
    assert "no operation is called 'comple'; did you mean compile? known: resolve," in ran.errors[0]


def test_an_entry_is_pulled_into_a_folder(
    cache: Any, store: DirectoryStore, tmp_path: Path
) -> None:
    record = entry(store, "a")
    ran = cache("pull", record.key[:10], "-o", "out/here", "--json")
    assert ran.json["path"] == str(tmp_path / "out" / "here")
    assert (tmp_path / "out/here/a.onnx").read_bytes() == b"graph a"
    sidecar = json.loads((tmp_path / "out/here/builder_cache_info.json").read_text())
    assert sidecar["hash"] == record.key


def test_pulling_an_entry_replaces_only_entries(
    cache: Any, store: DirectoryStore, tmp_path: Path
) -> None:
    one, two = entry(store, "a"), entry(store, "b")
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("the only copy")
    ran = cache("pull", one.key, "-o", "home")
    assert ran.code == 2
    assert "it holds other files, which would be lost; name a new or empty folder" in ran.errors[0]
    assert (home / "thesis.tex").read_text() == "the only copy"
    assert cache("pull", one.key, "-o", "out").code == 0
    assert cache("pull", two.key, "-o", "out").code == 0
    assert json.loads((tmp_path / "out/builder_cache_info.json").read_text())["hash"] == two.key


def check_export(cache: Any, folder: Path, store: Store) -> None:
    records = [entry(store, "a"), entry(store, "b", operation="compile")]
    ran = cache("export", "view", "--json")
    assert ran.json["entries"] == sorted(entry_folder(record) for record in records)
    assert ran.json["faults"] == []
    for record in records:
        place = folder / "view" / entry_folder(record)
        assert (place / "deep/x.bin").stat().st_size == 100
        assert json.loads((place / "builder_cache_info.json").read_text())["hash"] == record.key


def test_all_entries_are_exported(cache: Any, store: DirectoryStore, tmp_path: Path) -> None:
    check_export(cache, tmp_path, store)


def test_a_bucket_is_exported_as_folders(tmp_path: Path) -> None:
    with s3_server(tmp_path / "server") as server:
        key = server.credentials
        env = {
            "AWS_ACCESS_KEY_ID": key.access_key_id,
            "AWS_SECRET_ACCESS_KEY": key.secret_access_key,
        }

        def cache(command: str, *rest: str) -> Ran:
            place = ("--store", str(server.where("team")))
            return InProcess(tmp_path)("cache", command, *rest, *place, env=env)

        check_export(cache, tmp_path, server.store("team"))
        assert len(cache("ls", "--json").json["entries"]) == 2
        (found,) = cache("find", "output=a.onnx", "--json").json["entries"]
        assert cache("show", found["key"][:8], "--log").out == "log of a\n"


def flip(store: DirectoryStore, record: Record, path: str) -> None:
    blob = store.blob_path(record.outputs[path].sha256)
    blob.chmod(0o644)
    data = bytearray(blob.read_bytes())
    data[0] ^= 1
    blob.write_bytes(data)


def test_export_leaves_out_what_is_damaged_and_says_so(
    cache: Any, store: DirectoryStore, tmp_path: Path
) -> None:
    flip(store, entry(store, "a"), "a.onnx")
    entry(store, "b")
    ran = cache("export", "view")
    assert ran.code == 1
    assert "1 of 2 entries" in ran.out
    assert "left out: " in ran.out


def test_verify_finds_a_flipped_byte_and_removes_it_when_asked(
    cache: Any, store: DirectoryStore
) -> None:
    record = entry(store, "a")
    assert cache("verify").code == 0
    flip(store, record, "a.onnx")
    ran = cache("verify", "--json")
    assert ran.code == 1
    (fault,) = ran.json["faults"]
    assert fault["digest"] == record.outputs["a.onnx"].sha256
    assert fault["records"] == [f"convert/{record.key}"]
    assert not fault["removed"]
    ran = cache("verify", "--remove")
    assert ran.code == 1
    assert "1 wrong" in ran.out
    assert store.head_blob(record.outputs["a.onnx"].sha256) is None


def test_verify_finds_a_record_that_is_another_tasks_and_removes_it_when_asked(
    cache: Any, store: DirectoryStore
) -> None:
    record, kept = entry(store, "a"), entry(store, "b")
    store.delete_record(RecordRef("convert", record.key))
    store.commit(record.model_copy(update={"config": {"anything": "else"}}))
    ran = cache("verify", "--json")
    assert ran.code == 1
    assert ran.json["untrue"] == {
        f"convert/{record.key}": "its key is not that of its options and inputs"
    }
    plain = cache("verify")
    assert "1 wrong" in plain.out
    assert "--remove removes what is wrong" in plain.out
    assert cache("verify", "--remove").code == 1
    assert store.get_record("convert", record.key) is None
    assert store.get_record("convert", kept.key) is not None
    assert cache("verify").code == 0


def test_gc_keeps_what_is_leased_or_young(cache: Any, store: DirectoryStore) -> None:
    kept, gone = entry(store, "a"), entry(store, "b")
    until = datetime.now(UTC) + timedelta(hours=1)
    store.put_lease(Lease("l", "laptop", (RecordRef("convert", kept.key),), until))
    assert cache("gc", "--json").json["records"] == {"kept": 2, "deleted": 0}
    planned = cache("gc", "--keep-days", "0", "--dry-run", "--json").json
    assert planned["records"] == {"kept": 1, "deleted": 1}
    assert store.get_record("convert", gone.key) is not None
    done = cache("gc", "--keep-days", "0", "--json").json
    assert done["records"] == {"kept": 1, "deleted": 1}
    assert done["holders"] == ["laptop"]
    assert store.get_record("convert", gone.key) is None
    assert store.get_record("convert", kept.key) is not None


def test_gc_ends_with_1_and_says_what_stays_when_the_store_keeps_some(
    cache: Any, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = entry(store, "a")
    locked = record.outputs["a.onnx"]
    real = DirectoryStore.delete_blob

    def delete(self: DirectoryStore, digest: Digest) -> bool:
        if digest == locked.sha256:
            raise AccessDenied("access is denied (object lock)", where="store")
        real(self, digest)
        return False

    monkeypatch.setattr(DirectoryStore, "delete_blob", delete)
    ran = cache("gc", "--keep-days", "0")
    assert ran.code == 1
    assert "of what went stays in the bucket as older versions" in ran.out
    assert "1 stay because the store does not let them go" in ran.out
    assert f"blob {locked.sha256} stays: access is denied (object lock)" in ran.out
    again = cache("gc", "--keep-days", "0", "--json")
    assert (again.code, again.json["refused"]) == (1, 1)
    assert again.json["bytes"] == {"kept": locked.size, "deleted": 0, "older": 0}


@pytest.mark.parametrize("days", ["1e300", "nan", "inf", "99999999"])
def test_gc_names_a_number_of_days_that_is_none(
    cache: Any, store: DirectoryStore, days: str
) -> None:
    entry(store, "a")
    ran = cache("gc", "--keep-days", days)
    assert ran.code == 2
    assert "--keep-days" in ran.errors[0]
    assert "defect" not in ran.err


@pytest.fixture
def graph_of_another_entrys_weights(store: DirectoryStore, tmp_path: Path) -> Record:
    """As arcl leaves it: a graph whose data is one of the task's inputs."""
    values = np.arange(64, dtype=np.float32)
    tensor = onnx.numpy_helper.from_array(values, "w")
    onnx.external_data_helper.set_external_data(tensor, "weights/layer_000.data", length=256)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    graph = onnx.helper.make_graph([], "g", [], [], initializer=[tensor])
    own = store.put_bytes(onnx.helper.make_model(graph).SerializeToString())
    data, other = store.put_bytes(values.tobytes()), store.put_bytes(b"not named")
    record = entry(store, "a", operation="arcl")
    inputs = {
        "model": {
            "weights/layer_000.data": data.sha256,
            "weights/layer_001.data": other.sha256,
            "model.onnx": own.sha256,
        }
    }
    tools = record.toolchain.id
    changed = record.model_copy(
        update={
            "key": task_key("arcl", 1, toolchain_id=tools, config=record.config, inputs=inputs),
            "inputs": inputs,
            "outputs": {"ar1_cl256.onnx": Output(sha256=own.sha256, size=own.size)},
        }
    )
    store.commit(changed)
    return changed


@pytest.mark.parametrize("command", ["pull", "export"])
def test_what_comes_out_of_a_store_is_opened_by_onnx_load(
    cache: Any,
    store: DirectoryStore,
    tmp_path: Path,
    graph_of_another_entrys_weights: Record,
    command: str,
) -> None:
    record = graph_of_another_entrys_weights
    folder = tmp_path / "out"
    if command == "pull":
        ran = cache("pull", f"arcl/{record.key}", "-o", "out", "--json")
        assert ran.json["weights"] == ["weights/layer_000.data"]
    else:
        ran = cache("export", "out")
        folder /= entry_folder(record)
    assert ran.code == 0, ran.err
    model = onnx.load(folder / "ar1_cl256.onnx")  # noqa: TID251 - users do
    assert np.array_equal(onnx.numpy_helper.to_array(model.graph.initializer[0]), np.arange(64))
    assert not (folder / "weights" / "layer_001.data").exists()
    where = [f"arcl/{record.key}", "-o", "bare"] if command == "pull" else ["bare"]
    plain = cache(command, *where, "--no-weights")
    assert plain.code == 0
    assert not list((tmp_path / "bare").rglob("*.data"))


@pytest.mark.parametrize("command", ["pull", "export"])
@pytest.mark.parametrize("name", ["../evil.data", "/{tmp}/evil.data", "a/../../../evil.data"])
def test_weights_that_a_record_names_elsewhere_are_written_nowhere(
    cache: Any, store: DirectoryStore, tmp_path: Path, command: str, name: str
) -> None:
    """Who may write a store has chosen a record's inputs, and what its graph names."""
    name = name.replace("/{tmp}", str(tmp_path / "there"))
    evil, graph = store.put_bytes(b"evil"), store.put_bytes(f"graph {name}".encode())
    inputs = {"model": {name: evil.sha256}}
    made = entry(store, "a", operation="arcl")
    key = task_key("arcl", 1, toolchain_id=Digest("0" * 64), config={"seed": "a"}, inputs=inputs)
    outputs = {"a.onnx": Output(sha256=graph.sha256, size=graph.size)}
    changed = made.model_copy(update={"inputs": inputs, "key": key, "outputs": outputs})
    store.commit(changed)
    where = [f"arcl/{key[:12]}", "-o", "deep/out"] if command == "pull" else ["deep/out", key[:12]]
    ran = cache(command, *where)
    assert ran.code == 2
    assert "its record names a file outside" in ran.err
    assert not list(tmp_path.rglob("evil.data"))


def test_some_entries_are_exported_when_they_are_named(
    cache: Any, store: DirectoryStore, tmp_path: Path
) -> None:
    one, other, third = (entry(store, name) for name in "abc")
    ran = cache("export", "out", one.key[:8], f"convert/{third.key[:6]}", "--json")
    assert ran.json["entries"] == sorted([entry_folder(one), entry_folder(third)])
    assert not (tmp_path / "out" / entry_folder(other)).exists()
    assert cache("export", "out", "ffffffff").code == 2


def test_weights_that_are_gone_are_named(
    cache: Any, store: DirectoryStore, graph_of_another_entrys_weights: Record
) -> None:
    record = graph_of_another_entrys_weights
    store.delete_blob(Digest(record.inputs["model"]["weights/layer_000.data"]))
    ran = cache("pull", f"arcl/{record.key}", "-o", "out")
    assert ran.code == 0
    assert "weights/layer_000.data is not in the store any more" in ran.err
