"""The vendor's settings become fields of a GenAIBuild, or are refused by name."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from genai_builder import options
from genai_builder.gen_ai_api.gen_ai_builder_factory import GenAIBuilderFactory
from genai_core.errors import BadModel, InvalidSpec, UnknownTarget

MODEL = Path(__file__).parents[1] / "fixtures" / "architectures" / "llama"


class Number(Enum):
    EIGHT = 8


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"split_model.num_splits": "3"}, {("splits", "count"): 3}),
        ({"split_model": {"num_splits": 3, "split_lm_head": "True"}},
         {("splits", "count"): 3, ("splits", "lmHead"): "Apart"}),
        ({"arn_cl_options.context_length": "[512, 1024]"},
         {("graphs", "contextLengths"): [512, 1024]}),
        ({"arn_cl_options": {"auto_regression_number": [1, 128]}},
         {("graphs", "autoRegression"): [1, 128]}),
        ({"mha2sha.m2s_additional_start_points": [".*attn.*"]},
         {("transformation", "additionalStartPoints"): [{"tensor": ".*attn.*"}]}),
        ({"split_model.skip_verification": False, "mha_config": None}, {}),
    ],
)  # fmt: skip
def test_transformation_gives_the_build_s_fields(
    given: dict[str, Any], wanted: options.Fields
) -> None:
    assert options.transformation(given) == wanted


def test_compilation_takes_values_as_a_sidecar_shows_them() -> None:
    given = {"graphs": {"vtcm_size_in_mb": Number.EIGHT}, "context.weight_sharing_enabled": "False"}
    assert options.compilation(given) == {
        ("compilation", "options"): {"graphs.vtcm_size_in_mb": "8"},
        ("compilation", "weightSharing"): False,
    }


def test_conversion_takes_what_a_sidecar_of_this_product_shows() -> None:
    shown = {"export_format": "DLC_DEFAULT", "act_precision": "16", "bias_precision": "32",
             "per_channel_quantization": "True"}  # fmt: skip
    assert options.conversion(shown) == {}
    assert options.conversion({"float_fallback": "True"}) == {("quantization", "gaps"): "Float"}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: options.transformation({"split_model.skip_verification": True}),
         "split_model.skip_verification: not supported: every stage checks"),
        (lambda: options.transformation({"split_model.splits": 3}), "split_model.splits: unknown"),
        (lambda: options.conversion({"act_precision": 8}), "act_precision: 8 is not supported"),
        (lambda: options.conversion({"act_bits": 8}), "act_bits: unknown"),
        (lambda: options.compilation({"graphs.dlbc": 1}), "graphs.dlbc"),
        (lambda: options.compilation({"graphs.vtcm": 1}), "graphs.vtcm_size_in_mb"),
        (lambda: options.boolean("yes", "native_kv"), "native_kv: expected True or False"),
    ],
)  # fmt: skip
def test_an_option_without_a_meaning_is_refused_by_name(call: Any, said: str) -> None:
    with pytest.raises(InvalidSpec) as raised:
        call()
    assert said in str(raised.value)


def test_settings_of_a_builder_become_the_spec() -> None:
    builder = GenAIBuilderFactory.create(MODEL, backend_type="HTP")
    builder.set_targets(["chipset:SM8750", "dsp_arch:v81;soc_model:87"])
    builder.native_kv = True
    builder.weight_sharing = False
    builder.multi_graph = "True"  # type: ignore[assignment]  # as in a sidecar
    builder.encodings_path = MODEL / "config.json"
    builder.set_transformation_options({"arn_cl_options.auto_regression_number": [32, 128]})
    builder.set_compilation_options({"graphs.vtcm_size_in_mb": 8})
    document = builder.to_spec()
    assert document["metadata"] == {"name": "llama"}
    assert document["spec"] == {
        "model": {"source": str(MODEL), "encodings": "config.json"},
        "targets": ["sm8750", "sm8850"],
        "compilation": {
            "nativeKV": True, "weightSharing": False,
            "options": {"graphs.vtcm_size_in_mb": "8"},
        },
        "graphs": {"multiContext": True, "autoRegression": [32, 128]},
    }  # fmt: skip
    builder.multi_graph = False
    builder.encodings_path = None
    assert builder.to_spec()["spec"]["graphs"]["multiContext"] is False


def test_a_setting_that_is_misspelt_or_has_no_meaning_is_refused() -> None:
    builder = GenAIBuilderFactory.create(MODEL, "CPU")
    with pytest.raises(AttributeError, match="nativ_kv"):
        builder.nativ_kv = True
    with pytest.raises(InvalidSpec, match="speculative_config: not supported"):
        builder.speculative_config = object()
    builder.speculative_config = None  # the vendor's default


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({"backend_type": "GPU"}, InvalidSpec, "no backend 'GPU'"),
        ({"config_dict": {}}, InvalidSpec, "config_dict: not supported"),
        ({"pretrained_model_path": MODEL / "nowhere"}, BadModel, "no such file"),
        ({"config_path": MODEL.parent / "qwen2"}, InvalidSpec, "is not below it"),
        ({"tokenizer_path": MODEL.parent}, InvalidSpec, "config.json lies elsewhere"),
    ],
)
def test_create_says_what_is_wrong(given: dict[str, Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        GenAIBuilderFactory.create(**{"pretrained_model_path": MODEL, **given})


def test_set_targets_takes_chips_only() -> None:
    builder = GenAIBuilderFactory.create(MODEL)
    with pytest.raises(UnknownTarget):
        builder.set_targets(["chipset:SM1"])
    with pytest.raises(InvalidSpec, match="twice"):
        builder.set_targets(["sm8750", "chipset:SM8750"])
    with pytest.raises(InvalidSpec, match="expected a list"):
        builder.set_targets("sm8750")
    with pytest.raises(InvalidSpec, match="alternatives"):
        builder.set_targets(["chipset:SM8750|chipset:SM8850"])
    with pytest.raises(InvalidSpec, match="no target is set"):
        builder.build()
    with pytest.raises(InvalidSpec, match="no target of the CPU"):
        GenAIBuilderFactory.create(MODEL, "CPU").set_targets(["sm8750"])


def test_create_warns_of_an_architecture_that_no_test_builds(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "foo"}')
    with pytest.warns(UserWarning, match="model_type 'foo' is none of"):
        GenAIBuilderFactory.create(tmp_path, "CPU")


def test_compilation_options_of_an_earlier_call_stay_but_for_those_of_the_same_name() -> None:
    builder = GenAIBuilderFactory.create(MODEL)
    builder.set_targets(["sm8750"])
    builder.set_compilation_options({"graphs.vtcm_mb": 8})
    builder.set_compilation_options({"graphs.O": 3})
    assert _compiled(builder.to_spec()) == {"graphs.vtcm_mb": "8", "graphs.O": "3"}
    builder.set_compilation_options({"graphs.vtcm_size_in_mb": 4})
    builder.set_compilation_options()
    assert _compiled(builder.to_spec()) == {"graphs.O": "3", "graphs.vtcm_size_in_mb": "4"}


def test_to_spec_gives_a_document_of_its_own() -> None:
    builder = GenAIBuilderFactory.create(MODEL)
    builder.set_targets(["sm8750"])
    builder.set_compilation_options({"graphs.O": 3})
    builder.set_transformation_options({"arn_cl_options.context_length": [512]})
    before = builder.to_spec()
    changed = builder.to_spec()
    _compiled(changed)["graphs.O"] = "1"
    changed["spec"]["graphs"]["contextLengths"].append(1024)
    changed["spec"]["targets"].append("sm8550")
    assert builder.to_spec() == before


def _compiled(document: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = document["spec"]["compilation"]["options"]
    return found


@pytest.mark.parametrize("given", [5, "graphs.O", [("graphs.O", 3)], {3: "graphs.O"}, {None: 1}])
@pytest.mark.parametrize("stage", ["transformation", "conversion", "compilation"])
def test_options_that_are_no_dict_are_refused(stage: str, given: Any) -> None:
    with pytest.raises(InvalidSpec, match="expected a dict of names and values"):
        getattr(options, stage)(given)


@pytest.mark.parametrize("given", [None, 5, ["sm8750"]])
def test_set_targets_refuses_what_is_no_text(given: Any) -> None:
    with pytest.raises(InvalidSpec, match="set_targets: expected text, not"):
        GenAIBuilderFactory.create(MODEL).set_targets([given])


def test_cache_root_stays_where_it_was_when_the_working_folder_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    builder = GenAIBuilderFactory.create(MODEL, cache_root="store")
    monkeypatch.chdir("/")
    assert builder._store == str(tmp_path / "store")
    assert GenAIBuilderFactory.create(MODEL, cache_root="s3://b/c")._store == "s3://b/c"


@pytest.mark.parametrize(("given", "said"), [("many", "whole number"), (0, "at least 1")])
def test_max_workers_is_refused_when_it_is_no_count(given: Any, said: str) -> None:
    builder = GenAIBuilderFactory.create(MODEL, "CPU")
    builder.set_conversion_options({"float_fallback": True})
    builder.max_workers = given
    with pytest.raises(InvalidSpec, match=f"max_workers: .*{said}"):
        builder.build()
