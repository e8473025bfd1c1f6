"""An EAGLE head in the plan: the model gives its hidden states out, and nothing else changes."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from genai_core.errors import BadModel, InvalidSpec
from genai_core.kinds.build import BuildSpec
from genai_core.names import DRAFT, MODEL, Digest, SourceName
from genai_core.operations import (
    OPERATIONS,
    CompileCpuConfig,
    HeadConfig,
    IngestConfig,
    PackageConfig,
)
from genai_core.sources.build_sources import sources_of
from genai_core.sources.resolved import resolve_file
from genai_core.tasks.task_file import Toolchain
from genai_planner.phases import BuildPlanner, BuildRequest, Exact
from genai_planner.plan import FileRef
from genai_planner.shape import shape_from_config
from genai_planner.sources import Source
from genai_planner.targets import parse_targets

HEAD = {
    "num_hidden_layers": 1, "hidden_size": 64, "vocab_size": 512, "max_position_embeddings": 256,
}  # fmt: skip
BIG = HEAD | {"num_hidden_layers": 6}
PART = {"method": "Eagle", "source": "s3://m/head"}


def spec(*targets: str, **more: Any) -> BuildSpec:
    return BuildSpec.model_validate(
        {"model": {"source": "s3://m/big"}, "targets": list(targets or ("cpu",)), **more}
    )


def source(name: str, config: dict[str, Any], *roles: str) -> Source:
    files = {
        role: FileRef(Digest(hashlib.sha256(f"{name}/{role}".encode()).hexdigest()), 1)
        for role in ("model.onnx", *roles)
    }
    return Source(files, config, 8 if roles else None)


def planned(head: dict[str, Any], **part: Any) -> Exact:
    return planned_spec(spec(speculation=[PART | part]), head)


def planned_spec(asked: BuildSpec, head: dict[str, Any]) -> Exact:
    found: dict[SourceName, Source] = {MODEL: source("big", BIG, "model.encodings")}
    if asked.speculation:
        found[DRAFT] = source("head", HEAD | head)
    chains = {(row.name, row.backend): Toolchain(id="0" * 64, versions={}) for row in OPERATIONS}
    shapes = {name: shape_from_config(one.config) for name, one in found.items()}
    request = BuildRequest(asked, parse_targets(asked.targets), found, chains)
    return BuildPlanner(request).exact({n: shape for n, shape in shapes.items() if shape})


@pytest.mark.parametrize(
    ("head", "part", "expected"),
    [
        ({"model_type": "eagle"}, {}, HeadConfig(version=1, hidden_states=(-1,))),
        ({}, {"version": 1}, HeadConfig(version=1, hidden_states=(-1,))),
        (
            {"eagle_aux_hidden_state_layer_ids": [1, 3, 5]},
            {},
            HeadConfig(version=3, hidden_states=(1, 3, 5)),
        ),
        (
            {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 2, 4]}},
            {},
            HeadConfig(version=3, hidden_states=(1, 3, 5)),
        ),
        (
            {"architectures": ["LlamaForCausalLMEagle3"]},
            {},
            HeadConfig(version=3, hidden_states=(2, 3, 3)),
        ),
        ({"model_type": "eagle"}, {"version": 3}, HeadConfig(version=3, hidden_states=(2, 3, 3))),
    ],
)
def test_a_head_s_version_and_the_layers_it_reads_are_told_by_its_config(
    head: dict[str, Any], part: dict[str, Any], expected: HeadConfig
) -> None:
    plan = planned(head, **part).plan
    package = plan.task("package/cpu/draft").config
    assert isinstance(package, PackageConfig)
    assert package.head == expected
    for precision in ("int8", "int4", "float"):
        compiled = plan.task(f"compile/cpu/{precision}").config
        assert isinstance(compiled, CompileCpuConfig)
        assert compiled.hidden_states == expected.hidden_states
        packaged = plan.task(f"package/cpu/{precision}").config
        assert isinstance(packaged, PackageConfig)
        assert packaged.head is None
    draft = plan.task("compile/cpu/draft").config
    assert isinstance(draft, CompileCpuConfig)
    assert draft.hidden_states == ()
    assert plan.task("ingest/draft").config == IngestConfig(head=True)
    assert plan.task("ingest").config == IngestConfig()
    assert any(f"EAGLE-{expected.version} head" in note for note in plan.notes)


def test_a_head_changes_only_what_compiles_the_model_and_what_follows() -> None:
    plain, headed = planned_spec(spec(), {}).plan, planned({"model_type": "eagle"}).plan
    before = {task.id: task for task in plain.tasks}
    after = {task.id: task for task in headed.tasks}
    assert plain.containers == headed.containers
    assert after.keys() - before.keys() == {
        "ingest/draft", "convert/cpu/draft_1_of_1", "compile/cpu/draft", "package/cpu/draft",
    }  # fmt: skip
    kinds = {name.split("/")[0] for name in before if before[name] != after[name]}
    assert kinds == {"compile", "package"}


def test_configs_are_as_they_were_where_nothing_guesses_from_hidden_states() -> None:
    plan = planned_spec(spec(), {}).plan
    for task in plan.tasks:
        written = task.config.model_dump(mode="json")
        assert not {"head", "hidden_states"} & written.keys()


@pytest.mark.parametrize(
    ("head", "part", "message"),
    [
        ({"model_type": "eagle", "hidden_size": 32}, {}, "hidden size is 32, the model's 64"),
        ({}, {}, "does not say which EAGLE it is"),
        (
            {"eagle_aux_hidden_state_layer_ids": [1, 3, 9]},
            {},
            "reads what layer 9 leaves, the model has 6 layers",
        ),
        ({"eagle_aux_hidden_state_layer_ids": [1, "3"]}, {}, "it is no list of layers"),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": []}}, {}, "it is no list of layers"),
    ],
)
def test_a_head_of_another_model_is_refused_before_anything_runs(
    head: dict[str, Any], part: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadModel, match=message) as raised:
        planned(head, **part)
    assert str(raised.value.where).startswith("spec.speculation[0].source")


def test_a_head_is_refused_for_snapdragon() -> None:
    with pytest.raises(InvalidSpec, match="EAGLE heads are built into cpu containers alone"):
        planned_spec(spec("sm8750", "cpu", speculation=[PART]), {"model_type": "eagle"})


def test_fields_of_a_head_are_refused_of_a_draft_model() -> None:
    for field, value in (("version", 3), ("draftTokenMap", "d2t.json")):
        with pytest.raises(ValueError, match=f"{field} is of an EAGLE head"):
            spec(speculation=[{"method": "DraftModel", "source": "s3://m", field: value}])
    with pytest.raises(ValueError, match="version"):
        spec(speculation=[PART | {"version": 2}])


def test_the_token_map_is_asked_for_by_the_name_that_the_spec_gives() -> None:
    asked = spec(speculation=[PART | {"draftTokenMap": "d2t.json"}])
    question = resolve_file(asked, sources_of(asked)[-1].address, source=DRAFT)
    assert question.model == {"draft_token_map": "d2t.json"}
