"""Adapters as inputs of Snapdragon graphs, by the commands that users type."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from builds import EXAMPLE, Built
from safetensors.numpy import load_file, save_file

SPEC = """
apiVersion: genai-operator.dev/v1alpha1
kind: GenAIBuild
metadata: {name: inputs}
spec:
  model: {source: MODEL}
  targets: [sm8750]
  graphs: {autoRegression: [32], contextLengths: [128]}
  golden: {prompts: ["def __init__(self, "], maxTokens: 4}
  lora:
    quantUpdatableMode: None
    reserveRange: "2.0"
    adapters: [{name: uppercase, source: ADAPTER}]
"""
PROMPT = ("--prompt", "THIS SOFTWARE IS", "--max-tokens", "4", "--json")


@dataclass(frozen=True)
class Dressed:
    """A container whose graphs take adapters, and how it was built."""

    built: Built
    folder: Path
    answer: dict[str, Any]

    def text(self, *arguments: str) -> str:
        ran = self.built.program.ok("run", self.folder, *PROMPT, *arguments)
        return str(ran.json["text"])


@pytest.fixture(scope="module")
def dressed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Dressed:
    """One graph, on the store that has the model's ingest."""
    path = tmp_path_factory.mktemp("inputs") / "build.yaml"
    adapter = EXAMPLE / "adapters" / "uppercase-r16"
    text = SPEC.replace("MODEL", str(EXAMPLE / "model")).replace("ADAPTER", str(adapter))
    path.write_text(text, encoding="utf-8")
    return Dressed(built, built.output / "inputs" / "sm8750", built.build("-f", path))


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    return found


def test_genie_writes_our_tokens_with_the_adapter_applied(dressed: Dressed) -> None:
    report = json.loads((dressed.folder / "report.json").read_bytes())
    drift = report["stages"]["package"]["useCases"]["uppercase"]
    assert drift["genieTokens"] == 4
    assert 0 <= drift["divergence"] < 0.02, "the source that wears it, on the same tokens"
    assert not [text for text in report["warnings"] if "Genie" in text]
    tasks = dressed.answer["tasks"]
    assert tasks["total"] == 10, "those of the base, the adapter, and one graph"
    assert tasks["cached"] in {1, 2}, "ingest, and the adapter where another test had imported it"


def test_run_wears_the_adapter_in_the_emulator(dressed: Dressed) -> None:
    base, worn = dressed.text(), dressed.text("--adapter", "uppercase")
    assert worn.isupper()
    assert worn != base
    assert dressed.text("--adapter", "uppercase=0") == base


def test_a_later_adapter_comes_and_goes_beside_the_same_base(
    dressed: Dressed, tmp_path: Path
) -> None:
    program, source = dressed.built.program, tmp_path / "mild"
    shutil.copytree(EXAMPLE / "adapters" / "c-headers-r8", source)
    weights = load_file(source / "adapter_model.safetensors")
    halves = {name: half * 0.5 for name, half in weights.items()}
    save_file(halves, source / "adapter_model.safetensors")  # within what the graphs were built for
    grown, left, bare = (tmp_path / name for name in ("grown", "left", "bare"))
    program.ok("adapter", "add", dressed.folder, source, "--name", "c", "-o", grown)
    golden = json.loads((grown / "golden.json").read_bytes())
    margins = [one["margins"] for one in (golden["prompts"][0], golden["worn"]["c"][0])]
    assert margins[0] != margins[1], "it was run with the new one"
    program.ok("adapter", "remove", grown, "c", "-o", left)
    assert manifest(left) == manifest(dressed.folder), "the way back, file for file"
    program.ok("adapter", "remove", left, "uppercase", "-o", bare)
    bases = {manifest(folder)["base"] for folder in (dressed.folder, grown, left, bare)}
    assert len(bases) == 1, "its graphs take adapters all the same"
    config = json.loads((bare / "genie_config.json").read_bytes())
    assert "lora" not in config["dialog"]["engine"]["model"]["binary"]
    assert program.ok("adapter", "list", bare).out.strip().endswith("carries no adapters")
    program.ok("adapter", "add", bare, source, "--name", "c", "-o", grown)
    assert manifest(grown)["base"] in bases
