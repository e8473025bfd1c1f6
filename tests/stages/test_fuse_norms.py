"""Norms are recognized however they are spelled, and nothing that others read is hidden."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from genai_stages.ingest.folding.folded_graph import FoldedGraph
from genai_stages.ingest.folding.fuse_norms import fuse_norms
from genai_stages.ingest.folding.remove_noise import remove_noise
from genai_stages.ingest.folding.specialise import specialise
from genai_stages.ingest.source.source_model import read_source

WIDTH, ROWS = 12, 5
NODES: dict[str, list[tuple[str, list[str], str]]] = {
    "pow sqrt div": [
        ("Pow", ["x", "two"], "square"), ("ReduceMean", ["square", "last"], "mean"),
        ("Add", ["mean", "epsilon"], "plus"), ("Sqrt", ["plus"], "root"),
        ("Div", ["one", "root"], "inverse"), ("Mul", ["x", "inverse"], "scaled"),
        ("Mul", ["weight", "scaled"], "y"),
    ],
    "mul reciprocal": [
        ("Mul", ["x", "x"], "square"), ("ReduceMean", ["square", "last"], "mean"),
        ("Add", ["epsilon", "mean"], "plus"), ("Sqrt", ["plus"], "root"),
        ("Reciprocal", ["root"], "inverse"), ("Mul", ["inverse", "x"], "scaled"),
        ("Mul", ["scaled", "weight"], "y"),
    ],
    "quotient": [
        ("Pow", ["x", "two"], "square"), ("ReduceMean", ["square", "last"], "mean"),
        ("Add", ["mean", "epsilon"], "plus"), ("Sqrt", ["plus"], "root"),
        ("Div", ["x", "root"], "scaled"), ("Mul", ["scaled", "weight"], "y"),
    ],
    "power of -1/2": [
        ("Pow", ["x", "two"], "square"), ("ReduceMean", ["square", "last"], "mean"),
        ("Add", ["mean", "epsilon"], "plus"), ("Pow", ["plus", "minus_half"], "inverse"),
        ("Mul", ["x", "inverse"], "scaled"), ("Mul", ["scaled", "weight"], "y"),
    ],
    "power of 1/2": [
        ("Pow", ["x", "two"], "square"), ("ReduceMean", ["square", "last"], "mean"),
        ("Add", ["mean", "epsilon"], "plus"), ("Pow", ["plus", "half"], "root"),
        ("Reciprocal", ["root"], "inverse"), ("Mul", ["x", "inverse"], "scaled"),
        ("Mul", ["scaled", "weight"], "y"),
    ],
    "one plus weight": [
        ("Pow", ["x", "two"], "square"), ("ReduceMean", ["square", "last"], "mean"),
        ("Add", ["mean", "epsilon"], "plus"), ("Sqrt", ["plus"], "root"),
        ("Div", ["one", "root"], "inverse"), ("Mul", ["x", "inverse"], "scaled"),
        ("Add", ["weight", "one"], "more"), ("Mul", ["scaled", "more"], "y"),
    ],
    "weight before the root": [
        ("Mul", ["weight", "x"], "weighted"), ("Pow", ["x", "two"], "square"),
        ("ReduceMean", ["square", "last"], "mean"), ("Add", ["mean", "epsilon"], "plus"),
        ("Sqrt", ["plus"], "root"), ("Div", ["one", "root"], "inverse"),
        ("Mul", ["weighted", "inverse"], "y"),
    ],
    "no weight": [
        ("Pow", ["x", "two"], "square"), ("ReduceMean", ["square", "last"], "mean"),
        ("Add", ["mean", "epsilon"], "plus"), ("Sqrt", ["plus"], "root"),
        ("Div", ["one", "root"], "inverse"), ("Mul", ["x", "inverse"], "y"),
    ],
}  # fmt: skip
CENTRING = [("ReduceMean", ["x", "last"], "average"), ("Sub", ["x", "average"], "centred")]


def graph_of(nodes: list[tuple[str, list[str], str]], folder: Path, *extra: str) -> FoldedGraph:
    """The static graph of nodes over an embedding x, with outputs y and `extra`."""
    random = np.random.default_rng(0)
    constants = {
        "two": np.float32(2), "one": np.float32(1), "half": np.float32(0.5),
        "minus_half": np.float32(-0.5), "epsilon": np.float32(1e-3),
        "last": np.array([-1], np.int64),
        "weight": random.standard_normal(WIDTH).astype(np.float32),
        "bias": random.standard_normal(WIDTH).astype(np.float32),
        "table": random.standard_normal((9, WIDTH)).astype(np.float32),
    }  # fmt: skip
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Gather", ["table", "ids"], ["x"]),
                *(helper.make_node(kind, inputs, [out]) for kind, inputs, out in nodes),
            ],
            "norm",
            [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, ROWS])],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("y", *extra)],
            [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
    )
    onnx.save(model, folder / "model.onnx")
    graph = specialise(read_source(folder / "model.onnx", {}), {}, {"ids": (1, ROWS)})
    remove_noise(graph)
    fuse_norms(graph)
    return graph


def expected(folder: Path, ids: np.ndarray) -> np.ndarray:
    model = onnx.load(folder / "model.onnx")  # noqa: TID251 - a tiny model
    (y, *_) = ReferenceEvaluator(model).run(None, {"ids": ids})
    assert isinstance(y, np.ndarray)
    return y


def computed(graph: FoldedGraph, ids: np.ndarray) -> np.ndarray:
    """The fused graph by the definition of its operators, float64."""
    gather, node = graph.nodes
    assert gather.op_type == "Gather"
    x = graph.constants["table"].array()[ids].astype(np.float64)
    weight, *bias = (graph.constants[name].array() for name in node.inputs[1:])
    if node.op_type == "LayerNormalization":
        x = x - x.mean(-1, keepdims=True)
    y = x / np.sqrt((x * x).mean(-1, keepdims=True) + node.attributes["epsilon"]) * weight
    shifted: np.ndarray = y + bias[0] if bias else y
    return shifted


@pytest.mark.parametrize("spelling", NODES)
def test_rms_norm_is_fused_into_one_node(spelling: str, tmp_path: Path) -> None:
    graph = graph_of(NODES[spelling], tmp_path)
    ids = np.array([[3, 1, 4, 1, 5]])
    assert [node.op_type for node in graph.nodes] == ["Gather", "RMSNormalization"]
    assert graph.nodes[1].outputs == ["y"]
    np.testing.assert_allclose(computed(graph, ids), expected(tmp_path, ids), rtol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_layer_norm_is_fused_into_one_node(bias: bool, tmp_path: Path) -> None:
    nodes = [
        (kind, ["centred" if name == "x" else name for name in inputs], out)
        for kind, inputs, out in NODES["pow sqrt div"]
    ]
    if bias:
        kind, inputs, _ = nodes.pop()
        nodes += [(kind, inputs, "weighted"), ("Add", ["weighted", "bias"], "y")]
    graph = graph_of([*CENTRING, *nodes], tmp_path)
    ids = np.array([[3, 1, 4, 1, 5]])
    assert [node.op_type for node in graph.nodes] == ["Gather", "LayerNormalization"]
    assert len(graph.nodes[1].inputs) == (3 if bias else 2)
    np.testing.assert_allclose(computed(graph, ids), expected(tmp_path, ids), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("read", ["mean", "inverse", "plus"])
def test_a_chain_that_others_read_is_left_alone(read: str, tmp_path: Path) -> None:
    graph = graph_of(NODES["pow sqrt div"], tmp_path, read)
    assert "RMSNormalization" not in {node.op_type for node in graph.nodes}


def test_another_power_is_no_norm(tmp_path: Path) -> None:
    nodes = [
        (kind, ["epsilon" if kind == "Pow" and name == "two" else name for name in inputs], out)
        for kind, inputs, out in NODES["pow sqrt div"]
    ]
    graph = graph_of(nodes, tmp_path)
    assert "RMSNormalization" not in {node.op_type for node in graph.nodes}
