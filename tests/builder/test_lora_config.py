"""The vendor's LoRA classes: what its reference shows, round through its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from genai_builder.modules.lora.lora_config import (
    AdapterConfig,
    AdapterParamsConfig,
    LoraBuilderInputConfig,
    LoraConfig,
    UseCaseInputConfig,
    UseCaseOutputConfig,
    get_adapter_count_by_use_case,
    load_use_case_config,
    read_lora_config,
    serialize_lora_adapter_weight_config,
    serialize_lora_importer_config,
    serialize_lora_input_config,
)


def lora_config(folder: Path) -> LoraConfig:
    """The reference's example."""
    params = AdapterParamsConfig(name="long", rank=16, alpha=32, target_modules=["q_proj"])
    case = UseCaseInputConfig(
        name="elementary+long",
        adapter_names=["elementary", "long"],
        model=folder / "model.onnx",
        adapter_alphas=[1.0, 0.8],
        encodings=folder / "both.encodings",
        quant_updatable_tensors=str(folder / "both.txt"),
    )
    return LoraConfig(
        adapter=[
            AdapterConfig(name="long", adapter_lora_config=[params]),
            AdapterConfig(name="elementary", adapter_lora_config=f"{folder}/elementary.json"),
        ],
        attach_point_onnx_mapping=f"{folder}/mapping.json",
        use_cases=[case],
    )


def test_serialize_lora_input_config_writes_what_read_lora_config_reads(tmp_path: Path) -> None:
    config = lora_config(tmp_path / "exports")
    path = serialize_lora_input_config(config, tmp_path / "made")
    document = yaml.safe_load(Path(path).read_text())
    assert set(document) == {"adapter", "attach_point_onnx_mapping", "use-case"}
    assert document["use-case"][0]["model_name"] == str(tmp_path / "exports" / "model.onnx")
    assert document["use-case"][0]["quant_overrides"].endswith("both.encodings")
    read = read_lora_config(path)
    assert read.use_cases == config.use_cases
    params = AdapterParamsConfig.model_validate_json(
        Path(str(read.adapter[0].adapter_lora_config[0])).read_text()
    )
    assert params == config.adapter[0].adapter_lora_config[0]
    both = LoraBuilderInputConfig(lora_config_path=path, alpha_tensor_name="alpha")
    assert get_adapter_count_by_use_case(both) == {"elementary+long": 2}
    assert both.quant_updatable_mode == "adapter_only"


def test_read_lora_config_takes_paths_from_the_file_s_folder(tmp_path: Path) -> None:
    text = """
adapter: [{name: a, adapter_lora_config: a.json}]
attach_point_onnx_mapping: mapping.json
use-case:
- {name: a, adapter_names: [a], adapter_alphas: [1], model_name: m.onnx, quant_overrides: e}
"""
    (tmp_path / "lora_config.yaml").write_text(text)
    read = read_lora_config(tmp_path / "lora_config.yaml")
    assert read.adapter[0].adapter_lora_config == [str(tmp_path / "a.json")]
    assert read.use_cases[0].model == str(tmp_path / "m.onnx")


@pytest.mark.parametrize("given", [{}, {"lora_config_path": "a", "lora_config_obj": "b"}])
def test_lora_builder_input_config_takes_exactly_one_of_path_and_object(
    given: dict[str, str],
) -> None:
    with pytest.raises(ValueError, match="give lora_config_path or lora_config_obj"):
        LoraBuilderInputConfig.model_validate({"alpha_tensor_name": "alpha", **given})


def test_an_alpha_is_missing_and_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="1 adapters and 2 alphas"):
        UseCaseInputConfig.model_validate(
            {"name": "a", "adapter_names": ["a"], "adapter_alphas": [1, 2], "model": "m",
             "encodings": "e"}
        )  # fmt: skip
    with pytest.raises(ValidationError, match="ranks"):
        AdapterParamsConfig.model_validate(
            {"name": "a", "rank": 1, "alpha": 1, "target_modules": [], "ranks": 1}
        )


def test_use_cases_go_round_through_both_files(tmp_path: Path) -> None:
    case = UseCaseOutputConfig(
        name="c", graph="g", lora_weights="c.safetensors", model="m.onnx", encodings="c.encodings"
    )
    importer, weights = tmp_path / "importer.yaml", tmp_path / "weights.yaml"
    serialize_lora_importer_config([case], str(importer), str(tmp_path))
    serialize_lora_adapter_weight_config([case], str(weights), str(tmp_path))
    assert yaml.safe_load(weights.read_text()) == {
        "use_case": [{
            "name": "c", "graph": "g", "weights": str(tmp_path / "c.safetensors"),
            "encodings": str(tmp_path / "c.encodings"),
        }]
    }  # fmt: skip
    (read,) = load_use_case_config(importer)
    assert (read.lora_weights, read.model) == (
        str(tmp_path / "c.safetensors"), str(tmp_path / "m.onnx"),
    )  # fmt: skip
    # AIMET's own exporter calls it lora_weights.
    importer.write_text(importer.read_text().replace("weights:", "lora_weights:"))
    assert load_use_case_config(importer) == [read]


def test_load_use_case_config_raises_as_documented(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    with pytest.raises(FileNotFoundError):
        load_use_case_config(path)
    for text in ("[", "a: 1", "use_case: 3"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"a\.yaml"):
            load_use_case_config(path)
