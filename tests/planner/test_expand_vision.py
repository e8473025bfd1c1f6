"""An encoder of pictures in the plan: a task of its own, and no other changes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from genai_core.errors import BadInput, BadModel, InvalidSpec
from genai_core.files.digest_cache import FileCache
from genai_core.kinds.build import BuildSpec
from genai_core.names import MODEL, VISION, VISION_ROLE, Digest, SourceName, TaskId
from genai_core.operations import OPERATIONS, VisionImportConfig
from genai_core.sources.build_sources import sources_of
from genai_core.sources.resolved import resolve_file
from genai_core.sources.vision_files import inspect_vision
from genai_core.tasks.task_file import Toolchain
from genai_planner.phases import BuildPlanner, BuildRequest, Exact
from genai_planner.plan import FileRef
from genai_planner.shape import shape_from_config
from genai_planner.sources import Source
from genai_planner.targets import parse_targets

CONFIG = {
    "num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 512, "max_position_embeddings": 256,
}  # fmt: skip
PART = {"source": "s3://m/vit", "imageToken": "<img>", "onnx": "vit.onnx"}


def spec(*targets: str, **more: Any) -> BuildSpec:
    return BuildSpec.model_validate(
        {"model": {"source": "s3://m/big"}, "targets": list(targets or ("cpu",)), **more}
    )


def source(config: dict[str, Any], *roles: str) -> Source:
    files = {role: FileRef(Digest(hashlib.sha256(role.encode()).hexdigest()), 1) for role in roles}
    return Source(files, config, 8 if "model.encodings" in roles else None)


def exact(asked: BuildSpec) -> Exact:
    found: dict[SourceName, Source] = {MODEL: source(CONFIG, "model.onnx", "model.encodings")}
    if asked.vision is not None:
        found[VISION] = source({}, VISION_ROLE, "config.json")
    chains = {(row.name, row.backend): Toolchain(id="0" * 64, versions={}) for row in OPERATIONS}
    shape = shape_from_config(CONFIG)
    assert shape is not None
    request = BuildRequest(asked, parse_targets(asked.targets), found, chains)
    return BuildPlanner(request).exact({MODEL: shape})


def test_expand_adds_one_task_that_the_package_alone_reads() -> None:
    plain, found = exact(spec()).plan, exact(spec(vision=PART)).plan
    added = {task.id for task in found.tasks} - {task.id for task in plain.tasks}
    assert added == {TaskId("vision_import")}
    task = found.task(TaskId("vision_import"))
    assert task.config == VisionImportConfig(image_token="<img>")
    for other in found.tasks:
        if other.id in added:
            continue
        before = dict(other.inputs)
        assert (before.pop(VISION, None) is None) is (other.operation != "package")
        assert before == plain.task(other.id).inputs
        assert other.config == plain.task(other.id).config


def test_a_build_with_vision_names_its_source_and_asks_for_its_files() -> None:
    asked = spec(vision={**PART, "secretRef": {"name": "vit-key"}, "digest": "sha256:" + "a" * 64})
    (_, found) = sources_of(asked)
    assert (found.name, found.address, found.secret) == (VISION, "s3://m/vit", "vit-key")
    assert found.field == "spec.vision.source"
    assert found.pin == "sha256:" + "a" * 64
    question = resolve_file(asked, "s3://m/vit", source=VISION)
    assert (question.what, question.model) == ("vision", {"onnx": "vit.onnx"})


def test_expand_refuses_a_snapdragon_target_before_any_task() -> None:
    with pytest.raises(InvalidSpec, match="built into cpu containers alone") as refused:
        exact(spec("cpu", "sm8750", vision=PART))
    assert refused.value.where == "spec.vision"


def encoder(folder: Path, name: str = "vit.onnx") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"\x08\x08")
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("not read")
    return folder


def test_inspect_vision_finds_the_encoder_and_what_says_its_preprocessing(tmp_path: Path) -> None:
    found = inspect_vision(encoder(tmp_path / "vit"), FileCache(None), where="spec.vision.source")
    assert set(found.files) == {VISION_ROLE, "config.json"}
    (tmp_path / "vit" / "preprocessor_config.json").write_text("{}")
    other = inspect_vision(tmp_path / "vit", FileCache(None), where="spec.vision.source")
    assert set(other.files) == {VISION_ROLE, "config.json", "preprocessor_config.json"}
    assert other.digest != found.digest


@pytest.mark.parametrize(
    ("more", "options", "told"),
    [
        ("text.onnx", {}, "it holds 2 .onnx files: text.onnx, vit.onnx"),
        ("", {"onnx": "other.onnx"}, "there is no file"),
        ("", {"pin": "sha256:" + "0" * 64}, "not the sha256:0000"),
    ],
)
def test_inspect_vision_refuses_what_is_missing_ambiguous_or_other(
    tmp_path: Path, more: str, options: dict[str, str], told: str
) -> None:
    encoder(tmp_path / "vit", "vit.onnx")
    if more:
        encoder(tmp_path / "vit", more)
    with pytest.raises(BadInput, match=told):
        inspect_vision(tmp_path / "vit", FileCache(None), where="spec.vision.source", **options)


def test_inspect_vision_refuses_a_folder_without_an_encoder(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"it holds no \.onnx file"):
        inspect_vision(tmp_path, FileCache(None), where="spec.vision.source")


def test_what_the_spec_says_of_pictures_stands_in_the_task() -> None:
    dynamic = spec(vision={**PART, "imageToken": "<i>", "tokensPerImage": "dynamic"})
    config = exact(dynamic).plan.task(TaskId("vision_import")).config
    assert config == VisionImportConfig(image_token="<i>", dynamic=True)
    plain = exact(spec()).plan
    assert {VISION} & {name for task in plain.tasks for name in task.inputs} == set()
