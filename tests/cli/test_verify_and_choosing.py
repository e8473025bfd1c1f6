"""`genai verify`, and the container that a build's folder stands for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genai_cli.testing import InProcess
from genai_core.canonical import digest_bytes

FILES = {"model.onnx": b"graph", "adapters/a/x.bin": b"ab"}


@pytest.fixture
def call(tmp_path: Path) -> InProcess:
    return InProcess(tmp_path)


def container(folder: Path, target: dict[str, object] | None = None) -> Path:
    manifest = {
        "model": {}, "architecture": "llama", "context_length": 256,
        "target": target or {"name": "cpu", "backend": "Cpu"},
        "files": {n: {"sha256": digest_bytes(d), "size": len(d)} for n, d in FILES.items()},
    }  # fmt: skip
    for name, data in {
        **FILES,
        "manifest.json": json.dumps(manifest).encode(),
        "report.json": b"{}",
        "golden.json": b"{}",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_verify_ends_with_0_when_every_file_is_the_manifests(
    call: InProcess, tmp_path: Path
) -> None:
    folder = container(tmp_path / "cpu")
    ran = call("verify", folder)
    assert ran.code == 0
    assert ran.out.splitlines()[0] == f"{folder}: 2 files, 7 B: all is well"
    assert "outside the revision, so nothing to compare with: golden.json, report.json" in ran.out
    value = call("verify", folder, "--json").json
    assert (value["files"], value["bytes"], value["faults"]) == (2, 7, [])
    assert value["revision"].startswith("sha256:")


def test_verify_names_every_file_and_ends_with_1_when_some_are_wrong(
    call: InProcess, tmp_path: Path
) -> None:
    folder = container(tmp_path / "cpu")
    (folder / "model.onnx").write_bytes(b"grapX")
    (folder / "adapters/a/x.bin").unlink()
    (folder / "adapters/b.bin").write_bytes(b"")
    (folder / "link").symlink_to("/nowhere")
    ran = call("verify", folder, "--json")
    assert ran.code == 1
    assert [(fault["file"], fault["kind"]) for fault in ran.json["faults"]] == [
        ("adapters/a/x.bin", "missing"),
        ("model.onnx", "bytes"),
        ("adapters/b.bin", "extra"),
        ("link", "extra"),
    ]
    plain = call("verify", folder)
    assert plain.code == 1
    assert "wrong    model.onnx: its bytes are not those of the manifest" in plain.out
    assert "1 missing, 1 wrong, 2 extra" in plain.out


@pytest.mark.parametrize(
    ("file", "digest", "words"),
    [
        ("adapters/b.safetensors", "0" * 64, "b.safetensors, which is not in the manifest"),
        ("adapters/a.safetensors", "0" * 64, "another file than the manifest's adapters/a"),
    ],
)
def test_verify_names_an_index_that_leads_to_files_without_a_manifest(
    call: InProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    digest: str,
    words: str,
) -> None:
    entry = {"file": file, "sha256": digest, "rank": 1, "linears": 1}
    index = json.dumps({"adapters": {"one": entry}}).encode()
    monkeypatch.setitem(FILES, "adapters/a.safetensors", b"x")
    monkeypatch.setitem(FILES, "adapters/index.json", index)
    ran = call("verify", container(tmp_path / "cpu"))
    assert ran.code == 1
    assert words in ran.out


@pytest.mark.parametrize("content", [None, "{", "{}", '{"schema_version": 99}'])
def test_verify_ends_with_2_when_it_is_no_container(
    call: InProcess, tmp_path: Path, content: str | None
) -> None:
    folder = tmp_path / "none"
    folder.mkdir()
    if content is not None:
        (folder / "manifest.json").write_text(content)
    ran = call("verify", folder)
    assert ran.code == 2
    assert len(ran.errors) == 1


def test_run_finds_the_container_that_runs_here_when_a_builds_folder_is_named(
    call: InProcess, tmp_path: Path
) -> None:
    htp: dict[str, object] = {"name": "sm8750", "backend": "Htp", "soc_model": 69, "dsp_arch": 79}
    folder = tmp_path / "tiny"
    container(folder / "sm8750", htp)
    only_devices = call("run", folder, "--prompt-tokens", "1")
    assert only_devices.code == 2
    assert only_devices.errors == [
        f"error: {folder}: its containers (sm8750) run on devices only; build the cpu target"
    ]
    container(folder / "cpu")
    ran = call("run", folder, "--prompt-tokens", "1")  # it has no metadata.json: it was opened
    assert ran.err.splitlines()[0] == f"container {folder}/cpu (there too: sm8750)"
    assert "cpu/metadata.json" in ran.errors[0]
    several = call("inspect", folder)
    assert several.code == 2
    assert f"it holds 2 containers; name one of {folder}/cpu, {folder}/sm8750" in several.errors[0]
