"""Containers from a store into folders."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from genai_core.canonical import digest_bytes
from genai_core.container.manifest import Manifest, ManifestFile, ManifestTarget
from genai_core.errors import BadInput, CorruptBlob, GenAIError, NoSpace
from genai_core.names import Backend, Digest, Key
from genai_core.store.delivery import deliver, folder_name, place
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.fetch import fetch, main
from genai_core.tasks.record import Output, Record, ToolchainUsed

ZERO = Digest("0" * 64)


def package(store: DirectoryStore, files: dict[str, bytes]) -> tuple[Record, str]:
    """A package record whose container holds `files`, and its revision."""
    named = {
        name: ManifestFile(sha256=digest_bytes(data), size=len(data))
        for name, data in files.items()
        if name != "report.json"
    }
    manifest = Manifest(
        model={},
        architecture="llama",
        target=ManifestTarget(name="cpu", backend=Backend.CPU),
        context_length=256,
        files=named,
    )
    text = json.dumps(manifest.model_dump(mode="json")).encode()
    blobs = {**files, "manifest.json": text}
    outputs = {}
    for name, data in blobs.items():
        blob = store.put_bytes(data)
        outputs[name] = Output(sha256=blob.sha256, size=blob.size)
    record = Record(
        operation="package",
        key=Key(digest_bytes(text)),
        outputs=outputs,
        toolchain=ToolchainUsed(id=ZERO),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    store.commit(record)
    return record, manifest.revision()


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


FILES = {"model.onnx": b"graph", "adapters/a/x.bin": b"ab", "report.json": b"{}"}


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_container_is_the_record_s_files(store: DirectoryStore, tmp_path: Path) -> None:
    record, revision = package(store, FILES)
    done = deliver(record, store, tmp_path / "cpu", target="cpu")
    found = tree(tmp_path / "cpu")
    assert {name: found[name] for name in FILES} == FILES
    assert done.changed
    assert done.revision == revision
    assert done.size_bytes == sum(len(data) for data in found.values())
    assert json.loads(found["manifest.json"])["context_length"] == 256


def test_files_are_the_user_s_own(store: DirectoryStore, tmp_path: Path) -> None:
    """Neither a later change reaches the store, nor does onnx refuse data with a second name."""
    record, _ = package(store, FILES)
    deliver(record, store, tmp_path / "cpu", target="cpu")
    model = tmp_path / "cpu" / "model.onnx"
    assert model.stat().st_nlink == 1
    model.write_bytes(b"changed in place")
    assert store.check_blob(record.outputs["model.onnx"]) is None


def test_an_unchanged_container_is_left_untouched(store: DirectoryStore, tmp_path: Path) -> None:
    record, _ = package(store, FILES)
    deliver(record, store, tmp_path / "cpu", target="cpu")
    before = (tmp_path / "cpu").stat()
    assert not deliver(record, store, tmp_path / "cpu", target="cpu").changed
    after = (tmp_path / "cpu").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize("damage", ["missing", "short", "flipped", "foreign", "broken manifest"])
def test_a_damaged_container_is_written_again(
    store: DirectoryStore, tmp_path: Path, damage: str
) -> None:
    record, _ = package(store, FILES)
    path = tmp_path / "cpu"
    deliver(record, store, path, target="cpu")
    if damage == "missing":
        (path / "model.onnx").unlink()
    elif damage == "short":
        (path / "model.onnx").unlink()
        (path / "model.onnx").write_bytes(b"gra")
    elif damage == "flipped":
        (path / "model.onnx").write_bytes(b"grapX")
    elif damage == "foreign":
        (path / "left-over.bin").write_bytes(b"x")
    else:
        (path / "manifest.json").unlink()
        (path / "manifest.json").write_bytes(b"{")
    assert deliver(record, store, path, target="cpu").changed
    assert tree(path)["model.onnx"] == b"graph"
    assert "left-over.bin" not in tree(path)


def forged(store: DirectoryStore, name: str) -> Record:
    """The record of an honest container, one of whose files is another's."""
    record, _ = package(store, FILES)
    evil = store.put_bytes(b"{{ x }}")
    outputs = {**record.outputs, name: Output(sha256=evil.sha256, size=evil.size)}
    return record.model_copy(update={"outputs": outputs})


@pytest.mark.parametrize("name", ["model.onnx", "chat_template.jinja"])
def test_deliver_and_place_refuse_when_a_file_is_not_the_manifests(
    store: DirectoryStore, tmp_path: Path, name: str
) -> None:
    record = forged(store, name)
    with pytest.raises(CorruptBlob, match=f"does not name the container that was built: {name} "):
        deliver(record, store, tmp_path / "cpu", target="cpu")
    with pytest.raises(CorruptBlob, match=name):
        place(record, store, tmp_path / "cpu", described=True)
    assert not (tmp_path / "cpu").exists()


def test_deliver_refuses_when_a_file_of_the_manifest_is_left_out(
    store: DirectoryStore, tmp_path: Path
) -> None:
    record, _ = package(store, FILES)
    fewer = {n: o for n, o in record.outputs.items() if n != "model.onnx"}
    with pytest.raises(CorruptBlob, match=r"model\.onnx is in its manifest and not in its record"):
        deliver(record.model_copy(update={"outputs": fewer}), store, tmp_path / "cpu", target="cpu")


@pytest.mark.parametrize(
    "files",
    [
        {"thesis.tex": b"the only copy"},
        {"model.onnx": b"the user's own", "report.json": b"{}"},
        {"manifest.json": b'{"name": "a browser extension"}', "background.js": b""},
        {"manifest.json": b"{", "left-over.bin": b"x"},
    ],
)
def test_what_was_not_written_here_is_never_replaced(
    store: DirectoryStore, tmp_path: Path, files: dict[str, bytes]
) -> None:
    record, _ = package(store, FILES)
    path = tmp_path / "mine"
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)
    with pytest.raises(BadInput, match="it holds other files, which would be lost"):
        deliver(record, store, path, target="cpu")
    assert tree(path) == files
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "store"]


def test_an_empty_folder_and_a_link_may_be_replaced(store: DirectoryStore, tmp_path: Path) -> None:
    record, _ = package(store, FILES)
    (tmp_path / "empty").mkdir()
    assert deliver(record, store, tmp_path / "empty", target="cpu").changed
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    place(record, store, tmp_path / "link")
    assert tree(tmp_path / "link")["model.onnx"] == tree(tmp_path / "empty")["model.onnx"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "link", "store"]
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(BadInput, match="it is a file"):
        deliver(record, store, file, target="cpu")


def test_an_interruption_between_two_renames_leaves_the_old_container(
    store: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = package(store, FILES)
    second, _ = package(store, {"model.onnx": b"better"})
    path = tmp_path / "cpu"
    deliver(first, store, path, target="cpu")
    real, calls = Path.rename, [0]

    def rename(self: Path, target: Path) -> Path:
        if target == path:
            calls[0] += 1
            if calls[0] == 1:
                raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        deliver(second, store, path, target="cpu")
    assert tree(path)["model.onnx"] == b"graph"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cpu", "store"]


def test_another_revision_replaces_the_whole_folder(store: DirectoryStore, tmp_path: Path) -> None:
    first, one = package(store, FILES)
    second, two = package(store, {"model.onnx": b"better"})
    path = tmp_path / "cpu"
    deliver(first, store, path, target="cpu")
    done = deliver(second, store, path, target="cpu")
    assert one != two == done.revision
    assert set(tree(path)) == {"model.onnx", "manifest.json"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cpu", "store"], "nothing is left behind"


def test_a_wrong_blob_leaves_the_old_container(store: DirectoryStore, tmp_path: Path) -> None:
    first, _ = package(store, FILES)
    path = tmp_path / "cpu"
    deliver(first, store, path, target="cpu")
    second, _ = package(store, {"model.onnx": b"better"})
    blob = store.blob_path(second.outputs["model.onnx"].sha256)
    blob.chmod(0o644)
    blob.write_bytes(b"bettor")
    with pytest.raises(CorruptBlob):
        deliver(second, store, path, target="cpu")
    assert tree(path)["model.onnx"] == b"graph"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cpu", "store"]


def test_a_record_without_a_manifest_is_no_container(store: DirectoryStore, tmp_path: Path) -> None:
    record, _ = package(store, FILES)
    bare = record.model_copy(update={"outputs": {}})
    with pytest.raises(GenAIError, match="it is no container"):
        deliver(bare, store, tmp_path / "cpu", target="cpu")


def test_a_container_of_a_newer_version_is_said_to_be_one(
    store: DirectoryStore, tmp_path: Path
) -> None:
    record, _ = package(store, FILES)
    manifest = json.loads(store.read_blob(record.outputs["manifest.json"]))
    blob = store.put_bytes(json.dumps({**manifest, "schema_version": 99}).encode())
    outputs = {**record.outputs, "manifest.json": Output(sha256=blob.sha256, size=blob.size)}
    newer = record.model_copy(update={"outputs": outputs})
    with pytest.raises(BadInput, match=r"schema_version 99, made by a newer genai; .*; upgrade"):
        deliver(newer, store, tmp_path / "cpu", target="cpu")


def test_targets_make_names_of_folders() -> None:
    names = ["sm8750", "chipset:SM8750", "dsp_arch:v79;soc_model:69", "../x", "::"]
    shown = ["sm8750", "chipset-SM8750", "dsp_arch-v79-soc_model-69", "x", "target"]
    assert [folder_name(name) for name in names] == shown


# What a serving pod fetches before its server starts


def test_fetch_writes_the_container_once_and_clears_what_a_killed_try_left(
    store: DirectoryStore, tmp_path: Path
) -> None:
    record, revision = package(store, FILES)
    folder = tmp_path / "artifact" / "container"
    left = folder.parent / ".container.1234"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"x")
    ref = f"package/{record.key}"
    assert fetch(store, ref, revision, folder).changed
    assert (folder / "adapters/a/x.bin").read_bytes() == b"ab"
    assert [path.name for path in folder.parent.iterdir()] == ["container"]
    assert not fetch(store, ref, revision, folder).changed
    (folder / "model.onnx").chmod(0o644)
    (folder / "model.onnx").write_bytes(b"wrong")
    assert fetch(store, ref, revision, folder).changed, "bytes that changed are fetched anew"
    assert (folder / "model.onnx").read_bytes() == b"graph"


def test_fetch_leaves_nothing_when_it_is_another_revision(
    store: DirectoryStore, tmp_path: Path
) -> None:
    record, _ = package(store, FILES)
    folder = tmp_path / "artifact" / "container"
    with pytest.raises(CorruptBlob, match="is to be served"):
        fetch(store, f"package/{record.key}", f"sha256:{'0' * 64}", folder)
    assert not folder.exists()


def test_fetch_refuses_a_blob_whose_bytes_are_wrong(store: DirectoryStore, tmp_path: Path) -> None:
    record, revision = package(store, FILES)
    digest = record.outputs["model.onnx"].sha256
    (blob,) = (path for path in store.root.rglob(digest) if path.is_file())
    blob.chmod(0o644)
    blob.write_bytes(b"grapH")
    folder = tmp_path / "artifact" / "container"
    with pytest.raises(CorruptBlob):
        fetch(store, f"package/{record.key}", revision, folder)
    assert not folder.exists()


@pytest.mark.parametrize("ref", ["convert/" + "a" * 64, "package/../x", "package", "package/abc"])
def test_fetch_refuses_what_names_no_container(
    store: DirectoryStore, tmp_path: Path, ref: str
) -> None:
    with pytest.raises(BadInput, match="package/<64 hex>"):
        fetch(store, ref, f"sha256:{'0' * 64}", tmp_path / "a" / "b")


def test_fetch_says_how_much_room_is_needed_before_the_first_byte(
    store: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, revision = package(store, FILES)

    class Full:
        free = 3

    monkeypatch.setattr("shutil.disk_usage", lambda _: Full)
    with pytest.raises(NoSpace, match="bytes are needed, 3 are free"):
        fetch(store, f"package/{record.key}", revision, tmp_path / "a" / "b")


def test_main_leaves_the_reason_in_the_termination_message(
    store: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENAI_STORE", str(store.root))
    said = tmp_path / "said"
    arguments = ["--revision", f"sha256:{'0' * 64}", "--into", str(tmp_path / "a" / "b")]
    asked = [f"package/{'b' * 64}", *arguments, "--termination-log", str(said)]
    assert main(asked) == GenAIError.exit_code
    error = json.loads(said.read_text())["error"]
    assert "is not there" in error["message"]
