"""Whatever begins at some far position is refused there, and what holds everywhere is not.

The graphs are the same as plain ones below that position; the right value is the position itself.
"""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_core.errors import BadModel, UnsupportedOperator
from genai_core.facts import ModelFacts
from genai_core.operations import IngestConfig
from genai_stages.graph.core_graph import read_facts
from genai_stages.ingest.folding.fold_limits import elements
from genai_stages.ingest.folding.folded_graph import StaticNode
from genai_stages.ingest.positions.far_positions import Numbers, candidates, far_passes, places
from genai_stages.operations.ingest import run
from genai_stages.stage import Context
from genai_stages.testing_sources import write_source

LATE = ["query", "key", "value", "values", "scores", "probs", "stream", "bias", "waves"]
FROM = re.compile(r"from position (\d+) on (.*), which has no form here; ")


def ingest(folder: Path, *, last: int | None = None, **style: Any) -> ModelFacts:
    write_source(folder / "source", **style)
    if last is not None:
        path = folder / "source" / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({**config, "max_position_embeddings": last + 1}))
    (folder / "out").mkdir()
    run({"source": folder / "source"}, IngestConfig(), folder / "out", Context(folder / "scratch"))
    return read_facts(folder / "out")


def refused(folder: Path, **style: Any) -> tuple[int, str, str]:
    """The position, the rest of the sentence, and the node of the refusal."""
    if style.get("late") == "waves":
        style["waves"] = "ready"
    with pytest.raises(UnsupportedOperator) as caught:
        ingest(folder, **style)
    found = FROM.search(str(caught.value))
    assert found is not None, caught.value
    return int(found[1]), found[2], str(caught.value).partition(":")[0]


@pytest.mark.parametrize("positions", ["input", "counted"])
@pytest.mark.parametrize("late", LATE)
def test_ingest_refuses_a_source_when_it_changes_at_a_position(
    late: str, positions: str, tmp_path: Path
) -> None:
    position, _, where = refused(tmp_path, late=late, late_from=300, positions=positions)
    # Everything between attentions counts as one: it is told where it was seen, not where it began.
    assert position == 300 or late in ("stream", "values")
    assert where.startswith("node ")


@pytest.mark.parametrize("late", ["query", "scores", "bias", "waves"])
def test_ingest_refuses_a_source_without_a_past_when_it_changes_at_a_position(
    late: str, tmp_path: Path
) -> None:
    position, _, _ = refused(tmp_path, late=late, late_from=150, past=False)
    assert position == 150


def fixed(path: Path) -> None:
    """Give a source of open sizes AR 31 and CL 83."""
    model = onnx.load(str(path))  # noqa: TID251 - a few kilobytes
    sizes = {"B": 1, "T": 31, "K": 83, "P": 52}
    for value in [*model.graph.input, *model.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = sizes[dim.dim_param]
    onnx.save(model, path)


@pytest.mark.parametrize("late", ["", "query", "scores", "waves"])
def test_a_static_source_is_looked_at_by_its_input_of_positions(late: str, tmp_path: Path) -> None:
    waves: Any = "ready" if late == "waves" else "computed"
    write_source(tmp_path / "source", late=late, late_from=300, waves=waves)
    fixed(tmp_path / "source" / "model.onnx")
    (tmp_path / "out").mkdir()
    inputs, context = {"source": tmp_path / "source"}, Context(tmp_path / "scratch")
    if not late:
        result = run(inputs, IngestConfig(), tmp_path / "out", context)
        assert not [one for one in result.warnings if "looked at" in one]
        return
    with pytest.raises(UnsupportedOperator, match="from position 300 on "):
        run(inputs, IngestConfig(), tmp_path / "out", context)


def test_the_refusal_names_both_values(tmp_path: Path) -> None:
    """1 + 1.5 log 2 of the temperature; angles of the third pair, whose frequency is 0.01."""
    _, said, where = refused(tmp_path / "a", late="query", late_from=128)
    assert said == f"queries are scaled by {1 + 1.5 * np.log(2):.6g}, by 1 before"
    assert "(Mul)" in where
    _, said, _ = refused(tmp_path / "c", late="waves", late_from=128)
    pair, given, near = re.findall(r"[\d.]+", said)
    assert float(near) == pytest.approx(128 * 0.1 ** int(pair))
    turns = (float(given) - 128 * 0.1 ** int(pair) / (1 + 2 / 3 * int(pair))) / (2 * np.pi)
    assert turns == pytest.approx(round(turns), abs=1e-4)


def test_a_mask_of_chunks_is_refused(tmp_path: Path) -> None:
    for name, style in (("a", {}), ("b", {"positions": "counted"}), ("c", {"past": False})):
        with pytest.raises(UnsupportedOperator, match="neither causal nor a sliding window"):
            ingest(tmp_path / name, late="chunks", late_from=300, **style)


@pytest.mark.parametrize("positions", ["input", "counted"])
def test_a_window_that_starts_late_is_refused(positions: str, tmp_path: Path) -> None:
    """A window of 120 that holds from position 500 on looks like no window, then like one."""
    position, said, _ = refused(
        tmp_path, window=120, late="window", late_from=500, positions=positions
    )
    assert position == 120
    assert said == "a token sees 121 keys, where a sliding window of 120 shows 120"


def test_position_embeddings_are_refused_when_they_begin_at_a_position(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperator):
        ingest(tmp_path, late="learned", late_from=200)


@settings(max_examples=6, deadline=None)
@given(
    st.sampled_from(["query", "scores", "key", "probs"]),
    st.integers(84, 5000),
    st.sampled_from(["input", "counted"]),
)
def test_the_position_is_found_wherever_it_is(
    tmp_path_factory: pytest.TempPathFactory, late: str, start: int, positions: str
) -> None:
    folder = tmp_path_factory.mktemp("late")
    position, _, _ = refused(folder, late=late, late_from=start, positions=positions, layers=1)
    assert position == start


@pytest.mark.parametrize(
    "style",
    [
        {},
        {"positions": "counted", "rotary": "neighbours"},
        {"rotary_dim": 4, "waves": "computed"},
        {"past": False},
        {"late": "query", "late_from": 9000, "last": 8999},
    ],
    ids=["plain", "counted", "partial", "no-past", "beyond-the-last"],
)
def test_ingest_accepts_a_source_when_it_is_the_same_up_to_its_last_position(
    style: dict[str, Any], tmp_path: Path
) -> None:
    facts = ingest(tmp_path, **{"last": 131071, **style})
    assert facts.warnings == []


def test_a_table_that_ends_before_config_json_says_is_told(tmp_path: Path) -> None:
    (warning,) = ingest(tmp_path, waves="ready", last=1023).warnings
    assert warning.startswith("no position near 1023 was looked at")
    assert "512" in warning


def test_the_sources_own_loss_is_that_of_the_refused_part(tmp_path: Path) -> None:
    """Below its position a late temperature changes nothing, from there on it does."""
    for name, late in (("late", "query"), ("plain", "")):
        write_source(tmp_path / name, late=late, late_from=100)
    tokens = np.random.default_rng(0).integers(0, 64, (1, 160))
    logits = []
    for name in ("late", "plain"):
        session = ort.InferenceSession(tmp_path / name / "model.onnx")
        feeds = {"input_ids": tokens, "attention_mask": np.ones_like(tokens),
                 "position_ids": np.arange(160)[None]}  # fmt: skip
        for value in session.get_inputs()[3:]:
            feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        logits.append(session.run(["logits"], feeds)[0][0])
    apart = np.abs(logits[0] - logits[1]).max(-1)
    assert apart[:100].max() < 1e-5
    assert apart[100:].min() > 1e-3


@given(st.sets(st.integers(2, 1 << 20), max_size=6), st.integers(0, 1 << 20))
def test_places_hold_each_number_and_its_neighbours(numbers: set[int], last: int) -> None:
    found = places(Numbers(frozenset(numbers), frozenset(), frozenset()), last).tolist()
    assert found == sorted(set(found))
    assert {0, last} <= set(found)
    for number in numbers:
        for one in (number - 1, number, number + 1):
            assert (one in found) == (one <= last)


@given(st.sets(st.integers(2, 1 << 20), max_size=6), st.integers(100, 1 << 20), st.booleans())
def test_passes_stay_within_memory_and_reach_the_last_position(
    numbers: set[int], last: int, placed: bool
) -> None:
    told = Numbers(frozenset(numbers), frozenset(), frozenset())
    for past in (52, None):
        found = far_passes(told, last, heads=32, width=128, known=83, past=past, placed=placed)
        for far in found:
            assert far.positions.max() <= last
            assert 32 * 128 * far.sizes.tokens <= 1 << 24
            assert not far.scores or 32 * far.sizes.tokens * far.sizes.total <= 1 << 25
        if past is not None or placed:
            assert max(int(far.positions.max()) for far in found) == last
    assert candidates(told, {"max_position_embeddings": 40})[0] == 39


@pytest.mark.parametrize(
    ("kind", "arrays", "expected"),
    [
        ("Range", [np.array(0), np.array(10**12), np.array(1)], 10**12),
        ("Expand", [np.zeros((1, 1)), np.array([10**6, 10**6])], 10**12),
        ("ConstantOfShape", [np.array([10**6, 10**6])], 10**12),
        ("Tile", [np.zeros(3), np.array([10**9])], 3 * 10**9),
        ("LessOrEqual", [np.zeros((1, 10**5)), np.zeros((10**5, 1))], 10**10),
        ("Cos", [np.zeros(3)], 0),
        ("Expand", [np.zeros((2, 3)), np.array([5])], 0),
    ],
)
def test_elements_are_told_before_they_are_computed(
    kind: str, arrays: list[Any], expected: int
) -> None:
    node = StaticNode(kind, "", [], ["y"], {}, "")
    assert elements(node, arrays) == expected


def test_a_constant_of_terabytes_is_refused_before_it_is_computed(tmp_path: Path) -> None:
    write_source(tmp_path / "source")
    path = tmp_path / "source" / "model.onnx"
    model = onnx.load(str(path))  # noqa: TID251 - a few kilobytes
    node = next(node for node in model.graph.node if node.op_type == "Range")
    huge = onnx.numpy_helper.from_array(np.array(1 << 45), "huge")
    model.graph.initializer.append(huge)
    node.input[1] = "huge"
    onnx.save(model, path)
    (tmp_path / "out").mkdir()
    tracemalloc.start()
    with pytest.raises(BadModel, match="constant elements"):
        run({"source": tmp_path / "source"}, IngestConfig(), tmp_path / "out",
            Context(tmp_path / "scratch"))  # fmt: skip
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()
