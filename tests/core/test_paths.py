"""Names from elsewhere lead only downwards, at every door."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from genai_core.container.manifest import ManifestGraph
from genai_core.errors import BadModel, InvalidSpec
from genai_core.facts import WeightsGroup
from genai_core.files.digest_cache import FileCache
from genai_core.files.paths import FILE_NAME, PREFIX, check_relative_path, links_may_reach
from genai_core.kinds.artifact_store import ArtifactStoreSpec
from genai_core.kinds.build import BuildSpec
from genai_core.kinds.definitions.crd import crd
from genai_core.kinds.definitions.defined_kinds import KINDS
from genai_core.kinds.documents.reading import read_served
from genai_core.sources.resolved import ResolvedFile, ResolvedSource, ResolveFile
from genai_core.sources.source_files import inspect_source
from genai_core.store.address import parse_address
from genai_core.tasks.task_file import TaskFileInput

ESCAPES = [
    "../secret",
    "a/../../secret",
    "/proc/self/environ",
    "~/x",
    "~root/x",
    "./x",
    "a/./x",
    "a//x",
    "a/",
    "..",
    ".",
    "a\\..\\x",
    "a\nb",
    "",
]
FIELDS = [
    ("model", "onnx"),
    ("model", "encodings"),
    ("quantization", "calibration"),
    ("quantization", "fidelity", "tokens"),
]


def spec_with(path: tuple[str, ...], name: str) -> dict[str, Any]:
    spec: dict[str, Any] = {"model": {"source": "s3://b/m"}, "targets": ["cpu"], "quantization": {}}
    if path[-1] == "calibration":
        spec["quantization"]["gaps"] = "Calibrate"
    here = spec
    for part in path[:-1]:
        here = here.setdefault(part, {})
    here[path[-1]] = name
    return spec


@pytest.mark.parametrize("path", FIELDS, ids=lambda path: path[-1])
@pytest.mark.parametrize("name", ESCAPES)
def test_read_served_names_the_field_when_a_name_leaves_the_source(
    path: tuple[str, ...], name: str
) -> None:
    with pytest.raises(InvalidSpec) as raised:
        read_served(BuildSpec, spec_with(path, name), where="spec")
    assert raised.value.where == ".".join(("spec", *path))
    assert "Traceback" not in str(raised.value)
    if name:
        assert "the name of a file below the source" in str(raised.value)


@pytest.mark.parametrize("path", FIELDS, ids=lambda path: path[-1])
@pytest.mark.parametrize(
    "name", ["a.npy", "deep/er/a b.npy", "..data/x", ".hidden", "...", "ä~.txt"]
)
def test_read_served_takes_names_below_the_source(path: tuple[str, ...], name: str) -> None:
    read_served(BuildSpec, spec_with(path, name), where="spec")


def test_crd_carries_the_pattern_of_every_name() -> None:
    schema = crd(KINDS[0])["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for path in FIELDS:
        here = schema["properties"]["spec"]
        for part in path:
            here = here["properties"][part]
        assert here["pattern"] == FILE_NAME


@given(st.text("ab./~\\\n\0 é", max_size=12))
def test_file_name_pattern_agrees_with_check_relative_path(name: str) -> None:
    try:
        check_relative_path(name)
        fits = not name.startswith("~")
    except ValueError:
        fits = False
    assert (re.search(FILE_NAME.replace("$", r"\Z"), name) is not None) == fits


@given(st.text("ab./", max_size=12))
def test_prefix_pattern_has_no_dots_between_slashes(prefix: str) -> None:
    fits = re.search(PREFIX.replace("$", r"\Z"), prefix) is not None
    inner = prefix.removeprefix("/").removesuffix("/")
    assert fits == (not inner or not {"", ".", ".."} & set(inner.split("/")))


def test_store_prefix_is_refused_when_it_leads_to_another_tenant() -> None:
    spec = {"bucket": "abc", "secretRef": {"name": "s"}, "prefix": "../other"}
    with pytest.raises(InvalidSpec, match=r"a prefix without \. and \.\."):
        read_served(ArtifactStoreSpec, spec, where="spec")
    for address in ("s3://abc/../other", "s3://abc/a/%2e%2e/b", "s3://abc/a/./b"):
        with pytest.raises(InvalidSpec, match=r"its prefix holds"):
            parse_address(address)


@pytest.mark.parametrize("name", [name for name in ESCAPES if not name.startswith("~")])
def test_documents_refuse_a_path_that_leaves_its_folder(name: str) -> None:
    file: dict[str, Any] = {"sha256": "a" * 64, "size": 1}
    with pytest.raises(ValidationError):
        ResolvedFile(path=name, **file)
    with pytest.raises(ValidationError):
        ResolvedSource(digest="d", files={name: ResolvedFile(path="a", **file)})
    with pytest.raises(ValidationError):
        ResolveFile(uri="s3://b/m", model={"onnx": name}, quantization={})
    with pytest.raises(ValidationError):
        WeightsGroup(file=name, size_bytes=1, parameters=1)
    with pytest.raises(ValidationError):
        ManifestGraph(name="g", ar=1, cl=2, split=1, file=name)


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x"])
def test_task_file_refuses_an_input_that_leaves_its_folder(name: str) -> None:
    from genai_core.tasks.task_file import TaskFile, Toolchain

    plain: dict[str, Any] = {
        "id": "t",
        "operation": "ingest",
        "key": "a" * 64,
        "code_version": 1,
        "config": {},
        "toolchain": Toolchain(id="a", versions={}),
    }
    file = TaskFileInput(sha256="a" * 64, size=1)
    TaskFile(**plain, inputs={"model": {"deep/er.onnx": file}})
    with pytest.raises(ValidationError):
        TaskFile(**plain, inputs={"model": {name: file}})
    with pytest.raises(ValidationError):
        TaskFile(**plain, inputs={name: {"a": file}})


# Links of a model's folder


def model_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"\x08\x08")
    return folder


def inspect(folder: Path, **options: Any) -> set[str]:
    spec = BuildSpec.model_validate({"model": {"source": str(folder)}, "targets": ["cpu"]})
    return set(inspect_source(spec, Path("/nowhere"), FileCache(None), **options).files)


def test_inspect_source_refuses_a_link_that_leaves_the_folder(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    secret = tmp_path / "secret.json"
    secret.write_text('{"private": 1}')
    (folder / "config.json").symlink_to(secret)
    with pytest.raises(BadModel, match="leaves the model's folder") as raised:
        inspect(folder)
    assert raised.value.where == str(folder / "config.json")
    assert inspect(folder, links_within=tmp_path) == {"model.onnx", "config.json"}


def test_inspect_source_refuses_a_folder_that_is_a_link_out(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    model_folder(tmp_path / "elsewhere")
    (folder / "sub").symlink_to(tmp_path / "elsewhere")
    spec = {"model": {"source": str(folder), "onnx": "sub/model.onnx"}, "targets": ["cpu"]}
    with pytest.raises(BadModel, match="leaves the model's folder"):
        inspect_source(BuildSpec.model_validate(spec), Path("/nowhere"), FileCache(None))


def test_inspect_source_follows_links_within_the_folder_and_the_folder_itself(
    tmp_path: Path,
) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "real.json").write_text("{}")
    (folder / "config.json").symlink_to("real.json")
    (tmp_path / "link").symlink_to(folder)
    assert inspect(folder) == inspect(tmp_path / "link") == {"model.onnx", "config.json"}


def test_inspect_source_reads_a_snapshot_of_the_hugging_face_cache(tmp_path: Path) -> None:
    hub = tmp_path / "models--org--name"
    (hub / "blobs").mkdir(parents=True)
    (hub / "blobs" / "c0ffee").write_text("{}")
    folder = model_folder(hub / "snapshots" / "abc")
    (folder / "config.json").symlink_to(PurePosixPath("../../blobs/c0ffee"))
    assert inspect(folder) == {"model.onnx", "config.json"}
    assert links_may_reach(folder) == hub
    (folder / "tokenizer.json").symlink_to(tmp_path / "outside.json")
    (tmp_path / "outside.json").write_text("{}")
    with pytest.raises(BadModel, match="leaves the model's folder"):
        inspect(folder)


def test_inspect_source_names_a_loop_of_links(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "config.json").symlink_to("config.json")
    with pytest.raises(BadModel, match="leads nowhere"):
        inspect(folder)
