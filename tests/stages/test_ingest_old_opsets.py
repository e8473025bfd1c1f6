"""Sources of old opsets, whose limits and axes are attributes of nodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from genai_core.operations import IngestConfig
from genai_stages.ingest.folding.folded_graph import FoldedGraph, StaticNode
from genai_stages.ingest.folding.remove_noise import remove_noise
from genai_stages.ingest.source.source_model import Constant
from genai_stages.operations.ingest import run
from genai_stages.stage import Context
from genai_stages.testing import core_logits
from genai_stages.testing_sources import write_source

TOKENS = np.random.default_rng(9).integers(0, 64, 40)
LIMIT = 0.4


def _with_axes(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> onnx.NodeProto:
    axes = [int(axis) for axis in constants[node.input[1]].reshape(-1)]
    return helper.make_node(node.op_type, node.input[:1], node.output, axes=axes)


def _older(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes of a graph of opset 17 in those of opset 10."""
    constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        name = node.output[0]
        if node.op_type in ("Squeeze", "Unsqueeze") and len(node.input) > 1:
            nodes.append(_with_axes(node, constants))
        elif node.op_type == "LessOrEqual":
            nodes.append(helper.make_node("Greater", node.input, [f"{name}_not"]))
            nodes.append(helper.make_node("Not", [f"{name}_not"], [name]))
        elif node.op_type == "Range":
            start, stop, _ = node.input
            one = numpy_helper.from_array(np.array([1], np.int64))
            nodes += [
                helper.make_node("Sub", [stop, start], [f"{name}_n"]),
                helper.make_node("Unsqueeze", [f"{name}_n"], [f"{name}_l"], axes=[0]),
                helper.make_node("ConstantOfShape", [f"{name}_l"], [f"{name}_ones"], value=one),
                helper.make_node("NonZero", [f"{name}_ones"], [f"{name}_row"]),
                helper.make_node("Squeeze", [f"{name}_row"], [f"{name}_at"], axes=[0]),
                helper.make_node("Add", [f"{name}_at", start], [name]),
            ]
        elif node.op_type in ("Softmax", "Concat") and node.attribute[0].i < 0:
            nodes.append(helper.make_node(node.op_type, node.input, node.output, axis=3))
        else:
            nodes.append(node)
    return nodes


def clipped(folder: Path, clip: Callable[[str, str], onnx.NodeProto]) -> None:
    """Write a source of opset 10 whose first gate is clipped."""
    write_source(folder / "source")
    path = folder / "source" / "model.onnx"
    model = onnx.load(path)  # noqa: TID251 - a few kilobytes
    nodes = _older(model)
    at = next(i for i, node in enumerate(nodes) if node.op_type == "Sigmoid")
    gate = nodes[at].input[0]
    nodes.insert(at, clip(gate, "clipped"))
    for node in nodes[at + 1 :]:
        node.input[:] = ["clipped" if name == gate else name for name in node.input]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", 10))
    model.ir_version = 5
    onnx.save(model, path)


def source_logits(path: Path) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds: dict[str, np.ndarray] = {}
    for value in session.get_inputs():
        if value.name == "position_ids":
            feeds[value.name] = np.arange(TOKENS.size)[None]
        elif value.name in ("input_ids", "attention_mask"):
            feeds[value.name] = (
                TOKENS[None] if value.name == "input_ids" else np.ones_like(TOKENS)[None]
            )
        else:
            feeds[value.name] = np.zeros((1, 2, 0, 8), np.float32)
    logits: np.ndarray = np.asarray(session.run(["logits"], feeds)[0])[0]
    return logits


@pytest.mark.parametrize("limits", [{"min": -LIMIT, "max": LIMIT}, {"max": LIMIT}, {"min": 0.0}])
def test_ingest_keeps_the_limits_of_a_clip_when_they_are_attributes(
    limits: dict[str, float], tmp_path: Path
) -> None:
    """Without them the Clip was taken for one that changes nothing."""
    attributes: dict[str, Any] = {**limits}
    clipped(tmp_path, lambda gate, out: helper.make_node("Clip", [gate], [out], **attributes))
    out = tmp_path / "out"
    out.mkdir()
    run({"source": tmp_path / "source"}, IngestConfig(), out, Context(tmp_path / "scratch"))
    found = core_logits(out, TOKENS)
    wanted = source_logits(tmp_path / "source" / "model.onnx")
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    clipped(tmp_path / "free", lambda gate, out: helper.make_node("Clip", [gate], [out]))
    free = source_logits(tmp_path / "free" / "source" / "model.onnx")
    assert np.abs(wanted - free).max() > 1e-2


def _graph(opset: int, node: StaticNode, **constants: float) -> FoldedGraph:
    graph = FoldedGraph(opset)
    graph.nodes = [node]
    graph.outputs = {"out": node.outputs[0]}
    for name in ("x", "limit", "other", "same"):
        graph.shapes[name] = (1, 4)
        graph.dtypes[name] = np.dtype(np.float32)
    graph.shapes[node.outputs[0]] = (1, 4)
    for name, value in constants.items():
        graph.constants[name] = Constant.of(name, np.array(value, np.float32))
    return graph


@pytest.mark.parametrize(
    ("opset", "inputs", "attributes", "noise"),
    [
        (10, ["x"], {}, True),
        (10, ["x"], {"min": -3.4e38, "max": 3.4e38}, True),
        (10, ["x"], {"max": 1.0}, False),
        (13, ["x"], {}, True),
        (13, ["x", "", "high"], {}, False),
        (13, ["x", "limit"], {}, False),
        (13, ["x", "low", "limit"], {}, False),
    ],
)
def test_remove_noise_takes_a_clip_away_when_nothing_limits_it(
    opset: int, inputs: list[str], attributes: dict[str, float], noise: bool
) -> None:
    node = StaticNode("Clip", "", inputs, ["y"], attributes, "")
    graph = _graph(opset, node, high=1.0, low=-3.4e38)
    remove_noise(graph)
    assert (graph.outputs["out"] == "x") is noise
