"""Children in the plan: graphs of one AR from a model of its own, beside the model's."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from genai_core.errors import BadEncodings, BadModel, GenAIError, InvalidSpec
from genai_core.facts import AttentionFacts, ModelFacts, RopeTable, WeightsGroup
from genai_core.kinds.build import BuildSpec
from genai_core.kinds.documents.reading import read_build_text
from genai_core.names import (
    DRAFT,
    FORECAST,
    MODEL,
    VISION,
    Digest,
    SourceName,
    TaskId,
    child_source,
)
from genai_core.operations import (
    OPERATIONS,
    CompileHtpConfig,
    FidelityConfig,
    IngestConfig,
    PackageConfig,
    TransformConfig,
)
from genai_core.sources.build_sources import model_spec, of_source, sources_of
from genai_core.sources.resolved import resolve_file
from genai_core.tasks.task_file import Toolchain
from genai_planner.phases import BuildPlanner, BuildRequest
from genai_planner.plan import FileRef, Plan
from genai_planner.shape import ModelShape, shape_from_config, shape_from_facts
from genai_planner.sources import Source
from genai_planner.targets import parse_targets

CONFIG = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 512,
    "max_position_embeddings": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
CHILD = {"arn": 1, "source": "s3://m/decode", "name": "decode"}
NAME = child_source("decode")


def spec(
    *children: dict[str, Any], targets: tuple[str, ...] = ("sm8750",), **more: Any
) -> BuildSpec:
    return BuildSpec.model_validate(
        {
            "model": {"source": "s3://m/big"},
            "targets": list(targets),
            "graphs": {"autoRegression": [1, 16], "contextLengths": [128]},
            "splits": {"count": 2},
            "children": list(children),
            **more,
        }
    )


def source(name: str, config: Mapping[str, Any], *roles: str) -> Source:
    files = {
        role: FileRef(Digest(hashlib.sha256(f"{name}/{role}".encode()).hexdigest()), 1)
        for role in ("model.onnx", *(["config.json"] if config else []), *roles)
    }
    return Source(files, config, 8 if "model.encodings" in roles else None)


def planner(
    asked: BuildSpec,
    config: Mapping[str, Any] = CONFIG,
    roles: tuple[str, ...] = ("model.encodings",),
    more: Mapping[SourceName, Source] | None = None,
) -> BuildPlanner:
    found: dict[SourceName, Source] = {MODEL: source("big", CONFIG, "model.encodings")}
    found |= more or {}
    for child in asked.children:
        found[child.source_name] = source(child.label, config, *roles)
    chains = {(row.name, row.backend): Toolchain(id="0" * 64, versions={}) for row in OPERATIONS}
    return BuildPlanner(BuildRequest(asked, parse_targets(asked.targets), found, chains))


def plan_of(asked: BuildSpec, **more: Any) -> Plan:
    return planner(asked, **more).forecast.plan


def test_a_child_has_tasks_of_its_own_and_the_others_stay_as_they_are() -> None:
    plain, attached = plan_of(spec()), plan_of(spec(CHILD))
    before = {task.id: task for task in plain.tasks}
    after = {task.id: task for task in attached.tasks}
    assert set(after.keys() - before.keys()) == {
        "ingest/child:decode", "arcl/child:decode/ar1_cl128",
        *(f"{stage}/child:decode/ar1_cl128_{k}_of_2" for stage in ("transform", "convert/htp")
          for k in (1, 2)),
    }  # fmt: skip
    assert set(before.keys() - after.keys()) == {
        "arcl/ar1_cl128",
        *(f"{stage}/ar1_cl128_{k}_of_2" for stage in ("transform", "convert/htp") for k in (1, 2)),
    }  # fmt: skip
    changed = {task for task in before.keys() & after.keys() if before[task] != after[task]}
    assert changed == {
        "compile/sm8750/1_of_2", "compile/sm8750/2_of_2", "fidelity/sm8750", "package/sm8750",
    }  # fmt: skip
    places = {task.id: at for at, task in enumerate(attached.tasks)}
    for task in attached.tasks:
        assert all(places[other] < places[task.id] for other in task.after()), task.id
    assert any("AR 1: from the child decode" in note for note in attached.notes)


def test_a_child_s_parts_read_its_own_source_and_the_model_s_cache() -> None:
    plan = plan_of(spec(CHILD))
    for task in plan.tasks:
        if "child:decode/" in task.id:
            assert "ingest" not in task.after(), task.id
    convert = plan.task("convert/htp/child:decode/ar1_cl128_2_of_2")
    (cache,) = convert.inputs["cache"]
    assert (cache.task, cache.patterns) == (
        "convert/htp/ar16_cl128_2_of_2", ("ar16_cl128_2_of_2.onnx",),
    )  # fmt: skip
    assert convert.inputs["encodings"][0].task == "ingest/child:decode"
    fidelity = plan.task("fidelity/sm8750")
    assert fidelity.inputs["child_1_core"][0].task == "ingest/child:decode"
    assert isinstance(fidelity.config, FidelityConfig)
    assert fidelity.config.children == (1,)
    package = plan.task("package/sm8750").config
    assert isinstance(package, PackageConfig)
    assert package.children == (1,)


def test_another_chip_runs_what_is_of_a_chip_alone() -> None:
    def build(*chips: str) -> dict[str, tuple[object, ...]]:
        plan = plan_of(spec(CHILD, targets=chips))
        return {task.id: (task.operation, task.config, task.inputs) for task in plan.tasks}

    one, two, other = build("sm8750"), build("sm8750", "sm8850"), build("sm8850")
    assert all(two[task] == one[task] for task in one), "what stands is cached"
    for after in (two, other):
        new = {tuple(task.split("/")[:2]) for task in after if one.get(task) != after[task]}
        assert new == {(stage, "sm8850") for stage in ("compile", "fidelity", "package")}


def test_a_child_inherits_what_it_does_not_name() -> None:
    points = [{"tensor": ".*attn.*"}]
    own = {**CHILD, "transformation": {"additionalStartPoints": points}}
    asked = spec(own, model={"source": "s3://m/big", "architecture": "llama"})
    plan = plan_of(asked, config={})
    child = plan.task("transform/child:decode/ar1_cl128_1_of_2").config
    model = plan.task("transform/ar16_cl128_1_of_2").config
    assert isinstance(child, TransformConfig)
    assert isinstance(model, TransformConfig)
    assert [point.tensor for point in child.start_points] == [".*attn.*"]
    assert model.start_points == (), "the model's parts keep their keys"
    ingest = plan.task("ingest/child:decode").config
    assert isinstance(ingest, IngestConfig)
    assert ingest.architecture == "llama"
    stated = plan_of(spec(CHILD), config={}).task("ingest/child:decode").config
    assert isinstance(stated, IngestConfig)
    assert stated.architecture == "llama", "what the model's config.json says"


def test_compile_options_of_a_child_are_kept_apart_where_they_differ() -> None:
    options = {"graphs.vtcm_size_in_mb": "8"}
    asked = spec(
        {**CHILD, "compilation": {"options": {"graphs.vtcm_mb": "4"}}},
        compilation={"options": options},
    )
    config = plan_of(asked).task("compile/sm8750/1_of_2").config
    assert isinstance(config, CompileHtpConfig)
    assert config.options == options
    assert config.own_options == {"1": {"graphs.vtcm_size_in_mb": "4"}}
    same = spec({**CHILD, "compilation": {"options": options}}, compilation={"options": options})
    config = plan_of(same).task("compile/sm8750/1_of_2").config
    assert isinstance(config, CompileHtpConfig)
    assert config.own_options == {}
    assert "own_options" not in config.model_dump(mode="json")


@pytest.mark.parametrize("option", ["context.extended_udma", "devices.soc_model", "vtcm_mb"])
def test_a_child_is_refused_when_an_option_is_not_of_graphs(option: str) -> None:
    asked = spec({**CHILD, "compilation": {"options": {option: "1"}}})
    with pytest.raises(InvalidSpec, match="only graphs"):
        planner(asked).ingesting  # noqa: B018 - it is planned there


def test_a_child_is_refused_when_its_optimization_level_is_another() -> None:
    asked = spec(
        {**CHILD, "compilation": {"options": {"graphs.O": "2"}}},
        compilation={"options": {"graphs.O": "3"}},
    )
    with pytest.raises(InvalidSpec, match="is 2, the build's 3"):
        planner(asked).ingesting  # noqa: B018


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"vocab_size": 500}, "vocabulary is 500, the model's 512"),
        ({"num_hidden_layers": 3}, "number of layers is 3, the model's 2"),
        ({"hidden_size": 128}, "hidden size is 128, the model's 64"),
        ({"num_key_value_heads": 4}, "4 heads of 16 values in layer 0, the model's 2 of 16"),
        ({"head_dim": 8}, "2 heads of 8 values in layer 0, the model's 2 of 16"),
    ],
)
def test_a_child_is_refused_with_both_numbers_when_it_does_not_fit(
    other: dict[str, Any], told: str
) -> None:
    with pytest.raises(BadModel, match=told) as raised:
        plan_of(spec(CHILD), config=CONFIG | other)
    assert raised.value.where == "spec.children[0].source"
    assert raised.value.exit_code == 2


def test_a_child_is_refused_when_its_ar_is_none_of_the_build_s_or_no_ar_is_left() -> None:
    with pytest.raises(InvalidSpec, match=r"AR 4 is none of the build's, which are 1, 16"):
        plan_of(spec({**CHILD, "arn": 4}))
    with pytest.raises(InvalidSpec, match=r"every AR \(1, 16\) has a child"):
        plan_of(spec(CHILD, {"arn": 16, "source": "s3://m/prompt"}))


def test_a_child_is_refused_when_one_computes_in_floating_point_and_one_does_not() -> None:
    with pytest.raises(InvalidSpec, match="compute in floating point, the model's in integers"):
        plan_of(spec({**CHILD, "gaps": "Float"}), roles=())
    with pytest.raises(BadEncodings, match="the child decode has no encodings"):
        plan_of(spec(CHILD), roles=())


@pytest.mark.parametrize(
    ("children", "told"),
    [
        ([CHILD, {**CHILD, "name": "other"}], "0 and 1 are both of AR 1"),
        ([CHILD, {**CHILD, "arn": 16}], "0 and 1 are both called decode"),
        ([{**CHILD, "calibration": "a.npy", "gaps": "Float"}], "only with gaps: Calibrate"),
        ([{**CHILD, "conversion": {}}], "conversion"),
        ([{**CHILD, "arn": 0}], "greater than or equal to 1"),
    ],
)
def test_children_are_refused_when_two_are_alike_or_a_field_does_nothing(
    children: list[dict[str, Any]], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        spec(*children)


def test_children_and_adapters_exclude_each_other() -> None:
    lora = {"adapters": [{"name": "a", "source": "s3://m/a"}]}
    with pytest.raises(ValueError, match="exclude each other"):
        spec(CHILD, lora=lora)


PARTS: tuple[tuple[SourceName, dict[str, Any]], ...] = (
    (DRAFT, {"speculation": [{"method": "DraftModel", "source": "s3://m/p"}]}),
    (DRAFT, {"speculation": [{"method": "Eagle", "source": "s3://m/p"}]}),
    (
        FORECAST,
        {"speculation": [{"method": "Ssd", "source": "s3://m/p", "tensorFile": "t.safetensors"}]},
    ),
    (VISION, {"vision": {"source": "s3://m/p", "imageToken": "<image>"}}),
)


@pytest.mark.parametrize(("name", "part"), PARTS)
def test_children_and_parts_of_cpu_containers_are_refused_by_name_on_snapdragon(
    name: SourceName, part: dict[str, Any]
) -> None:
    more = {name: source("part", CONFIG, "model.encodings")}
    with pytest.raises(InvalidSpec, match="cpu containers alone"):
        _ = planner(spec(CHILD, **part), more=more).forecast


def exact_shapes(own: str, **facts: Any) -> dict[SourceName, ModelShape]:
    """Of the model and a child, whose weights are said by a digest."""
    file = "weights/layer_000.data"
    base = ModelFacts(
        architecture="llama", layers=1, hidden_size=64, vocab_size=512, parameters=1,
        rope={"default": RopeTable(rotary_dim=2, inv_freq=[1.0])},
        attention=[AttentionFacts(layer=0, num_heads=4, kv_heads=2, head_dim=16)],
        boundaries=["a", "b"],
        groups={"layer_000": WeightsGroup(file=file, size_bytes=4, parameters=1)},
    )  # fmt: skip
    child = base.model_copy(update=facts)
    return {
        MODEL: shape_from_facts(base, {file: Digest("a" * 64), "facts.json": Digest("b" * 64)}),
        NAME: shape_from_facts(child, {file: Digest(own * 64), "facts.json": Digest("c" * 64)}),
    }


def test_a_package_tells_children_apart_when_their_weights_alone_differ() -> None:
    asked = spec(CHILD, splits={"count": 1})

    def config(own: str) -> PackageConfig:
        package = planner(asked).exact(exact_shapes(own)).plan.task("package/sm8750").config
        assert isinstance(package, PackageConfig)
        return package

    first, second = config("a"), config("d")
    assert first == config("a")
    assert first.child_weights.keys() == second.child_weights.keys() == {"1"}
    assert first.child_weights != second.child_weights
    without = planner(spec(splits={"count": 1})).forecast.plan.task("package/sm8750").config
    assert not {"children", "child_weights"} & without.model_dump(mode="json").keys()


def test_on_cpu_a_child_is_not_needed_when_its_weights_are_the_model_s() -> None:
    asked = spec(CHILD, targets=("cpu",), graphs={"autoRegression": [1, 16]}, splits={})
    plan = planner(asked).exact(exact_shapes("a")).plan
    assert any("has no need of it" in note for note in plan.notes)
    assert not [task.id for task in plan.tasks if "child" in task.id and "ingest" not in task.id]


def test_on_cpu_a_child_is_refused_before_any_conversion_when_its_weights_differ() -> None:
    asked = spec(CHILD, targets=("cpu",), graphs={"autoRegression": [1, 16]}, splits={})
    with pytest.raises(InvalidSpec, match=r"1 of 1 files of weights differ.*layer_000") as raised:
        planner(asked).exact(exact_shapes("d"))
    assert raised.value.where == "spec.children[0].source"
    before = planner(asked).ingesting.plan
    assert [task.id for task in before.tasks] == ["ingest", "ingest/child:decode"]
    assert any("are compared" in note for note in planner(asked).forecast.plan.notes)


def test_a_child_is_refused_when_its_rotary_tables_are_others() -> None:
    asked = spec(CHILD, splits={})
    other = {"default": RopeTable(rotary_dim=2, inv_freq=[2.0])}
    with pytest.raises(BadModel, match="rotary tables are not the model's"):
        planner(asked).exact(exact_shapes("d", rope=other))


def test_sources_of_names_a_child_and_it_is_asked_for_like_a_model() -> None:
    asked = spec(
        {**CHILD, "onnx": "d.onnx", "calibration": "own.txt", "gaps": "Calibrate",
         "secretRef": {"name": "s"}},
        quantization={"gaps": "Calibrate", "calibration": "text.txt",
                      "fidelity": {"tokens": "t.npy"}},
    )  # fmt: skip
    child = sources_of(asked)[1]
    assert (child.name, child.field, child.pin_field, child.secret) == (
        "child:decode", "spec.children[0].source", "spec.children[0].digest", "s",
    )  # fmt: skip
    question = resolve_file(asked, child.address, source=NAME)
    assert (question.what, question.model) == (None, {"onnx": "d.onnx"})
    assert question.quantization == {"calibration": "own.txt"}
    alone = model_spec(asked, NAME)
    assert (alone.model.source, alone.quantization.calibration) == ("s3://m/decode", "own.txt")
    assert alone.quantization.fidelity.tokens is None
    plan = plan_of(asked, roles=("model.encodings", "calibration.txt"))
    task = plan.task("convert/htp/child:decode/ar1_cl128_1_of_2")
    assert task.inputs["calibration"][0].task == "ingest/child:decode"


def test_a_child_without_a_text_is_calibrated_with_the_model_s() -> None:
    asked = spec(CHILD, quantization={"gaps": "Calibrate", "calibration": "text.txt"})
    task = plan_of(asked).task(TaskId("convert/htp/child:decode/ar1_cl128_1_of_2"))
    assert task.inputs["calibration"][0].task == "ingest"
    assert task.inputs["core"][0].task == "ingest/child:decode"


def test_an_error_about_a_child_s_files_names_its_fields() -> None:
    error: GenAIError = BadModel(
        "gone", where="spec.quantization.calibration", remedy="spec.model.onnx"
    )
    renamed = of_source(error, sources_of(spec(CHILD))[1])
    assert (renamed.where, renamed.remedy) == (
        "spec.children[0].calibration",
        "spec.children[0].onnx",
    )


def test_a_relative_child_is_found_beside_the_file(tmp_path: Path) -> None:
    text = """
apiVersion: genai-operator.dev/v1alpha1
kind: GenAIBuild
metadata: {name: a}
spec:
  model: {source: ./big}
  targets: [sm8750]
  children: [{arn: 1, source: ./decode}]
"""
    build = read_build_text(text.encode(), where="a.yaml", folder=tmp_path)
    assert build.spec.children[0].source == str(tmp_path / "decode")
    assert build.spec.children[0].label == "attached_ar1"


def test_a_forecast_of_a_shape_says_each_layer_s_cache() -> None:
    shape = shape_from_config(CONFIG)
    assert shape is not None
    assert shape.caches == ((2, 16), (2, 16))
    assert dataclasses.replace(shape, caches=()).caches == ()
