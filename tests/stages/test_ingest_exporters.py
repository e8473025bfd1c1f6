"""What exporters write otherwise: each form must become the same model, or say why not.

The reference is the source in ONNX Runtime: ingest compares with it, and `same` checks that what is
built does not depend on the way of writing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from genai_core.errors import BadModel, UnsupportedOperator
from genai_core.facts import ModelFacts
from genai_core.operations import IngestConfig
from genai_stages.fidelity.source_reference import SourceReference
from genai_stages.graph.core_graph import read_facts
from genai_stages.ingest.folding import folded_graph
from genai_stages.ingest.folding.folded_graph import StaticNode, evaluate
from genai_stages.ingest.folding.run_node import NotComputed
from genai_stages.operations.ingest import run
from genai_stages.stage import Context, StageResult
from genai_stages.testing import assemble_step1, core_logits
from genai_stages.testing_sources import Style, write_source

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "tiny-llama" / "model"
STEP1 = ROOT / "tests" / "fixtures" / "step1"
TOKENS = np.random.default_rng(9).integers(0, 64, 40)
STRICT = 5e-6
"""Drift that float32 arithmetic in another order gives."""


def ingest(folder: Path) -> tuple[StageResult, ModelFacts]:
    out = folder / "out"
    out.mkdir()
    result = run({"source": folder / "source"}, IngestConfig(), out, Context(folder / "scratch"))
    return result, read_facts(out)


def edited(folder: Path, change: Callable[[onnx.ModelProto], None], **style: object) -> Style:
    """Write a source and change its graph."""
    made = write_source(folder / "source", **style)
    path = folder / "source" / "model.onnx"
    model = onnx.load(path)  # noqa: TID251 - a few kilobytes
    change(model)
    onnx.save(model, path)
    return made


def set_config(folder: Path, **values: object) -> None:
    path = folder / "source" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def same_as_plain(folder: Path, **style: object) -> None:
    """The core graph equals that of the same model written plainly."""
    write_source(folder / "plain" / "source", **style)
    ingest(folder / "plain")
    np.testing.assert_allclose(
        core_logits(folder / "out", TOKENS),
        core_logits(folder / "plain" / "out", TOKENS),
        atol=1e-5,
    )


def _dims_as_text(model: onnx.ModelProto) -> None:
    for value in [*model.graph.input, *model.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value"):
                dim.dim_param = f"{dim.dim_value}"


def test_ingest_builds_when_dimensions_are_numbers_as_text(tmp_path: Path) -> None:
    edited(tmp_path, _dims_as_text)
    result, facts = ingest(tmp_path)
    assert result.notes["drift"] < STRICT
    assert (facts.attention[0].kv_heads, facts.vocab_size) == (2, 64)
    same_as_plain(tmp_path)


def _open_caches(model: onnx.ModelProto) -> None:
    """Only symbols in the shapes of caches, as onnxruntime-genai's builder writes the width."""
    for value in [*model.graph.input, *model.graph.output]:
        if value.name.startswith(("past", "present")):
            kind = value.name.rpartition("_")[2]
            for axis, dim in enumerate(value.type.tensor_type.shape.dim):
                dim.dim_param = f"{kind}_{axis}"


def _without_inner_shapes(model: onnx.ModelProto) -> None:
    _open_caches(model)
    for value in [*model.graph.input, *model.graph.output]:
        if value.name.startswith(("past", "present")):
            value.type.tensor_type.shape.dim[0].dim_value = 1


@pytest.mark.parametrize(
    "style",
    [
        {"layers": 3},
        {"turned_keys": True, "fused": True, "rotary_dim": 4},
        {"contrib": True, "head_dim": 16},
        {"contrib": True, "head_dim": 16, "fused": True},
        {"repeat": "broadcast", "positions": "counted"},
    ],
)
def test_ingest_finds_the_width_of_heads_when_caches_name_symbols(
    style: dict[str, Any], tmp_path: Path
) -> None:
    written = edited(tmp_path, _without_inner_shapes, **style)
    (tmp_path / "source" / "config.json").unlink()
    result, facts = ingest(tmp_path)
    assert result.notes["drift"] < STRICT
    for one in facts.attention:
        assert (one.kv_heads, one.head_dim) == (written.kv_heads, written.head_dim)
    same_as_plain(tmp_path, **style)


def test_ingest_names_the_cache_when_nothing_tells_its_width(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        _open_caches(model)
        for node in model.graph.node:
            if node.op_type == "Concat" and node.input[0] == "past_0_key":
                node.input[0] = "of_itself"
        model.graph.node.insert(0, helper.make_node("Abs", ["past_0_key"], ["of_itself"]))

    edited(tmp_path, change)
    with pytest.raises(BadModel, match=r"past_0_key.*number and width of heads"):
        ingest(tmp_path)


def _positions_in_rows(rows: int | str) -> Callable[[onnx.ModelProto], None]:
    """position_ids [rows, B, T], of which the first is read, as text decoders of VL models do."""

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        (old,) = [value for value in graph.input if value.name == "position_ids"]
        old.CopyFrom(helper.make_tensor_value_info("position_ids", 7, [rows, "B", "T"]))
        graph.initializer.append(numpy_helper.from_array(np.array(2), "row"))
        for node in graph.node:
            names = ["first_row" if name == "position_ids" else name for name in node.input]
            node.input[:] = names
        graph.node.insert(
            0, helper.make_node("Gather", ["position_ids", "row"], ["first_row"], axis=0)
        )

    return change


@pytest.mark.parametrize("rows", [3, "rows"])
def test_ingest_builds_when_positions_have_rows(rows: int | str, tmp_path: Path) -> None:
    edited(tmp_path, _positions_in_rows(rows))
    result, _ = ingest(tmp_path)
    assert result.notes["drift"] < STRICT
    same_as_plain(tmp_path)


def _with_cast_like(model: onnx.ModelProto) -> None:
    """Float constants that get an integer's type, and a known tensor that gets an open one's."""
    graph = model.graph
    made: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "Range":
            graph.initializer.append(
                numpy_helper.from_array(np.array(1, np.float32), f"{node.output[0]}_1")
            )
            like = [f"{node.output[0]}_1", node.input[1]]
            node.input[2] = f"{node.output[0]}_like"
            made.append(helper.make_node("CastLike", like, [node.input[2]]))
        made.append(node)
        if node.op_type == "Sigmoid":
            gate = node.output[0]
            node.output[0] = f"{gate}_s"
            graph.initializer.append(numpy_helper.from_array(np.array(1, np.float64), f"{gate}_1"))
            made.append(helper.make_node("CastLike", [f"{gate}_1", f"{gate}_s"], [f"{gate}_like"]))
            made.append(helper.make_node("Mul", [f"{gate}_s", f"{gate}_like"], [gate]))
    del graph.node[:]
    graph.node.extend(made)


def test_ingest_builds_when_constants_take_the_type_of_others(tmp_path: Path) -> None:
    edited(tmp_path, _with_cast_like)
    result, _ = ingest(tmp_path)
    assert result.notes["drift"] < STRICT
    same_as_plain(tmp_path)


def _triangular_mask(window: int) -> Callable[[onnx.ModelProto], None]:
    """The mask as triangles of a square of new tokens, as exporters without a cache write it."""

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        (masking,) = [node for node in graph.node if node.op_type == "Where"]
        place = list(graph.node).index(masking)
        for name, value in {"above": 1, "below": -window, "all": True}.items():
            graph.initializer.append(numpy_helper.from_array(np.array(value), name))
        made = [
            helper.make_node("Shape", ["input_ids"], ["size"], start=1, end=2),
            helper.make_node("Concat", ["size", "size"], ["square_size"], axis=0),
            helper.make_node("Expand", ["all", "square_size"], ["square"]),
            helper.make_node("Cast", ["square"], ["square_f"], to=TensorProto.FLOAT),
            helper.make_node("Trilu", ["square_f", "above"], ["later"], upper=1),
            helper.make_node("Trilu", ["square_f", "below"], ["earlier"], upper=0),
        ]
        parts = ["later", "earlier"][: 2 if window else 1]
        made.append(helper.make_node("Sum", parts, ["hidden_f"]))
        made.append(helper.make_node("Cast", ["hidden_f"], ["hidden"], to=TensorProto.BOOL))
        made.append(helper.make_node("Not", ["hidden"], ["seen"]))
        masking.input[0] = "seen"
        for offset, node in enumerate(made):
            graph.node.insert(place + offset, node)

    return change


@pytest.mark.parametrize("window", [0, 5, 25, 30, 31, 40, 1000])
def test_ingest_reads_a_triangle_when_there_is_no_cache(window: int, tmp_path: Path) -> None:
    """Numbers in a mask's arithmetic are looked at among new tokens: there is no past."""
    edited(tmp_path, _triangular_mask(window), past=False, mask="lowest")
    result, facts = ingest(tmp_path)
    assert result.notes["drift"] < STRICT
    assert [one.window for one in facts.attention] == [window, window]


def test_ingest_refuses_a_triangle_too_far_to_be_seen_when_there_is_no_cache(
    tmp_path: Path,
) -> None:
    edited(tmp_path, _triangular_mask(9000), past=False, mask="lowest")
    with pytest.raises(UnsupportedOperator, match=r"4200 tokens.*past_key_values"):
        ingest(tmp_path)


def test_ingest_reads_a_far_window_when_a_mask_tells_of_more_keys(tmp_path: Path) -> None:
    write_source(tmp_path / "source", past=False, window=9000)
    _, facts = ingest(tmp_path)
    assert [one.window for one in facts.attention] == [9000, 9000]


def test_ingest_builds_when_rows_are_picked_by_element(tmp_path: Path) -> None:
    """GPT-J picks rotary rows by GatherElements with a repeated index."""

    def change(model: onnx.ModelProto) -> None:
        made: list[onnx.NodeProto] = []
        graph = model.graph
        for name, value in {"last": [-1], "front": [0], "half": [4]}.items():
            graph.initializer.append(numpy_helper.from_array(np.array(value), name))
        for node in graph.node:
            if node.op_type == "Gather" and node.input[1] == "position_ids":
                table, rows = node.input[0], node.output[0]
                made += [
                    helper.make_node("Unsqueeze", ["position_ids", "last"], [f"{rows}_i"]),
                    helper.make_node("Shape", ["position_ids"], [f"{rows}_s"]),
                    helper.make_node("Concat", [f"{rows}_s", "half"], [f"{rows}_c"], axis=0),
                    helper.make_node("Expand", [f"{rows}_i", f"{rows}_c"], [f"{rows}_e"]),
                    helper.make_node("Unsqueeze", [table, "front"], [f"{rows}_t"]),
                    helper.make_node("GatherElements", [f"{rows}_t", f"{rows}_e"], [rows], axis=1),
                ]
            else:
                made.append(node)
        del graph.node[:]
        graph.node.extend(made)

    edited(tmp_path, change, waves="ready")
    result, _ = ingest(tmp_path)
    assert result.notes["drift"] < STRICT
    same_as_plain(tmp_path, waves="ready")


@pytest.mark.parametrize(
    ("op_type", "domain", "arrays", "attributes", "expected"),
    [
        ("Mish", "", [np.array([0.0, 1.0], np.float32)], {}, [0.0, 0.865098]),
        ("QuickGelu", "com.microsoft", [np.array([1.0], np.float32)], {"alpha": 1.0}, [0.731059]),
        (
            "GatherElements",
            "",
            [np.arange(200.0)[:, None], np.array([[199], [0], [-1]])],
            {"axis": 0},
            [[199.0], [0.0], [199.0]],
        ),
    ],
)
def test_evaluate_takes_onnx_runtime_when_the_reference_fails(
    op_type: str, domain: str, arrays: list[Any], attributes: dict[str, Any], expected: list[Any]
) -> None:
    names = [f"x{index}" for index in range(len(arrays))]
    node = StaticNode(op_type, domain, names, ["y"], attributes, "n")
    (result,) = evaluate(node, arrays, 21)
    np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_evaluate_names_the_node_when_nothing_computes_it() -> None:
    node = StaticNode("Reshape", "", ["x", "shape"], ["y"], {}, "turn")
    with pytest.raises(BadModel, match="turn"):
        evaluate(node, [np.zeros(6, np.float32), np.array([4, 4])], 21)


def test_evaluate_takes_the_reference_when_onnx_runtime_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: object) -> None:
        raise NotComputed

    monkeypatch.setattr(folded_graph, "run_node", refused)
    node = StaticNode("GatherND", "", ["x", "i"], ["y"], {}, "n")
    (result,) = evaluate(node, [np.arange(6).reshape(2, 3), np.array([[1, 2]])], 21)
    np.testing.assert_array_equal(result, [5])


@pytest.mark.parametrize(
    ("scaling", "warned"),
    [
        ({"type": "mrope", "rope_type": "mrope", "mrope_section": [1, 1, 2]}, ""),
        ({"rope_type": "spiral", "factor": 2}, "spiral"),
        ({"rope_type": "yarn", "original_max_position_embeddings": 64}, "factor"),
    ],
)
def test_ingest_takes_the_graphs_table_when_config_describes_none(
    scaling: dict[str, object], warned: str, tmp_path: Path
) -> None:
    write_source(tmp_path / "source")
    set_config(tmp_path, rope_scaling=scaling)
    result, facts = ingest(tmp_path)
    assert result.notes["drift"] < STRICT
    said = [text for text in result.warnings if "rotary" in text]
    assert (warned in said[0] and "graph's own" in said[0]) if warned else not said
    np.testing.assert_allclose(
        facts.rope["default"].inv_freq, 10000.0 ** (-np.arange(4) / 4), rtol=1e-6
    )
    assert facts.rope["default"].scaling == {}


def test_ingest_refuses_an_unknown_rope_when_tables_are_inputs(tmp_path: Path) -> None:
    source = assemble_step1(STEP1 / "left-pad", EXAMPLE, tmp_path / "source", encodings="w8a16")
    set_config(tmp_path, rope_scaling={"rope_type": "spiral"})
    with pytest.raises(BadModel, match="spiral"):
        run({"source": source}, IngestConfig(), tmp_path, Context(tmp_path / "scratch"))


@pytest.mark.parametrize("waves", ["computed", "ready"])
def test_ingest_takes_still_pairs_when_the_table_is_proportional(
    waves: str, tmp_path: Path
) -> None:
    """A quarter of the pairs turns; the table covers the whole head, with zeros."""
    whole = 10000.0 ** (-np.arange(4) / 4)
    table = np.where(np.arange(4) < 1, whole, 0.0)

    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.shape == (4,) and np.allclose(array, whole):
                tensor.CopyFrom(numpy_helper.from_array(table.astype(np.float32), tensor.name))
            elif array.shape == (512, 4):
                wave = np.cos if array[0, 0] == 1 else np.sin
                fresh = wave(np.arange(512)[:, None] * table).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(fresh, tensor.name))

    edited(tmp_path, change, waves=waves)
    set_config(
        tmp_path,
        rope_parameters={
            "rope_type": "proportional",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,
        },
    )
    result, facts = ingest(tmp_path)
    assert result.notes["drift"] < STRICT
    assert not [text for text in result.warnings if "rotary" in text]
    assert facts.rope["default"].inv_freq == table.astype(np.float32).tolist()
    assert facts.rope["default"].theta == 10000.0


def test_keep_source_states_the_width_of_heads_when_the_source_does_not(tmp_path: Path) -> None:
    edited(tmp_path, _without_inner_shapes, positions="counted")
    ingest(tmp_path)
    reference = SourceReference(tmp_path / "out", tmp_path / "reference")
    (logits,) = reference.logits([TOKENS])
    np.testing.assert_allclose(logits, core_logits(tmp_path / "out", TOKENS), atol=1e-5)


def _window_as_input(model: onnx.ModelProto) -> None:
    """The window is a scalar input and an output, as transformers 5 has it; so is a count."""
    graph = model.graph
    graph.input.append(helper.make_tensor_value_info("past.0._sliding_window_tensor", 7, []))
    graph.input.append(helper.make_tensor_value_info("past.0.cumulative_length", 7, []))
    graph.output.append(helper.make_tensor_value_info("new.0._sliding_window_tensor", 7, []))
    (oldest,) = [node for node in graph.node if node.op_type == "Greater"]
    made = {node.output[0]: node for node in graph.node}
    made[oldest.input[1]].input[1] = "past.0._sliding_window_tensor"
    graph.node.append(
        helper.make_node(
            "Identity", ["past.0._sliding_window_tensor"], ["new.0._sliding_window_tensor"]
        )
    )
    # Positions behind what was seen: the same as the input of positions.
    place = next(i for i, node in enumerate(graph.node) if "position_ids" in node.input)
    graph.initializer.append(numpy_helper.from_array(np.array(0), "zero"))
    seen = "past.0.cumulative_length"
    counted = [
        helper.make_node("Shape", ["input_ids"], ["new_shape"], start=1, end=2),
        helper.make_node("Squeeze", ["new_shape"], ["new_count"]),
        helper.make_node("Add", [seen, "new_count"], ["all_count"]),
        helper.make_node("Range", [seen, "all_count", "one_step"], ["places"]),
        helper.make_node("Unsqueeze", ["places", "zero_axis"], ["places_2d"]),
    ]
    graph.initializer.append(numpy_helper.from_array(np.array(1), "one_step"))
    graph.initializer.append(numpy_helper.from_array(np.array([0]), "zero_axis"))
    for node in graph.node:
        node.input[:] = ["places_2d" if name == "position_ids" else name for name in node.input]
    for offset, node in enumerate(counted):
        graph.node.insert(place + offset, node)


@pytest.mark.parametrize("window", [6, 200])
def test_ingest_reads_scalars_of_a_cache_when_they_are_inputs(window: int, tmp_path: Path) -> None:
    edited(tmp_path, _window_as_input, window=window)
    set_config(tmp_path, sliding_window=window)
    result, facts = ingest(tmp_path)
    assert result.notes["drift"] < STRICT
    assert [one.window for one in facts.attention] == [window, window]
    reference = SourceReference(tmp_path / "out", tmp_path / "reference")
    (logits,) = reference.logits([TOKENS])
    np.testing.assert_allclose(logits, core_logits(tmp_path / "out", TOKENS), atol=1e-5)


def test_ingest_names_the_window_when_config_does_not_tell_it(tmp_path: Path) -> None:
    edited(tmp_path, _window_as_input, window=6)
    with pytest.raises(BadModel, match=r"_sliding_window_tensor.*sliding_window of the model"):
        ingest(tmp_path)


def test_ingest_reads_norms_and_positions_inside_of_grouped_attention(tmp_path: Path) -> None:
    """What the CPU's kernel does not have: head norms, and a cache that is cut to its window."""
    random = np.random.default_rng(2)

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        for node in graph.node:
            if node.op_type != "GroupQueryAttention":
                continue
            node.input.extend(["position_ids", *[""] * (14 - len(node.input) - 1)])
            for side in "qk":
                name = f"{node.output[0]}.{side}_norm"
                scale = (1 + 0.2 * random.standard_normal(16)).astype(np.float32)
                graph.initializer.append(numpy_helper.from_array(scale, name))
                node.input.append(name)
            for key, value in {"qk_norm_epsilon": 1e-3, "sliding_window_cache": 1}.items():
                node.attribute.append(helper.make_attribute(key, value))

    edited(tmp_path, change, contrib=True, head_dim=16, window=40)
    result, facts = ingest(tmp_path)
    assert result.notes["drift"] < STRICT
    assert [one.window for one in facts.attention] == [40, 40]
    core = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)  # noqa: TID251
    attentions = [node for node in core.graph.node if node.op_type == "Attention"]
    assert all(len(node.input) == 5 for node in attentions)
