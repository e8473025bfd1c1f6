"""Integer weights against the grids that they are said to lie on, and against the kernels."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from genai_core.errors import BadEncodings
from genai_core.facts import AttentionFacts, ModelFacts, TensorSource
from genai_stages.aimet.model import Encoding, per_tensor
from genai_stages.backends.cpu.activations import grid_of_encoding, grid_of_measured, grid_of_range
from genai_stages.backends.cpu.weights import (
    Int4Rows,
    int4_block,
    int4_rows,
    int8_rows,
    pack_nibbles,
)
from genai_stages.graph.linear_sites import SourceEncodings


def weight(rows: int = 6, inputs: int = 70, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, inputs)).astype(np.float32)


def channel_encoding(
    values: NDArray[np.float32], bits: int, *, symmetric: bool = True, block: int | None = None
) -> Encoding:
    """Min-max scales per channel or per block, made here."""
    rows, inputs = values.shape
    size = block or inputs
    blocks = values.reshape(rows, inputs // size, size)
    if symmetric:
        scale = np.abs(blocks).max(axis=2) / (2 ** (bits - 1) - 1)
        offset = np.full(scale.shape, -(2.0 ** (bits - 1)))
    else:
        low, high = np.minimum(blocks.min(axis=2), 0), np.maximum(blocks.max(axis=2), 0)
        scale = (high - low) / (2**bits - 1)
        offset = np.rint(low / scale)
    if block is None:
        scale, offset = scale[:, 0], offset[:, 0]
    return Encoding("w", bits, symmetric, scale.astype(np.float64), offset, block_size=block)


def simulated(values: NDArray[np.float32], encoding: Encoding) -> NDArray[np.floating]:
    """What the encoding makes of the weight: clamp(round(w / s) - o) brought back."""
    scale, offset = encoding.scale.astype(np.float32), encoding.offset
    if encoding.block_size:
        scale = np.repeat(scale, encoding.block_size, axis=1)
        offset = np.repeat(offset, encoding.block_size, axis=1)
    elif scale.ndim:
        scale, offset = scale[:, None], offset[:, None]
    grid = np.clip(np.rint(values / scale) - offset, 0, 2**encoding.bits - 1)
    real: NDArray[np.floating] = scale * (grid + offset)
    return real


def unpacked(rows: Int4Rows) -> NDArray[np.float32]:
    low, high = rows.packed & 15, rows.packed >> 4
    integers = np.stack([low, high], axis=-1).reshape(*low.shape[:2], -1).astype(np.float32)
    real = (integers - rows.zero_point[..., None]) * rows.scale[..., None]
    return real.reshape(low.shape[0], -1)


@given(st.sampled_from([2, 4, 8]), st.booleans(), st.integers(0, 99))
def test_int8_keeps_any_grid_of_at_most_8_bits(bits: int, symmetric: bool, seed: int) -> None:
    values = weight(seed=seed)
    encoding = channel_encoding(values, bits, symmetric=symmetric)
    found = int8_rows(values, encoding)
    real = (found.values.astype(np.float32) - found.zero_point[:, None]) * found.scale[:, None]
    assert found.exact
    np.testing.assert_allclose(real, simulated(values, encoding), rtol=1e-6, atol=1e-6)


def test_int8_rounds_a_16_bit_or_missing_grid_anew() -> None:
    values = weight()
    for encoding in (None, channel_encoding(values, 16)):
        found = int8_rows(values, encoding)
        assert not found.exact
        error = np.abs(found.values * found.scale[:, None] - values)
        assert (error <= np.abs(values).max(axis=1, keepdims=True) / 127 * 0.51).all()


def test_int8_of_a_block_encoding_starts_from_what_it_stands_for() -> None:
    values = weight(inputs=64)
    encoding = channel_encoding(values, 4, block=32)
    found = int8_rows(values, encoding)
    stands_for = simulated(values, encoding)
    assert not found.exact
    np.testing.assert_allclose(
        found.values * found.scale[:, None], stands_for, atol=np.abs(stands_for).max() / 127 * 0.51
    )


def test_a_channel_of_zeros_stays_zero() -> None:
    values = weight()
    values[2] = 0
    assert not int8_rows(values, None).values[2].any()
    np.testing.assert_array_equal(unpacked(int4_rows(values, None, block_size=32))[2], 0)


@given(
    st.sampled_from([2, 3, 4]),
    st.booleans(),
    st.sampled_from([None, 16, 32, 64]),
    st.sampled_from([16, 32, 128]),
)
def test_int4_keeps_any_grid_of_at_most_4_bits(
    bits: int, symmetric: bool, block: int | None, wanted: int
) -> None:
    values = weight(inputs=128)
    encoding = channel_encoding(values, bits, symmetric=symmetric, block=block)
    size, exact = int4_block(encoding, 128, wanted)
    assert exact
    assert size == (block or wanted)
    found = int4_rows(values, encoding, block_size=size)
    assert found.exact
    np.testing.assert_allclose(unpacked(found), simulated(values, encoding), rtol=1e-6, atol=1e-6)


def test_int4_keeps_blocks_that_the_kernel_does_not_take_in_smaller_ones() -> None:
    values = weight(inputs=96)
    encoding = channel_encoding(values, 4, block=48)
    assert int4_block(encoding, 96, 32) == (16, True)
    found = int4_rows(values, encoding, block_size=16)
    np.testing.assert_allclose(unpacked(found), simulated(values, encoding), rtol=1e-6, atol=1e-6)


def test_int4_rounds_what_does_not_fit_anew() -> None:
    values = weight(inputs=64)
    half_steps = channel_encoding(values, 2)
    half_steps = dataclasses.replace(half_steps, offset=np.full(6, -1.5))
    tiny_blocks = channel_encoding(values, 4, block=8)
    for encoding in (None, channel_encoding(values, 8), half_steps, tiny_blocks):
        assert int4_block(encoding, 64, 32) == (32, False)
    found = int4_rows(values, channel_encoding(values, 8), block_size=32)
    error = np.abs(unpacked(found) - values).reshape(6, 2, 32)
    # The largest value is met exactly; on its other side the grid ends one step earlier.
    assert (error <= np.abs(values).reshape(6, 2, 32).max(axis=2, keepdims=True) / 8 * 1.01).all()
    assert error.mean() < 0.08


@pytest.mark.parametrize("inputs", [64, 70])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_kernel_reads_the_packed_form_as_meant(inputs: int, symmetric: bool) -> None:
    values = weight(rows=5, inputs=inputs)
    rows = int4_rows(values, channel_encoding(values, 4, symmetric=symmetric), block_size=32)
    initializers = [
        numpy_helper.from_array(rows.packed, "b"),
        numpy_helper.from_array(rows.scale.reshape(-1), "s"),
        numpy_helper.from_array(pack_nibbles(rows.zero_point).reshape(-1), "z"),
    ]
    node = helper.make_node(
        "MatMulNBits", ["x", "b", "s", "z"], ["y"], domain="com.microsoft",
        K=inputs, N=5, bits=4, block_size=32,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, inputs])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 5])],
        initializers,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(3).normal(size=(1, inputs)).astype(np.float32)
    np.testing.assert_allclose(
        session.run(None, {"x": x})[0], x @ unpacked(rows)[:, :inputs].T, atol=1e-4
    )


@given(st.floats(-50, 50), st.floats(-50, 50))
def test_activation_grids_cover_their_range_and_hold_zero(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    grid = grid_of_range(low, high)
    assert 0 <= grid.zero_point <= 255
    for edge in (low, high):
        reached = grid.scale * (np.clip(np.rint(edge / grid.scale) + grid.zero_point, 0, 255)
                                - grid.zero_point)  # fmt: skip
        assert abs(reached - edge) <= 1.01 * grid.scale


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_measured_ranges_grow_by_less_than_a_hundredth_and_forget_their_last_bits(
    low: float, high: float
) -> None:
    exact, found = grid_of_range(-low, high), grid_of_measured(-low, high)
    assert exact.scale * (1 - 1e-6) <= found.scale <= exact.scale * 1.01
    assert grid_of_measured(-1.6015625 * (1 - 1e-7), 2.6 * (1 + 1e-7)) == grid_of_measured(
        -1.6015625, 2.6
    )


def test_a_16_bit_activation_keeps_its_range_and_an_8_bit_one_its_grid() -> None:
    wide = grid_of_encoding(per_tensor("x", -2.0, 6.0, bits=16, symmetric=False))
    assert wide.scale == pytest.approx(8 / 255, rel=1e-4)
    assert wide.zero_point == 64
    own = Encoding("x", 8, False, np.float64(0.5) + np.zeros(()), np.zeros(()) - 100)
    assert grid_of_encoding(own) == dataclasses.replace(wide, scale=0.5, zero_point=100)


def facts(**changes: object) -> ModelFacts:
    base = {
        "architecture": "llama", "layers": 1, "hidden_size": 4, "vocab_size": 8, "parameters": 1,
        "rope": {}, "attention": [], "boundaries": ["a"], "groups": {},
    }  # fmt: skip
    return ModelFacts.model_validate({**base, **changes})


def test_rows_of_a_fused_weight_take_their_own_scales() -> None:
    values = weight(rows=6, inputs=8)
    fused = dataclasses.replace(channel_encoding(values, 8), name="qkv")
    lookup = SourceEncodings(
        {"qkv": fused}, facts(provenance={"k": TensorSource(source="qkv", rows=(2, 4))})
    )
    found = lookup.weight("k", inputs=8, outputs=2)
    assert found is not None
    np.testing.assert_array_equal(found.scale, fused.scale[2:4])
    with pytest.raises(BadEncodings, match="2 channels for a weight with 3"):
        lookup.weight("k", inputs=8, outputs=3)


def test_the_flat_context_has_the_encoding_of_its_heads() -> None:
    context = per_tensor("heads", -1, 1, bits=16, symmetric=False)
    attention = AttentionFacts(
        layer=0, num_heads=1, kv_heads=1, head_dim=4,
        roles={"context": "heads", "context_flat": "flat"},
    )  # fmt: skip
    lookup = SourceEncodings(
        {"heads": context},
        facts(attention=[attention], provenance={"ours": TensorSource(source="flat")}),
    )
    assert lookup.activation("ours") is context
    assert lookup.activation("flat") is context
    assert lookup.activation("other") is None


def test_a_per_channel_activation_is_refused() -> None:
    lookup = SourceEncodings({"x": channel_encoding(weight(), 8)}, facts())
    with pytest.raises(BadEncodings, match="one scale for the whole tensor"):
        lookup.activation("x")
