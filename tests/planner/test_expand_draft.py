"""A draft model in the plan: a container of its own, which only the model's package reads."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from genai_core.errors import BadModel, InvalidSpec
from genai_core.kinds.build import BuildSpec
from genai_core.kinds.documents.reading import read_build_text
from genai_core.names import DRAFT, MODEL, Digest, Gaps, Precision, SourceName, TaskId
from genai_core.operations import OPERATIONS, ConvertCpuConfig, PackageConfig
from genai_core.sources.build_sources import model_spec, of_source, sources_of
from genai_core.sources.resolved import resolve_file
from genai_core.tasks.task_file import Toolchain
from genai_planner.phases import BuildPlanner, BuildRequest, Exact
from genai_planner.plan import FileRef
from genai_planner.shape import shape_from_config
from genai_planner.sources import Source
from genai_planner.targets import parse_targets

CONFIG = {
    "num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 512, "max_position_embeddings": 256,
}  # fmt: skip
SMALL = CONFIG | {"num_hidden_layers": 1, "max_position_embeddings": 128}
PART = {"method": "DraftModel", "source": "s3://m/draft", "onnx": "d.onnx"}


def spec(*targets: str, **more: Any) -> BuildSpec:
    return BuildSpec.model_validate(
        {"model": {"source": "s3://m/big"}, "targets": list(targets or ("cpu",)), **more}
    )


def source(name: str, config: dict[str, Any], *roles: str) -> Source:
    files = {
        role: FileRef(Digest(hashlib.sha256(f"{name}/{role}".encode()).hexdigest()), 1)
        for role in ("model.onnx", *roles)
    }
    return Source(files, config, 8 if "model.encodings" in roles else None)


def exact(asked: BuildSpec, *draft_roles: str) -> Exact:
    found: dict[SourceName, Source] = {MODEL: source("big", CONFIG, "model.encodings")}
    if asked.speculation:
        found[DRAFT] = source("draft", SMALL, *draft_roles)
    chains = {(row.name, row.backend): Toolchain(id="0" * 64, versions={}) for row in OPERATIONS}
    shapes = {name: shape_from_config(one.config) for name, one in found.items()}
    request = BuildRequest(asked, parse_targets(asked.targets), found, chains)
    return BuildPlanner(request).exact({n: shape for n, shape in shapes.items() if shape})


def test_a_draft_has_tasks_of_its_own_and_changes_only_the_package() -> None:
    plain, drafted = exact(spec()).plan, exact(spec(speculation=[PART])).plan
    before = {task.id: task for task in plain.tasks}
    after = {task.id: task for task in drafted.tasks}
    assert after.keys() - before.keys() == {
        "ingest/draft", "convert/cpu/draft_1_of_1", "compile/cpu/draft", "package/cpu/draft",
    }  # fmt: skip
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"package/cpu/int8", "package/cpu/int4", "package/cpu/float"}
    assert after[TaskId("package/cpu/int8")].inputs["draft"][0].task == "package/cpu/draft"
    assert drafted.containers == plain.containers, "the draft's is not delivered"


@pytest.mark.parametrize(
    ("roles", "precision", "gaps"),
    [((), Precision.FLOAT, Gaps.FLOAT), (("model.encodings",), Precision.INT8, Gaps.ERROR)],
)
def test_a_draft_is_int8_where_it_has_encodings_and_reads_its_own_ingest(
    roles: tuple[str, ...], precision: Precision, gaps: Gaps
) -> None:
    plan = exact(spec(speculation=[PART], golden={"prompts": ["a"]}), *roles).plan
    convert = plan.task("convert/cpu/draft_1_of_1")
    assert isinstance(convert.config, ConvertCpuConfig)
    assert (convert.config.precision, convert.config.gaps) == (precision, gaps)
    assert ("encodings" in convert.inputs) == bool(roles)
    for task in ("convert/cpu/draft_1_of_1", "compile/cpu/draft", "package/cpu/draft"):
        read = set(plan.task(task).after())
        assert "ingest/draft" in read
        assert "ingest" not in read, task
        assert plan.task(task).when is None
    package = plan.task("package/cpu/draft").config
    assert isinstance(package, PackageConfig)
    assert package.context_length == 128, "its own limit"
    assert package.golden_prompts == (), "they are the model's"
    assert any("draft model" in note and precision in note for note in plan.notes)


def test_a_draft_model_is_refused_for_snapdragon() -> None:
    with pytest.raises(InvalidSpec, match="cpu containers alone") as raised:
        exact(spec("sm8750", "cpu", speculation=[PART]))
    assert raised.value.where == "spec.speculation"


def test_sources_of_names_the_draft_and_it_is_asked_for_like_a_model() -> None:
    asked = spec(
        speculation=[{**PART, "secretRef": {"name": "s"}, "digest": f"sha256:{'0' * 64}"}],
        quantization={"gaps": "Calibrate", "calibration": "text.txt"},
    )
    draft = sources_of(asked)[-1]
    assert (draft.name, draft.field, draft.pin_field, draft.secret) == (
        "draft", "spec.speculation[0].source", "spec.speculation[0].digest", "s",
    )  # fmt: skip
    question = resolve_file(asked, draft.address, source=DRAFT)
    assert question.what is None
    assert question.model == {"onnx": "d.onnx"}
    assert question.quantization == {}, "the calibration text is the model's"
    alone = model_spec(asked, DRAFT)
    assert (alone.model.source, alone.model.onnx) == ("s3://m/draft", "d.onnx")
    assert alone.speculation == []
    assert model_spec(asked, MODEL) is asked


def test_one_draft_model_is_enough_and_other_methods_have_no_part() -> None:
    with pytest.raises(ValueError, match="at most 1"):
        spec(speculation=[PART, PART])
    with pytest.raises(ValueError, match="method"):
        spec(speculation=[{"method": "Medusa", "source": "s3://m"}])
    assert (
        spec(speculation=[{**PART, "method": "draftmodel"}]).speculation[0].method == "DraftModel"
    )


def test_a_relative_draft_is_found_beside_the_file(tmp_path: Path) -> None:
    text = """
apiVersion: genai-operator.dev/v1alpha1
kind: GenAIBuild
metadata: {name: a}
spec:
  model: {source: ./big}
  targets: [cpu]
  speculation: [{method: DraftModel, source: ./small}]
"""
    build = read_build_text(text.encode(), where="a.yaml", folder=tmp_path)
    assert build.spec.speculation[0].source == str(tmp_path / "small")


def test_an_error_about_a_draft_s_files_names_its_fields() -> None:
    error = BadModel("two files", where="spec.model.onnx", remedy="set spec.model.onnx")
    model, draft = sources_of(spec(speculation=[PART]))
    assert of_source(error, model) is error
    renamed = of_source(error, draft)
    assert isinstance(renamed, BadModel)
    assert renamed.where == "spec.speculation[0].onnx"
    assert renamed.remedy == "set spec.speculation[0].onnx"
