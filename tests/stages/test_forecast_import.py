"""What a model forecasts with is held against the model, and refused with both numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from genai_core.errors import BadModel
from genai_core.names import FORECAST, FORECAST_ROLE
from genai_core.operations import ForecastImportConfig
from genai_stages.graph.core_graph import mapped, read_core
from genai_stages.operations import forecast_import
from genai_stages.stage import Context, StageResult
from genai_stages.testing import random_core_model

FORECASTS, PLACES, VOCAB = 3, 5, 512
Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Trained:
    """A model whose table has rows of forecast tokens, and the tensors that belong to it."""

    core: Path
    tensors: Tensors


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    core = tmp_path_factory.mktemp("core")
    facts = random_core_model(core, forecasts=FORECASTS)
    model, _ = read_core(core)
    table = np.asarray(mapped(model.graph.initializers["model.embed_tokens.weight"].const_value))  # type: ignore[arg-type]
    heads, size = facts.attention[0].kv_heads, facts.attention[0].head_dim
    shape = (facts.layers, 2, 1, heads, PLACES, size)
    prefix = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    rows = np.asarray(table[VOCAB:], np.float32)
    return Trained(core, {"forecast_embedding": rows, "forecast_prefix": prefix})


def imported(
    trained: Trained,
    folder: Path,
    tensors: Tensors,
    config: ForecastImportConfig | None = None,
) -> StageResult:
    source, out = folder / "source", folder / "out"
    source.mkdir()
    out.mkdir()
    save_file(tensors, source / FORECAST_ROLE)
    return forecast_import.run(
        {FORECAST: source, "core": trained.core},
        config or ForecastImportConfig(),
        out,
        Context(folder / "scratch", 1),
    )


def test_run_writes_the_prefix_as_a_cache_has_it(trained: Trained, tmp_path: Path) -> None:
    config = ForecastImportConfig(tokens=FORECASTS, prefix=PLACES)
    result = imported(trained, tmp_path, trained.tensors, config)
    assert result.facts == {"tokens": FORECASTS, "prefix": PLACES}
    assert json.loads((tmp_path / "out/forecast.json").read_text()) == result.facts
    (name, kept), *others = load_file(tmp_path / "out" / FORECAST_ROLE).items()
    assert (name, others) == ("forecast_prefix", [])
    np.testing.assert_array_equal(kept, trained.tensors["forecast_prefix"][:, :, 0])


def test_run_takes_rows_that_were_rounded_and_a_model_without_a_prefix(
    trained: Trained, tmp_path: Path
) -> None:
    rounded = trained.tensors["forecast_embedding"].astype(np.float16).astype(np.float32)
    result = imported(
        trained, tmp_path, {"forecast_embedding": rounded}, ForecastImportConfig(prefix=0)
    )
    assert result.facts == {"tokens": FORECASTS, "prefix": 0}
    assert not (tmp_path / "out" / FORECAST_ROLE).exists()


Change = Callable[[Tensors], Tensors]


@pytest.mark.parametrize(
    ("change", "config", "told"),
    [
        (
            lambda t: t | {"forecast_embedding": t["forecast_embedding"][:2]},
            {},
            "table has 515 rows for 512 logits, with the 2 tokens to forecast with it would have 5",
        ),
        (lambda t: t, {"tokens": 4}, "has 3 tokens, forecastTokenCount is 4"),
        (
            lambda t: t | {"forecast_embedding": t["forecast_embedding"][:, :10]},
            {},
            r"shape \[3, 10\], the model's hidden size is 64",
        ),
        (
            lambda t: t | {"forecast_embedding": t["forecast_embedding"][::-1].copy()},
            {},
            "row 51[24] of the model's embedding table is not row [02]",
        ),
        (
            lambda t: {"forecast_prefix": t["forecast_prefix"]},
            {},
            "no tensor forecast_embedding; it has forecast_prefix",
        ),
        (
            lambda t: {"forecast_embedding": t["forecast_embedding"]},
            {},
            "no tensor forecast_prefix",
        ),
        (
            lambda t: {"forecast_embedding": t["forecast_embedding"]},
            {"prefix": 16},
            "no tensor forecast_prefix of the 16 places",
        ),
        (lambda t: t, {"prefix": 16}, "has 5 places, forecastPrefix is 16"),
        (
            lambda t: t | {"forecast_prefix": t["forecast_prefix"][:1]},
            {},
            r"shape \[1, 2, 1, 2, 5, 16\], the model's would be \[2, 2, 1, 2, places, 16\]",
        ),
        (
            lambda t: t | {"forecast_prefix": t["forecast_prefix"][..., :8].copy()},
            {},
            r"\[2, 2, 1, 2, 5, 8\], the model's would be",
        ),
        (
            lambda t: t | {"forecast_prefix": t["forecast_prefix"] * np.float32(np.nan)},
            {},
            "forecast_prefix holds NaN",
        ),
    ],
    ids=range(11),
)
def test_run_refuses_what_is_not_the_models(
    trained: Trained, tmp_path: Path, change: Change, config: dict[str, int], told: str
) -> None:
    with pytest.raises(BadModel, match=told) as refused:
        imported(trained, tmp_path, change(trained.tensors), ForecastImportConfig(**config))
    assert refused.value.where == "spec.speculation[0].source"
    assert refused.value.remedy


def test_run_refuses_a_model_whose_vocabulary_is_not_extended(
    trained: Trained, tmp_path: Path
) -> None:
    random_core_model(tmp_path / "core")
    plain = Trained(tmp_path / "core", trained.tensors)
    told = "vocabulary is not extended: its embedding table has 512 rows for 512 logits"
    with pytest.raises(BadModel, match=told):
        imported(plain, tmp_path, plain.tensors)


def test_run_refuses_a_file_that_is_none(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / FORECAST_ROLE).write_bytes(b"PK\x03\x04")
    inputs = {FORECAST: tmp_path, "core": trained.core}
    with pytest.raises(BadModel, match=r"cannot be read as \.safetensors"):
        forecast_import.run(inputs, ForecastImportConfig(), tmp_path, Context(tmp_path, 1))
