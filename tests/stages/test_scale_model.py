"""The benchmark's model passes ingest, and its encodings cover what they should."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from genai_core.operations import IngestConfig
from genai_stages.aimet.read import read_encodings
from genai_stages.graph.core_graph import read_core
from genai_stages.operations import ingest
from genai_stages.stage import Context

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        export = importlib.import_module("scale_export")
        model = importlib.import_module("scale_model")
    folder = tmp_path_factory.mktemp("scale")
    sizes = export.Sizes(
        layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=96, vocab=128
    )
    model.write(folder, sizes, bits=4, seed=3)
    return folder


def test_ingest_takes_it_as_a_llama(folder: Path, tmp_path: Path) -> None:
    result = ingest.run({"source": folder}, IngestConfig(), tmp_path, Context(scratch=tmp_path))
    assert (result.facts["architecture"], result.facts["layers"]) == ("llama", 2)
    assert result.warnings == ()
    core, facts = read_core(tmp_path)
    spec = facts.attention[1]
    assert (spec.num_heads, spec.kv_heads, spec.head_dim) == (4, 2, 16)
    assert sum(node.op_type == "Attention" for node in core.graph) == 2


def test_encodings_hold_their_weights_and_the_roles_of_attention(
    folder: Path, tmp_path: Path
) -> None:
    encodings = read_encodings(folder / "model.encodings")
    assert encodings is not None
    entries = json.loads((folder / "model.encodings").read_text())
    names = {entry["name"] for entry in entries["activation_encodings"]}
    ingest.run({"source": folder}, IngestConfig(), tmp_path, Context(scratch=tmp_path))
    core, facts = read_core(tmp_path)
    for role in ("query", "key", "value", "query_rotated", "key_rotated", "past_key", "key_new",
                 "scaled", "masked", "probs", "context"):  # fmt: skip
        assert facts.attention[0].roles[role] in names, role
    (weight,) = [e for e in entries["param_encodings"] if e["name"] == "onnx::MatMul_1001"]
    constant = core.graph.initializers["onnx::MatMul_1001"].const_value
    assert constant is not None
    array = constant.numpy()
    assert len(weight["scale"]) == len(array)
    steps = array / np.array(weight["scale"])[:, None]
    np.testing.assert_allclose(np.abs(steps).max(axis=1), 7, rtol=1e-5)
