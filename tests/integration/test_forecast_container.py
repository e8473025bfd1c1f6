"""A model that forecasts for itself, by the commands that users type."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from builds import EXAMPLE, Built

PROMPT = "def __init__(self, "
TENSORS = EXAMPLE / "ssd" / "forecast.safetensors"


def document(model: Path, tensors: Path, **part: Any) -> str:
    """The example's YAML with other sources."""
    found = yaml.safe_load((EXAMPLE / "ssd.yaml").read_text())
    found["spec"]["model"]["source"] = str(model)
    found["spec"]["speculation"] = [{"method": "Ssd", "source": str(tensors), **part}]
    return yaml.safe_dump(found)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's model, as its own script extends it."""
    folder = tmp_path_factory.mktemp("ssd") / "model"
    script = runpy.run_path(str(EXAMPLE / "ssd" / "extend_model.py"))
    script["extend"](EXAMPLE / "model", TENSORS, folder)
    return folder


@pytest.fixture(scope="module")
def container(built: Built, extended: Path) -> Path:
    file = extended.parent / "ssd.yaml"
    file.write_text(document(extended, EXAMPLE / "ssd"))
    told = built.build("-f", file)
    assert built.build("-f", file)["tasks"]["run"] == 0
    return Path(told["containers"]["cpu"]["path"])


def test_run_lets_the_model_forecast_and_says_what_it_says_alone(
    built: Built, container: Path
) -> None:
    asked = ("run", container, "--prompt", PROMPT, "--max-tokens", "60", "--ignore-end", "--json")
    alone = built.program.ok(*asked).json
    assert (
        alone["tokens"]
        == built.program.ok("run", built.container("cpu"), *asked[2:]).json["tokens"]
    ), "its text is the plain model's"
    config = '{"method": "ssd", "num_speculative_tokens": 2, "adaptive": false}'
    guessed = built.program.ok(*asked, "--speculation", config).json
    assert guessed["tokens"] == alone["tokens"]
    told = guessed["metrics"]["speculation"]
    assert told["method"] == "ssd"
    assert 0 < told["acceptedTokens"] < told["draftTokens"]
    assert len(told["acceptedPerPosition"]) == 2


def test_the_container_names_what_it_forecasts_with(built: Built, container: Path) -> None:
    manifest = json.loads((container / "manifest.json").read_bytes())
    assert "speculation/ssd/forecast.safetensors" in manifest["files"]
    assert manifest["model"]["vocabSize"] == 2048
    metadata = json.loads((container / "metadata.json").read_bytes())
    assert metadata["forecast"] == {"tokens": 4, "prefix": 16}
    assert built.program.ok("verify", container).code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--speculation", "ssd", "--draft-tokens", "5"), "forecasts 4 tokens, num_spec"),
        (("--prompt-tokens", "2048"), "token id 2048 is outside the vocabulary of 2048"),
    ],
)
def test_run_refuses_more_than_was_trained(
    built: Built, container: Path, arguments: tuple[str, ...], told: str
) -> None:
    prompt = () if "--prompt-tokens" in arguments else ("--prompt", PROMPT)
    refused = built.program("run", container, *prompt, *arguments)
    assert refused.code == 2
    assert told in refused.err


def test_a_model_that_was_not_trained_to_forecast_is_refused(built: Built, tmp_path: Path) -> None:
    asked = ("run", built.container("cpu"), "--prompt", PROMPT, "--speculation", "ssd")
    refused = built.program(*asked)
    assert refused.code == 2
    assert "the container's model was not trained to forecast" in refused.err
    file = tmp_path / "plain.yaml"
    file.write_text(document(EXAMPLE / "model", EXAMPLE / "ssd"))
    refused = built.program("build", "-f", file, "--store", built.store)
    assert refused.code == 2
    assert "vocabulary is not extended: its embedding table has 2048 rows" in refused.err


def test_a_pickle_is_refused_before_anything_runs(
    built: Built, extended: Path, tmp_path: Path
) -> None:
    tensors = tmp_path / "ssd"
    tensors.mkdir()
    shutil.copyfile(TENSORS, tensors / "ssd.pt")
    file = tmp_path / "pickled.yaml"
    file.write_text(document(extended, tensors))
    refused = built.program("build", "-f", file, "--store", built.store)
    assert refused.code == 2
    assert "a .pt file, a pickle, which is never opened" in refused.err
    assert "spec.speculation[0].source" in refused.err
