"""Recognition holds for graphs that no exporter wrote: sizes and ways of writing drawn at random.

The reference is the source itself in ONNX Runtime, which ingest's own comparison runs; here it is
checked that this comparison happened, that it can fail, and what was recognized.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from genai_core.errors import BadInput, BadModel, DriftError, UnsupportedOperator
from genai_core.facts import ModelFacts
from genai_core.operations import IngestConfig
from genai_stages.graph.core_graph import read_facts
from genai_stages.ingest.admission.source_inputs import read_inputs
from genai_stages.ingest.folding import specialise
from genai_stages.ingest.output import compare_source as comparing
from genai_stages.ingest.source.source_model import read_config, read_source
from genai_stages.operations.ingest import run
from genai_stages.stage import Context, StageResult
from genai_stages.testing import core_logits
from genai_stages.testing_sources import Style, write_source


def ingest(folder: Path) -> tuple[StageResult, ModelFacts]:
    out = folder / "out"
    out.mkdir()
    result = run({"source": folder / "source"}, IngestConfig(), out, Context(folder / "scratch"))
    return result, read_facts(out)


def drawn(seed: int) -> dict[str, Any]:
    pick = random.Random(seed)
    kv_heads, groups = pick.choice([1, 1, 2, 3]), pick.choice([1, 2, 3])
    head_dim = pick.choice([4, 8, 16, 20])
    rotary = pick.choice(["halves", "neighbours", "none"])
    partial = rotary != "none" and head_dim >= 8 and pick.random() < 0.4
    return {
        "layers": pick.choice([1, 2, 3]),
        "hidden": pick.choice([24, 32, 40, 64]),
        "heads": kv_heads * groups,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate": pick.choice([36, 48, 80]),
        "rotary": rotary,
        "rotary_dim": head_dim // 4 * 2 if partial else None,
        "norm": pick.choice(["div", "reciprocal", "power", "quotient"]),
        "projection": pick.choice(["matmul", "gemm", "transposed", "conv"]),
        "bias": pick.random() < 0.5,
        "scale": pick.choice(["query", "key", "multiply", "divide", "both"]),
        "mask": pick.choice(["infinite", "lowest", "where"]),
        "repeat": pick.choice(["expand", "broadcast"]),
        "fused": pick.random() < 0.4,
        "turned_keys": pick.random() < 0.3,
        "positions": pick.choice(["input", "counted"]),
        "past": pick.random() < 0.85,
        "tied": pick.random() < 0.3,
        "window": pick.choice([0, 0, 5, 150, 300]),
        "external": pick.random() < 0.4,
        "half": pick.random() < 0.2,
        "seed": seed,
    }


@pytest.mark.parametrize("seed", range(16))
def test_any_way_of_writing_is_recognized(seed: int, tmp_path: Path) -> None:
    style = write_source(tmp_path / "source", **drawn(seed))
    result, facts = ingest(tmp_path)
    assert result.notes["drift"] < 5e-6
    assert facts.layers == style.layers
    assert facts.tied_embedding == style.tied
    rotary = 0 if style.rotary == "none" else style.rotary_dim or style.head_dim
    for one in facts.attention:
        assert (one.num_heads, one.kv_heads, one.head_dim) == (
            style.heads,
            style.kv_heads,
            style.head_dim,
        )
        assert one.window == style.window
        assert one.rope == ("default" if rotary else "")
    if rotary:
        assert facts.rope["default"].rotary_dim == rotary


@pytest.mark.parametrize(
    "changes",
    [
        {"fused": True},
        {"rotary": "neighbours", "kv_heads": 4},
        {"window": 5, "bias": True},
        {"window": 200, "projection": "gemm"},
    ],
)
def test_fused_operators_of_onnx_runtime_are_read(changes: dict[str, Any], tmp_path: Path) -> None:
    style = write_source(tmp_path / "source", contrib=True, head_dim=16, **changes)
    result, facts = ingest(tmp_path)
    assert result.notes["drift"] < 5e-6
    assert [one.window for one in facts.attention] == [style.window] * style.layers
    assert facts.rope["default"].rotary_dim == 16
    for one in facts.attention:
        assert not [name for name in one.roles.values() if "lowered" in name]


@pytest.mark.parametrize(
    "changes",
    [
        {"kv_heads": 4},
        {"kv_heads": 2, "bias": True, "rotary": "neighbours"},
        {"kv_heads": 4, "bias": True, "rotary": "none", "mask": "infinite"},
        {"kv_heads": 2, "window": 5},
    ],
)
def test_multi_head_attention_of_onnx_runtime_is_read(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    """Over repeated keys as the builder writes it, or with the past and biases inside."""
    style = write_source(tmp_path / "source", contrib="multi", head_dim=16, **changes)
    result, facts = ingest(tmp_path)
    assert result.notes["drift"] < 5e-6  # of ONNX Runtime's own kernel
    assert [one.kv_heads for one in facts.attention] == [style.kv_heads] * style.layers
    assert [one.window for one in facts.attention] == [style.window] * style.layers


def test_multi_head_attention_is_refused_when_a_bias_follows_the_rotation(tmp_path: Path) -> None:
    write_source(tmp_path / "source", contrib="multi", head_dim=16, kv_heads=4, bias=True)
    with pytest.raises(UnsupportedOperator, match="neither rotated by position nor left alone"):
        ingest(tmp_path)


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_ingest_says_so_when_only_prompts_without_a_past_go_through(
    kv_heads: int, tmp_path: Path
) -> None:
    """The mask of onnxruntime-genai's builder for MultiHeadAttention: [T, T] stretched over all."""
    write_source(
        tmp_path / "source", contrib="multi", head_dim=16, kv_heads=kv_heads, mask="new tokens"
    )
    with pytest.raises(BadModel, match="only while the cache is empty") as raised:
        ingest(tmp_path)
    assert "(Expand)" in raised.value.where
    assert "-p fp16 for -e cpu" in raised.value.remedy


def test_ingest_blames_the_node_when_an_empty_cache_changes_nothing(tmp_path: Path) -> None:
    write_source(tmp_path / "source", contrib="multi", head_dim=16, mask="new tokens")
    model = onnx.load(str(tmp_path / "source" / "model.onnx"))  # noqa: TID251 - a few kilobytes
    for node in model.graph.node:
        if node.op_type == "Tile":
            node.input[1] = "wrong"
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, -2, 1, 1]), "wrong"))
    onnx.save(model, tmp_path / "source" / "model.onnx")
    with pytest.raises(BadInput) as raised:
        ingest(tmp_path)
    assert "cache" not in str(raised.value)


def _masks_of_their_own(path: Path) -> None:
    """Let each layer cut the mask to as many keys as its own scores have, as some exporters do."""
    model = onnx.load(str(path))  # noqa: TID251 - a few kilobytes
    made = {name: node for node in model.graph.node for name in node.output}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        found = made.get(node.input[0]) if node.op_type == "Softmax" else None
        if found is not None:
            mask, scores = found.input
            cut = f"{scores}_mask"
            keys = helper.make_node("Shape", [scores], [f"{cut}_keys"], start=3, end=4)
            end = helper.make_node("Slice", [mask, "cut_zero", keys.output[0], "cut_axis"], [cut])
            # In front of the sum that is there already.
            nodes[-1:] = [keys, end, helper.make_node("Add", [cut, scores], list(found.output))]
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for name, value in (("cut_zero", 0), ("cut_axis", 3)):
        model.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    onnx.save(model, path)


def test_masks_that_depend_on_their_layer_cost_each_layer_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far windows show at a long past alone: each layer's mask is computed there once more."""
    folded: list[str] = []
    fold = specialise._Folding.node

    def counted(self: Any, node: Any) -> None:
        folded.append(node.op_type)
        fold(self, node)

    monkeypatch.setattr(specialise._Folding, "node", counted)
    counts = []
    for layers in (2, 4, 8):
        folder = tmp_path / str(layers)
        style = write_source(folder / "source", window=300, layers=layers)
        _masks_of_their_own(folder / "source" / "model.onnx")
        folded.clear()
        _, facts = ingest(folder)
        assert [one.window for one in facts.attention] == [style.window] * layers
        counts.append(len(folded))
    assert counts[2] - counts[1] == 2 * (counts[1] - counts[0])


def test_a_source_that_does_not_run_is_bad_input(tmp_path: Path) -> None:
    """ONNX Runtime wants heads of 16 channels for its fused attention."""
    write_source(tmp_path / "source", contrib=True, head_dim=8)
    with pytest.raises(BadModel, match="head_size"):
        ingest(tmp_path)


def test_prefill_and_decoding_equal_the_source(tmp_path: Path) -> None:
    """The comparison once more, without ingest's code: present outputs become the next past."""
    style = write_source(tmp_path / "source", Style(), turned_keys=True, window=6, layers=3)
    ingest(tmp_path)
    tokens = np.random.default_rng(5).integers(0, style.vocab, 23)
    have = core_logits(tmp_path / "out", tokens, chunks=(15, 7, 1))

    session = ort.InferenceSession(str(tmp_path / "source" / "model.onnx"))
    names = [value.name for value in session.get_inputs() if value.name.startswith("past")]
    past = {
        name: np.zeros((1, 2, 8, 0) if "key" in name else (1, 2, 0, 8), np.float32)
        for name in names
    }
    start, expected = 0, []
    for count in (15, 7, 1):
        stop = start + count
        feeds = {
            "input_ids": tokens[None, start:stop],
            "attention_mask": np.ones((1, stop), np.int64),
            "position_ids": np.arange(start, stop)[None],
        }
        outputs = [value.name for value in session.get_outputs()]
        found = dict(zip(outputs, session.run(outputs, {**feeds, **past}), strict=True))
        expected.append(found["logits"][0])
        past = {name: found[name.replace("past", "present")] for name in names}
        start = stop
    np.testing.assert_allclose(have, np.concatenate(expected), atol=1e-5)


def test_comparison_in_parts_covers_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    write_source(folder, layers=4, external=True, hidden=64)
    ingest(tmp_path)
    source = read_source(folder / "model.onnx", read_config(folder))
    inputs = read_inputs(source)
    whole = comparing.compare_source(source, inputs, {}, tmp_path / "out")
    parts = comparing.compare_source(source, inputs, {}, tmp_path / "out", whole_bytes=0)
    assert whole.parts == 1
    assert parts.parts >= 4
    assert parts.drift < 5e-6


@pytest.mark.parametrize("whole_bytes", [0, 1 << 30])
def test_comparison_fails_when_a_weight_differs(tmp_path: Path, whole_bytes: int) -> None:
    """A value changed behind ingest's back, in the last layer, must be seen in either form."""
    folder = tmp_path / "source"
    write_source(folder, layers=3, external=True)
    _, facts = ingest(tmp_path)
    path = tmp_path / "out" / facts.groups["layer_002"].file
    data = np.fromfile(path, "<f4")
    data[100:110] += 0.5
    data.tofile(path)
    source = read_source(folder / "model.onnx", read_config(folder))
    with pytest.raises(DriftError, match="departs from the source"):
        comparing.compare_source(
            source, read_inputs(source), {}, tmp_path / "out", whole_bytes=whole_bytes
        )


def test_equal_matrices_count_as_tied_even_when_stored_twice(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    write_source(folder)
    model = onnx.load(folder / "model.onnx")  # noqa: TID251 - a tiny model, to change it
    stored = {weight.name: weight for weight in model.graph.initializer}
    table = numpy_helper.to_array(stored["embed"])
    stored["head.weight"].CopyFrom(
        numpy_helper.from_array(np.ascontiguousarray(table.T), "head.weight")
    )
    onnx.save(model, folder / "model.onnx")
    _, facts = ingest(tmp_path)
    assert facts.tied_embedding
    assert facts.parameters == sum(group.parameters for group in facts.groups.values())
    assert facts.groups["head"].parameters == 32


def test_adapter_matrices_as_inputs_become_weights_at_zero(tmp_path: Path) -> None:
    """The form of a model that was quantized together with its adapters."""
    folder = tmp_path / "source"
    style = write_source(folder, Style(), layers=1, past=False)
    model = onnx.load(folder / "model.onnx")  # noqa: TID251 - a tiny model, to change it
    graph = model.graph
    product = next(node for node in graph.node if "0.q.weight" in node.input)
    place = list(graph.node).index(product) + 1
    shapes = {"q.lora_A": (style.hidden, 4), "q.lora_B": (4, style.heads * style.head_dim)}
    for name, shape in shapes.items():
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    graph.initializer.append(numpy_helper.from_array(np.array(2.0, np.float32), "q.lora_scale"))
    branch = [
        helper.make_node("MatMul", [product.input[0], "q.lora_A"], ["down"]),
        helper.make_node("MatMul", ["down", "q.lora_B"], ["up"]),
        helper.make_node("Mul", ["up", "q.lora_scale"], ["scaled"]),
        helper.make_node("Add", [product.output[0], "scaled"], ["joined"]),
    ]
    for offset, node in enumerate(branch):
        graph.node.insert(place + offset, node)
    for node in list(graph.node)[place + 4 :]:
        for position, name in enumerate(node.input):
            if name == product.output[0]:
                node.input[position] = "joined"
    onnx.save(model, folder / "model.onnx")
    ingest(tmp_path)

    weights = ir.load(tmp_path / "out" / "model.onnx").graph.initializers
    random = np.random.default_rng(2)
    feeds: dict[str, Any] = {}
    for name, shape in shapes.items():
        stored = weights[name].const_value
        assert isinstance(stored, ir.ExternalTensor)
        assert not stored.numpy().any()
        feeds[name] = random.standard_normal(shape).astype(np.float32)
        with (tmp_path / "out" / stored.location).open("r+b") as file:
            file.seek(stored.offset or 0)
            file.write(np.ascontiguousarray(feeds[name].T).tobytes())
    tokens = random.integers(0, style.vocab, 9)
    feeds |= {
        "input_ids": tokens[None],
        "attention_mask": np.ones((1, 9), np.int64),
        "position_ids": np.arange(9)[None],
    }
    session = ort.InferenceSession(str(folder / "model.onnx"))
    (expected,) = session.run(["logits"], feeds)
    np.testing.assert_allclose(core_logits(tmp_path / "out", tokens), expected[0], atol=1e-5)
