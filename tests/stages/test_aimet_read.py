"""AIMET encodings of every version end in one form; what is wrong with a file is said in a line."""

from __future__ import annotations

import gzip
import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from genai_core.errors import BadEncodings
from genai_stages.aimet.arithmetic import dequantize, quantize
from genai_stages.aimet.model import EncodingSet
from genai_stages.aimet.read import parse_encodings, read_encodings

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "tiny-llama" / "model"
FIXTURES = ROOT / "tests" / "fixtures" / "encodings"


def w4a16(version: str) -> EncodingSet:
    if version == "0.6.1":
        packed = FIXTURES / "w4a16-0.6.1.encodings.gz"
        return parse_encodings(gzip.decompress(packed.read_bytes()).decode(), packed.name)
    name = "w4a16-2.0.0.encodings" if version == "2.0.0" else "w4a16.encodings"
    return read_encodings(FIXTURES / name)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    # onnx.load takes no data files with several hard links, as a checkout's may be.
    copy = shutil.copytree(MODEL, tmp_path_factory.mktemp("model") / "model")
    proto = onnx.load(str(copy / "model.onnx"))  # noqa: TID251 - the small example, whole
    return {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}


@pytest.mark.parametrize("version", ["0.6.1", "1.0.0", "2.0.0"])
def test_dequantized_weights_follow_the_published_formula(
    version: str, weights: dict[str, np.ndarray]
) -> None:
    """The reference is the formula of AIMET's specification on the raw JSON of 1.0.0."""
    raw = json.loads((FIXTURES / "w4a16.encodings").read_text())
    encodings = w4a16(version)
    checked = 0
    for entry in raw["param_encodings"]:
        values = weights[entry["name"]]
        scale = np.array(entry["scale"], np.float32)
        offset = np.array(entry["offset"], np.float32)
        # The channels of a MatMul's weight [in, out] are its last axis.
        grid = np.clip(np.rint(values / scale) - offset, 0, 2 ** entry["bw"] - 1)
        expected = scale.astype(np.float64) * (grid + offset)

        encoding = encodings[entry["name"]]
        found = dequantize(quantize(values, encoding, channel_axis=-1), encoding, channel_axis=-1)

        np.testing.assert_allclose(found, expected, rtol=1e-7)
        checked += 1
    assert checked == 56


def test_the_same_simulation_in_three_versions_gives_the_same_grids() -> None:
    old, middle, new = (w4a16(version) for version in ("0.6.1", "1.0.0", "2.0.0"))
    assert set(old) == set(middle) < set(new)
    for name, encoding in middle.items():
        assert encoding.same_grid(old[name]), name
        assert encoding.same_grid(new[name]), name
    assert middle["onnx::MatMul_2090"].signed
    assert middle["onnx::MatMul_2090"].channels == 2048


SCALE = np.array([[0.5, 0.25], [0.125, 1.0], [2.0, 0.0625]])  # [channels, blocks], block 2
VALUES = np.random.default_rng(3).uniform(-9, 9, (3, 4)).astype(np.float32)


def blocks_1_0(**more: Any) -> dict[str, Any]:
    entry = {"name": "w", "enc_type": "PER_BLOCK", "dtype": "INT", "bw": 4, "is_sym": True,
             "block_size": 2, "scale": SCALE.reshape(-1).tolist(), "offset": [-8] * 6}  # fmt: skip
    return {"version": "1.0.0", "activation_encodings": [], "param_encodings": [entry | more]}


def blocks_2(version: str = "2.0.0", **more: Any) -> dict[str, Any]:
    entry = {"name": "w", "output_dtype": "int4", "axis": 1, "block_size": 2}
    return {"version": version, "encodings": [entry | more]}


FACTORS = np.array([[4, 2], [1, 8], [16, 3]])
CHANNEL = np.array([0.125, 0.25, 0.0625])
PER_BLOCK = {
    "1.0.0": blocks_1_0(),
    "2.0.0": blocks_2(y_scale=SCALE.tolist()),
    "2.0.0 [in, out]": blocks_2(y_scale=SCALE.T.tolist(), axis=0),
    "2.0.0 Conv": blocks_2(y_scale=SCALE[:, :, None, None].tolist()),
    "2.1.0 zero points": blocks_2("2.1.0", y_scale=SCALE.tolist(), y_zero_point=[[0, 0]] * 3),
}
LPBQ = {
    "1.0.0": blocks_1_0(
        enc_type="LPBQ", bw=8, compressed_bw=4, scale=CHANNEL.tolist(), offset=[-128] * 3,
        per_block_int_scale=FACTORS.reshape(-1).tolist(),
    ),
    "2.0.0": blocks_2(
        per_block_int_scale=FACTORS.tolist(), per_channel_float_scale=CHANNEL[:, None].tolist()
    ),
    "2.0.0 [in, out]": blocks_2(
        per_block_int_scale=FACTORS.T.tolist(), per_channel_float_scale=[CHANNEL.tolist()], axis=0
    ),
    "2.1.0": blocks_2("2.1.0", y_scale={"x": FACTORS.tolist(), "x_scale": CHANNEL.tolist(),
                                        "axis": 0}),
}  # fmt: skip


def expected_blocks(scale: np.ndarray) -> np.ndarray:
    """Straight from the definition, value by value."""
    result = np.empty_like(VALUES)
    for row, column in np.ndindex(*VALUES.shape):
        step = np.float32(scale[row, column // 2])
        result[row, column] = step * np.clip(np.rint(VALUES[row, column] / step), -8, 7)
    return result


@pytest.mark.parametrize("form", PER_BLOCK)
def test_per_block_weights_are_the_same_in_every_version(form: str) -> None:
    encoding = parse_encodings(json.dumps(PER_BLOCK[form]), "f")["w"].blocked(4)
    found = dequantize(quantize(VALUES, encoding), encoding)
    np.testing.assert_array_equal(found, expected_blocks(SCALE))
    turned = dequantize(
        quantize(np.ascontiguousarray(VALUES.T), encoding, channel_axis=1), encoding,
        channel_axis=1,
    )  # fmt: skip
    np.testing.assert_array_equal(turned.T, expected_blocks(SCALE))


@pytest.mark.parametrize("form", LPBQ)
def test_lpbq_weights_are_the_same_in_every_version(form: str) -> None:
    encoding = parse_encodings(json.dumps(LPBQ[form]), "f")["w"]
    found = dequantize(quantize(VALUES, encoding), encoding)
    np.testing.assert_array_equal(found, expected_blocks(FACTORS * CHANNEL[:, None]))
    assert encoding.block_int_scale is not None
    np.testing.assert_array_equal(encoding.block_int_scale, FACTORS)
    np.testing.assert_array_equal(encoding.channel_scale, CHANNEL)


@pytest.mark.parametrize(
    ("document", "grid"),
    [
        (blocks_2(output_dtype="int2", y_scale=[1.0, 2.0, 4.0], axis=0, block_size=None), [-2, 1]),
        (blocks_2(output_dtype="int2", y_scale=[1.0, 2.0, 4.0], axis=0, block_size=None,
                  y_zero_point=[-0.5] * 3), [-1.5, 1.5]),
        (blocks_1_0(enc_type="PER_CHANNEL", bw=2, scale=[1.0, 2.0, 4.0], offset=[-2] * 3,
                    zero_point_shift=[0.5] * 3), [-1.5, 1.5]),
    ],
)  # fmt: skip
def test_two_bit_grids(document: dict[str, Any], grid: list[float]) -> None:
    encoding = parse_encodings(json.dumps(document), "f")["w"]
    far = np.array([[-100.0, 100.0]] * 3, np.float32)
    found = dequantize(quantize(far, encoding), encoding)
    np.testing.assert_array_equal(found, np.array([[1.0], [2.0], [4.0]]) * grid)


def test_float_entries_stay_float() -> None:
    old = {"version": "0.6.1", "activation_encodings": {"a": [{"bitwidth": 16, "dtype": "float"}]},
           "param_encodings": {}}  # fmt: skip
    new = {"version": "1.0.0", "param_encodings": [],
           "activation_encodings": [{"name": "a", "enc_type": "PER_TENSOR", "dtype": "FLOAT",
                                     "bw": 16}]}  # fmt: skip
    for document in (old, new):
        encoding = parse_encodings(json.dumps(document), "f")["a"]
        assert (encoding.dtype, encoding.bits) == ("float", 16)


GOOD = {"name": "t", "enc_type": "PER_TENSOR", "dtype": "INT", "bw": 8, "is_sym": False,
        "scale": [0.5], "offset": [-3]}  # fmt: skip


def one_entry(**changes: Any) -> str:
    entry = {key: value for key, value in (GOOD | changes).items() if value is not None}
    return json.dumps({"version": "1.0.0", "activation_encodings": [entry], "param_encodings": []})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"version": "1.0.0", "activation_enc', ["complete JSON", "line 1"]),
        ("[1, 2]", ["an object was expected, not a list"]),
        ("{}", ["no version", "0.6.1, 1.0.0, 2.0.0, 2.1.0"]),
        ('{"version": "3.1.0"}', ["version 3.1.0 is not known"]),
        ('{"version": ["1.0.0"]}', ["is not known"]),
        ('{"version": "1.0.0", "activation_encodings": {"a": []}}',
         ["activation_encodings", "a list here, not an object"]),
        ('{"version": "0.6.1", "activation_encodings": []}', ["an object here, not a list"]),
        ('{"version": "2.0.0", "activation_encodings": []}', ["encodings", "not nothing"]),
        ('{"version": "1.0.0", "activation_encodings": [], "param_encodings": []}',
         ["no encodings"]),
        ('{"version": "0.6.1", "activation_encodings": {"a": [1]}, "param_encodings": {"a": [1]}}',
         ["a", "an object was expected, not 1"]),
        ('{"version": "0.6.1", "param_encodings": {"a": [], "a": []}}', ["f: a", "twice"]),
        (one_entry(scale=[0.0]), ["f: t", "scale holds 0; a scale is above 0"]),
        (one_entry(scale=[-0.25]), ["f: t", "-0.25"]),
        (one_entry(scale=[float("nan")]), ["f: t", "nan"]),
        (one_entry(scale=[float("inf")]), ["f: t", "inf"]),
        (one_entry(scale=[1e-60]), ["f: t", "1e-60"]),
        (one_entry(scale=["x"]), ["f: t", "scale must hold numbers"]),
        (one_entry(scale=None), ["f: t", "scale is missing"]),
        (one_entry(scale=[[1.0], [1.0, 2.0]]), ["f: t", "differ in length"]),
        (one_entry(scale=[0.5, 0.5]), ["f: t", "PER_TENSOR with 2 scales"]),
        (one_entry(offset=[-3.5]), ["f: t", "offset holds -3.5, a fraction"]),
        (one_entry(offset=[-999]), ["f: t", "offset -999 is not on a grid of 8 bits"]),
        (one_entry(offset=[7]), ["f: t", "offset 7 is not on a grid"]),
        (one_entry(offset=[1]), ["f: t", "offset 1 is not on a grid"]),
        (one_entry(offset=[-256]), ["f: t", "offset -256 is not on a grid of 8 bits"]),
        (one_entry(bw=float("inf")), ["f: t", "bw must be a whole number, not inf"]),
        (one_entry(bw=float("nan")), ["f: t", "bw must be a whole number, not nan"]),
        (one_entry(bw=99), ["f: t", "bw is 99, not between 2 and 32"]),
        (one_entry(bw="8"), ["f: t", "bw must be a whole number, not '8'"]),
        (one_entry(is_sym="True"), ["f: t", "is_sym must be true or false"]),
        (one_entry(enc_type="PER_MOON"), ["f: t", "PER_MOON"]),
        (one_entry(name=None), ["entry 0", "name must be a string, not nothing"]),
        (json.dumps({"version": "1.0.0", "activation_encodings": [GOOD, GOOD],
                     "param_encodings": []}), ["f: t", "twice"]),
        (json.dumps(blocks_1_0(enc_type="LPBQ", compressed_bw=4, scale=[1.0] * 4,
                               per_block_int_scale=[1] * 6)), ["f: w", "6 block scales for 4"]),
        (json.dumps(blocks_2(y_scale=[1.0, 1.0], axis=None)), ["f: w", "2 scales but no axis"]),
        (json.dumps(blocks_2(y_scale=[1.0, 1.0], y_zero_point=[0, 0, 0])),
         ["f: w", "2 scales but 3 zero points"]),
        (json.dumps(blocks_2(y_scale=SCALE.tolist(), block_size=None)), ["f: w", "block_size"]),
        (json.dumps(blocks_2(output_dtype="int5", y_scale=1.0)), ["f: w", "int5"]),
        (json.dumps(blocks_2(output_dtype="float8e4m3fn", y_scale=1.0)), ["f: w", "float8e4m3fn"]),
        (json.dumps(blocks_2(per_block_int_scale=[[1, 2]], per_channel_float_scale=[[1.0]] * 3)),
         ["f: w", "block scales [1, 2] and channel scales [3, 1]"]),
        (json.dumps(blocks_2("2.1.0", y_scale={"x": FACTORS.tolist(), "x_scale": [1.0, 2.0],
                                               "axis": 0})), ["f: w", "2 values for 3"]),
        (json.dumps(blocks_2("2.1.0", y_scale={"x_scale": 1.0})), ["f: w", "y_scale.x is missing"]),
    ],
)  # fmt: skip
def test_bad_files_are_refused_in_one_line(text: str, words: list[str]) -> None:
    with pytest.raises(BadEncodings) as caught:
        parse_encodings(text, "f")
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.where.startswith("f")
    assert caught.value.remedy
    for word in words:
        assert word in message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadEncodings, match="cannot be read"):
        read_encodings(tmp_path / "absent.encodings")
    binary = tmp_path / "model.encodings"
    binary.write_bytes(b"\x80\x81\xff")
    with pytest.raises(BadEncodings, match="not UTF-8"):
        read_encodings(binary)


@pytest.mark.parametrize("version", ["0.6.1", "1.0.0", "2.0.0"])
def test_grids_of_weights_are_kept_where_they_are_wanted(version: str, tmp_path: Path) -> None:
    text = (FIXTURES / "w4a16.encodings").read_text()
    if version == "2.0.0":
        text = (FIXTURES / "w4a16-2.0.0.encodings").read_text()
    elif version == "0.6.1":
        text = gzip.decompress((FIXTURES / "w4a16-0.6.1.encodings.gz").read_bytes()).decode()
    every = parse_encodings(text, "f")
    (tmp_path / "some.encodings").write_text(text)
    some = read_encodings(tmp_path / "some.encodings", of={"onnx::MatMul_2090", "none"})
    assert some.listed == every.listed == tuple(every)
    assert set(every) - set(some) == {
        name for name, one in every.items() if one.scale.size > 1 and name != "onnx::MatMul_2090"
    }
    assert len(set(every) - set(some)) > 30
    for name, encoding in some.items():
        assert encoding.same_grid(every[name]), name


def test_a_bad_grid_is_refused_by_those_too_who_do_not_want_it() -> None:
    with pytest.raises(BadEncodings, match="a scale is above 0"):
        parse_encodings(json.dumps(blocks_1_0(scale=[0.0] * 6)), "f", of=())


def test_block_scales_of_a_large_model_do_not_pile_up() -> None:
    """A part of a model needs the grids of its own weights, and a file has those of all."""
    channels, blocks = 64, 512
    entry = {"enc_type": "LPBQ", "dtype": "INT", "bw": 8, "compressed_bw": 4, "is_sym": True,
             "block_size": 64, "offset": [-128] * channels, "scale": [0.01] * channels,
             "per_block_int_scale": [1 + at % 15 for at in range(channels * blocks)]}  # fmt: skip
    entries = [entry | {"name": f"w{at}"} for at in range(24)]
    text = json.dumps({"version": "1.0.0", "activation_encodings": [], "param_encodings": entries})
    peaks = {}
    for name, of in (("all", None), ("one", {"w7"})):
        tracemalloc.start()
        found = parse_encodings(text, "f", of=of)
        peaks[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(found.listed) == 24
    # A byte a block for what is read and not kept; 16 and more for what is.
    assert peaks["one"] < 24 * channels * blocks * 4
    assert peaks["all"] > 4 * peaks["one"]


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_truncated_file_is_never_a_traceback(cut: int) -> None:
    text = (FIXTURES / "w4a16-2.0.0.encodings").read_text()[:4000]
    with pytest.raises(BadEncodings, match="complete JSON"):
        parse_encodings(text[: cut * 100], "cut.encodings")


def test_a_weight_with_another_number_of_channels_is_refused() -> None:
    encoding = w4a16("1.0.0")["onnx::MatMul_2090"]
    with pytest.raises(BadEncodings, match="2048 scales for a tensor with 192 output channels"):
        quantize(np.zeros((192, 2048), np.float32), encoding, channel_axis=0)
    with pytest.raises(BadEncodings, match="has 2048 channels, but the tensor has at least 2100"):
        encoding.rows(2000, 2100)
    blocks = parse_encodings(json.dumps(blocks_1_0()), "f")["w"]
    with pytest.raises(BadEncodings, match="do not fit a tensor with 5 input channels"):
        blocks.blocked(5)
    with pytest.raises(BadEncodings, match="2 blocks of 2 do not cover 6 input channels"):
        quantize(np.zeros((3, 6), np.float32), blocks.blocked(4))
