"""What a spec becomes: how many tasks, what each reads, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from genai_core.errors import BadEncodings, InvalidSpec
from genai_core.kinds.build import BuildSpec
from genai_core.names import MODEL, Digest, Gaps, TaskId
from genai_planner.expand.build import expand, expand_ingest
from genai_planner.plan import FileRef, Plan, Task
from genai_planner.shape import ModelShape, shape_from_config
from genai_planner.sources import Source
from genai_planner.targets import parse_targets

TINY = json.loads(
    (Path(__file__).parents[2] / "examples" / "tiny-llama" / "model" / "config.json").read_text()
)
LLAMA_8B = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}
QUANTIZED = frozenset({"model.onnx", "model.encodings", "config.json"})


def shape(config: dict[str, Any] = TINY) -> ModelShape:
    found = shape_from_config(config)
    assert found is not None
    return found


def plan(
    config: dict[str, Any] = TINY,
    roles: frozenset[str] = QUANTIZED,
    bits: int | None = 8,
    **spec: Any,
) -> Plan:
    document = {
        "model": {"source": "m"},
        "targets": ["sm8750"],
        "graphs": {"autoRegression": [1, 32], "contextLengths": [256]},
        "splits": {"count": 3},
    } | spec
    wanted = BuildSpec.model_validate(document)
    return expand(
        wanted,
        targets=parse_targets(wanted.targets),
        sources={MODEL: source(roles, bits)},
        shapes={MODEL: shape(config)},
    )


def source(roles: frozenset[str] = QUANTIZED, bits: int | None = 8) -> Source:
    return Source({role: FileRef(Digest("1" * 64), 10) for role in roles}, {}, bits)


def counts(found: Plan) -> Counter[str]:
    return Counter(task.operation for task in found.tasks)


def of(found: Plan, operation: str) -> list[Task]:
    return [task for task in found.tasks if task.operation == operation]


def test_two_graphs_and_three_splits_are_this_many_tasks() -> None:
    assert counts(plan()) == {
        "ingest": 1,
        "arcl": 2,
        "transform": 6,
        "convert": 6,
        "compile": 3,
        "fidelity": 1,
        "package": 1,
    }


def test_further_chip_adds_only_what_knows_the_chip() -> None:
    one, two = plan(), plan(targets=["sm8750", "sm8650"])
    added = {task.id for task in two.tasks} - {task.id for task in one.tasks}
    assert {name.split("/")[0] for name in added} == {"compile", "fidelity", "package"}
    assert {t.id: t.target for t in two.tasks}[TaskId("arcl/ar1_cl256")] == ""
    assert {t.id: t.target for t in one.tasks}[TaskId("arcl/ar1_cl256")] == "sm8750"


def test_further_ar_adds_a_column_and_changes_only_compile_configs() -> None:
    one, two = plan(), plan(graphs={"autoRegression": [32, 1, 8], "contextLengths": [256]})
    added = Counter(t.operation for t in two.tasks) - counts(one)
    assert added == {"arcl": 1, "transform": 3, "convert": 3}
    configs = {task.id: task.config for task in two.tasks}
    changed = {task.operation for task in one.tasks if configs[task.id] != task.config}
    assert changed == {"compile", "package"}


def test_order_in_which_numbers_are_written_does_not_matter() -> None:
    one = plan(graphs={"autoRegression": [1, 32], "contextLengths": [512, 256]})
    two = plan(graphs={"autoRegression": [32, 1], "contextLengths": [256, 512]})
    assert [(t.id, t.config) for t in one.tasks] == [(t.id, t.config) for t in two.tasks]


def test_every_task_stands_behind_what_it_reads() -> None:
    found = plan(targets=["sm8750", "cpu"])
    seen: set[str] = set()
    for task in found.tasks:
        assert set(task.after()) <= seen
        seen.add(task.id)
    assert len(seen) == len(found.tasks)


def test_split_reads_its_own_weights_alone() -> None:
    by_id = {task.id: task for task in plan().tasks}

    def weights(task: str) -> set[str]:
        patterns = [p for s in by_id[TaskId(task)].inputs["model"] for p in s.patterns]
        return {p for p in patterns if p.startswith("weights/")}

    for operation in ("transform", "convert/htp"):
        assert weights(f"{operation}/ar1_cl256_1_of_3") == {"weights/embed.data"}
        assert weights(f"{operation}/ar1_cl256_2_of_3") == {
            f"weights/layer_{i:03d}.data" for i in range(3)
        }
        assert weights(f"{operation}/ar1_cl256_3_of_3") == {
            *(f"weights/layer_{i:03d}.data" for i in range(3, 6)),
            "weights/head.data",
        }


def test_head_of_a_tied_model_reads_the_embedding_too() -> None:
    found = plan(TINY | {"tie_word_embeddings": True})
    head = found.task("convert/htp/ar1_cl256_3_of_3")
    assert "weights/embed.data" in head.inputs["model"][1].patterns


def test_compile_reads_one_input_a_graph_by_its_name() -> None:
    task = plan().task("compile/sm8750/2_of_3")
    assert {name: s[0].task for name, s in task.inputs.items()} == {
        "ar1_cl256": "convert/htp/ar1_cl256_2_of_3",
        "ar32_cl256": "convert/htp/ar32_cl256_2_of_3",
    }


def test_nothing_behind_the_encodings_reads_them_twice() -> None:
    found = plan(targets=["sm8750", "cpu"])
    readers = {t.operation for t in found.tasks if "encodings" in t.inputs}
    assert readers == {"convert", "compile", "fidelity"}
    assert all("encodings" not in t.inputs for t in of(found, "arcl") + of(found, "transform"))


def test_large_models_and_long_contexts_are_verified_by_metadata() -> None:
    assert not of(plan(LLAMA_8B), "fidelity")
    long = plan(graphs={"autoRegression": [1, 32], "contextLengths": [2048]})
    assert not of(long, "fidelity")
    assert all(not t.config.emulation for t in of(long, "compile"))  # type: ignore[attr-defined]
    assert any("metadata" in note for note in long.notes)


def test_a_long_context_of_few_layers_is_emulated_unless_in_float16() -> None:
    graphs = {"autoRegression": [1, 128], "contextLengths": [512, 4096]}
    two = {**TINY, "num_hidden_layers": 2}
    found = plan(two, splits={"count": 1}, graphs=graphs)
    assert [t.id for t in of(found, "fidelity")] == ["fidelity/sm8750"]
    assert any("layers x CL" in note for note in found.notes)
    in_float = plan(
        two, frozenset({"model.onnx"}), None,
        splits={"count": 1}, graphs=graphs, quantization={"gaps": "Float"},
    )  # fmt: skip
    assert not of(in_float, "fidelity")


@pytest.mark.parametrize("precision", ["Int8", "Int4"])
def test_integers_without_ranges_are_refused(precision: str) -> None:
    bare = frozenset({"model.onnx"})
    quantization = {"gaps": "Float", "cpuPrecision": precision}
    with pytest.raises(InvalidSpec, match=f"{precision} needs to know .*gaps: Float") as caught:
        plan(roles=bare, bits=None, targets=["cpu"], quantization=quantization)
    assert caught.value.where == "spec.quantization.cpuPrecision"
    # Nobody asked for cpu; and ranges may come from a file or from a text.
    plan(roles=bare, bits=None, targets=["sm8750"], quantization=quantization)
    plan(targets=["cpu"], quantization=quantization)
    given = quantization | {"gaps": "Calibrate", "calibration": "text.txt"}
    plan(roles=bare | {"calibration.txt"}, bits=None, targets=["cpu"], quantization=given)


def test_cpu_tries_precisions_in_order_and_each_has_its_own_tasks() -> None:
    found = plan(targets=["cpu"])
    assert [t.id for t in of(found, "package")] == [
        "package/cpu/int8",
        "package/cpu/int4",
        "package/cpu/float",
    ]
    assert found.containers == {"cpu": tuple(t.id for t in of(found, "package"))}
    assert found.task("convert/cpu/int8_1_of_1").when is None
    second = found.task("convert/cpu/int4_1_of_1").when
    assert second is not None
    assert (second.task, second.within) == ("fidelity/cpu/int8", False)
    assert found.task("package/cpu/float").rivals == (
        "fidelity/cpu/int8",
        "fidelity/cpu/int4",
        "fidelity/cpu/float",
    )


def test_fixed_precision_has_no_alternative() -> None:
    found = plan(targets=["cpu"], quantization={"cpuPrecision": "int4"})
    assert [t.id for t in of(found, "package")] == ["package/cpu/int4"]
    assert found.task("package/cpu/int4").rivals == ("fidelity/cpu/int4",)


def test_cpu_converts_in_ranges_that_cover_every_layer_once() -> None:
    found = plan(LLAMA_8B, targets=["cpu"], quantization={"cpuPrecision": "Int8"})
    configs: list[Any] = [t.config for t in of(found, "convert")]
    assert len(configs) == 32
    assert [i for c in configs for i in range(c.first, c.last)] == list(range(32))
    assert [c.embedding for c in configs].count(True) == configs[0].embedding == 1
    assert [c.lm_head for c in configs].count(True) == configs[-1].lm_head == 1


def test_model_without_encodings_needs_a_word_about_gaps() -> None:
    with pytest.raises(BadEncodings, match="gaps: Float"):
        plan(roles=frozenset({"model.onnx"}), bits=None)
    found = plan(
        roles=frozenset({"model.onnx"}),
        bits=None,
        targets=["sm8750", "cpu"],
        quantization={"gaps": "Float"},
    )
    assert all("encodings" not in t.inputs for t in found.tasks)
    assert [t.id for t in of(found, "package")] == ["package/sm8750", "package/cpu/float"]
    compiles: list[Any] = [t.config for t in of(found, "compile")]
    assert [c.float16 for c in compiles[:-1]] == [True, True, True]


def test_calibration_brings_the_whole_model_and_the_text() -> None:
    found = plan(
        roles=QUANTIZED | {"calibration.npy"},
        quantization={"gaps": "Calibrate", "calibration": "c.npy"},
    )
    convert = found.task("convert/htp/ar1_cl256_1_of_3")
    assert convert.inputs["calibration"][0].patterns == ("tokens/calibration.*",)
    assert "weights/*" in convert.inputs["core"][0].patterns
    assert convert.config.gaps is Gaps.CALIBRATE  # type: ignore[attr-defined]


def test_tokens_reach_every_fidelity_task() -> None:
    found = plan(roles=QUANTIZED | {"tokens.npy"}, targets=["sm8750", "cpu"])
    assert all("tokens" in t.inputs for t in of(found, "fidelity"))
    assert all("tokens" not in t.inputs for t in of(plan(targets=["cpu"]), "fidelity"))


def test_golden_prompts_concern_package_alone() -> None:
    one, two = plan(targets=["cpu"]), plan(targets=["cpu"], golden={"prompts": ["x"]})
    configs = {t.id: t.config for t in two.tasks}
    assert {t.operation for t in one.tasks if configs[t.id] != t.config} == {"package"}


def test_runs_and_names_of_a_spec_are_in_no_config() -> None:
    one, two = plan(), plan(run={"parallelism": 99}, store={"name": "other"})
    assert [t.config for t in one.tasks] == [t.config for t in two.tasks]


def test_unknown_model_is_planned_as_far_as_ingest() -> None:
    wanted = BuildSpec.model_validate({"model": {"source": "m"}, "targets": ["cpu"]})
    found = expand_ingest(wanted, targets=parse_targets(wanted.targets), sources={MODEL: source()})
    assert [t.id for t in found.tasks] == ["ingest"]


def test_defaults_are_explained() -> None:
    notes = " | ".join(plan(LLAMA_8B, graphs={}, splits={}).notes)
    assert "context length 4096: the default" in notes
    assert "AR (tokens in one pass) 1 and 128: the default" in notes
    assert "5 splits, the least that keeps every part below 2 GB at 8 bits a weight" in notes


def test_number_of_splits_is_in_every_key_that_it_changes() -> None:
    three, four = plan(), plan(splits={"count": 4})
    assert not {t.id for t in of(three, "transform")} & {t.id for t in of(four, "transform")}
    package: Any = of(four, "package")[0].config
    assert len(package.splits) == 4


def test_too_many_splits_name_the_maximum() -> None:
    with pytest.raises(InvalidSpec, match="the maximum is 8") as raised:
        plan(splits={"count": 9})
    assert raised.value.where == "spec.splits.count"


@pytest.mark.parametrize(
    ("ars", "cls", "words"),
    [
        ([1, 300], [256], "AR 300 is larger than CL 256"),
        ([1, 128], [256], "at most twice the largest AR"),
        ([1, 32], [256, 64], "CL 64"),
    ],
)
def test_graphs_that_cannot_work_are_refused(ars: list[int], cls: list[int], words: str) -> None:
    with pytest.raises(InvalidSpec, match=words):
        plan(graphs={"autoRegression": ars, "contextLengths": cls})


def test_narrow_context_is_allowed_with_a_warning() -> None:
    found = plan(graphs={"autoRegression": [1, 100], "contextLengths": [256]})
    assert any("four times" in warning for warning in found.warnings)
    assert not plan().warnings


def test_a_native_cache_needs_ars_that_have_one() -> None:
    compilation = {"nativeKV": True}
    with pytest.raises(InvalidSpec, match="AR 1; use ARs out of 32, 64, 128, 256"):
        plan(compilation=compilation)
    graphs = {"autoRegression": [32, 64], "contextLengths": [512]}
    compiled = [
        t for t in plan(compilation=compilation, graphs=graphs).tasks if t.operation == "compile"
    ]
    assert compiled
    assert all(task.config.model_dump()["native_kv"] is True for task in compiled)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"graphs.vtcm": "8"}, "vtcm_size_in_mb"),
        ({"graphs.vtcm_size_in_mb": "lots"}, "whole number"),
        ({"devices.soc_model": "57"}, "the chip is the target's"),
    ],
)
def test_wrong_compile_option_is_refused_before_anything_runs(
    options: dict[str, str], words: str
) -> None:
    with pytest.raises(InvalidSpec, match=words) as raised:
        plan(compilation={"options": options})
    assert raised.value.where.startswith("spec.compilation.options")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"options": {"graphs.O": "2"}}, {"options": {"graphs.optimization_type": "2"}}),
        ({"options": {"graphs.O": "2", "graphs.o": "2"}}, {"options": {"graphs.O": "2.0"}}),
        ({"options": {"graphs.vtcm_mb": "08"}}, {"options": {"graphs.vtcm_size_in_mb": "8"}}),
    ],
)
def test_compile_configs_are_alike_when_options_are_spelt_otherwise(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    configs = [[task.config for task in of(plan(compilation=c), "compile")] for c in (one, other)]
    assert configs[0] == configs[1]


def test_weight_sharing_counts_when_there_are_graphs_to_share() -> None:
    for ars, alike in (([1, 32], False), ([32], True)):
        found = [
            [t.config for t in of(plan(graphs={"autoRegression": ars, "contextLengths": [256]},
                                       compilation={"weightSharing": shared}), "compile")]
            for shared in (True, False)
        ]  # fmt: skip
        assert (found[0] == found[1]) is alike


def test_native_kv_derives_the_ars_that_it_allows() -> None:
    found = plan(graphs={"contextLengths": [1024]}, compilation={"nativeKV": True})
    assert {t.graph for t in of(found, "arcl")} == {"ar32_cl1024", "ar128_cl1024"}
    assert any("nativeKV allows no AR 1" in note for note in found.notes)


def test_a_package_knows_its_verdict_and_everything_that_it_is_made_of() -> None:
    found = plan(targets=["cpu", "sm8750"])
    package = found.containers["cpu"][0]
    assert found.verdict_on(package) == "fidelity/cpu/int8"
    ids = [task.id for task in found.made_of(package)]
    assert ids == ["ingest", "convert/cpu/int8_1_of_1", "compile/cpu/int8", "fidelity/cpu/int8"]
    (htp,) = found.containers["sm8750"]
    made = {task.id for task in found.made_of(htp)}
    shared = {task.id for task in found.tasks if not task.target}
    mine = {task.id for task in found.tasks if task.target == "sm8750"}
    assert mine <= made | {htp} <= mine | shared
    assert not any("cpu" in task for task in made)
    # By another way: whatever can be reached from it.
    reached, waiting = set[str](), [package]
    while waiting:
        before = found.task(waiting.pop()).after()
        waiting += before
        reached |= set(before)
    assert reached == set(ids)
