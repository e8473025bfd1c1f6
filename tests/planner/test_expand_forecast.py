"""SSD in the plan: a task that holds its tensors against the model, and nothing else changes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from genai_core.errors import BadModel, InvalidSpec
from genai_core.files.digest_cache import FileCache
from genai_core.kinds.build import BuildSpec
from genai_core.names import FORECAST, FORECAST_ROLE, MODEL, Digest, SourceName, TaskId
from genai_core.operations import OPERATIONS, ForecastImportConfig
from genai_core.sources.build_sources import sources_of
from genai_core.sources.forecast_files import inspect_forecast
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
PART = {"method": "Ssd", "source": "s3://m/ssd"}


def spec(*targets: str, **more: Any) -> BuildSpec:
    return BuildSpec.model_validate(
        {"model": {"source": "s3://m/big"}, "targets": list(targets or ("cpu",)), **more}
    )


def source(config: dict[str, Any], *roles: str) -> Source:
    files = {role: FileRef(Digest(hashlib.sha256(role.encode()).hexdigest()), 1) for role in roles}
    return Source(files, config, 8 if "model.encodings" in roles else None)


def exact(asked: BuildSpec) -> Exact:
    found: dict[SourceName, Source] = {MODEL: source(CONFIG, "model.onnx", "model.encodings")}
    if asked.speculation:
        found[FORECAST] = source({}, FORECAST_ROLE)
    chains = {(row.name, row.backend): Toolchain(id="0" * 64, versions={}) for row in OPERATIONS}
    shape = shape_from_config(CONFIG)
    assert shape is not None
    request = BuildRequest(asked, parse_targets(asked.targets), found, chains)
    return BuildPlanner(request).exact({MODEL: shape})


def test_ssd_adds_one_task_and_changes_only_the_package() -> None:
    part = {**PART, "forecastTokenCount": 4, "forecastPrefix": 16}
    plain, forecasting = exact(spec()).plan, exact(spec(speculation=[part])).plan
    before = {task.id: task for task in plain.tasks}
    after = {task.id: task for task in forecasting.tasks}
    assert after.keys() - before.keys() == {"forecast_import"}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"package/cpu/int8", "package/cpu/int4", "package/cpu/float"}
    task = after[TaskId("forecast_import")]
    assert task.config == ForecastImportConfig(tokens=4, prefix=16)
    assert task.inputs["forecast"][0].source == FORECAST
    assert task.inputs["core"][0].patterns == ("model.onnx", "facts.json", "weights/embed.data")
    assert any("SSD" in note for note in forecasting.notes)


def test_ssd_is_refused_for_snapdragon() -> None:
    with pytest.raises(InvalidSpec, match="cpu containers alone") as raised:
        exact(spec("sm8750", "cpu", speculation=[PART]))
    assert raised.value.where == "spec.speculation"


def test_sources_of_names_the_tensors_and_they_are_asked_for_as_such() -> None:
    part = {**PART, "tensorFile": "f.safetensors", "digest": f"sha256:{'0' * 64}"}
    asked = spec(speculation=[part])
    found = sources_of(asked)[-1]
    assert (found.name, found.field, found.pin) == (
        "forecast", "spec.speculation[0].source", f"sha256:{'0' * 64}",
    )  # fmt: skip
    question = resolve_file(asked, found.address, source=FORECAST)
    assert (question.what, question.model) == ("forecast", {"tensor_file": "f.safetensors"})


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({**PART, "onnx": "m.onnx"}, "onnx is of a model of its own, and the method is Ssd"),
        ({**PART, "encodings": "e.encodings"}, "encodings is of a model of its own"),
        ({**PART, "version": 3}, "version is of an EAGLE head, and the method is Ssd"),
        ({**PART, "method": "Eagle", "forecastPrefix": 16}, "forecastPrefix is of SSD"),
        ({**PART, "method": "DraftModel", "tensorFile": "a"}, "tensorFile is of SSD"),
        ({**PART, "forecastTokenCount": 0}, "greater than or equal to 1"),
    ],
)
def test_a_part_takes_the_fields_of_its_method(part: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        spec(speculation=[part])


def test_inspect_forecast_finds_the_one_file_whatever_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "ssd_params.safetensors").write_bytes(b"x")
    found = inspect_forecast(tmp_path, FileCache(None), where="here")
    assert {role: file.path.name for role, file in found.files.items()} == {
        FORECAST_ROLE: "ssd_params.safetensors"
    }
    (tmp_path / "other.safetensors").write_bytes(b"y")
    with pytest.raises(BadModel, match=r"2 .safetensors files: other.*, ssd_params") as raised:
        inspect_forecast(tmp_path, FileCache(None), where="here")
    assert "tensorFile" in str(raised.value.remedy)
    named = inspect_forecast(
        tmp_path, FileCache(None), where="here", tensor_file="other.safetensors"
    )
    with pytest.raises(BadModel, match=rf"its content is {named.digest}, not the sha256:0"):
        inspect_forecast(
            tmp_path,
            FileCache(None),
            where="here",
            tensor_file="other.safetensors",
            pin="sha256:0",
        )


@pytest.mark.parametrize(
    ("files", "name", "told"),
    [
        (("ssd.pt",), None, "no .safetensors file but a .pt file, a pickle, which is never opened"),
        (("ssd.pt",), "ssd.pt", "ssd.pt is no .safetensors file; a .pt file is a pickle"),
        ((), None, "it holds no .safetensors file"),
        ((), "a.safetensors", "it holds no a.safetensors"),
    ],
)
def test_inspect_forecast_refuses_what_is_missing_or_a_pickle(
    tmp_path: Path, files: tuple[str, ...], name: str | None, told: str
) -> None:
    for file in files:
        (tmp_path / file).write_bytes(b"PK")
    with pytest.raises(BadModel, match=told):
        inspect_forecast(tmp_path, FileCache(None), where="here", tensor_file=name)
