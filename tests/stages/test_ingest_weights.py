"""Weights in other types than float32: integers of 2 to 8 bits with scales, and 16 bit floats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, version_converter

from genai_core.errors import BadModel, UnsupportedOperator
from genai_core.facts import ModelFacts
from genai_core.operations import IngestConfig
from genai_stages.graph.core_graph import read_facts
from genai_stages.graph.packed_bits import pack_bits, packed_bytes, unpack_bits
from genai_stages.ingest.output.keep_source import SOURCE_FILE
from genai_stages.operations.ingest import run
from genai_stages.stage import Context, StageResult
from genai_stages.testing import core_logits
from genai_stages.testing_sources import write_source

Array = npt.NDArray[Any]
Change = Callable[[onnx.ModelProto], None]
TOKENS = np.random.default_rng(9).integers(0, 63, 40)
STRICT = 5e-6
ODD: dict[str, Any] = {"hidden": 33, "intermediate": 47, "vocab": 63}
"""Widths of which weights have odd numbers of elements."""


def ingest(folder: Path) -> tuple[StageResult, ModelFacts]:
    out = folder / "out"
    out.mkdir()
    result = run({"source": folder / "source"}, IngestConfig(), out, Context(folder / "scratch"))
    return result, read_facts(out)


def changed(folder: Path, change: Change, *, external: bool = False, **style: Any) -> None:
    write_source(folder / "source", **style)
    path = folder / "source" / "model.onnx"
    model = version_converter.convert_version(onnx.load(path), 21)  # noqa: TID251 - kilobytes
    model.ir_version = 10
    change(model)
    outside: dict[str, Any] = {"save_as_external_data": True, "location": "model.data"}
    onnx.save(model, path, **({**outside, "size_threshold": 128} if external else {}))


def kept_logits(core: Path, feeds: dict[str, Array]) -> Array:
    """Logits of the source as it is kept beside the core graph."""
    options = ort.SessionOptions()
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(core)
    )
    # Further levels join dequantized weights with their products, and round activations.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    data = (core / SOURCE_FILE).read_bytes()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], feeds)
    first: np.ndarray = np.asarray(logits)[0]
    return first


def same_as(folder: Path, floats: dict[str, Array], **style: Any) -> None:
    """The core graph, and the source kept beside it, equal the model with these weights."""

    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name in floats:
                array = np.ascontiguousarray(floats[tensor.name], np.float32)
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    changed(folder / "plain", change, **style)
    feeds = {
        "input_ids": TOKENS[None],
        "attention_mask": np.ones((1, len(TOKENS)), np.int64),
        "position_ids": np.arange(len(TOKENS))[None],
    }
    path = folder / "plain" / "source" / "model.onnx"
    (expected,) = ort.InferenceSession(path).run(["logits"], feeds)
    np.testing.assert_allclose(core_logits(folder / "out", TOKENS), expected[0], atol=1e-4)
    np.testing.assert_allclose(kept_logits(folder / "out", feeds), expected[0], atol=1e-4)


def _products(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, Array]]:
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    return [
        (node, numpy_helper.to_array(stored[node.input[1]]))
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in stored
    ]


def _without(model: onnx.ModelProto, names: set[str]) -> None:
    left = [tensor for tensor in model.graph.initializer if tensor.name not in names]
    del model.graph.initializer[:]
    model.graph.initializer.extend(left)


def bounds(kind: Any) -> tuple[int, int]:
    """Smallest and largest number of an integer type of a few bits."""
    info: Any = ml_dtypes.iinfo
    return int(info(kind).min), int(info(kind).max)


def _integer_weights(kind: Any, block: int, floats: dict[str, Array], *, zero: int = 0) -> Change:
    """Every projection's weight [in, out] behind a DequantizeLinear."""
    low, high = bounds(kind)

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        for node, weight in _products(model):
            name = node.input[1]
            size = block or len(weight)
            blocks = -(-len(weight) // size)
            padded = np.pad(weight, ((0, blocks * size - len(weight)), (0, 0)))
            parts = padded.reshape(blocks, size, -1)
            scale = (np.abs(parts).max(1) / max(high - zero, 1)).astype(np.float32)
            wide = np.repeat(scale, size, 0)[: len(weight)]
            whole = np.clip(np.rint(weight / wide) + zero, low, high)
            floats[name] = ((whole - zero) * wide).astype(np.float32)
            inputs = {"q": whole.astype(kind), "s": scale if block else scale[0]}
            if zero:
                inputs["z"] = np.full(inputs["s"].shape, zero).astype(kind)
            for key, array in inputs.items():
                graph.initializer.append(numpy_helper.from_array(array, f"{name}.{key}"))
            more: dict[str, Any] = {"block_size": block} if block else {}
            node.input[1] = f"{name}.float"
            names = [f"{name}.{key}" for key in inputs]
            made = helper.make_node(
                "DequantizeLinear", names, [f"{name}.float"], axis=0 if block else 1, **more
            )
            graph.node.insert(0, made)
        _without(model, set(floats))
        if kind in (ml_dtypes.int2, ml_dtypes.uint2):
            model.opset_import[0].version, model.ir_version = 25, 13

    return change


@pytest.mark.parametrize(
    ("kind", "block", "zero", "external"),
    [
        (ml_dtypes.int4, 0, 0, False),
        (ml_dtypes.uint4, 16, 7, True),
        (np.int8, 0, 0, True),
        (np.uint8, 16, 120, False),
    ],
)
def test_ingest_reads_integer_weights_when_they_are_dequantized(
    kind: Any, block: int, zero: int, external: bool, tmp_path: Path
) -> None:
    floats: dict[str, Array] = {}
    change = _integer_weights(kind, block, floats, zero=zero)
    changed(tmp_path, change, external=external, past=False, **ODD)
    result, _ = ingest(tmp_path)
    assert result.notes["drift"] < STRICT
    same_as(tmp_path, floats, past=False, **ODD)


@pytest.mark.parametrize("kind", [ml_dtypes.int2, ml_dtypes.uint2])
def test_ingest_reads_integer_weights_of_2_bits(kind: Any, tmp_path: Path) -> None:
    floats: dict[str, Array] = {}
    changed(tmp_path, _integer_weights(kind, 0, floats), external=True, past=False, **ODD)
    result, _ = ingest(tmp_path)
    assert result.notes["drift"] < STRICT
    same_as(tmp_path, floats, past=False, **ODD)


def test_ingest_names_the_tensor_when_scales_do_not_fit(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        _integer_weights(ml_dtypes.int4, 0, {})(model)
        for tensor in model.graph.initializer:
            if tensor.name == "0.q.weight.s":
                tensor.CopyFrom(numpy_helper.from_array(np.ones(5, np.float32), tensor.name))

    changed(tmp_path, change, past=False, **ODD)
    with pytest.raises(BadModel, match=r"0\.q\.weight\.s has the shape \[5\]"):
        ingest(tmp_path)


def test_ingest_tells_bytes_when_4_bit_data_is_cut_short(tmp_path: Path) -> None:
    change = _integer_weights(ml_dtypes.int4, 0, {})
    changed(tmp_path, change, external=True, past=False, **ODD)
    path = tmp_path / "source" / "model.data"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(BadModel, match="too short"):
        ingest(tmp_path)


def _packed_products(
    bits: int, zeros: str, floats: dict[str, Array], *, groups: bool, bias: bool
) -> Change:
    """Every projection as ONNX Runtime's MatMulNBits, with blocks that end inside of a block."""
    block, random = 16, np.random.default_rng(4)

    def change(model: onnx.ModelProto) -> None:
        for node, weight in _products(model):
            name = node.input[1]
            inside, outside = weight.shape
            blocks = -(-inside // block)
            index = np.arange(inside) // block
            if groups:
                index = random.permutation(index)
            values = random.integers(0, 1 << bits, (outside, blocks * block))
            scale = random.uniform(0.5, 1.5, (outside, blocks)).astype(np.float32)
            scale *= np.float32(1.5 / (1 << bits) / np.sqrt(inside))
            points = random.integers(0, 1 << bits, (outside, blocks))
            inputs = {"q": _rows(values, bits).reshape(outside, blocks, -1), "s": scale}
            if zeros == "packed":
                inputs["z"] = _rows(points, bits)
            elif zeros == "floats":
                inputs["z"] = points.astype(np.float32) + np.float32(0.5)
            point = {"": np.full_like(points, 1 << (bits - 1)), "packed": points}.get(
                zeros, points + 0.5
            )
            if groups:
                inputs["g"] = index.astype(np.int32)
            if bias:
                inputs["b"] = random.standard_normal((outside,)).astype(np.float32)
            whole = (values[:, :inside] - point[:, index]) * scale[:, index]
            floats[name] = whole.T.astype(np.float32)
            names = [f"{name}.{key}" if key in inputs else "" for key in "qszgb"]
            for key, array in inputs.items():
                model.graph.initializer.append(numpy_helper.from_array(array, f"{name}.{key}"))
            while not names[-1]:
                names.pop()
            made = helper.make_node(
                "MatMulNBits", [node.input[0], *names], list(node.output), domain="com.microsoft",
                K=inside, N=outside, bits=bits, block_size=block, accuracy_level=4,
            )  # fmt: skip
            node.CopyFrom(made)
        _without(model, set(floats))

    return change


def _rows(values: Array, bits: int) -> Array:
    return np.stack([pack_bits(row.astype(np.uint8), bits) for row in values])


@pytest.mark.parametrize(
    ("bits", "zeros", "groups", "external"),
    [
        (4, "", False, False),
        (4, "packed", False, True),
        (4, "floats", False, True),
        (4, "", True, True),
        (2, "packed", False, True),
        (8, "packed", False, False),
    ],
)
def test_ingest_reads_the_packed_weights_of_onnx_runtime(
    bits: int, zeros: str, groups: bool, external: bool, tmp_path: Path
) -> None:
    floats: dict[str, Array] = {}
    change = _packed_products(bits, zeros, floats, groups=groups, bias=False)
    changed(tmp_path, change, external=external, past=False, **ODD)
    result, facts = ingest(tmp_path)
    assert result.notes["drift"] < STRICT
    assert facts.parameters > 0
    same_as(tmp_path, floats, past=False, **ODD)


def test_ingest_adds_the_bias_of_packed_weights(tmp_path: Path) -> None:
    changed(tmp_path, _packed_products(4, "", {}, groups=False, bias=True), past=False, **ODD)
    result, _ = ingest(tmp_path)
    assert result.notes["drift"] < STRICT


def test_ingest_names_the_node_when_packed_weights_have_3_bits(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        _packed_products(4, "", {}, groups=False, bias=False)(model)
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "bits":
                    attribute.i = 3

    changed(tmp_path, change, past=False, **ODD)
    with pytest.raises(UnsupportedOperator, match=r"MatMulNBits.*3 bits"):
        ingest(tmp_path)


def test_ingest_reads_an_embedding_of_packed_integers(tmp_path: Path) -> None:
    floats: dict[str, Array] = {}
    random = np.random.default_rng(3)

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        (node,) = [one for one in graph.node if one.op_type == "Gather" and "embed" in one.input]
        values, points = random.integers(0, 16, (63, 64)), random.integers(0, 16, (63, 4))
        scale = random.uniform(0.05, 0.1, (63, 4)).astype(np.float32)
        wide = np.repeat(np.arange(4), 16)
        floats["embed"] = ((values - points[:, wide]) * scale[:, wide]).astype(np.float32)
        stored = {"e.q": _rows(values, 4), "e.s": scale, "e.z": _rows(points, 4)}
        for name, array in stored.items():
            graph.initializer.append(numpy_helper.from_array(array, name))
        made = helper.make_node(
            "GatherBlockQuantized", ["e.q", "input_ids", "e.s", "e.z"], list(node.output),
            domain="com.microsoft", bits=4, block_size=16, gather_axis=0, quantize_axis=1,
        )  # fmt: skip
        node.CopyFrom(made)
        _without(model, {"embed"})

    changed(tmp_path, change, past=False, hidden=64, vocab=63)
    result, _ = ingest(tmp_path)
    assert result.notes["drift"] < STRICT
    same_as(tmp_path, floats, past=False, hidden=64, vocab=63)


@given(st.data(), st.sampled_from([1, 2, 4, 8]), st.booleans())
def test_unpack_bits_gives_back_what_was_packed(
    data: st.DataObject, bits: int, signed: bool
) -> None:
    low = -(1 << (bits - 1)) if signed else 0
    numbers = st.integers(low, low + (1 << bits) - 1)
    values = np.array(data.draw(st.lists(numbers, max_size=70)), np.int16)
    packed = pack_bits(values.astype(np.uint8), bits)
    assert len(packed) == packed_bytes(len(values), bits)
    np.testing.assert_array_equal(unpack_bits(packed, bits, len(values), signed=signed), values)


@pytest.mark.parametrize("kind", [ml_dtypes.int4, ml_dtypes.uint4])
def test_unpack_bits_reads_what_onnx_packed(kind: Any) -> None:
    low, high = bounds(kind)
    values = np.random.default_rng(0).integers(low, high + 1, 13)
    tensor = numpy_helper.from_array(values.astype(kind), "x")
    raw = np.frombuffer(tensor.raw_data, np.uint8)
    np.testing.assert_array_equal(unpack_bits(raw, 4, 13, signed=low < 0), values)


def _in_16_bits(kind: int, *, old_inputs: bool = False) -> Change:
    """Every float of the graph in another type, as an export in half precision has it."""
    numpy_kind = helper.tensor_dtype_to_np_dtype(kind)

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        for value in [*graph.input, *graph.output]:
            if value.type.tensor_type.elem_type == TensorProto.FLOAT:
                value.type.tensor_type.elem_type = kind
        for tensor in graph.initializer:
            # Frequencies stay as they are: positions do not fit into 16 bits.
            if tensor.data_type == TensorProto.FLOAT and list(tensor.dims) != [4]:
                array = numpy_helper.to_array(tensor)
                if array.size == 1:
                    array = array.clip(-65504, 65504)
                tensor.CopyFrom(numpy_helper.from_array(array.astype(numpy_kind), tensor.name))
                if old_inputs:
                    graph.input.append(
                        helper.make_tensor_value_info(tensor.name, kind, array.shape)
                    )
        for node in list(graph.node):
            if node.op_type in ("Cos", "Sin"):
                rounded, node.output[0] = node.output[0], f"{node.output[0]}_wide"
                place = list(graph.node).index(node) + 1
                cast = helper.make_node("Cast", [node.output[0]], [rounded], to=kind)
                graph.node.insert(place, cast)

    return change


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_ingest_widens_a_model_when_all_of_it_has_16_bits(
    kind: int, external: bool, tmp_path: Path
) -> None:
    """As strictly as float32: the source is run in float32, from the same 16 bit weights."""
    changed(tmp_path, _in_16_bits(kind, old_inputs=external), external=external, waves="computed")
    result, _ = ingest(tmp_path)
    assert result.notes["drift"] < STRICT
    numpy_kind = helper.tensor_dtype_to_np_dtype(kind)
    stored = np.fromfile(tmp_path / "out" / "weights" / "layer_000.data", np.float32)
    np.testing.assert_array_equal(stored, stored.astype(numpy_kind).astype(np.float32))


def _tables(kind: Any, *, back: bool) -> Change:
    """Ready cosines and sines in 16 bits; with `back`, rounded so but stored as float32."""

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        for node in list(graph.node):
            if node.op_type == "Gather" and node.input[1] == "position_ids":
                (table,) = [one for one in graph.initializer if one.name == node.input[0]]
                array = numpy_helper.to_array(table).astype(kind)
                if back:
                    array = array.astype(np.float32)
                table.CopyFrom(numpy_helper.from_array(array, table.name))
                rows = node.output[0]
                node.output[0] = f"{rows}_stored"
                place = list(graph.node).index(node) + 1
                cast = helper.make_node("Cast", [f"{rows}_stored"], [rows], to=TensorProto.FLOAT)
                graph.node.insert(place, cast)

    return change


@pytest.mark.parametrize(("kind", "drift"), [(np.float16, 2e-3), (ml_dtypes.bfloat16, 2e-2)])
@pytest.mark.parametrize("rotary", ["halves", "neighbours"])
def test_ingest_takes_the_exact_table_when_a_rounded_one_is_stored(
    kind: Any, drift: float, rotary: str, tmp_path: Path
) -> None:
    change = _tables(kind, back=False)
    changed(tmp_path, change, waves="ready", rotary=rotary, rotary_dim=6, head_dim=16)
    result, facts = ingest(tmp_path)
    assert STRICT < result.notes["drift"] < drift
    exact = 10000.0 ** (-np.arange(3) / 3)
    np.testing.assert_allclose(facts.rope["default"].inv_freq, exact, rtol=1e-6)
    assert facts.rope["default"].attention_factor == 1.0
    assert [one.window for one in facts.attention] == [0, 0]


def test_ingest_refuses_a_rounded_table_when_config_describes_another(tmp_path: Path) -> None:
    changed(tmp_path, _tables(np.float16, back=False), waves="ready", theta=11000.0)
    with pytest.raises(UnsupportedOperator, match=r"16 bits.*config\.json.*rope_theta"):
        ingest(tmp_path)


def test_ingest_is_as_strict_as_ever_when_float32_tables_are_rounded(tmp_path: Path) -> None:
    changed(tmp_path, _tables(np.float16, back=True), waves="ready")
    with pytest.raises(UnsupportedOperator):
        ingest(tmp_path)


def test_ingest_keeps_the_factor_of_a_rounded_table(tmp_path: Path) -> None:
    """Scaled tables are larger than one: the factor is config.json's, not a noisy measurement."""
    factor = 1.1902380714238083
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    stretched = {"original_max_position_embeddings": 4096, "max_position_embeddings": 131072}

    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if list(tensor.dims) == [512, 4]:
                array = numpy_helper.to_array(tensor) * np.float32(factor)
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        _tables(np.float16, back=False)(model)

    changed(tmp_path, change, waves="ready")
    path = tmp_path / "source" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **stretched,
                                "rope_scaling": scaling}))  # fmt: skip
    _, facts = ingest(tmp_path)
    assert facts.rope["default"].attention_factor == pytest.approx(factor, rel=1e-7)
