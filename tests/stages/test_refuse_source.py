"""Sources that cannot be built are named as what they are, in one line, before anything else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from genai_core.errors import BadInput
from genai_core.operations import IngestConfig
from genai_stages.operations.ingest import run
from genai_stages.stage import Context
from genai_stages.testing_sources import write_source

Change = Callable[[onnx.ModelProto], None]


def failure(folder: Path, change: Change | None = None, **config: object) -> BadInput:
    """The error of an ingest of the small source, changed."""
    path = folder / "model.onnx"
    if change is not None:
        model = onnx.ModelProto.FromString(path.read_bytes())
        change(model)
        path.write_bytes(model.SerializeToString())
    settings = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(settings))
    # A tokenizer that is right: what is wrong must not be laid to it.
    vocab = {f"t{index}": index for index in range(64)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))
    out = folder.parent / "out"
    out.mkdir()
    with pytest.raises(BadInput) as caught:
        run({"source": folder}, IngestConfig(), out, Context(folder.parent / "scratch"))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert "ONNX Runtime" not in str(caught.value)
    return caught.value


def insert(model: onnx.ModelProto, nodes: list[onnx.NodeProto], before: onnx.NodeProto) -> None:
    index = list(model.graph.node).index(before)
    for node in reversed(nodes):
        model.graph.node.insert(index, node)


def reader(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(node for node in model.graph.node if name in node.input)
    return found


def weight(model: onnx.ModelProto, name: str, array: object, dtype: type = np.float32) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(array, dtype), name))
    return name


def beheaded(output: str, *, width: int | str) -> Change:
    """The final norm is what comes out, as with the head left out."""

    def change(model: onnx.ModelProto) -> None:
        head = reader(model, "head.weight")
        last = next(node for node in model.graph.node if "logits" in node.output)
        last.input[0], last.output[0] = head.input[0], output
        model.graph.output[-1].CopyFrom(
            helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, ["B", "T", width])
        )
        model.graph.node.remove(head)

    return change


@pytest.mark.parametrize(
    ("output", "width"),
    [("hidden_states", 32), ("hidden_states", "C"), ("last", 32), ("last", "C"), ("logits", "V")],
)
def test_ingest_says_that_there_are_no_logits_when_the_head_is_left_out(
    tmp_path: Path, output: str, width: int | str
) -> None:
    write_source(tmp_path / "source")
    error = failure(tmp_path / "source", beheaded(output, width=width))
    assert f"no output of logits, but {output}" in error.message
    assert error.where == "model.onnx"
    assert "lm_head" in error.remedy


def around_activations(model: onnx.ModelProto) -> None:
    scale, zero = weight(model, "s", 1e-3), weight(model, "z", 32768, np.uint16)
    node = reader(model, "0.q.weight")
    made, node.output[0] = node.output[0], "plain"
    pair = [
        helper.make_node("QuantizeLinear", ["plain", scale, zero], ["grid"], name="Q1"),
        helper.make_node("DequantizeLinear", ["grid", scale, zero], [made]),
    ]
    at = list(model.graph.node).index(node) + 1
    for one in reversed(pair):
        model.graph.node.insert(at, one)


def dynamic_integers(model: onnx.ModelProto) -> None:
    node = reader(model, "0.q.weight")
    quantized = ["grid", "grid_scale", "grid_zero"]
    insert(model, [helper.make_node("DynamicQuantizeLinear", [node.input[0]], quantized)], node)


def integer_weights(model: onnx.ModelProto) -> None:
    node = reader(model, "0.q.weight")
    packed = weight(model, "packed", np.zeros((32, 1, 16)), np.uint8)
    scales = weight(model, "scales", np.ones(32))
    other = helper.make_node(
        "MatMulBnb4", [node.input[0], packed, scales], list(node.output), name="nbits",
        domain="com.microsoft", K=32, N=32, quant_type=1, block_size=32,
    )  # fmt: skip
    node.CopyFrom(other)
    if not any(one.domain == "com.microsoft" for one in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (around_activations, "node Q1 (QuantizeLinear): the model is quantized already"),
        (dynamic_integers, "(DynamicQuantizeLinear): the model is quantized already"),
        (integer_weights, "node nbits (MatMulBnb4): the model is quantized already"),
    ],
)
def test_ingest_says_that_a_model_is_quantized_when_it_has_integer_nodes(
    tmp_path: Path, change: Change, what: str
) -> None:
    write_source(tmp_path / "source")
    error = failure(tmp_path / "source", change)
    assert what in str(error)
    assert "floating point" in error.remedy
    assert "encodings" in error.remedy


def with_batch(model: onnx.ModelProto) -> None:
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 4


def with_length_first(model: onnx.ModelProto) -> None:
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if len(dims) == 4:
            heads, length = onnx.TensorShapeProto.Dimension(), onnx.TensorShapeProto.Dimension()
            heads.CopyFrom(dims[1])
            length.CopyFrom(dims[2])
            dims[1].CopyFrom(length)
            dims[2].CopyFrom(heads)


def with_one_cache(model: onnx.ModelProto) -> None:
    for value in model.graph.input:
        if value.name == "past_0_key":
            value.type.tensor_type.shape.dim.add().dim_value = 2


def with_learned_positions(model: onnx.ModelProto) -> None:
    table = weight(model, "wpe", np.ones((512, 32)))
    gather = next(node for node in model.graph.node if node.op_type == "Gather")
    made, gather.output[0] = gather.output[0], "rows"
    nodes = [
        helper.make_node("Gather", [table, "position_ids"], ["places"]),
        helper.make_node("Add", ["rows", "places"], [made], name="sum"),
    ]
    at = list(model.graph.node).index(gather) + 1
    for one in reversed(nodes):
        model.graph.node.insert(at, one)


def with_sinks(model: onnx.ModelProto) -> None:
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    softmax.name = "probabilities"
    scores, probs = softmax.input[0], softmax.output[0]
    sinks = weight(model, "sinks", np.ones((1, 4, 1, 1)))
    spread = [
        helper.make_node("Shape", [scores], ["score_shape"], end=3),
        helper.make_node("Concat", ["score_shape", weight(model, "o", [1], np.int64)], ["w"],
                         axis=0),
        helper.make_node("Expand", [sinks, "w"], ["wide"]),
        helper.make_node("Concat", [scores, "wide"], ["all_scores"], axis=-1),
    ]  # fmt: skip
    insert(model, spread, softmax)
    softmax.input[0], softmax.output[0] = "all_scores", "all_probs"
    ends = [weight(model, name, [value], np.int64) for name, value in
            (("from", 0), ("upto", -1), ("along", -1))]  # fmt: skip
    at = list(model.graph.node).index(softmax) + 1
    model.graph.node.insert(at, helper.make_node("Slice", ["all_probs", *ends], [probs]))


def with_router(model: onnx.ModelProto) -> None:
    node = reader(model, "0.gate.weight")
    count = weight(model, "k", [2], np.int64)
    router = helper.make_node("TopK", [node.input[0], count], ["chosen", "which"], name="router")
    insert(model, [router], node)


def with_fused_experts(model: onnx.ModelProto) -> None:
    node = reader(model, "0.gate.weight")
    experts = helper.make_node("MoE", list(node.input), ["mixed"], name="moe",
                               domain="com.microsoft")  # fmt: skip
    insert(model, [experts], node)


@pytest.mark.parametrize(
    ("change", "config", "where", "message"),
    [
        (with_batch, {}, "model.onnx: input input_ids", "its batch is fixed at 4"),
        (
            with_length_first,
            {},
            "model.onnx: input past_0_key",
            "the cache has the layout [batch, length, heads, width] ([B, P, 2, 8])",
        ),
        (
            with_one_cache,
            {},
            "model.onnx: input past_0_key",
            "the cache has the shape [B, 2, P, 8, 2]",
        ),
        (with_learned_positions, {}, "model.onnx: node sum (Add)", "positions (table wpe)"),
        (with_sinks, {}, "model.onnx: node probabilities (Softmax)", "has attention sinks"),
        (
            with_router,
            {"num_local_experts": 8},
            "model.onnx: node router (TopK)",
            "a mixture of experts (config.json: num_local_experts 8)",
        ),
        (with_fused_experts, {}, "model.onnx: node moe (MoE)", "a mixture of experts"),
    ],
)
def test_ingest_names_what_a_source_is_when_it_cannot_be_built(
    tmp_path: Path, change: Change, config: dict[str, object], where: str, message: str
) -> None:
    write_source(tmp_path / "source")
    error = failure(tmp_path / "source", change, **config)
    assert error.where == where
    assert message in error.message
    assert error.remedy
