"""The vendor's lora_config.yaml in both of its forms, and what is wrong with one, by its field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from genai_core.errors import InvalidSpec
from genai_core.kinds.lora import Lora
from genai_core.sources.lora_config import lora_of_config

MODULE = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A model's folder with two PEFT adapters, AIMET's files of one, and a mapping."""
    for name in ("long", "elementary"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
        (tmp_path / name / "adapter_model.safetensors").write_bytes(b"")
    (tmp_path / "onnx").mkdir()
    for name in ("model.onnx", "other.onnx", "a.safetensors", "a.encodings"):
        (tmp_path / "onnx" / name).write_bytes(b"")
    (tmp_path / "map.json").write_text(json.dumps({MODULE: "/layers.0/self_attn/q_proj/MatMul_1"}))
    return tmp_path


def importer(**changes: Any) -> dict[str, Any]:
    """As AIMET's exporter writes it."""
    case = {
        "name": "a", "model_name": "model.onnx", "lora_weights": "a.safetensors",
        "quant_overrides": "a.encodings", "output_path": "./output",
    }  # fmt: skip
    return {"use_case": [{k: v for k, v in {**case, **changes}.items() if v is not None}]}


def builder(**changes: Any) -> dict[str, Any]:
    """As the builder takes it."""
    content: dict[str, Any] = {
        "adapter": [
            {"name": "long", "adapter_lora_config": ["long/adapter_config.json"]},
            {"name": "elementary", "adapter_lora_config": "elementary/adapter_config.json"},
            {"name": "elementary+long", "adapter_lora_config": [{"rank": 24}]},
        ],
        "attach_point_onnx_mapping": "map.json",
        "use-case": [
            {"name": "long", "adapter_names": ["long"], "adapter_alphas": [1.0]},
            {
                "name": "elementary+long", "adapter_names": ["elementary", "long"],
                "adapter_alphas": [1.0, 0.8], "model_name": "onnx/model.onnx",
                "quant_overrides": "onnx/a.encodings",
            },
        ],
    }  # fmt: skip
    return content | changes


def read(root: Path, content: dict[str, Any], file: str = "lora_config.yaml") -> dict[str, Any]:
    (root / file).write_text(yaml.safe_dump(content))
    found = lora_of_config(root, file)
    Lora.model_validate(found)
    return found


def test_importers_form_is_an_adapter_a_use_case_by_input_names(root: Path) -> None:
    found = read(root, importer(), "onnx/lora_config.yaml")
    assert found["createGraph"] is False
    assert found["adapters"] == [
        {
            "name": "a", "source": str(root), "weights": "onnx/a.safetensors",
            "encodings": "onnx/a.encodings",
        }
    ]  # fmt: skip
    other = {**importer(lora_weights=None)["use_case"][0], "weights": "a.safetensors"}
    assert read(root, {"use_case": [other]}, "onnx/lora_config.yaml") == found


def test_builders_form_is_adapters_and_the_use_cases_that_are_more_than_one(root: Path) -> None:
    found = read(root, builder())
    assert [(one["name"], Path(one["source"]).name) for one in found["adapters"]] == [
        ("long", "long"), ("elementary", "elementary"),
    ]  # fmt: skip
    worn = [{"name": "elementary", "alpha": "1.0"}, {"name": "long", "alpha": "0.8"}]
    assert found["useCases"] == [{"name": "elementary-long", "adapters": worn}]


def test_builders_form_takes_an_adapter_without_a_folder_from_its_use_cases_graph(
    root: Path,
) -> None:
    adapters = [{"name": "long", "adapter_lora_config": [{"rank": 16}]}, builder()["adapter"][1]]
    alone = {"name": "long", "adapter_names": ["long"], "model_name": "onnx/other.onnx"}
    found = read(root, builder(adapter=adapters, **{"use-case": [alone, builder()["use-case"][1]]}))
    assert found["adapters"][0] == {
        "name": "long", "source": str(root), "graph": "onnx/other.onnx",
    }  # fmt: skip
    assert [worn["name"] for worn in found["useCases"][0]["adapters"]] == ["elementary", "long"]


def use(**changes: Any) -> dict[str, Any]:
    return {"name": "x", "adapter_names": ["long"], "adapter_alphas": [0.5], **changes}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"adapters": []}, "it has neither use_case, as AIMET writes it, nor adapter"),
        (importer(lora_weights="no.safetensors"), "use_case[0].lora_weights: there is no file"),
        (importer(extra=1), "it has the field extra, which is not known here"),
        (importer(name=3), "use_case[0].name: it is no text"),
        (
            {"use_case": [*importer()["use_case"], *importer(model_name="other.onnx")["use_case"]]},
            "use cases name different graphs: onnx/model.onnx, onnx/other.onnx",
        ),
        (builder(**{"use-case": [use(adapter_names=["nope"])]}), "the adapter nope has no weights"),
        (
            builder(**{"use-case": [use(adapter_names=["elementary+long"])]}),
            "the adapter elementary+long has no weights",
        ),
        (builder(**{"use-case": [use(adapter_alphas=[1, 2])]}), "it has 1 adapters and 2 alphas"),
        (builder(**{"use-case": [use(adapter_names="long")]}), "adapter_names: it is no list"),
        (builder(attach_point_onnx_mapping="no.json"), "mapping: there is no file no.json"),
        (
            builder(adapter=[{"name": "long", "adapter_lora_config": ["no/adapter_config.json"]}]),
            "adapter_lora_config: there is no file",
        ),
    ],
)
def test_what_is_wrong_is_named_by_its_field(
    root: Path, content: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidSpec) as caught:
        read(root, content, "onnx/c.yaml" if "use_case" in content else "c.yaml")
    assert words in str(caught.value).replace(f"{root}/", "")


def test_a_wrong_attach_point_is_named_with_module_and_node(root: Path) -> None:
    (root / "map.json").write_text(json.dumps({MODULE: "/layers.1/self_attn/q_proj/MatMul"}))
    with pytest.raises(InvalidSpec) as caught:
        read(root, builder())
    assert f"the module {MODULE} to the node /layers.1/self_attn/q_proj/MatMul" in str(caught.value)


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ({}, "there are no adapters"),
        ({"config": "l.yaml", "adapters": [{"name": "a", "source": "a"}]}, "config stands for"),
    ],
)
def test_config_and_adapters_exclude_each_other(lora: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Lora.model_validate(lora)
