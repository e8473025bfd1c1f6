"""LoRA configurations in the vendor's classes and files.

Source: the published reference of `qairt.modules.lora` (80-87189-2). Names, defaults, aliases and
documented errors are that page's; `lora_config.yaml` has the aliases (`use-case`, `model_name`,
`quant_overrides`) as keys.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from genai_core.errors import InvalidSpec
from genai_core.kinds.documents.yaml_documents import load_documents

__all__ = [
    "AdapterConfig",
    "AdapterParamsConfig",
    "AdapterRunConfig",
    "LoraBuilderInputConfig",
    "LoraBuilderOutputConfig",
    "LoraConfig",
    "UseCaseInputConfig",
    "UseCaseOutputConfig",
    "UseCaseRunConfig",
    "get_adapter_count_by_use_case",
    "load_use_case_config",
    "lora_content",
    "read_lora_config",
    "serialize_lora_adapter_weight_config",
    "serialize_lora_importer_config",
    "serialize_lora_input_config",
]

PathText = Annotated[str, BeforeValidator(lambda value: os.fspath(value) if value else value)]
"""A path, kept as text: `Union[str, PathLike]`."""

_Item = TypeVar("_Item", bound=BaseModel)


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class _Config(BaseModel):
    """Fields may be given by name or by alias; an unknown one is an error."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, validate_assignment=True)


class AdapterParamsConfig(_Config):
    """Rank, alpha and modules of an adapter."""

    name: str
    rank: int
    alpha: int
    """PEFT's lora_alpha: branches are scaled by alpha / rank."""
    target_modules: list[str]


class AdapterConfig(_Config):
    """An adapter and what it is made of."""

    name: str
    adapter_lora_config: Annotated[list[AdapterParamsConfig | PathText], BeforeValidator(_as_list)]
    """Parameters, or paths of JSON files that hold them; one alone becomes a list."""


class AdapterRunConfig(_Config):
    """An adapter at run time."""

    adapter_name: str
    alpha: float = 1.0


class UseCaseRunConfig(_Config):
    """Adapters that a call uses together."""

    use_case_name: str
    adapters: list[AdapterRunConfig]


class UseCaseInputConfig(_Config):
    """Adapters that are used together, with their graph and encodings."""

    name: str
    adapter_names: list[str]
    adapter_alphas: list[float]
    model: PathText = Field(alias="model_name")
    encodings: PathText = Field(alias="quant_overrides")
    quant_updatable_tensors: PathText | None = None

    @model_validator(mode="after")
    def _an_alpha_each(self) -> UseCaseInputConfig:
        names, alphas = len(self.adapter_names), len(self.adapter_alphas)
        if names != alphas:
            raise ValueError(f"the use case {self.name} has {names} adapters and {alphas} alphas")
        return self


class LoraConfig(_Config):
    """`lora_config.yaml`: adapters and use cases."""

    adapter: list[AdapterConfig]
    attach_point_onnx_mapping: PathText
    use_cases: list[UseCaseInputConfig] = Field(alias="use-case")


class LoraBuilderInputConfig(_Config):
    """What a builder's `lora_config` takes: a file or an object, exactly one of them."""

    lora_config_path: PathText | None = None
    lora_config_obj: LoraConfig | None = None
    create_lora_graph: bool = True
    quant_updatable_mode: Literal["none", "adapter_only", "all"] = "adapter_only"
    alpha_tensor_name: str

    @model_validator(mode="before")
    @classmethod
    def check_exclusive_inputs(cls, values: Any) -> Any:
        """Make sure that exactly one of the two is given.

        Raises:
            ValueError: Both are, or neither.
        """
        given = [
            name
            for name in ("lora_config_path", "lora_config_obj")
            if isinstance(values, Mapping) and values.get(name) is not None
        ]
        if len(given) != 1:
            what = "both are given" if given else "neither is given"
            raise ValueError(f"give lora_config_path or lora_config_obj: {what}")
        return values

    def config(self) -> LoraConfig:
        """The object, or what the file holds.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It holds something else.
        """
        if self.lora_config_obj is not None:
            return self.lora_config_obj
        return read_lora_config(str(self.lora_config_path))


class UseCaseOutputConfig(_Config):
    """What LoRA's processing made for a use case."""

    name: str
    graph: str | None = ""
    lora_weights: PathText = Field(alias="weights")
    """A safetensors file."""
    model: PathText | None = Field(default=None, alias="model_name")
    encodings: PathText | None = Field(default=None, alias="quant_overrides")
    output_path: PathText | None = None


class LoraBuilderOutputConfig(_Config):
    """What LoRA's processing made."""

    base_model_artifacts: dict[str, PathText]
    lora_tensor_names: PathText
    use_case: list[UseCaseOutputConfig]


def read_lora_config(path: str | os.PathLike[str]) -> LoraConfig:
    """`lora_config.yaml`, its paths taken from the file's folder.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no YAML, or not of this form; the message names the field.
    """
    document = _document(path)
    if not isinstance(document, dict):
        raise ValueError(f"{path}: expected fields adapter, attach_point_onnx_mapping, use-case")
    config = _validated(LoraConfig, document, path)
    folder = Path(path).parent
    return LoraConfig(
        adapter=[
            AdapterConfig(
                name=adapter.name,
                adapter_lora_config=[
                    part if isinstance(part, AdapterParamsConfig) else str(folder / part)
                    for part in adapter.adapter_lora_config
                ],
            )
            for adapter in config.adapter
        ],
        attach_point_onnx_mapping=str(folder / config.attach_point_onnx_mapping),
        use_cases=[
            use_case.model_copy(
                update={
                    name: str(folder / value)
                    for name in ("model", "encodings", "quant_updatable_tensors")
                    if (value := getattr(use_case, name)) is not None
                }
            )
            for use_case in config.use_cases
        ],
    )


def get_adapter_count_by_use_case(lora_config: LoraBuilderInputConfig) -> dict[str, int]:
    """Use case -> how many adapters it has.

    Raises:
        FileNotFoundError: The configuration's file is not there.
        ValueError: It cannot be read.
    """
    return {case.name: len(case.adapter_names) for case in lora_config.config().use_cases}


def load_use_case_config(yaml_path: str | os.PathLike[str]) -> list[UseCaseOutputConfig]:
    """The `use_case` list of a file; `lora_weights` is read too, as AIMET's exporter writes it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no YAML, or has no `use_case`.
    """
    document = _document(yaml_path)
    if not isinstance(document, dict) or not isinstance(document.get("use_case"), list):
        raise ValueError(f"{yaml_path}: the key 'use_case' is missing")
    return [_validated(UseCaseOutputConfig, entry, yaml_path) for entry in document["use_case"]]


def serialize_lora_adapter_weight_config(
    use_cases: list[UseCaseOutputConfig], yaml_path: str, base_dir: str
) -> None:
    """Write name, graph, weights and encodings of use cases, as the compile stage reads them.

    Args:
        use_cases: What to write.
        yaml_path: The file.
        base_dir: Relative paths are taken from here.
    """
    entries = [
        {
            "name": case.name,
            "graph": case.graph,
            "weights": _resolved(case.lora_weights, base_dir),
            "encodings": _resolved(case.encodings, base_dir),
        }
        for case in use_cases
    ]
    _write_yaml(yaml_path, {"use_case": [_without_none(entry) for entry in entries]})


def serialize_lora_importer_config(
    lora_uc_output_config: list[UseCaseOutputConfig], yaml_path: str, base_dir: str
) -> None:
    """Write name, model_name, weights, quant_overrides and output_path of use cases.

    Args:
        lora_uc_output_config: What to write.
        yaml_path: The file.
        base_dir: Relative paths are taken from here.
    """
    entries = [
        {
            "name": case.name,
            "model_name": _resolved(case.model, base_dir),
            "weights": _resolved(case.lora_weights, base_dir),
            "quant_overrides": _resolved(case.encodings, base_dir),
            "output_path": _resolved(case.output_path, base_dir),
        }
        for case in lora_uc_output_config
    ]
    _write_yaml(yaml_path, {"use_case": [_without_none(entry) for entry in entries]})


def serialize_lora_input_config(
    lora_config: LoraConfig, base_directory: str | os.PathLike[str]
) -> str:
    """Write `lora_config.yaml`, and a JSON file for parameters that are objects.

    Args:
        lora_config: What to write.
        base_directory: Gets the files; it is made.

    Returns:
        Path of the YAML file.
    """
    folder = Path(base_directory)
    folder.mkdir(parents=True, exist_ok=True)
    content = lora_content(lora_config)
    for adapter in content["adapter"]:
        for number, part in enumerate(adapter["adapter_lora_config"]):
            if isinstance(part, dict):
                tail = f"_{number}" if len(adapter["adapter_lora_config"]) > 1 else ""
                path = folder / f"{_file_name(adapter['name'])}{tail}.json"
                path.write_text(json.dumps(part, indent=1) + "\n", encoding="utf-8")
                adapter["adapter_lora_config"][number] = str(path)
    path = folder / "lora_config.yaml"
    _write_yaml(str(path), content)
    return str(path)


def lora_content(lora_config: LoraConfig) -> dict[str, Any]:
    """What stands in `lora_config.yaml`, by the names of the file."""
    return lora_config.model_dump(mode="json", by_alias=True, exclude_none=True)


def _file_name(name: str) -> str:
    """A name without what a path would be split at.

    Raises:
        ValueError: It has such characters.
    """
    if not name or Path(name).name != name:
        raise ValueError(f"{name!r} cannot be the name of a file: choose a name without / and ..")
    return name


def _document(path: str | os.PathLike[str]) -> Any:
    data = Path(path).read_bytes()  # FileNotFoundError, as documented
    try:
        documents = load_documents(data, name=str(path))
    except InvalidSpec as error:
        raise ValueError(str(error)) from error
    return documents[0].value if documents else None


def _validated(kind: type[_Item], value: Any, path: str | os.PathLike[str]) -> _Item:
    if kind is UseCaseOutputConfig and isinstance(value, dict) and "lora_weights" in value:
        value = {**value, "weights": value["lora_weights"]}
        del value["lora_weights"]
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise ValueError(f"{path}: {where}: {first['msg']}") from error


def _resolved(path: str | None, base_dir: str) -> str | None:
    return None if path is None else os.path.abspath(os.path.join(base_dir, path))


def _without_none(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if value is not None}


def _write_yaml(path: str, document: Mapping[str, Sequence[Any] | str]) -> None:
    text = yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True)
    Path(path).write_text(text, encoding="utf-8")
