"""Quantize and dequantize arrays by an encoding.

Rounding is half to even, as in ONNX's QuantizeLinear and AIMET; values beyond the grid saturate.
Arrays are float32 and so is the division, as in the kernels that run the result.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import numpy.typing as npt

from genai_core.errors import BadEncodings
from genai_stages.aimet.model import Encoding

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.generic]

_REMEDY = "export model and encodings from the same simulation"


def expand(
    encoding: Encoding, shape: tuple[int, ...], *, channel_axis: int, where: str = ""
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Scale and offset of every value, broadcastable to `shape`.

    Args:
        encoding: An integer encoding.
        shape: Of the tensor.
        channel_axis: Axis of `shape` that counts output channels.
        where: What a message names; the entry's own name where empty.

    Raises:
        BadEncodings: Another number of channels or input channels than the tensor has.
    """
    where = where or encoding.name
    if encoding.scale.ndim == 0:
        return encoding.scale, encoding.offset
    axis = channel_axis % len(shape)
    inner = (1 if axis == 0 else 0) if len(shape) != 2 else 1 - axis
    if len(shape) > 1:
        encoding = encoding.blocked(shape[inner])
    if encoding.scale.shape[0] != shape[axis]:
        raise BadEncodings(
            f"{encoding.scale.shape[0]} scales for a tensor with {shape[axis]} output channels "
            f"(shape {list(shape)})",
            where=where,
            remedy=_REMEDY,
        )
    if encoding.scale.ndim == 1:
        view = [1] * len(shape)
        view[axis] = shape[axis]
        return encoding.scale.reshape(view), encoding.offset.reshape(view)
    if len(shape) < 2:
        raise BadEncodings("a per-block encoding for a vector", where=where, remedy=_REMEDY)
    block, blocks = encoding.block_size or 1, encoding.scale.shape[1]
    if block * blocks != shape[inner]:
        raise BadEncodings(
            f"{blocks} blocks of {block} do not cover {shape[inner]} input channels",
            where=where,
            remedy=_REMEDY,
        )
    view = [1] * len(shape)
    view[axis], view[inner] = shape[axis], shape[inner]
    arrays = []
    for table in (encoding.scale, encoding.offset):
        spread = np.repeat(table, block, axis=1)
        arrays.append((spread if axis < inner else spread.T).reshape(view))
    return arrays[0], arrays[1]


def quantize(
    values: FloatArray, encoding: Encoding, *, channel_axis: int = 0, where: str = ""
) -> IntArray:
    """Integers on the grid: signed types where the encoding is `signed`, else unsigned.

    4-bit grids come as ml_dtypes.int4/uint4, 2-bit ones as int8/uint8; 8, 16 and 32 as numpy's.
    """
    scale, offset = expand(encoding, values.shape, channel_axis=channel_axis, where=where)
    return on_grid(values, scale, offset, encoding=encoding)


def on_grid(
    values: FloatArray,
    scale: npt.NDArray[np.float64],
    offset: npt.NDArray[np.float64],
    *,
    encoding: Encoding,
    signed: bool | None = None,
) -> IntArray:
    """The same with scale and offset expanded already, for a tensor that is taken in pieces.

    `signed` chooses the grid's integers where they are not to follow from the encoding.
    """
    signed = encoding.signed if signed is None else signed
    top = 2.0**encoding.bits - 1
    # Beyond 24 bits float32 cannot hold the integers themselves.
    wide = np.float64 if encoding.bits > 16 else np.float32
    grid = values.astype(wide, copy=False) / scale.astype(wide)
    if np.any(offset != np.rint(offset)):
        grid -= offset.astype(wide)
        np.rint(grid, out=grid)
    else:
        np.rint(grid, out=grid)
        grid -= offset.astype(wide)
    np.clip(grid, 0.0, top, out=grid)
    if signed:
        grid -= wide(2.0 ** (encoding.bits - 1))
    result: IntArray = grid.astype(storage_dtype(encoding, signed=signed))
    return result


def dequantize(
    grid: IntArray, encoding: Encoding, *, channel_axis: int = 0, where: str = ""
) -> FloatArray:
    """Real values, float32, of what `quantize` returns."""
    scale, offset = expand(encoding, grid.shape, channel_axis=channel_axis, where=where)
    shift = 2.0 ** (encoding.bits - 1) if encoding.signed else 0.0
    real = scale * (grid.astype(np.float64) + shift + offset)
    return np.asarray(real, dtype=np.float32)


def fake_quantize(
    values: FloatArray, encoding: Encoding, *, channel_axis: int = 0, where: str = ""
) -> FloatArray:
    """The values as they come back from the grid; a float encoding leaves them as they are."""
    if encoding.dtype == "float":
        return values.astype(np.float16).astype(np.float32) if encoding.bits == 16 else values
    return dequantize(
        quantize(values, encoding, channel_axis=channel_axis, where=where),
        encoding,
        channel_axis=channel_axis,
        where=where,
    )


def storage_dtype(encoding: Encoding, *, signed: bool | None = None) -> np.dtype[np.generic]:
    """The numpy type that holds the grid; `signed` as in `on_grid`."""
    signed = encoding.signed if signed is None else signed
    name = "int" if signed else "uint"
    if encoding.bits == 4:
        four: np.dtype[np.generic] = np.dtype(ml_dtypes.int4 if signed else ml_dtypes.uint4)
        return four
    for bits in (8, 16, 32):
        if encoding.bits <= bits:
            return np.dtype(f"{name}{bits}")
    raise BadEncodings(
        f"{encoding.bits} bits are not supported",
        where=encoding.name,
        remedy="quantize at 2, 4, 8, 16 or 32 bits",
    )


def outwards(value: float) -> float:
    """The end of a measured range, moved away from zero to 8 significant bits.

    Two machines measure ranges that differ in their last bits; this way they agree on the grid.
    """
    mantissa, exponent = math.frexp(value)
    return math.ldexp(math.copysign(math.ceil(abs(mantissa) * 256), mantissa) / 256, exponent)
