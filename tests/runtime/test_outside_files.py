"""Files outside a container's revision: golden prompts, the twin, the manifest and the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_core.canonical import digest_bytes, digest_file
from genai_core.container.manifest import Manifest, ManifestFile, ManifestTarget, Report
from genai_core.container.outside import read_outside, report_bytes, vouch_for
from genai_core.errors import BadInput, CorruptBlob, GenAIError
from genai_core.names import Backend, Digest, Key
from genai_core.store.delivery import deliver
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.tasks.record import Output, Record, ToolchainUsed
from genai_runtime.container import container, inspection
from genai_runtime.container.backend import open_executor, open_session
from genai_runtime.container.verification import (
    extra_files,
    file_faults,
    outside_faults,
    outside_files,
    report_fault,
)

METADATA = {
    "backend": "Htp", "architecture": "llama", "context_length": 8, "vocab_size": 8,
    "model_files": {},
}  # fmt: skip
NAMED = {"metadata.json": json.dumps(METADATA).encode(), "part_1_of_1.bin": b"binary"}
GOLDEN = {"tolerance": 0.1, "prompts": [{"prompt_tokens": [1], "tokens": [2], "margins": [0.5]}]}
OUTSIDE = {
    "golden.json": json.dumps(GOLDEN).encode(),
    "emulation/metadata.json": b"{}",
    "emulation/part_1_of_1.bin": b"twin",
    "emulation/token_ar1_cl8_1_of_1.onnx": b"wrapper",
}
REPORT = report_bytes(Report(verified="Emulator", fidelity={"natsPerToken": 1.5}))


def delivered(folder: Path) -> Path:
    """A container for a phone, as a build hands it out."""
    store = DirectoryStore(folder / "store")
    manifest = Manifest(
        model={},
        architecture="llama",
        target=ManifestTarget(name="sm8750", backend=Backend.HTP),
        context_length=8,
        files={n: ManifestFile(sha256=digest_bytes(d), size=len(d)) for n, d in NAMED.items()},
    )
    outputs = {}
    for name, data in {
        **NAMED, **OUTSIDE, "report.json": REPORT, "manifest.json": manifest.to_bytes(),
    }.items():  # fmt: skip
        blob = store.put_bytes(data)
        outputs[name] = Output(sha256=blob.sha256, size=blob.size)
    record = Record(
        operation="package",
        key=Key("1" * 64),
        outputs=outputs,
        toolchain=ToolchainUsed(id=Digest("0" * 64)),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    deliver(record, store, folder / "box", target="sm8750")
    return folder / "box"


@pytest.fixture
def box(tmp_path: Path) -> Path:
    return delivered(tmp_path)


def flip(path: Path, place: int = 3) -> None:
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 0x01
    path.write_bytes(bytes(data))


def faults(folder: Path) -> list[tuple[str, str]]:
    """All that is wrong, as `genai verify` looks for it."""
    manifest = container.manifest_of(folder)
    broken = report_fault(folder)
    outside = {} if broken else outside_files(folder)
    found = [
        *file_faults(folder, manifest, digest_of=digest_file),
        *extra_files(folder, manifest),
        *outside_faults(folder, outside, digest_of=digest_file),
        *([broken] if broken else []),
    ]
    return [(fault.name, fault.kind) for fault in found]


def test_deliver_vouches_for_every_file_when_it_hands_a_container_out(box: Path) -> None:
    assert set(outside_files(box)) == {*OUTSIDE, "manifest.json"}
    assert faults(box) == []
    opened = container.load(box)
    opened.verify_outside()
    golden = opened.golden()
    assert golden is not None
    assert golden.prompts[0].tokens == [2]


@pytest.mark.parametrize("name", [*NAMED, *OUTSIDE])
def test_one_byte_is_noticed_when_it_has_changed_in_any_file(box: Path, name: str) -> None:
    flip(box / name)
    assert faults(box) == [(name, "bytes")]
    with pytest.raises(CorruptBlob, match=name):
        inspection.describe(box)


def test_load_refuses_a_manifest_or_a_report_when_a_byte_of_it_has_changed(box: Path) -> None:
    for name in ("manifest.json", "report.json"):
        good = (box / name).read_bytes()
        for place in range(0, len(good), 11):
            flip(box / name, place)
            with pytest.raises(GenAIError):
                container.load(box)
            (box / name).write_bytes(good)
    container.load(box)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("golden.json", container.Container.golden),
        ("emulation/metadata.json", open_session),
        ("emulation/part_1_of_1.bin", open_session),
        ("emulation/token_ar1_cl8_1_of_1.onnx", open_session),
    ],
)
def test_a_file_outside_the_revision_is_compared_when_it_is_read(
    box: Path, name: str, read: Callable[[container.Container], object]
) -> None:
    flip(box / name)
    opened = container.load(box)
    with pytest.raises(CorruptBlob, match=f"{name}: its bytes are not those of report.json"):
        read(opened)
    (box / name).unlink()
    with pytest.raises(BadInput, match="is missing"):
        read(opened)


def test_a_twin_is_compared_by_what_the_caller_knows_of_digests(box: Path, tmp_path: Path) -> None:
    asked: list[str] = []

    def digest(path: Path) -> str:
        asked.append(path.relative_to(box).as_posix())
        return digest_file(path)

    opened = container.load(box, digest_of=digest)
    assert sorted(asked) == sorted([*NAMED, "manifest.json"])
    asked.clear()
    with pytest.raises(GenAIError):  # its metadata.json is none
        open_executor(opened, cache=tmp_path / "cache")
    assert sorted(asked) == sorted(name for name in OUTSIDE if name.startswith("emulation/"))


def test_a_file_is_extra_when_the_report_does_not_name_it(box: Path) -> None:
    (box / "emulation/part_2_of_2.bin").write_bytes(b"strange")
    assert faults(box) == [("emulation/part_2_of_2.bin", "extra")]
    with pytest.raises(BadInput, match=r"part_2_of_2.bin: is not in report.json"):
        open_session(container.load(box))


def test_inspect_is_content_when_a_twin_was_left_out(box: Path) -> None:
    for name in OUTSIDE:
        if name.startswith("emulation/"):
            (box / name).unlink()
    (box / "emulation").rmdir()
    assert inspection.describe(box)["runsBy"] == "device"
    assert {kind for _, kind in faults(box)} == {"missing"}


def test_a_container_is_read_when_its_report_is_older_and_vouches_for_nothing(box: Path) -> None:
    (box / "report.json").write_bytes(REPORT)
    flip(box / "emulation/part_1_of_1.bin")
    assert outside_files(box) == {}
    assert faults(box) == []
    container.load(box).verify_outside()
    vouch_for(box)
    assert set(outside_files(box)) == {*OUTSIDE, "manifest.json"}


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "part_1_of_1.bin", "emulation/../x"]
)
def test_read_outside_refuses_a_report_that_names_other_files(name: str) -> None:
    report = Report(verified="Cpu", outside={})
    entry = ManifestFile(sha256="0" * 64, size=1)
    data = report_bytes(report.model_copy(update={"outside": {name: entry}}))
    with pytest.raises(ValueError, match=r"outside|relative|folder|revision"):
        read_outside(data)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_read_outside_never_takes_other_bytes_for_the_report_s(data: st.DataObject) -> None:
    entry = ManifestFile(sha256=digest_bytes(b"x"), size=1)
    report = report_bytes(Report(verified="Cpu", outside={"golden.json": entry}))
    assert read_outside(report) == {"golden.json": entry}
    place = data.draw(st.integers(0, len(report) - 1))
    changed = data.draw(st.integers(0, 255).filter(lambda byte: byte != report[place]))
    with pytest.raises(ValueError):
        read_outside(report[:place] + bytes([changed]) + report[place + 1 :])
