"""Adapters in the plan: a task each, read by the package alone; the base's keys never change."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from genai_core.errors import InvalidSpec
from genai_core.kinds.build import BuildSpec
from genai_core.kinds.lora import QuantUpdatableMode
from genai_core.names import MODEL, Digest, SourceName, TaskId, adapter_source
from genai_core.operations import OPERATIONS, ConvertHtpConfig, PackageConfig
from genai_core.tasks.task_file import Toolchain
from genai_planner.execution.advance import advance
from genai_planner.execution.events import Event, FoundResult, Look, WorkLimits
from genai_planner.expand.build import expand
from genai_planner.phases import BuildPlanner, BuildRequest, Exact
from genai_planner.plan import FileRef, Result, Selection
from genai_planner.shape import shape_from_config
from genai_planner.sources import Source
from genai_planner.targets import parse_targets

CONFIG = {
    "num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 512, "max_position_embeddings": 256,
}  # fmt: skip
ADAPTERS = [
    {"name": "c-headers", "source": "s3://a/c"},
    {"name": "upper", "source": "s3://a/u"},
]


def ref(*parts: str) -> FileRef:
    return FileRef(Digest(hashlib.sha256("/".join(parts).encode()).hexdigest()), 1)


def sources(*names: str, content: str = "") -> dict[SourceName, Source]:
    roles = ("adapter_config.json", "adapter_model.safetensors")
    model = Source({r: ref(r) for r in ("model.onnx", "model.encodings")}, CONFIG, 8)
    return {MODEL: model} | {
        adapter_source(name): Source({r: ref(name, r, content) for r in roles}) for name in names
    }


def exact(
    found: dict[SourceName, Source], targets: tuple[str, ...] = ("cpu",), **lora: Any
) -> Exact:
    document: dict[str, Any] = {"model": {"source": "m"}, "targets": list(targets)}
    spec = BuildSpec.model_validate(document | ({"lora": lora} if lora else {}))
    chains = {(row.name, row.backend): Toolchain(id="0" * 64, versions={}) for row in OPERATIONS}
    shape = shape_from_config(CONFIG)
    assert shape is not None
    request = BuildRequest(spec, parse_targets(spec.targets), found, chains)
    return BuildPlanner(request).exact({MODEL: shape})


def keys(phase: Exact) -> dict[str, str]:
    def answer(looks: Any) -> list[Event]:
        return [FoundResult(look.task, result(look)) for look in looks]

    found = advance(
        phase.plan, answer, lambda: WorkLimits(99, 1 << 60),
        sources=phase.request.sources, toolchains=phase.request.toolchain_ids,
    )  # fmt: skip
    return {str(task): str(key) for task, key in found.keys.items()}


def result(look: Look) -> Result:
    names = {
        "ingest": [
            "model.onnx",
            "facts.json",
            "encodings/e",
            "measured.json",
            "weights/embed.data",
            "weights/layer_000.data",
            "weights/layer_001.data",
            "weights/head.data",
        ],
    }.get(look.operation, ["file"])
    return Result({n: ref(look.key, n) for n in names}, {"within": True})


def test_adapters_add_a_task_each_and_change_only_the_package() -> None:
    plain = keys(exact(sources()))
    with_two = keys(exact(sources("c-headers", "upper"), adapters=ADAPTERS))
    added = with_two.keys() - plain.keys()
    assert added == {"lora_import/c-headers", "lora_import/upper"}
    changed = {task for task in plain if plain[task] != with_two[task]}
    assert changed == {"package/cpu/int8"}


def test_a_changed_adapter_leaves_every_other_key() -> None:
    one = keys(exact(sources("c-headers", "upper"), adapters=ADAPTERS))
    found = sources("c-headers", "upper")
    found |= {adapter_source("upper"): sources("upper", content="new")[adapter_source("upper")]}
    two = keys(exact(found, adapters=ADAPTERS))
    changed = {task for task in one if one[task] != two[task]}
    assert changed == {"lora_import/upper", "package/cpu/int8"}


def test_an_adapter_is_keyed_by_its_content_and_the_graph_but_not_by_its_name() -> None:
    found = sources("c-headers")
    renamed = {MODEL: found[MODEL], adapter_source("other"): found[adapter_source("c-headers")]}
    one = keys(exact(found, adapters=ADAPTERS[:1]))
    other = keys(exact(renamed, adapters=[{"name": "other", "source": "s3://b"}]))
    assert one["lora_import/c-headers"] == other["lora_import/other"]
    assert one["package/cpu/int8"] != other["package/cpu/int8"]


def test_an_import_reads_no_weights_of_the_base() -> None:
    plan = exact(sources("c-headers"), adapters=ADAPTERS[:1]).plan
    task = plan.task("lora_import/c-headers")
    read = {pattern for part in task.inputs["core"] for pattern in part.patterns}
    assert read == {"model.onnx", "facts.json"}
    assert task.sources() == {adapter_source("c-headers")}
    assert task.after() == (TaskId("ingest"),)


def test_an_import_reads_what_the_model_calls_itself() -> None:
    found = sources("c-headers")
    bare = exact(found, adapters=ADAPTERS[:1]).plan.task("lora_import/c-headers")
    assert "assets" not in bare.inputs
    model = found[MODEL]
    named = replace(model, files={**model.files, "config.json": FileRef(Digest("e" * 64), 9)})
    task = exact({**found, MODEL: named}, adapters=ADAPTERS[:1]).plan.task("lora_import/c-headers")
    assert task.inputs["assets"] == (Selection(TaskId("ingest"), ("assets/config.json",)),)


def test_the_package_names_adapters_in_the_order_of_its_inputs() -> None:
    cases = [{"name": "both", "adapters": [{"name": "upper", "alpha": "0.5"}]}]
    plan = exact(sources("c-headers", "upper"), adapters=ADAPTERS, useCases=cases).plan
    package = plan.task("package/cpu/int8")
    config = package.config
    assert isinstance(config, PackageConfig)
    assert config.adapters == ("c-headers", "upper")
    assert package.inputs["adapter_1"][0].task == "lora_import/upper"
    assert config.use_cases[0].adapters[0].alpha == "0.5"


HTP = ("sm8750",)
AS_INPUTS = {"quantUpdatableMode": "None"}


def test_adapters_are_inputs_of_every_static_graph() -> None:
    plan = exact(sources("c-headers", "upper"), HTP, adapters=ADAPTERS, **AS_INPUTS).plan
    for task in plan.tasks:
        reads = {part.task for part in task.inputs.get("adapters", ())}
        wants = task.operation in ("arcl", "convert", "package", "lora_ranges")
        assert reads == ({TaskId("lora_graph")} if wants else set()), task.id
        assert ("ranges" in task.inputs) == (task.operation in ("convert", "package"))
    assert plan.task("lora_graph").after() == (
        TaskId("ingest"), TaskId("lora_import/c-headers"), TaskId("lora_import/upper"),
    )  # fmt: skip
    read = {p for part in plan.task("lora_graph").inputs["core"] for p in part.patterns}
    assert read == {"model.onnx", "facts.json"}, "no weights of the base"


def htp_keys(content: str = "", *, decided: str = "", **lora: Any) -> dict[str, str]:
    """Keys of a Snapdragon build; `decided` stands for what lora_graph and lora_ranges find."""
    found = sources("c-headers", "upper")
    found |= {adapter_source("upper"): sources("upper", content=content)[adapter_source("upper")]}
    phase = exact(found, HTP, **({"adapters": ADAPTERS, **AS_INPUTS} | lora))

    def answer(looks: Any) -> list[Event]:
        fixed = {"lora_graph": ref("graph", decided), "lora_ranges": ref("ranges", decided)}
        return [
            FoundResult(
                look.task,
                Result({"file": fixed[look.operation]}, {"within": True})
                if look.operation in fixed
                else result(look),
            )
            for look in looks
        ]

    done = advance(
        phase.plan, answer, lambda: WorkLimits(99, 1 << 60),
        sources=phase.request.sources, toolchains=phase.request.toolchain_ids,
    )  # fmt: skip
    return {str(task): str(key) for task, key in done.keys.items()}


def test_a_changed_adapter_leaves_every_graph_cached_while_ranks_and_ranges_stay() -> None:
    one, two = htp_keys(), htp_keys("new")
    changed = {task for task in one if one[task] != two[task]}
    assert changed == {"lora_import/upper", "lora_graph", "lora_ranges", "package/sm8750"}
    other = htp_keys("new", decided="wider")
    assert {task for task in one if one[task] == other[task]} == {"ingest", "lora_import/c-headers"}


def test_an_alpha_of_a_use_case_changes_no_graph_that_is_not_quantized() -> None:
    def lora(alpha: str) -> dict[str, Any]:
        return {"useCases": [{"name": "x", "adapters": [{"name": "upper", "alpha": alpha}]}]}

    one, two = htp_keys(**lora("1.0")), htp_keys(**lora("0.5"))
    assert {t for t in one if one[t] != two[t]} == {"lora_ranges", "package/sm8750"}


def test_a_float_graph_needs_no_ranges() -> None:
    found = sources("c-headers")
    model = replace(found[MODEL], files={"model.onnx": ref("model.onnx")})
    document = {
        "model": {"source": "m"}, "targets": ["sm8750"], "quantization": {"gaps": "Float"},
        "lora": {"adapters": ADAPTERS[:1], **AS_INPUTS},
    }  # fmt: skip
    spec = BuildSpec.model_validate(document)
    chains = {(row.name, row.backend): Toolchain(id="0" * 64, versions={}) for row in OPERATIONS}
    shape = shape_from_config(CONFIG)
    assert shape is not None
    request = BuildRequest(spec, parse_targets(spec.targets), {**found, MODEL: model}, chains)
    plan = BuildPlanner(request).exact({MODEL: shape}).plan
    assert "lora_ranges" not in {task.operation for task in plan.tasks}
    assert "lora_graph" in {task.operation for task in plan.tasks}


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ({"adapters": [*ADAPTERS, ADAPTERS[0]]}, "two adapters or use cases are called c-headers"),
        ({"adapters": [{"name": "base", "source": "s3://a"}]}, "without adapters"),
        ({"adapters": [{"name": "Not A Name", "source": "s3://a"}]}, "name"),
        (
            {"adapters": ADAPTERS, "useCases": [{"name": "x", "adapters": [{"name": "y"}]}]},
            "names the adapter y, which is not among adapters: c-headers, upper",
        ),
        (
            {
                "adapters": ADAPTERS,
                "useCases": [{"name": "upper", "adapters": [{"name": "upper"}]}],
            },
            "called upper",
        ),
        (
            {
                "adapters": ADAPTERS,
                "useCases": [{"name": "x", "adapters": [{"name": "upper"}, {"name": "upper"}]}],
            },
            "twice",
        ),
        (
            {
                "adapters": ADAPTERS,
                "useCases": [{"name": "x", "adapters": [{"name": "upper", "alpha": "1e9"}]}],
            },
            "alpha",
        ),
    ],
)
def test_names_that_cannot_work_are_refused(lora: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BuildSpec.model_validate({"model": {"source": "m"}, "targets": ["cpu"], "lora": lora})


def test_bounds_enter_the_keys_of_import_and_package_where_they_are_given() -> None:
    found = sources("c-headers")
    plain = exact(found, adapters=ADAPTERS[:1])
    bounded = exact(found, adapters=ADAPTERS[:1], maxRank=16, targetModules=["q_proj"])
    before, after = keys(plain), keys(bounded)
    changed = {task for task in before if before[task] != after[task]}
    own = {task for task in before if task.startswith(("lora_import/", "package/"))}
    assert changed == own, "the base's tasks stay"
    for task in plain.plan.tasks:
        assert "max_rank" not in task.config.model_dump(mode="json")


def test_model_with_branches_is_ingested_by_a_config_of_its_own() -> None:
    """Else a build without adapters would share its result, or one with them."""
    found = sources("c-headers")
    weights = {"lora.safetensors": ref("w"), "lora.encodings": ref("e")}
    found[adapter_source("c-headers")] = Source(weights)
    given = {"name": "c-headers", "source": "s3://a/c", "weights": "c.safetensors"}
    branched = exact(found, adapters=[given], createGraph=False)
    ingest = {task.id: task for task in branched.plan.tasks}[TaskId("ingest")]
    assert ingest.config.model_dump(mode="json")["branches"] is True
    plain = exact({MODEL: found[MODEL]})
    assert keys(branched)["ingest"] != keys(plain)["ingest"]


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        ({"weights": "c.safetensors"}, "has weights by the names of LoRA inputs"),
        ({"encodings": "c.encodings"}, "encodings are those of weights"),
    ],
)
def test_spec_refuses_files_of_a_form_that_the_model_does_not_have(
    adapter: dict[str, str], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        exact(sources("c"), adapters=[{"name": "c", "source": "s3://a/c", **adapter}])


# binaries of their own

CASES = [
    {
        "name": "both",
        "adapters": [{"name": "c-headers", "alpha": "1"}, {"name": "upper", "alpha": "1"}],
    }
]
BOTH = [{"name": "both", "adapters": [{"name": "c-headers", "alpha": "0.5"}, {"name": "upper"}]}]


def merged_keys(content: str = "", **lora: Any) -> dict[str, str]:
    found = sources("c-headers", "upper")
    found[adapter_source("upper")] = sources("upper", content=content)[adapter_source("upper")]
    return keys(exact(found, HTP, **({"adapters": ADAPTERS, "useCases": BOTH} | lora)))


def changed(one: dict[str, str], two: dict[str, str]) -> set[str]:
    return {task for task in one.keys() & two.keys() if one[task] != two[task]}


def test_each_adapter_and_use_case_has_binaries_and_the_base_keeps_its_keys() -> None:
    plain, merged = keys(exact(sources(), HTP)), merged_keys()
    assert changed(plain, merged) == {"package/sm8750"}
    assert plain.keys() < merged.keys(), "what stands is cached"
    compiled = {task for task in merged if task.startswith("compile/")} - plain.keys()
    assert compiled == {f"compile/sm8750/{case}/1_of_1" for case in ("c-headers", "upper", "both")}


@pytest.mark.parametrize("mode", list(QuantUpdatableMode))
def test_another_chip_runs_what_is_of_a_chip_alone(mode: QuantUpdatableMode) -> None:
    def build(*chips: str) -> dict[str, str]:
        lora = {"adapters": ADAPTERS, "useCases": CASES, "quantUpdatableMode": mode.value}
        return keys(exact(sources("c-headers", "upper"), chips, **lora))

    one, two, other = build("sm8750"), build("sm8750", "sm8850"), build("sm8850")
    assert one.items() <= two.items(), "what stands is cached"
    for after in (two, other):
        new = {tuple(task.split("/")[:2]) for task in after if one.get(task) != after[task]}
        assert new == {(stage, "sm8850") for stage in ("compile", "fidelity", "package")}


def test_a_changed_adapter_converts_and_compiles_the_use_cases_that_wear_it() -> None:
    again = changed(merged_keys(), merged_keys("new"))
    others = {"lora_import/upper", "package/sm8750"}
    assert others < again
    for task in again - others:
        operation, *_ = task.split("/")
        assert operation in {"lora_ranges", "convert", "compile"}, task
        assert "/upper" in task or "/both" in task, task


def test_an_alpha_converts_and_compiles_its_use_case_alone() -> None:
    cases = [{"name": "both", "adapters": [{"name": "c-headers", "alpha": "0.25"},
                                           {"name": "upper"}]}]  # fmt: skip
    again = changed(merged_keys(), merged_keys(useCases=cases))
    assert {task for task in again if "both" not in task} == {"package/sm8750"}
    assert {task.partition("/")[0] for task in again if "both" in task} == {
        "lora_ranges", "convert", "compile",
    }  # fmt: skip


def test_a_further_adapter_leaves_all_others_cached() -> None:
    one = merged_keys(adapters=ADAPTERS[:1], useCases=[])
    two = merged_keys(useCases=[])
    assert changed(one, two) == {"package/sm8750"}


def test_the_package_reads_the_binaries_of_each_use_case() -> None:
    plan = exact(sources("c-headers", "upper"), HTP, adapters=ADAPTERS, useCases=BOTH).plan
    package = plan.task("package/sm8750")
    assert isinstance(package.config, PackageConfig)
    assert package.config.merged == "AdapterOnly"
    read = {name: part[0].task for name, part in package.inputs.items() if "part" in name}
    assert read == {
        "part_1": "compile/sm8750/1_of_1",
        "case_0_part_1": "compile/sm8750/c-headers/1_of_1",
        "case_1_part_1": "compile/sm8750/upper/1_of_1",
        "case_2_part_1": "compile/sm8750/both/1_of_1",
    }
    fidelity = plan.task("fidelity/sm8750")
    assert {name for name in fidelity.inputs if "part" in name} == {"part_1"}, "the base's own"
    converts = [task for task in plan.tasks if str(task.id).startswith("convert/htp/both/")]
    assert converts
    for task in converts:
        assert isinstance(task.config, ConvertHtpConfig)
        assert task.config.worn == ("0.5", "1.0")
        assert task.inputs["adapter_1"][0].task == "lora_import/upper"
        assert str(task.inputs["model"][0].task).startswith("transform/adapters/")


def test_only_all_watches_every_tensor() -> None:
    for mode in ("AdapterOnly", "All"):
        plan = exact(sources("upper"), HTP, adapters=ADAPTERS[1:], quantUpdatableMode=mode).plan
        config = plan.task("lora_ranges/upper").config.model_dump(mode="json")
        assert config["alone"] is False
        assert config.get("reached", False) is (mode == "All")


BIG = {
    **CONFIG, "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008,
    "vocab_size": 32000, "num_attention_heads": 32,
}  # fmt: skip


def big(bound: int) -> tuple[str, ...]:
    """The notes of a plan for two chips and a large model."""
    lora = {"adapters": ADAPTERS, "useCases": BOTH, "maxMergedGiB": bound}
    document = {"model": {"source": "m"}, "targets": ["sm8750", "sm8650"], "lora": lora}
    spec = BuildSpec.model_validate(document)
    shape = shape_from_config(BIG)
    assert shape is not None
    found = sources("c-headers", "upper")
    targets = parse_targets(spec.targets)
    (name,) = [name for name in found if name == "model"]
    return expand(spec, targets=targets, sources=found, shapes={name: shape}).notes


def test_the_plan_says_what_the_binaries_take() -> None:
    (note,) = [note for note in big(64) if "binaries of their own" in note]
    assert (
        "(AdapterOnly) for c-headers, upper, both: 3 use cases x 2 chips x 7.08 GB = 42.45 GB"
        in note
    )
    assert note.endswith("beside the base's, at most 64 GiB (lora.maxMergedGiB)")


def test_binaries_beyond_the_bound_are_refused_with_the_arithmetic() -> None:
    with pytest.raises(InvalidSpec, match=r"3 use cases x 2 chips x 7\.08 GB = 42\.45 GB") as no:
        big(32)
    assert no.value.where == "spec.lora.maxMergedGiB"
    assert "32 GiB are 34.36 GB" in no.value.message
    assert "quantUpdatableMode: None" in str(no.value.remedy)
