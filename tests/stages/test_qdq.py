"""Encodings on a static graph: what is written, and that it computes the same.

The graph is written out by hand (Conv with bias, Gemm with bias, MatMul; grouped queries; a cache),
and the encodings come from ranges that ONNX Runtime shows on the float graph.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from genai_core.errors import BadEncodings
from genai_core.facts import TensorSource
from genai_stages.aimet.model import Encoding, EncodingSet, per_tensor
from genai_stages.backends.htp.drift import computes_in_float
from genai_stages.quantize.encoding_lookup import EncodingLookup, MissingEncoding
from genai_stages.quantize.qdq import Quantized, quantize_graph

H, HEADS, KV, D, WIDE, V, CL = 32, 4, 2, 8, 48, 64, 64
SHAPES = {"embed": (V, H), "q": (HEADS * D, H), "k": (KV * D, H), "v": (KV * D, H),
          "o": (H, HEADS * D), "gate": (WIDE, H), "up": (WIDE, H), "down": (H, WIDE),
          "head": (V, H)}  # fmt: skip
_random = np.random.default_rng(0)
WEIGHTS = {
    name: (_random.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)
    for name, shape in SHAPES.items()
}
WEIGHTS |= {
    "norm": (1 + 0.1 * _random.standard_normal(H)).astype(np.float32),
    "q_bias": (0.3 * _random.standard_normal(HEADS * D)).astype(np.float32),
    "k_bias": (0.3 * _random.standard_normal(KV * D)).astype(np.float32),
}
COMPUTED = ["h", "q_conv", "k_gemm", "v_matmul", "q_rotated", "k_rotated", "scaled", "masked",
            "probs", "context", "o_gemm", "x1", "gate_out", "up_out", "sigmoid", "act", "mlp",
            "down_out", "x2", "logits", "past_key_0_in", "past_value_0_in"]  # fmt: skip


class Decoder:
    """One layer of a decoder as a static graph of AR new tokens."""

    def __init__(self, ar: int) -> None:
        self.ar = ar
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}

    def constant(self, name: str, array: Any) -> str:
        self.constants[name] = np.asarray(array)
        return name

    def op(self, kind: str, inputs: list[str], out: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [out], name=f"{kind}:{out}", **attributes))
        return out

    def reshape(self, value: str, shape: list[int], out: str) -> str:
        return self.op("Reshape", [value, self.constant(f"{out}.shape", np.array(shape))], out)

    def rotated(self, x: str, name: str) -> str:
        numbers = {"zero": 0, "half": D // 2, "all": D, "axis": 3}
        zero, half, whole, axis = [self.constant(key, [n]) for key, n in numbers.items()]
        a = self.op("Slice", [x, zero, half, axis], f"{name}_a")
        b = self.op("Slice", [x, half, whole, axis], f"{name}_b")
        cos, sin = "position_ids_cos", "position_ids_sin"
        products = [
            self.op("Mul", [one, table], f"{name}_{one[-1]}_{table[-3:]}")
            for one, table in ((a, cos), (b, sin), (b, cos), (a, sin))
        ]
        first = self.op("Sub", products[:2], f"{name}_first")
        second = self.op("Add", products[2:], f"{name}_second")
        return self.op("Concat", [first, second], f"{name}_rotated", axis=-1)

    def build(self) -> onnx.ModelProto:
        ar, w = self.ar, {name: self.constant(name, array) for name, array in WEIGHTS.items()}
        x = self.op("Gather", [w["embed"], "input_ids"], "x0", axis=0)
        h = self.op("RMSNormalization", [x, w["norm"]], "h", axis=-1, epsilon=1e-6)
        image = self.op("Transpose", [self.reshape(h, [1, ar, 1, H], "h4")], "h_image",
                        perm=[0, 3, 2, 1])  # fmt: skip
        self.constant("q", WEIGHTS["q"][:, :, None, None])
        q = self.op("Conv", [image, w["q"], w["q_bias"]], "q_conv", kernel_shape=[1, 1])
        q = self.op("Transpose", [q], "q_turned", perm=[0, 3, 2, 1])
        q = self.reshape(q, [ar, KV, HEADS // KV, D], "q_split")
        q = self.rotated(self.op("Transpose", [q], "q_heads", perm=[1, 2, 0, 3]), "q")
        rows = self.reshape(h, [ar, H], "h2")
        k = self.op("Gemm", [rows, w["k"], w["k_bias"]], "k_gemm", transB=1)
        v = self.op("MatMul", [rows, self.constant("v", WEIGHTS["v"].T.copy())], "v_matmul")
        k = self.op("Transpose", [self.reshape(k, [ar, KV, 1, D], "k_split")], "k_heads",
                    perm=[1, 2, 0, 3])  # fmt: skip
        k = self.op("Transpose", [self.rotated(k, "k")], "past_key_0_out", perm=[0, 1, 3, 2])
        v = self.op("Transpose", [self.reshape(v, [ar, KV, 1, D], "v_split")], "past_value_0_out",
                    perm=[1, 2, 0, 3])  # fmt: skip
        keys = self.op("Concat", ["past_key_0_in", k], "keys", axis=3)
        values = self.op("Concat", ["past_value_0_in", v], "values", axis=2)
        scores = self.op("MatMul", [q, keys], "scores")
        factor = self.constant("factor", np.float32(D**-0.5))
        scores = self.op("Mul", [scores, factor], "scaled")
        scores = self.op("Add", [scores, "attention_mask"], "masked")
        probs = self.op("Softmax", [scores], "probs", axis=-1)
        context = self.op("MatMul", [probs, values], "context")
        context = self.op("Transpose", [context], "context_turned", perm=[2, 0, 1, 3])
        context = self.reshape(context, [ar, HEADS * D], "context_flat")
        o = self.op("Gemm", [context, w["o"]], "o_gemm", transB=1)
        x = self.op("Add", [self.reshape(x, [ar, H], "x0_rows"), o], "x1")
        gate = self.op("Gemm", [x, w["gate"]], "gate_out", transB=1)
        up = self.op("Gemm", [x, w["up"]], "up_out", transB=1)
        act = self.op("Mul", [gate, self.op("Sigmoid", [gate], "sigmoid")], "act")
        down = self.op("Gemm", [self.op("Mul", [act, up], "mlp"), w["down"]], "down_out", transB=1)
        x = self.op("Add", [x, down], "x2")
        self.reshape(self.op("Gemm", [x, w["head"]], "logits_rows", transB=1), [1, ar, V], "logits")
        past = CL - ar

        def io(name: str, *shape: int, dtype: int = TensorProto.FLOAT) -> Any:
            return helper.make_tensor_value_info(name, dtype, shape)

        graph = helper.make_graph(
            self.nodes,
            f"ar{ar}",
            [io("input_ids", 1, ar, dtype=TensorProto.INT32), io("attention_mask", 1, 1, ar, CL),
             io("position_ids_cos", 1, 1, ar, D // 2), io("position_ids_sin", 1, 1, ar, D // 2),
             io("past_key_0_in", KV, 1, D, past), io("past_value_0_in", KV, 1, past, D)],
            [io("logits", 1, ar, V), io("past_key_0_out", KV, 1, D, ar),
             io("past_value_0_out", KV, 1, ar, D)],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def feeds(ar: int, seed: int) -> dict[str, np.ndarray]:
    random, past, filled = np.random.default_rng(seed), CL - ar, 20
    mask = np.full((1, 1, ar, CL), -100, np.float32)
    mask[..., past - filled : past] = 0
    mask[0, 0, :, past:][np.tril_indices(ar)] = 0
    angles = np.arange(filled, filled + ar)[:, None] * 100.0 ** -np.arange(D // 2)
    return {
        "input_ids": random.integers(0, V, (1, ar)).astype(np.int32),
        "attention_mask": mask,
        "position_ids_cos": np.cos(angles).astype(np.float32)[None, None],
        "position_ids_sin": np.sin(angles).astype(np.float32)[None, None],
        "past_key_0_in": random.standard_normal((KV, 1, D, past)).astype(np.float32),
        "past_value_0_in": random.standard_normal((KV, 1, past, D)).astype(np.float32),
    }


@pytest.fixture(scope="module")
def ranges() -> dict[str, tuple[float, float]]:
    """Extremes of every tensor of the float graph over a few inputs."""
    model = Decoder(8).build()
    named = {value.name for value in model.graph.output}
    model.graph.output.extend(
        value for value in model.graph.value_info
        if value.type.tensor_type.elem_type == TensorProto.FLOAT and value.name not in named
    )  # fmt: skip
    session = ort.InferenceSession(model.SerializeToString())
    names = [value.name for value in session.get_outputs()]
    found: dict[str, tuple[float, float]] = {}
    for seed in range(6):
        given = feeds(8, seed)
        for name, array in [*zip(names, session.run(names, given), strict=True), *given.items()]:
            low, high = found.get(name, (0.0, 0.0))
            found[name] = (min(low, float(array.min())), max(high, float(array.max())))
    return found


def encodings_but(
    ranges: dict[str, tuple[float, float]], changes: dict[str, Encoding | None]
) -> EncodingSet:
    """Encodings of which some are others, or None."""
    by_keyword: dict[str, Any] = dict(changes)
    return encodings(ranges, **by_keyword)


def encodings(
    ranges: dict[str, tuple[float, float]], *, bits: int = 8, **changes: Encoding | None
) -> EncodingSet:
    """Encodings as AIMET would write them; `changes` replaces some, None deletes."""
    made: dict[str, Encoding] = {
        name: per_tensor(name, *ranges[name], bits=16, symmetric="value" in name)
        for name in COMPUTED
    }
    for name, array in WEIGHTS.items():
        if name in ("embed", "norm"):
            low, high = float(array.min()), float(array.max())
            made[name] = per_tensor(name, low, high, bits=16, symmetric=False)
        elif array.ndim == 2:
            scale = (np.abs(array).max(axis=1) / (2 ** (bits - 1) - 1)).astype(np.float32)
            made[name] = Encoding(name, bits, True, scale.astype(np.float64),
                                  np.full(len(scale), -(2.0 ** (bits - 1))))  # fmt: skip
    for name, one in changes.items():
        if one is None:
            del made[name]
        else:
            made[name] = one
    return EncodingSet("1.0.0", "hand.encodings", made)


class Result:
    """A quantized graph on disk, read back with onnx alone."""

    def __init__(
        self, folder: Path, ar: int, given: EncodingSet, *, gaps_float: bool = False, **lookup: Any
    ) -> None:
        folder.mkdir(exist_ok=True, parents=True)
        source = folder.parent / f"ar{ar}.onnx"
        source.write_bytes(Decoder(ar).build().SerializeToString())
        self.lookup = EncodingLookup(given, lookup.pop("provenance", {}), **lookup)
        self.report: Quantized = quantize_graph(source, folder, self.lookup, gaps_float=gaps_float)
        self.path = folder / source.name
        self.model = onnx.load(str(self.path))  # noqa: TID251 - a few kilobytes
        self.graph = self.model.graph
        self.arrays = {one.name: numpy_helper.to_array(one) for one in self.graph.initializer}
        self.types = {one.name: one.data_type for one in self.graph.initializer}
        self.producer = {name: node for node in self.graph.node for name in node.output}

    def grid(self, node: Any) -> tuple[np.ndarray, np.ndarray]:
        return self.arrays[node.input[1]], self.arrays[node.input[2]].astype(np.int64)

    def of_ends(self) -> dict[str, tuple[float, int]]:
        """Scale and zero point of each quantized input and output."""
        inputs = {value.name for value in self.graph.input}
        outputs = {value.name for value in self.graph.output}
        found = {}
        for node in self.graph.node:
            if not node.op_type.endswith("eLinear"):
                continue
            name = node.input[0] if node.op_type == "DequantizeLinear" else node.output[0]
            if (node.op_type == "DequantizeLinear" and name in inputs) or name in outputs:
                scale, zero = self.grid(node)
                found[name] = (float(scale), int(zero))
        return found

    def run(self, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Real outputs; inputs are rounded by the graph's own grids."""
        session = ort.InferenceSession(str(self.path))
        ends = self.of_ends()
        integers = {}
        for value in session.get_inputs():
            array = given[value.name]
            if value.name in ends:
                scale, zero = ends[value.name]
                top = 255 if value.type == "tensor(uint8)" else 65535
                dtype = np.uint8 if top == 255 else np.uint16
                array = np.clip(np.rint(array / scale) + zero, 0, top).astype(dtype)
            integers[value.name] = array
        names = [value.name for value in session.get_outputs()]
        return {
            name: (array.astype(np.float64) - ends[name][1]) * ends[name][0]
            if name in ends
            else array
            for name, array in zip(names, session.run(names, integers), strict=True)
        }


def decibels(wanted: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - found).sum()))


def float_outputs(ar: int, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(Decoder(ar).build().SerializeToString())
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, given), strict=True))


@pytest.mark.parametrize(("bits", "least"), [(8, 25.0), (4, 8.0)])
@pytest.mark.parametrize("ar", [8, 1])
def test_it_computes_what_the_float_graph_computes(
    ranges: Any, tmp_path: Path, bits: int, least: float, ar: int
) -> None:
    result = Result(tmp_path / "out", ar, encodings(ranges, bits=bits))
    given = feeds(ar, 5)
    found = result.run(given)
    for name, wanted in float_outputs(ar, given).items():
        assert decibels(wanted, found[name]) > least, name


def test_no_float_tensor_passes_between_operators(ranges: Any, tmp_path: Path) -> None:
    """Every operator reads dequantized integers and every result is quantized at once."""
    result = Result(tmp_path / "out", 8, encodings(ranges))
    kinds = {TensorProto.UINT16, TensorProto.UINT8}
    for value in [*result.graph.input, *result.graph.output]:
        dtype = value.type.tensor_type.elem_type
        assert dtype in kinds or (value.name, dtype) == ("input_ids", TensorProto.INT32)
    readers: dict[str, list[str]] = {}
    for node in result.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    checked = 0
    for node in result.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for name in node.input:
            if result.types.get(name) == TensorProto.INT64 or name == "input_ids":
                continue
            assert result.producer[name].op_type == "DequantizeLinear", (node.name, name)
        assert set(readers[node.output[0]]) == {"QuantizeLinear"}, node.name
        checked += 1
    assert checked == len(Decoder(8).build().graph.node)


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_are_integers_per_channel_by_the_formula(
    ranges: Any, tmp_path: Path, bits: int
) -> None:
    result = Result(tmp_path / "out", 8, encodings(ranges, bits=bits))
    kind = {8: TensorProto.INT8, 4: TensorProto.INT4}[bits]
    for name, rows in WEIGHTS.items():
        if rows.ndim != 2 or name == "embed":
            continue
        scale = (np.abs(rows).max(axis=1) / (2 ** (bits - 1) - 1)).astype(np.float32)
        top = 2 ** (bits - 1)
        wanted = np.clip(np.rint(rows / scale[:, None]), -top, top - 1)
        stored = result.arrays[name].astype(np.int64)
        assert result.types[name] == kind
        turned = stored.T if name == "v" else stored.reshape(rows.shape)
        np.testing.assert_array_equal(turned, wanted)
        node = result.producer[f"{name}_dq"]
        axis = {one.name: one.i for one in node.attribute}["axis"]
        assert axis == (1 if name == "v" else 0)
        np.testing.assert_array_equal(result.arrays[node.input[1]], scale)
    assert result.report.bits == {bits: 8}


def test_biases_are_int32_at_the_product_of_the_scales(ranges: Any, tmp_path: Path) -> None:
    result = Result(tmp_path / "out", 8, encodings(ranges))
    h = np.float32(encodings(ranges)["h"].scale)
    for name in ("q", "k"):
        weight_scale = encodings(ranges)[name].scale.astype(np.float32)
        scale = h * weight_scale
        assert result.types[f"{name}_bias"] == TensorProto.INT32
        node = result.producer[f"{name}_bias_dq"]
        np.testing.assert_allclose(result.arrays[node.input[1]], scale, rtol=1e-6)
        wanted = np.rint(WEIGHTS[f"{name}_bias"].astype(np.float64) / scale)
        assert np.abs(result.arrays[f"{name}_bias"] - wanted).max() <= 1


def test_a_cache_has_one_encoding_of_8_bits_all_along(ranges: Any, tmp_path: Path) -> None:
    result = Result(tmp_path / "out", 8, encodings(ranges))
    ends = result.of_ends()
    for kind, source in (("key", "k_rotated"), ("value", "v_matmul")):
        scale, zero = ends[f"past_{kind}_0_in"]
        assert zero == 128
        assert ends[f"past_{kind}_0_out"] == (scale, zero)
        entry, past = encodings(ranges)[source], encodings(ranges)[f"past_{kind}_0_in"]
        if kind == "key":
            widest = max(-float(entry.low), float(entry.high), -float(past.low), float(past.high))
        else:
            widest = max(-float(entry.low), float(entry.high), float(past.high))
        assert scale == pytest.approx(widest / 127, rel=1e-3)
        assert "8 bits symmetric" in result.report.derived[f"past_{kind}_0_in"]
    for node in result.graph.node:
        if node.op_type == "Concat" and node.output[0] in ("keys", "values"):
            grids = {(result.producer[name].input[1], result.producer[name].input[2])
                     for name in node.input}  # fmt: skip
            assert len(grids) == 1
        # What QNN refuses: a product of 16-bit operands that writes 8 bits by itself.
        if node.op_type in ("MatMul", "Gemm", "Conv"):
            quantize = next(one for one in result.graph.node if node.output[0] in one.input)
            assert result.types[quantize.input[2]] == TensorProto.UINT16


def test_moved_tensors_carry_the_encoding_they_came_with(ranges: Any, tmp_path: Path) -> None:
    result = Result(tmp_path / "out", 8, encodings(ranges))
    moves = ("Reshape", "Transpose", "Slice")
    checked = 0
    for node in result.graph.node:
        if node.op_type in moves and node.input[0] in result.producer:
            before = result.producer[node.input[0]]
            after = next(one for one in result.graph.node if node.output[0] in one.input)
            assert list(before.input[1:]) == list(after.input[1:]), node.name
            checked += 1
    assert checked == 19
    assert result.report.ties["x0_rows"] == "x0"


def test_all_graphs_of_a_model_have_the_same_bytes_of_weights(ranges: Any, tmp_path: Path) -> None:
    for ar in (8, 1):
        Result(tmp_path / str(ar) / "out", ar, encodings(ranges))
    first, second = ((tmp_path / str(ar) / "out" / f"ar{ar}.data").read_bytes() for ar in (8, 1))
    assert first == second
    for attempt in ("again",):
        Result(tmp_path / attempt / "out", 8, encodings(ranges))
        assert (tmp_path / attempt / "out" / "ar8.data").read_bytes() == first
        one, two = (tmp_path / name / "out" / "ar8.onnx" for name in ("8", attempt))
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("gone", "node"),
    [("mlp", "Mul:mlp"), ("x1", "Add:x1"), ("gate", "Gemm:gate_out"), ("norm", "RMSNorm"),
     ("v", "MatMul:v_matmul"), ("sigmoid", "Sigmoid:sigmoid"), ("embed", "Gather:x0"),
     ("logits", "Gemm:logits_rows"), ("q_conv", "Conv:q_conv")],
)  # fmt: skip
def test_one_deleted_entry_is_a_gap_with_tensor_and_node(
    ranges: Any, tmp_path: Path, gone: str, node: str
) -> None:
    with pytest.raises(MissingEncoding) as caught:
        Result(tmp_path / "out", 8, encodings_but(ranges, {gone: None}))
    assert caught.value.exit_code == 2
    assert f"hand.encodings: {gone if gone != 'logits' else 'logits_rows'}, node {node}" in str(
        caught.value
    )
    assert "quantization.gaps to Calibrate" in caught.value.remedy


@pytest.mark.parametrize("ar", [8, 1])
@pytest.mark.parametrize(
    "gone",
    [["mlp"], ["v_matmul", "k"], ["sigmoid", "logits"], ["embed"], ["norm"], ["q_conv"], ["down"],
     ["probs", "masked", "scores"]],
)  # fmt: skip
def test_a_gap_may_stay_floating_point(
    ranges: Any, tmp_path: Path, gone: list[str], ar: int
) -> None:
    known = dict(encodings(ranges).entries)
    given = encodings_but(ranges, dict.fromkeys(name for name in gone if name in known))
    result = Result(tmp_path / "out", ar, given, gaps_float=True)
    assert computes_in_float(result.path) == bool(result.report.floating)
    inputs = feeds(ar, 5)
    found = result.run(inputs)
    for name, wanted in float_outputs(ar, inputs).items():
        assert decibels(wanted, found[name]) > 25, name
    # No integer weight meets a float tensor: the processor has no such operator.
    operators = [n for n in result.graph.node if not n.op_type.endswith("eLinear")]
    floats = {name for node in operators for name in node.output}
    floats &= {name for node in operators for name in node.input}
    floats |= {
        value.name
        for value in result.graph.output
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    for node in operators:
        if not floats.isdisjoint([*node.input, *node.output]):
            makers = [result.producer[name] for name in node.input if name in result.producer]
            integers = [n.input[0] for n in makers if n.op_type == "DequantizeLinear"]
            assert result.types.keys().isdisjoint(integers), node.name


def test_without_gaps_floating_point_changes_nothing(ranges: Any, tmp_path: Path) -> None:
    one = Result(tmp_path / "one/out", 8, encodings(ranges))
    other = Result(tmp_path / "two/out", 8, encodings(ranges), gaps_float=True)
    assert not other.report.floating
    assert not computes_in_float(other.path)
    for path in (one.path, one.path.with_suffix(".data")):
        assert path.read_bytes() == (other.path.parent / path.name).read_bytes()


def test_an_entry_that_asks_for_floating_point_is_refused(ranges: Any, tmp_path: Path) -> None:
    empty = np.zeros((0,))
    entry = Encoding("mlp", 16, True, empty, empty, dtype="float")
    with pytest.raises(MissingEncoding, match=r"mlp, node Mul:mlp: .* in floating point \(16 bits"):
        Result(tmp_path / "out", 8, encodings(ranges, mlp=entry))


def test_a_softmax_of_the_source_needs_its_entry_and_ours_does_not(
    ranges: Any, tmp_path: Path
) -> None:
    without = encodings(ranges, probs=None)
    Result(tmp_path / "ours", 8, without)
    with pytest.raises(MissingEncoding, match="probs, node Softmax:probs"):
        Result(tmp_path / "source", 8, without, of_source=["probs"])


@pytest.mark.parametrize("gaps_float", [False, True])
def test_a_cache_that_no_entry_speaks_of_is_a_gap(
    ranges: Any, tmp_path: Path, gaps_float: bool
) -> None:
    gone: dict[str, Any] = dict.fromkeys(["past_value_0_in", "v_matmul"])
    with pytest.raises(MissingEncoding, match="past_value_0_in: no entry names this cache"):
        Result(tmp_path / "out", 8, encodings(ranges, **gone), gaps_float=gaps_float)


@pytest.mark.parametrize("times", [1e-6, 1e6])
def test_a_cache_is_refused_when_its_range_is_not_that_of_what_it_stores(
    ranges: Any, tmp_path: Path, times: float
) -> None:
    entry = per_tensor("past_key_0_in", -4 * times, 4 * times, bits=8, symmetric=True)
    words = r"past_key_0_in: the cache's range is \+-.* and k_rotated, which is stored in it, has"
    with pytest.raises(BadEncodings, match=words):
        Result(tmp_path / "out", 8, encodings(ranges, past_key_0_in=entry))


def test_a_cache_takes_the_stored_range_when_it_was_empty_in_the_simulation(
    ranges: Any, tmp_path: Path
) -> None:
    entry = per_tensor("past_key_0_in", 0.0, 1e-7, bits=16, symmetric=False)
    result = Result(tmp_path / "out", 8, encodings(ranges, past_key_0_in=entry))
    stored = encodings(ranges)["k_rotated"]
    widest = max(-float(stored.low), float(stored.high))
    assert result.of_ends()["past_key_0_in"][0] == pytest.approx(widest / 127, rel=1e-3)


def test_entries_are_found_by_provenance_and_the_unused_are_listed(
    ranges: Any, tmp_path: Path
) -> None:
    given = dict(encodings(ranges).entries)
    fused = np.concatenate([given.pop("gate").scale, given.pop("up").scale])
    given["gate_up"] = Encoding("gate_up", 8, True, fused, np.full(len(fused), -128.0))
    given["source_mlp"] = dataclasses.replace(given.pop("mlp"), name="source_mlp")
    given["stranger"] = per_tensor("stranger", -1, 1, bits=16, symmetric=False)
    provenance = {
        "mlp": TensorSource(source="source_mlp"),
        "gate": TensorSource(source="gate_up", rows=(0, WIDE)),
        "up": TensorSource(source="gate_up", rows=(WIDE, 2 * WIDE)),
    }
    plain = Result(tmp_path / "plain", 8, encodings(ranges))
    renamed = Result(
        tmp_path / "renamed", 8, EncodingSet("1.0.0", "f", given), provenance=provenance
    )
    assert (tmp_path / "plain" / "ar8.data").read_bytes() == (
        tmp_path / "renamed" / "ar8.data"
    ).read_bytes()
    assert plain.lookup.unused() == []
    assert renamed.lookup.unused() == ["stranger"]
    with pytest.raises(BadEncodings, match=r"gate_up: has 96 channels, .* at least 100"):
        Result(
            tmp_path / "wrong",
            8,
            EncodingSet("1.0.0", "f", given),
            provenance=provenance | {"up": TensorSource(source="gate_up", rows=(52, 100))},
        )


def test_lpbq_weights_keep_their_values_and_free_blocks_nearly(ranges: Any, tmp_path: Path) -> None:
    rows = WEIGHTS["down"]
    blocks = np.abs(rows.reshape(H, 3, 16)).max(axis=2) / 7
    channel = (blocks.max(axis=1) / 16).astype(np.float32).astype(np.float64)
    factors = np.clip(np.rint(blocks / channel[:, None]), 1, 16)
    offset = np.full(blocks.shape, -8.0)
    lpbq = Encoding("down", 4, True, factors * channel[:, None], offset, block_size=16,
                    block_int_scale=factors.astype(np.int64), channel_scale=channel)  # fmt: skip
    free = Encoding("down", 4, True, blocks.astype(np.float64), offset, block_size=16)
    for name, one, allowed in (("lpbq", lpbq, 1e-6), ("free", free, None)):
        result = Result(tmp_path / name, 8, encodings(ranges, down=one))
        scale = np.repeat(one.scale, 16, axis=1).astype(np.float32)
        wanted = scale * np.clip(np.rint(rows / scale), -8, 7)
        node = result.producer["down_dq"]
        step = result.arrays[node.input[1]][:, None]
        found = step * result.arrays["down"].astype(np.float32)
        assert np.abs(found - wanted).max() <= (allowed or step.max() * 0.51)
        assert ("the same values" in result.report.derived["down"]) == (name == "lpbq")


def test_grids_without_a_zero_become_signed_ones_with_the_same_values(
    ranges: Any, tmp_path: Path
) -> None:
    rows = WEIGHTS["up"]
    scale = (np.abs(rows).max(axis=1) / 1.5).astype(np.float32).astype(np.float64)
    two = Encoding("up", 2, True, scale, np.full(WIDE, -1.5))
    asymmetric = Encoding("up", 4, False, scale / 4, np.full(WIDE, -5.0))
    seven = Encoding("up", 7, False, scale / 40, np.full(WIDE, -40.0))
    # The step beyond the strict range is never reached: 127 of them hold the largest value.
    strict = Encoding("up", 8, True, scale * 1.5 / 127, np.full(WIDE, -127.0))
    for one in (two, asymmetric, seven, strict):
        result = Result(tmp_path / str(one.bits), 8, encodings(ranges, up=one))
        step = one.scale.astype(np.float32)[:, None]
        offset, top = float(one.offset[0]), 2**one.bits - 1
        wanted = step * (np.clip(np.rint(rows / step - offset), 0, top) + offset)
        node = result.producer["up_dq"]
        assert result.types["up"] == TensorProto.INT8
        found = result.arrays[node.input[1]][:, None] * result.arrays["up"].astype(np.float32)
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_zero_points_of_8_bit_channels_are_rounded_away(ranges: Any, tmp_path: Path) -> None:
    """A device has them for whole tensors alone, and refuses the graph without a word why."""
    rows = WEIGHTS["up"] + 0.2
    low, high = np.minimum(rows.min(axis=1), 0), np.maximum(rows.max(axis=1), 0)
    scale = ((high - low) / 255).astype(np.float32).astype(np.float64)
    uneven = Encoding("up", 8, False, scale, np.rint(low / scale))
    result = Result(tmp_path / "channels", 8, encodings(ranges, up=uneven))
    step = scale.astype(np.float32)[:, None]
    grid = np.clip(np.rint(WEIGHTS["up"] / step) - uneven.offset[:, None], 0, 255)
    node = result.producer["up_dq"]
    assert result.types["up"] == TensorProto.INT8
    assert not result.arrays[node.input[2]].any()
    found = result.arrays[node.input[1]][:, None] * result.arrays["up"].astype(np.float32)
    error = np.abs(found - step * (grid + uneven.offset[:, None]))
    assert (error <= 0.501 * result.arrays[node.input[1]][:, None]).all()
    assert result.report.derived["up"] == "8 bits with zero points as 8 without, rounded"
    whole = Encoding("up", 8, False, np.float64(scale.max()) + np.zeros(()), np.asarray(-100.0))
    result = Result(tmp_path / "tensor", 8, encodings(ranges, up=whole))
    assert (result.types["up"], result.arrays["up"].min()) == (TensorProto.UINT8, 0)


@pytest.mark.parametrize(
    ("name", "entry", "words"),
    [
        ("gate", Encoding("gate", 8, True, np.ones(H), np.full(H, -128.0)),
         "32 scales for a tensor with 48 output channels"),
        ("mlp", Encoding("mlp", 16, False, np.ones(3), np.full(3, -9.0)), "mlp: 3 scales for an"),
        ("embed", Encoding("embed", 16, False, np.ones(V), np.full(V, -9.0)), "64 scales; Gather"),
    ],
)  # fmt: skip
def test_entries_that_do_not_fit_their_tensor_are_refused(
    ranges: Any, tmp_path: Path, name: str, entry: Encoding, words: str
) -> None:
    with pytest.raises(BadEncodings, match=words):
        Result(tmp_path / "out", 8, encodings_but(ranges, {name: entry}))


def test_a_bias_that_does_not_fit_32_bits_is_refused(ranges: Any, tmp_path: Path) -> None:
    entry = Encoding("k", 8, True, np.full(KV * D, 1e-9), np.full(KV * D, -128.0))
    tiny = per_tensor("h", -1e-4, 1e-4, bits=16, symmetric=False)
    with pytest.raises(BadEncodings, match="k_bias: the bias does not fit 32 bits"):
        Result(tmp_path / "out", 8, encodings(ranges, k=entry, h=tiny))
