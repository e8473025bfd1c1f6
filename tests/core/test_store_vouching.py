"""A record is believed where its key is its own and a container's files are its manifest's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genai_core.canonical import digest_bytes
from genai_core.container.manifest import Manifest, ManifestFile, ManifestTarget
from genai_core.names import Backend
from genai_core.operations import OPERATIONS, operation_of
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.layered import LayeredStore
from genai_core.store.lookup import publish
from genai_core.store.protocol import Committed, Hit, Miss, Store
from genai_core.store.record_checks import key_fault
from genai_core.tasks.keys import task_key
from genai_core.tasks.record import Blob, Record

MakeRecord = Callable[..., Record]
NOT_ITS_KEY = "its key is not that of its options and inputs"


@pytest.mark.parametrize(
    "change",
    [
        {"config": {"anything": "else"}},
        {"config": {}},
        {"inputs": {"graph": {"model.onnx": "5" * 64}}},
        {"toolchain": {"id": "6" * 64, "versions": {"onnx": "9"}}},
        {"config": {"x": float("inf")}},
    ],
)
def test_lookup_is_a_miss_that_can_be_healed_when_the_key_is_not_the_records(
    store: Store, make_record: MakeRecord, change: dict[str, Any]
) -> None:
    honest = make_record({"a": store.put_bytes(b"a")})
    forged = honest.model_validate({**honest.to_json(), "source": "x"}).model_copy(
        update={
            name: type(getattr(honest, name)).model_validate(value)
            if name == "toolchain"
            else value
            for name, value in change.items()
        }
    )
    if change != {"config": {"x": float("inf")}}:  # no store can hold that
        store.commit(forged)
        found = store.lookup(honest.operation, honest.key)
        assert isinstance(found, Miss)
        assert found.reason == NOT_ITS_KEY
        assert isinstance(publish(store, honest), Committed)
        assert isinstance(store.lookup(honest.operation, honest.key), Hit)
    assert key_fault(forged) == NOT_ITS_KEY


def test_key_fault_is_none_when_an_earlier_code_version_made_the_record(
    make_record: MakeRecord,
) -> None:
    """What a build that was upgraded rests on stays a hit."""
    assert operation_of("package").code_version > 1
    assert key_fault(make_record(operation="package")) is None
    newest = max(row.code_version for row in OPERATIONS if row.name == "package")
    record = make_record(operation="package")
    later = task_key(
        "package", newest + 1, toolchain_id=record.toolchain.id, config=record.config, inputs={}
    )
    assert key_fault(record.model_copy(update={"key": later})) == NOT_ITS_KEY


def test_key_fault_is_none_when_the_operation_is_not_in_the_table(make_record: MakeRecord) -> None:
    assert key_fault(make_record(operation="resolve").model_copy(update={"key": "1" * 64})) is None


def OTHER_REVISION(files: dict[str, Blob]) -> None:
    """The record tells of another revision than that of its manifest."""


def package(
    store: Store, make_record: MakeRecord, change: Callable[[dict[str, Blob]], None]
) -> Record:
    """A package record that stands; `change` is made to its files behind the manifest's back."""
    record = package_record(store, make_record, change)
    store.commit(record)
    return record


def package_record(
    store: Store, make_record: MakeRecord, change: Callable[[dict[str, Blob]], None]
) -> Record:
    """As `package`, not committed."""
    files = {"model.onnx": store.put_bytes(b"graph"), "model.data": store.put_bytes(b"weights")}
    manifest = Manifest(
        model={},
        architecture="llama",
        target=ManifestTarget(name="cpu", backend=Backend.CPU),
        context_length=256,
        files={n: ManifestFile(sha256=b.sha256, size=b.size) for n, b in files.items()},
    )
    files["manifest.json"] = store.put_bytes(manifest.model_dump_json().encode())
    files |= {name: store.put_bytes(b"{}") for name in ("report.json", "emulation/x.json")}
    facts = {"revision": manifest.revision()}
    if change is OTHER_REVISION:
        facts = {"revision": f"sha256:{'0' * 64}"}
    else:
        change(files)
    return make_record(files, operation="package", facts=facts)


@pytest.mark.parametrize(
    ("change", "adopted"),
    [
        (lambda files: None, True),
        (lambda files: files.update({"model.data": files["model.onnx"]}), False),
        (lambda files: files.pop("model.data"), False),
        (OTHER_REVISION, False),
        (lambda files: files.update({"more.bin": files["model.onnx"]}), False),
    ],
)
def test_adopt_takes_only_containers_that_their_manifest_vouches_for(
    tmp_path: Path,
    make_record: MakeRecord,
    change: Callable[[dict[str, Blob]], None],
    *,
    adopted: bool,
) -> None:
    team, own = DirectoryStore(tmp_path / "team"), DirectoryStore(tmp_path / "own")
    record = package(team, make_record, change)
    layered = LayeredStore(own, [DirectoryStore(team.root, read_only=True)])
    assert (layered.adopt("package", record.key) is not None) is adopted
    assert isinstance(own.lookup("package", record.key), Hit) is adopted
    if not adopted:
        assert list(own.list_blobs()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda files: files.update({"model.data": files["model.onnx"]}), "model.data is another"),
        (lambda files: files.pop("model.data"), "model.data is in its manifest and not in"),
        (lambda files: files.update({"more.bin": files["model.onnx"]}), "more.bin is not in its"),
        (lambda files: files.update({"manifest.json": files["model.onnx"]}), "cannot be read"),
        (OTHER_REVISION, "it tells of sha256:0000"),
    ],
)
def test_lookup_is_a_miss_that_can_be_healed_when_a_container_is_not_its_manifests(
    store: Store,
    make_record: MakeRecord,
    change: Callable[[dict[str, Blob]], None],
    words: str,
) -> None:
    """A status would name its revision, and a worker would take it for done."""
    forged = package(store, make_record, change)
    found = store.lookup("package", forged.key)
    assert isinstance(found, Miss)
    assert words in found.reason
    assert found.etag is not None
    honest = package_record(store, make_record, lambda files: None)
    assert isinstance(publish(store, honest), Committed)
    assert isinstance(store.lookup("package", forged.key), Hit)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a//b", "a\\b", "a/../../b"])
def test_a_manifest_is_refused_when_a_file_of_it_lies_outside(name: str) -> None:
    file = {"sha256": digest_bytes(b""), "size": 0}
    value = {
        "model": {}, "architecture": "llama", "target": {"name": "cpu", "backend": "Cpu"},
        "context_length": 1, "files": {name: file},
    }  # fmt: skip
    with pytest.raises(ValueError, match="files"):
        Manifest.model_validate(value)
