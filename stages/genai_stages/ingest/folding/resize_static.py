"""Give a static source smaller sizes, where its own would take gigabytes to compute with.

The vendor's script exports at odd sizes (AR 2073, CL 4173) so that they can be told from all other
numbers, in shapes and in constants. That is used here: dimensions of inputs, and integers in
constants and attributes, that equal AR, CL or their difference become smaller ones, and tables over
tokens or keys are cut to their beginning. Whether that was right is not left to luck: a graph that
then means something else fails the checks behind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

TOKENS, TOTAL = 31, 83
"""AR and CL after resizing: primes that no model has as a width."""
LARGE = 1 << 18
"""Scores of one head above which a static source is resized."""
_SMALL_WEIGHT = 1 << 16
_ATTRIBUTES = {"split", "starts", "ends", "shape", "value_ints"}


def resized_sizes(
    model: onnx.ModelProto, native: tuple[int, int], *, large: int = LARGE
) -> dict[int, int] | None:
    """Old size -> new size, None where the source keeps its sizes.

    Args:
        model: The source without its weights.
        native: AR and CL.
        large: Scores of a head above which it is resized.
    """
    tokens, total = native
    if tokens * total <= large or not total > tokens > TOKENS:
        return None
    sizes = {tokens: TOKENS, total: TOTAL, total - tokens: TOTAL - TOKENS}
    if len(sizes) < 3:
        return None
    for tensor in model.graph.initializer:
        is_weight = tensor.external_data or np.prod(tensor.dims, dtype=np.int64) > _SMALL_WEIGHT
        if is_weight and sizes.keys() & set(tensor.dims):
            return None
    return sizes


def resize(model: onnx.ModelProto, sizes: Mapping[int, int]) -> None:
    """Change the sizes in place."""
    graph = model.graph
    for value in [*graph.input, *graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value in sizes:
                dim.dim_value = sizes[dim.dim_value]
    del graph.value_info[:]
    for tensor in graph.initializer:
        _resize_tensor(tensor, sizes)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _resize_tensor(attribute.t, sizes)
            elif attribute.name in _ATTRIBUTES:
                attribute.ints[:] = _resized(attribute.ints, sizes)


def _resized(values: Iterable[int], sizes: Mapping[int, int]) -> list[int]:
    return [sizes.get(value, -sizes[-value] if -value in sizes else value) for value in values]


def _resize_tensor(tensor: onnx.TensorProto, sizes: Mapping[int, int]) -> None:
    """Cut axes of an old size to the new one; integers that are few count as sizes themselves."""
    is_index = tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    if tensor.external_data or not (is_index or sizes.keys() & set(tensor.dims)):
        return
    array = numpy_helper.to_array(tensor)
    for axis, size in enumerate(array.shape):
        if size in sizes:
            array = np.take(array, np.arange(sizes[size]), axis=axis)
    if is_index and array.size <= 8 and array.ndim <= 1:
        flat = _resized((int(value) for value in array.reshape(-1)), sizes)
        array = np.array(flat, array.dtype).reshape(array.shape)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
