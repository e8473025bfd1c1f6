"""An EAGLE head in the container, by the commands that users type, and what is refused."""

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
def headed(built: Built) -> dict[str, Any]:
    """The example with its head, in the store that has the model."""
    return built.build("-f", EXAMPLE / "eagle3.yaml")


@pytest.fixture(scope="module")
def container(built: Built, headed: dict[str, Any]) -> Path:
    del headed
    return built.output / "tiny-llama-eagle3" / "cpu"


def test_a_head_runs_what_gives_hidden_states_out_and_nothing_before(
    built: Built, headed: dict[str, Any]
) -> None:
    assert headed["tasks"]["run"] == 7, "four of the head; compile, fidelity, package of the model"
    assert built.build("-f", EXAMPLE / "eagle3.yaml")["tasks"]["run"] == 0


def test_the_container_holds_the_head_and_the_model_gives_out_what_it_reads(
    built: Built, container: Path
) -> None:
    manifest = json.loads((container / "manifest.json").read_bytes())
    own = json.loads((container / "draft" / "manifest.json").read_bytes())
    inside = {name for name in manifest["files"] if name.startswith("draft/")}
    assert inside == {f"draft/{name}" for name in (*own["files"], "manifest.json")}
    assert "draft/token_map.json" in inside
    metadata = json.loads((container / "metadata.json").read_bytes())
    outputs = metadata["model_files"]["model.onnx"]["model"]["outputs"]
    states = [name for name in outputs if name.startswith("hidden_states")]
    assert states == ["hidden_states.1", "hidden_states.3", "hidden_states.5"]
    told = json.loads((container / "draft" / "metadata.json").read_bytes())
    assert (told["schema_version"], metadata["schema_version"]) == (2, 1)
    assert told["head"]["hidden_states"] == states
    assert (container / "model.data").read_bytes() == (
        built.container("cpu") / "model.data"
    ).read_bytes()
    assert built.program.ok("verify", container).code == 0


def test_run_lets_the_head_guess_and_says_what_the_model_says_alone(
    built: Built, container: Path
) -> None:
    asked = ("run", container, "--prompt", PROMPT, "--max-tokens", "60", "--ignore-end", "--json")
    alone = built.program.ok(*asked).json
    config = '{"method": "eagle3", "num_speculative_tokens": 4, "adaptive": false}'
    guessed = built.program.ok(*asked, "--speculation", config).json
    assert guessed["tokens"] == alone["tokens"]
    told = guessed["metrics"]["speculation"]
    assert told["method"] == "eagle"
    # A head that is driven wrongly is right now and then: half of that would be much.
    assert told["acceptedTokens"] / told["drafts"] > 1.0
    assert told["acceptedPerPosition"] == sorted(told["acceptedPerPosition"], reverse=True)
    beside = built.program(
        "run", built.container("cpu"), "--prompt", PROMPT, "--speculation", "eagle"
    )
    assert beside.code == 2
    assert "the container carries no EAGLE head" in beside.err
    other = built.program("run", container, "--prompt", PROMPT, "--speculation", "draft_model")
    assert other.code == 2
    assert (
        "it is an EAGLE head, which guesses from hidden states; use the method eagle" in other.err
    )
    foreign = built.program(
        "run", built.container("cpu"), "--prompt", PROMPT, "--speculation", "eagle",
        "--draft", container / "draft",
    )  # fmt: skip
    assert foreign.code == 2
    assert "the model gives no hidden states out" in foreign.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("d2t", "draftTokenMap: draft id 3 stands for 2048, outside the model's 2048 tokens"),
        ("no map", "draftTokenMap: the head's logits have 1024 ids, its embedding table 2048"),
        ("layers", "the head reads hidden states of 576 values, the model gives 384 (192 + 192)"),
        ("hidden", "the head's hidden size is 96, the model's 192"),
    ],
)
def test_a_head_that_does_not_fit_is_refused_by_what_differs(
    built: Built, tmp_path: Path, change: str, message: str
) -> None:
    head = shutil.copytree(EXAMPLE / "eagle3", tmp_path / "head")
    document = yaml.safe_load((EXAMPLE / "eagle3.yaml").read_text())
    document["spec"]["model"]["source"] = str(EXAMPLE / "model")
    part = document["spec"]["speculation"][0]
    part["source"] = str(head)
    config = json.loads((head / "config.json").read_text())
    if change == "d2t":
        ids = json.loads((head / "d2t.json").read_text())
        (head / "d2t.json").write_text(json.dumps([*ids[:3], 2048, *ids[4:]]))
    elif change == "no map":
        del part["draftTokenMap"]
    elif change == "layers":
        config["eagle_aux_hidden_state_layer_ids"] = [1, 3]
    else:
        config["hidden_size"] = 96
    (head / "config.json").write_text(json.dumps(config))
    path = tmp_path / "build.yaml"
    path.write_text(yaml.safe_dump(document))
    refused = built.program("build", "-f", path, "--store", built.store)
    assert refused.code == 2
    assert message in refused.err
