"""Rows of a fused weight that are no single range keep their own scales."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from genai_core.operations import IngestConfig
from genai_stages.aimet.model import Encoding, EncodingSet
from genai_stages.graph.core_graph import read_core
from genai_stages.graph.provenance import head_of
from genai_stages.ingest.source.source_model import read_config, read_source
from genai_stages.operations.ingest import run
from genai_stages.quantize.encoding_lookup import core_lookup
from genai_stages.stage import Context

NEOX = Path(__file__).parents[1] / "fixtures" / "architectures" / "gpt-neox"
HEADS, WIDTH = 4, 16


def test_each_row_gets_the_scale_of_its_channel(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    run({"source": NEOX}, IngestConfig(), out, Context(tmp_path / "scratch"))
    model, facts = read_core(out)
    weights = {
        role: next(
            node.inputs[1]
            for node in model.graph
            if node.outputs[0].name == facts.attention[0].roles[role]
        )
        for role in ("query", "key", "value")
    }
    names = {role: weight.name or "" for role, weight in weights.items() if weight is not None}
    source = facts.provenance[names["key"]].source
    scale = np.arange(1.0, 3 * HEADS * WIDTH + 1)
    whole = Encoding(source, 8, symmetric=True, scale=scale, offset=np.full(scale.shape, -128.0))
    lookup = core_lookup(EncodingSet("1.0.0", "test", {source: whole}), facts)

    initializer = read_source(NEOX / "model.onnx", read_config(NEOX)).model.graph.initializers
    constant = initializer[source].const_value
    assert constant is not None
    original = constant.numpy().T
    for role, weight in weights.items():
        assert weight is not None
        assert weight.const_value is not None
        found = lookup.weight(names[role], inputs=64)
        assert found is not None
        # The scale is the channel's number, so it says which row of the source belongs here.
        rows = found.scale.reshape(-1).astype(int) - 1
        np.testing.assert_array_equal(original[rows], weight.const_value.numpy())
        assert rows.tolist() == lookup.channels(names[role], len(rows)).tolist()
        assert role == ("query", "key", "value")[rows[0] // WIDTH]


def test_one_head_of_interleaved_rows_is_a_range(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    run({"source": NEOX}, IngestConfig(), out, Context(tmp_path / "scratch"))
    _, facts = read_core(out)
    parent = facts.provenance[facts.attention[1].roles["value"]]
    assert parent.index is not None
    head = head_of(parent, 2, rows=(2 * WIDTH, 3 * WIDTH))
    assert (head.head, head.rows, head.index) == (2, (128, 144), None)
    pair = head_of(parent, 0, rows=(WIDTH, 3 * WIDTH))
    assert pair.index == (*range(80, 96), *range(128, 144))
