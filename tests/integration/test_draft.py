"""A draft model in the container, by the commands that users type."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from builds import EXAMPLE, Built

PROMPT = "def __init__(self, "


@pytest.fixture(scope="module")
def drafted(built: Built) -> dict[str, Any]:
    """The example with its draft, in the store that has the model."""
    return built.build("-f", EXAMPLE / "draft.yaml")


@pytest.fixture(scope="module")
def container(built: Built, drafted: dict[str, Any]) -> Path:
    del drafted
    return built.output / "tiny-llama-draft" / "cpu"


def test_a_draft_runs_no_task_of_the_model(built: Built, drafted: dict[str, Any]) -> None:
    assert drafted["tasks"]["run"] == 5, "four of the draft, and the package"
    assert built.build("-f", EXAMPLE / "draft.yaml")["tasks"]["run"] == 0


def test_the_container_holds_a_whole_container_of_the_draft(built: Built, container: Path) -> None:
    manifest = json.loads((container / "manifest.json").read_bytes())
    own = json.loads((container / "draft" / "manifest.json").read_bytes())
    inside = {name for name in manifest["files"] if name.startswith("draft/")}
    assert inside == {f"draft/{name}" for name in (*own["files"], "manifest.json")}
    assert own["model"]["layers"] == 2
    assert manifest["model"]["layers"] == 6
    for name in ("model.onnx", "model.data", "tokenizer.json", "metadata.json", "config.json"):
        assert (container / name).read_bytes() == (built.container("cpu") / name).read_bytes(), name
    assert built.program.ok("verify", container).code == 0
    (container / "draft" / "model.data").rename(container / "away")
    try:
        assert "draft/model.data" in built.program("run", container, "--prompt", PROMPT).err
    finally:
        (container / "away").rename(container / "draft" / "model.data")


def test_run_lets_the_container_s_own_draft_guess_and_says_what_it_says_alone(
    built: Built, container: Path
) -> None:
    asked = ("run", container, "--prompt", PROMPT, "--max-tokens", "40", "--json")
    alone = built.program.ok(*asked).json
    guessed = built.program.ok(
        *asked,
        "--speculation",
        '{"method": "draft_model", "num_speculative_tokens": 3, "adaptive": false}',
    ).json
    assert guessed["tokens"] == alone["tokens"]
    told = guessed["metrics"]["speculation"]
    assert told["method"] == "draft_model"
    assert 0 < told["acceptedTokens"] < told["draftTokens"]
    beside = built.program(
        "run", built.container("cpu"), "--prompt", PROMPT, "--speculation", "draft_model"
    )
    assert beside.code == 2
    assert "the container carries no draft model" in beside.err


def test_a_draft_of_another_tokenizer_is_refused(built: Built, tmp_path: Path) -> None:
    draft = shutil.copytree(EXAMPLE / "draft", tmp_path / "draft")
    tokenizer = json.loads((draft / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    first, second = sorted(words, key=words.__getitem__)[300:302]
    words[first], words[second] = words[second], words[first]
    (draft / "tokenizer.json").write_text(json.dumps(tokenizer))
    document = yaml.safe_load((EXAMPLE / "draft.yaml").read_text())
    document["spec"]["model"]["source"] = str(EXAMPLE / "model")
    document["spec"]["speculation"][0]["source"] = str(draft)
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump(document))
    refused = built.program("build", "-f", path, "--store", built.store)
    assert refused.code == 2
    assert "spec.speculation[0].source: the draft model has another tokenizer" in refused.err
