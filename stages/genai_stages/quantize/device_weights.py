"""Grids of weights that a device does not read, as ones that it does: symmetric, per channel.

LPBQ's block scales are small integers times a channel's scale. So its 4-bit values times the
block's integer (1 .. 16) are 8-bit values at the channel's scale: the same numbers, exactly, which
is also how the hardware expands them. So are values of up to 7 bits less their zero point, and the
2-bit grid -3, -1, 1, 3 at half its scale. Free block scales have no such form: those weights are
rounded once more, to the finest 8-bit grid that holds the channel. So are 8 bits a channel with
zero points, which a device has for whole tensors only, and 16-bit projections: the table of a tied
lm_head has 16 bits as an embedding, and no operator multiplies with such a matrix.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from genai_stages.aimet.model import Encoding
from genai_stages.graph.core_graph import mapped

BITS = 8
_ROWS = 1 << 20


def for_device(
    encoding: Encoding, weight: ir.TensorProtocol, channel_axis: int
) -> tuple[Encoding, str] | None:
    """Another grid for a projection's weight, and how it came about; None = the device reads it.

    Args:
        encoding: The file's.
        weight: float32.
        channel_axis: The axis that counts output channels.
    """
    if encoding.block_size is not None:
        return _without_blocks(encoding, weight, channel_axis)
    channels = weight.shape.numpy()[channel_axis]
    if encoding.bits > BITS:
        largest = _largest(mapped(weight), channel_axis)
        return _per_channel(encoding, _scale(largest)), f"rounded to {BITS} bits a channel"
    if np.any(encoding.offset != np.rint(encoding.offset)):
        scale = np.broadcast_to(encoding.scale / 2, (channels,))
        return _per_channel(encoding, scale), f"{encoding.bits} bits as {BITS}, the same values"
    if encoding.signed or (encoding.per_tensor and encoding.bits > 4):
        return None
    how = f"{encoding.bits} bits with zero points as {BITS} without"
    # Zero a step below the middle is AIMET's strict symmetry: the step that is left over is unused.
    if encoding.bits < BITS or np.all(np.abs(encoding.offset + 2.0 ** (BITS - 1) - 0.5) < 1):
        scale = np.broadcast_to(encoding.scale, (channels,))
        return _per_channel(encoding, scale), f"{how}, the same values"
    return _per_channel(encoding, _scale(_reach(encoding, weight, channel_axis))), f"{how}, rounded"


def _without_blocks(
    encoding: Encoding, weight: ir.TensorProtocol, channel_axis: int
) -> tuple[Encoding, str]:
    half = 2.0 ** (BITS - 1)
    factors, scale = encoding.block_int_scale, encoding.channel_scale
    if factors is not None and scale is not None:
        reach = int(factors.max()) * 2 ** (encoding.bits - 1)
        if reach <= half:
            return _per_channel(encoding, scale), f"LPBQ as {BITS} bits a channel, the same values"
    how = f"blocks of {encoding.block_size} rounded to {BITS} bits a channel"
    return _per_channel(encoding, _scale(_reach(encoding, weight, channel_axis))), how


def _reach(
    encoding: Encoding, weight: ir.TensorProtocol, channel_axis: int
) -> npt.NDArray[np.float64]:
    """The largest absolute value of each channel on its grid.

    One lies at most half a step beyond the weight's own, and never beyond its grid.
    """
    ends = np.maximum(np.abs(encoding.low), np.abs(encoding.high))
    ends, steps = (table.reshape(len(table), -1).max(axis=1) for table in (ends, encoding.scale))
    reach: npt.NDArray[np.float64]
    reach = np.minimum(ends, _largest(mapped(weight), channel_axis) + steps / 2)
    return reach


def _scale(largest: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    scale = np.maximum(largest / (2.0 ** (BITS - 1) - 1), np.finfo(np.float32).eps)
    return scale.astype(np.float32).astype(np.float64)


def _per_channel(encoding: Encoding, scale: npt.NDArray[np.float64]) -> Encoding:
    offset = np.full(scale.shape, -(2.0 ** (BITS - 1)))
    return Encoding(encoding.name, BITS, symmetric=True, scale=scale, offset=offset)


def _largest(weight: npt.NDArray[np.generic], axis: int) -> npt.NDArray[np.float64]:
    """The largest absolute value of each channel, some channels at a time."""
    rows = np.moveaxis(weight, axis, 0)
    step = max(1, _ROWS // max(1, rows[0].size))
    others = tuple(range(1, rows.ndim))
    parts = [np.abs(rows[at : at + step]).max(axis=others) for at in range(0, len(rows), step)]
    return np.concatenate(parts).astype(np.float64)
