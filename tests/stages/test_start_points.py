"""Heads are split from MatMuls that are no attention, where a start point names them.

The model: one layer of softmax attention, and one that mixes each head's channels with a matrix of
the head's own, scaled by a gate that another projection computes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from genai_core.errors import BadInput, UnsupportedOperator
from genai_core.facts import AttentionFacts, ModelFacts, TensorSource
from genai_core.operations import (
    ArclConfig,
    GraphConfig,
    SplitConfig,
    StartPoint,
    TransformConfig,
)
from genai_stages.graph.core_graph import DOMAIN, CoreWriter, read_core, read_facts
from genai_stages.graph.provenance import read_provenance
from genai_stages.operations import arcl, transform
from genai_stages.stage import Context, StageResult
from genai_stages.static.head_regions import head_axes_of
from genai_stages.static.static_graph import emit_static
from genai_stages.testing import rope_table

HIDDEN, HEADS, DIM, VOCAB = 32, 4, 8, 64
MIX = "/layers.1/mix/MatMul_output_0"


def write_model(folder: Path, *, dynamic: bool = False) -> None:
    """The core graph; `dynamic` gives a Reshape a shape that depends on values."""
    random = np.random.default_rng(0)

    def matrix(*shape: int) -> np.ndarray:
        drawn: np.ndarray = random.standard_normal(shape) / np.sqrt(shape[-1])
        return drawn

    with CoreWriter(folder) as writer:
        writer.input("input_ids", [1, "T"], ir.DataType.INT64)
        writer.weight("embed.weight", matrix(VOCAB, HIDDEN), group="embed")
        stream = writer.node("Gather", ["embed.weight", "input_ids"], ["/embed"],
                             shapes=[(1, "T", HIDDEN)], attributes={"axis": 0})  # fmt: skip
        qkv = []
        for letter in "qkv":
            name = f"layers.0.{letter}.weight"
            writer.weight(name, matrix(HIDDEN, HIDDEN), group="layer_000")
            qkv.append(writer.linear(stream, name, f"/layers.0/{letter}", width=HIDDEN))
        attributes: dict[str, Any] = {
            "layer": 0, "num_heads": HEADS, "kv_heads": HEADS, "head_dim": DIM, "scale": 0.5,
            "softcap": 0.0, "window": 0, "rope": "default", "rotary_dim": DIM, "interleaved": 0,
            "qk_norm_epsilon": 0.0,
        }  # fmt: skip
        shapes = [(1, "T", HIDDEN)]
        context = writer.node("Attention", qkv, ["/layers.0/context"], shapes=shapes,
                              attributes=attributes, domain=DOMAIN)  # fmt: skip
        first = writer.node("Add", [stream, context], ["/layers.0/out"], shapes=[(1, "T", HIDDEN)])
        wide = []
        for kind in ("value", "gate"):
            name = f"layers.1.{kind}.weight"
            writer.weight(name, matrix(HIDDEN, HIDDEN), group="layer_001")
            writer.weight(f"{name}.bias", matrix(HIDDEN), group="layer_001")
            wide.append(writer.linear(first, name, f"/layers.1/{kind}", bias=f"{name}.bias",
                                      width=HIDDEN))  # fmt: skip
        writer.constant("split.shape", np.array([1, -1, HEADS, DIM]))
        shape = "split.shape"
        if dynamic:
            writer.node("Shape", ["/layers.1/value"], ["/dynamic/shape"], shapes=[(3,)],
                        dtype=ir.DataType.INT64)  # fmt: skip
            writer.node("NonZero", ["/layers.1/value"], ["/dynamic/any"], shapes=[None],
                        dtype=ir.DataType.INT64)  # fmt: skip
            writer.node("ReduceMax", ["/dynamic/any"], ["/dynamic/most"], shapes=[None],
                        dtype=ir.DataType.INT64, attributes={"keepdims": 0})  # fmt: skip
            shape = writer.node("Add", ["split.shape", "/dynamic/most"], ["/dynamic/sum"],
                                shapes=[None], dtype=ir.DataType.INT64)  # fmt: skip
        writer.node("Reshape", ["/layers.1/value", shape], ["/layers.1/split"], shapes=[None])
        writer.node("Transpose", ["/layers.1/split"], ["/layers.1/heads"], shapes=[None],
                    attributes={"perm": [0, 2, 1, 3]})  # fmt: skip
        writer.weight("layers.1.mix.weight", matrix(HEADS, DIM, DIM), group="layer_001")
        writer.node("MatMul", ["/layers.1/heads", "layers.1.mix.weight"], [MIX], shapes=[None])
        writer.node("Transpose", [MIX], ["/layers.1/turned"], shapes=[None],
                    attributes={"perm": [0, 2, 1, 3]})  # fmt: skip
        writer.constant("flat.shape", np.array([1, -1, HIDDEN]))
        flat = writer.node("Reshape", ["/layers.1/turned", "flat.shape"], ["/layers.1/flat"],
                           shapes=[(1, "T", HIDDEN)])  # fmt: skip
        gated = writer.node("Mul", [flat, wide[1]], ["/layers.1/gated"], shapes=[(1, "T", HIDDEN)])
        writer.weight("layers.1.out.weight", matrix(HIDDEN, HIDDEN), group="layer_001")
        out = writer.linear(gated, "layers.1.out.weight", "/layers.1/proj", width=HIDDEN)
        second = writer.node("Add", [first, out], ["/layers.1/out"], shapes=[(1, "T", HIDDEN)])
        writer.weight("head.weight", matrix(VOCAB, HIDDEN), group="head")
        writer.linear(second, "head.weight", "logits", width=VOCAB)
        facts = ModelFacts(
            architecture="generic",
            layers=2,
            hidden_size=HIDDEN,
            vocab_size=VOCAB,
            parameters=0,
            rope={"default": rope_table(10000.0, DIM)},
            attention=[AttentionFacts(layer=0, num_heads=HEADS, kv_heads=HEADS, head_dim=DIM)],
            boundaries=["/embed", "/layers.0/out", "/layers.1/out"],
            groups={},
            provenance={MIX: TensorSource(source="block_diagonal")},
        )
        writer.finish(["logits"], facts)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Core graph and static graph in one folder."""
    folder = tmp_path_factory.mktemp("mixing")
    write_model(folder)
    config = ArclConfig(graph=GraphConfig(ar=8, cl=64))
    arcl.run({"model": folder}, config, folder, Context(scratch=folder))
    return folder


def run_transform(
    model: Path, out: Path, *patterns: str, layers: tuple[int, int] = (0, 2)
) -> StageResult:
    first, last = layers
    split = SplitConfig(
        index=1, count=1, first=first, last=last, embedding=first == 0, lm_head=last == 2
    )
    config = TransformConfig(
        graph=GraphConfig(ar=8, cl=64),
        split=split,
        start_points=tuple(StartPoint(tensor=pattern) for pattern in patterns),
    )
    out.mkdir(exist_ok=True)
    return transform.run({"model": model}, config, out, Context(scratch=out))


def several(path: Path) -> list[str]:
    return [node.outputs[0].name or "" for node in ir.load(path).graph if head_axes_of(node)]


def test_without_a_start_point_the_matmul_keeps_its_heads(model: Path, tmp_path: Path) -> None:
    result = run_transform(model, tmp_path)
    assert several(tmp_path / "ar8_cl64_1_of_1.onnx") == [MIX]
    assert result.facts["multiHeadMatMuls"] == 1


@pytest.mark.parametrize(
    "pattern",
    [
        MIX.replace(".", r"\."),
        "block_diagonal",
        ".*layers.1/heads",
        ".*/mix/.*",
        "/layers.1/flat",
    ],
)
def test_start_point_splits_the_heads_up_to_the_linears(
    model: Path, tmp_path: Path, pattern: str
) -> None:
    result = run_transform(model, tmp_path, pattern)
    assert result.warnings == ()
    assert result.facts["multiHeadMatMuls"] == 0
    graph = ir.load(tmp_path / "ar8_cl64_1_of_1.onnx").graph
    names = {value.name for node in graph for value in node.outputs}
    assert {f"{MIX}.head_{head}" for head in range(HEADS)} <= names
    for weight in ("layers.1.value.weight", "layers.1.gate.weight", "layers.1.mix.weight"):
        assert weight not in graph.initializers
        constant = ir.load(model / "model.onnx").graph.initializers[weight].const_value
        assert constant is not None
        whole = constant.numpy()
        parts = [
            tensor_of(graph, f"{weight}.head_{head}", model).reshape(-1) for head in range(HEADS)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole.reshape(-1))
    provenance = read_provenance(tmp_path)
    assert provenance[f"{MIX}.head_2"] == TensorSource(source="block_diagonal", head=2)
    assert provenance["layers.1.mix.weight.head_3"].source == "layers.1.mix.weight"
    assert provenance["layers.1.gate.weight.head_1"].rows == (8, 16)


def tensor_of(graph: ir.Graph, name: str, folder: Path) -> np.ndarray:
    tensor = graph.initializers[name].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.length is not None
    assert tensor.offset is not None
    count = tensor.length // 4
    return np.fromfile(folder / tensor.location, "<f4", count, offset=tensor.offset)


def test_logits_are_those_of_the_graph_with_heads_together(model: Path, tmp_path: Path) -> None:
    run_transform(model, tmp_path, ".*mix.*")
    random = np.random.default_rng(0)
    feeds = {}
    sessions = []
    for path in (model / "ar8_cl64.onnx", tmp_path / "ar8_cl64_1_of_1.onnx"):
        options = ort.SessionOptions()
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(model)
        )
        sessions.append(
            ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        )
    for value in sessions[0].get_inputs():
        feeds[value.name] = (
            random.integers(0, VOCAB, value.shape).astype(np.int32)
            if value.name == "input_ids"
            else random.standard_normal(value.shape).astype(np.float32)
        )
    expected, found = (session.run(["logits"], feeds)[0] for session in sessions)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_start_point_of_another_part_is_passed_over(model: Path, tmp_path: Path) -> None:
    result = run_transform(model, tmp_path, ".*mix.*", layers=(0, 1))
    assert result.warnings == ()
    assert result.facts["multiHeadMatMuls"] == 0


def test_start_point_at_an_attention_alone_gets_a_warning(model: Path, tmp_path: Path) -> None:
    result = run_transform(model, tmp_path, "/layers.0/q")
    assert len(result.warnings) == 1
    assert "whose heads are split anyway" in result.warnings[0]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r".*/mix/Matmul_output_.", r"matches no tensor; near: /layers\.1/mix/MatMul_output_0,"),
        ("mix", "matches no tensor"),
        ("(", "no regular expression"),
    ],
)
def test_start_point_without_a_match_is_refused(
    model: Path, tmp_path: Path, pattern: str, message: str
) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        run_transform(model, tmp_path, pattern)
    assert caught.value.where == "transformation.additionalStartPoints"


def test_shape_that_depends_on_values_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, dynamic=True)
    core, _ = read_core(tmp_path)
    with pytest.raises(UnsupportedOperator, match="without shapes that depend on values"):
        emit_static(core, read_facts(tmp_path), ar=8, cl=64)
