"""Quantized weights on disk: the right bits, and never a whole tensor in memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from genai_core.errors import BadModel
from genai_stages.aimet.model import Encoding, per_tensor
from genai_stages.graph.core_graph import mapped
from genai_stages.graph.tensor_file import TensorFile


def external(folder: Path, array: np.ndarray) -> ir.ExternalTensor:
    (folder / "source.data").write_bytes(array.tobytes())
    return ir.ExternalTensor("source.data", 0, array.nbytes, ir.DataType.FLOAT, name="w",
                             shape=ir.Shape(array.shape), base_dir=str(folder))  # fmt: skip


def per_channel(array: np.ndarray, bits: int) -> Encoding:
    scale = (np.abs(array).max(axis=1) / (2 ** (bits - 1) - 1)).astype(np.float32)
    offset = np.full(len(scale), -(2.0 ** (bits - 1)))
    return Encoding("w", bits, symmetric=True, scale=scale.astype(np.float64), offset=offset)


@pytest.mark.parametrize("shape", [(7, 5), (1, 3), (64, 2)])
@pytest.mark.parametrize("bits", [4, 8])
def test_onnx_reads_back_what_the_formula_says(
    tmp_path: Path, shape: tuple[int, int], bits: int
) -> None:
    array = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    encoding = per_channel(array, bits)
    with TensorFile(tmp_path / "w.data") as data:
        data.add("first", np.arange(3, dtype=np.int8))
        value = data.add_quantized("w", external(tmp_path, array), encoding, channel_axis=0)
    model = ir.Model(ir.Graph([], [], nodes=[], initializers=[value]), ir_version=10)
    (tmp_path / "w.onnx").write_bytes(ir.to_proto(model).SerializeToString())
    (stored,) = onnx.load(str(tmp_path / "w.onnx")).graph.initializer  # noqa: TID251 - tiny
    scale = encoding.scale.astype(np.float32)[:, None]
    top = 2 ** (bits - 1)
    wanted = np.clip(np.rint(array / scale), -top, top - 1)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(stored).astype(int), wanted)
    assert isinstance(value.const_value, ir.ExternalTensor)
    assert (value.const_value.offset or 0) % 64 == 0


@pytest.mark.parametrize("bits", [4, 8])
def test_memory_does_not_grow_with_the_weight(tmp_path: Path, bits: int) -> None:
    array = np.ones((4096, 4096), np.float32)
    weight, encoding = external(tmp_path, array), per_channel(array, bits)
    size = array.nbytes
    del array
    with TensorFile(tmp_path / "w.data") as data:
        tracemalloc.start()
        data.add_quantized("w", weight, encoding, channel_axis=0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert size == 64 << 20
    assert peak < 24 << 20
    assert (tmp_path / "w.data").stat().st_size == size * bits // 32


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    array = np.ones((4, 4), np.float32)
    array[3, 1] = np.nan
    grid = per_tensor("w", -1, 1, bits=8, symmetric=True)
    with (
        TensorFile(tmp_path / "w.data") as data,
        pytest.raises(BadModel, match="layer: the weight holds a value that is not finite"),
    ):
        data.add_quantized("w", external(tmp_path, array), grid, channel_axis=0, where="layer")


def test_weights_are_read_through_the_links_of_a_store(tmp_path: Path) -> None:
    """A task's inputs are hard links to blobs, which onnx-ir itself refuses to read."""
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    (tmp_path / "blob").write_bytes(b"\0" * 64 + array.tobytes())
    (tmp_path / "source.data").hardlink_to(tmp_path / "blob")
    tensor = ir.ExternalTensor("source.data", 64, array.nbytes, ir.DataType.FLOAT, name="w",
                               shape=ir.Shape((3, 4)), base_dir=str(tmp_path))  # fmt: skip
    np.testing.assert_array_equal(mapped(tensor), array)
    np.testing.assert_array_equal(mapped(ir.Tensor(array, name="w")), array)
