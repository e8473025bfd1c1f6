"""What is measured is written as what was meant: the same on every machine, once for all layers.

Scales, factors and frequencies are read off numbers that ONNX Runtime and NumPy compute, and those
differ in their last digits from one processor to the next. Such a difference must not reach the
core graph: its digest is in the key of everything behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genai_core.facts import ModelFacts
from genai_core.operations import IngestConfig
from genai_stages.graph.core_graph import FACTS_FILE, MODEL_FILE, read_core, read_facts
from genai_stages.graph.expand_attention import AttentionSpec
from genai_stages.ingest.folding import folded_graph, specialise
from genai_stages.ingest.recognition import evaluate_region
from genai_stages.ingest.recognition.attention import attention_run
from genai_stages.ingest.source.source_model import Array
from genai_stages.operations.ingest import run
from genai_stages.stage import Context
from genai_stages.testing_sources import write_source

STYLES: dict[str, dict[str, Any]] = {
    "a scale on the queries": {"scale": "query", "score_scale": 144**-0.5},
    "a scale on both": {"scale": "both"},
    "a factor on the waves": {"wave_factor": 1.1902381, "scale": "query"},
    "ready tables of another base": {"waves": "ready", "theta": 50000.0, "head_dim": 16},
}


def ingest(source: Path, out: Path) -> ModelFacts:
    out.mkdir()
    run({"source": source}, IngestConfig(), out, Context(out.parent / "scratch"))
    return read_facts(out)


def on_another_processor(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Let every number computed on the way be off in its last bits."""
    random = np.random.default_rng(seed)
    region, evaluate = evaluate_region.run_region, folded_graph.evaluate

    def rounded(array: Array) -> Array:
        if array.dtype != np.float32:
            return array
        off = 1 + random.integers(-4, 5, array.shape) * 2.0**-24
        near = np.clip(array, -1e30, 1e30).astype(np.float64) * off
        return np.where(np.abs(array) < 1e30, near.astype(np.float32), array)

    def run_region(graph: Any, nodes: Any, feeds: Any) -> dict[str, Array]:
        return {name: rounded(array) for name, array in region(graph, nodes, feeds).items()}

    def evaluated(node: Any, arrays: Sequence[Any], opset: int) -> list[Array]:
        made = evaluate(node, arrays, opset)
        return [rounded(one) for one in made] if node.op_type in ("Cos", "Sin") else made

    monkeypatch.setattr(attention_run, "run_region", run_region)
    monkeypatch.setattr(specialise, "evaluate", evaluated)


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES.keys())
def test_another_processors_rounding_leaves_no_trace(
    style: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_source(tmp_path / "source", layers=3, **style)
    ingest(tmp_path / "source", tmp_path / "here")
    for seed in range(3):
        with monkeypatch.context() as patched:
            on_another_processor(patched, seed)
            ingest(tmp_path / "source", tmp_path / f"there{seed}")
        for name in (MODEL_FILE, FACTS_FILE):
            here = (tmp_path / "here" / name).read_bytes()
            assert (tmp_path / f"there{seed}" / name).read_bytes() == here, name


@pytest.mark.parametrize("meant", [144**-0.5, 8**-0.5, 1 / 128, 0.4123])
@pytest.mark.parametrize("where", ["query", "divide"])
def test_the_scale_is_the_one_that_was_meant(meant: float, where: str, tmp_path: Path) -> None:
    write_source(tmp_path / "source", scale=where, score_scale=meant)
    ingest(tmp_path / "source", tmp_path / "out")
    model, _ = read_core(tmp_path / "out")
    for node in model.graph:
        if node.op_type == "Attention":
            assert AttentionSpec.of(node).scale == pytest.approx(meant, rel=1e-6)


def test_measured_tables_are_one_for_all_layers(tmp_path: Path) -> None:
    """Each layer is measured by itself; a table a layer would be an input of its own each."""
    write_source(tmp_path / "source", layers=4, waves="ready", theta=50000.0, head_dim=16)
    facts = ingest(tmp_path / "source", tmp_path / "out")
    assert {one.rope for one in facts.attention} == {"default"}
    (table,) = facts.rope.values()
    assert table.theta == 50000.0
    exact = (50000.0 ** (-np.arange(8) / 8)).astype(np.float32)
    np.testing.assert_array_equal(np.array(table.inv_freq, np.float32), exact)
