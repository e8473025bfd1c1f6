"""A delivered report shows what the build that delivers it measured, whoever packaged it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genai_cli.build.local_build import _delivered
from genai_cli.engine.local_engine import plan_build, run_plan
from genai_core.container.report import own_report
from genai_core.kinds.build import BuildSpec
from genai_core.store.directory.directory_store import DirectoryStore

SOURCE = Path(__file__).parents[1] / "fixtures" / "architectures" / "llama"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with two texts to score, and what was built of it so far."""
    root = tmp_path_factory.mktemp("reports")
    (root / "model").mkdir()
    for name in ("model.onnx", "config.json"):
        shutil.copy(SOURCE / name, root / "model" / name)
    vocabulary = json.loads((SOURCE / "config.json").read_text())["vocab_size"]
    tokens = np.random.default_rng(0).integers(3, vocabulary, (4, 24))
    np.save(root / "model" / "a.npy", tokens)
    np.save(root / "model" / "b.npy", np.full((4, 24), 5))
    return root


def encode(folder: Path, high: float) -> None:
    """Put one activation on a grid that ends at `high`."""
    entry = {"name": "logits", "output_dtype": "uint8", "y_scale": high / 255, "y_zero_point": 128}
    content = {"version": "2.0.0", "encodings": [entry]}
    (folder / "model" / "model.encodings").write_text(json.dumps(content))


def delivered(root: Path, **fidelity: Any) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """The delivered report, this build's own fidelity result, and whether a container was made."""
    spec = {
        "model": {"source": "model"},
        "targets": ["cpu"],
        "graphs": {"autoRegression": [1, 8], "contextLengths": [64]},
        "quantization": {"gaps": "Float", "cpuPrecision": "Float", "fidelity": fidelity},
    }
    store = DirectoryStore(root / "store")
    result = run_plan(plan_build(BuildSpec.model_validate(spec), root, store, name="m"))
    assert result.failures == ()
    made = _delivered(result, store, root / "out")["cpu"]
    report = json.loads((made.path / "report.json").read_text())
    (own,) = [one for task, one in result.made_of["cpu"].items() if task.startswith("fidelity")]
    measured = json.loads(store.read_blob(own.outputs["fidelity.json"]))
    return report, measured, made.changed


def test_report_is_this_builds_when_text_budget_or_encodings_changed(folder: Path) -> None:
    found = []
    fidelities: list[dict[str, Any]] = [{"tokens": "a.npy"}, {"tokens": "b.npy", "budgetNats": 9}]
    for number, fidelity in enumerate(fidelities):
        report, measured, changed = delivered(folder, **fidelity)
        assert report["fidelity"] == measured
        assert changed == (number == 0)
        found.append((measured["natsPerToken"], measured["budget"]))
    assert len(set(found)) == 2
    # One float container, whose yardstick is another with other encodings.
    for high in (40.0, 3.0):
        encode(folder, high)
        report, measured, _ = delivered(folder, tokens="a.npy", budgetNats=9.0)
        assert report["fidelity"] == measured
        found.append((measured["baselineNats"], measured["budget"]))
    assert len(set(found)) == 4
    assert report["stages"].keys() >= {"ingest", "compile/cpu/float", "fidelity/cpu/float"}


def test_own_report_is_as_packaged_when_nothing_else_is_known() -> None:
    packaged = {"schema_version": 1, "verified": "Cpu", "fidelity": {"natsPerToken": 1.0}}
    again = json.loads(own_report(json.dumps(packaged).encode()))
    assert {name: again[name] for name in packaged} == packaged
