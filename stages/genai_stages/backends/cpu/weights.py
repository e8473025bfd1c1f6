"""Weights of linears as integers: int8 per channel, or int4 in blocks.

Where the source's encoding fits the form, its integers and scales are kept exactly: a 4-bit grid
lies inside int8, and a per-channel scale is repeated for every block. Anything else is rounded
anew from the float weights (of a block encoding put into int8: from the values that it stands for).

All functions take [outputs, inputs] float32 and are called with a few rows at a time, so that a
weight of gigabytes never lies in memory as float.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genai_stages.aimet.arithmetic import fake_quantize
from genai_stages.aimet.model import Encoding

Floats = NDArray[np.float32]

TINY = float(np.finfo(np.float32).eps)
"""Scale of a channel that is all zeros, as AIMET writes it."""

SMALLEST_BLOCK = 16
"""MatMulNBits takes blocks of 16, 32, 64, 128, 256."""
LARGEST_BLOCK = 256


@dataclass(frozen=True)
class Int8Rows:
    """Some output channels: values int8 [rows, inputs], scale and zero_point [rows]."""

    values: NDArray[np.int8]
    scale: Floats
    zero_point: NDArray[np.int8]
    exact: bool


@dataclass(frozen=True)
class Int4Rows:
    """Some output channels as MatMulNBits reads them.

    packed uint8 [rows, blocks, block_size / 2], the even input in the low nibble; scale float32
    [rows, blocks]; zero_point uint8 [rows, blocks], 0 .. 15.
    """

    packed: NDArray[np.uint8]
    scale: Floats
    zero_point: NDArray[np.uint8]
    exact: bool


def fits_int8(encoding: Encoding | None) -> bool:
    """Whether the encoding's integers can be kept in int8 with one scale a channel."""
    return (
        encoding is not None
        and encoding.bits <= 8
        and encoding.scale.ndim <= 1
        and bool(np.all(encoding.offset == np.rint(encoding.offset)))
    )


def int8_rows(weight: Floats, encoding: Encoding | None) -> Int8Rows:
    """Quantize some output channels; `encoding` is cut to these rows."""
    rows = weight.shape[0]
    if encoding is not None and fits_int8(encoding):
        scale = np.broadcast_to(encoding.scale, (rows,)).astype(np.float32)
        offset = np.broadcast_to(encoding.offset, (rows,))
        grid = np.rint(weight / scale[:, None]) - offset[:, None].astype(np.float32)
        np.clip(grid, 0.0, 2.0**encoding.bits - 1, out=grid)
        # q - 2^(bits-1) is the signed grid; its zero point is 0 for a symmetric encoding.
        half = 2.0 ** (encoding.bits - 1)
        return Int8Rows(
            values=(grid - half).astype(np.int8),
            scale=scale,
            zero_point=(-offset - half).astype(np.int8),
            exact=True,
        )
    values = weight if encoding is None else _block_values(weight, encoding)
    scale = np.maximum(np.abs(values).max(axis=1, initial=0.0) / 127.0, TINY).astype(np.float32)
    grid = np.clip(np.rint(values / scale[:, None]), -127, 127)
    return Int8Rows(
        values=grid.astype(np.int8),
        scale=scale,
        zero_point=np.zeros(rows, dtype=np.int8),
        exact=False,
    )


def int4_block(encoding: Encoding | None, inputs: int, wanted: int) -> tuple[int, bool]:
    """Block size for a weight, and whether the encoding's integers are kept."""
    if (
        encoding is None
        or encoding.bits > 4
        or not np.all(encoding.offset == np.rint(encoding.offset))
    ):
        return wanted, False
    if encoding.scale.ndim < 2 or encoding.block_size is None:
        return wanted, True
    block = encoding.block_size
    largest = block & -block
    if largest < SMALLEST_BLOCK and block < inputs:
        return wanted, False
    return (wanted if block >= inputs else min(largest, LARGEST_BLOCK)), True


def int4_rows(weight: Floats, encoding: Encoding | None, *, block_size: int) -> Int4Rows:
    """Quantize some output channels; `block_size` as `int4_block` chose it for the whole weight."""
    rows, inputs = weight.shape
    blocks = -(-inputs // block_size)
    padded = np.zeros((rows, blocks * block_size), dtype=np.float32)
    padded[:, :inputs] = weight
    shaped = padded.reshape(rows, blocks, block_size)
    _, exact = int4_block(encoding, inputs, block_size)
    if encoding is not None and exact:
        table = encoding.scale.astype(np.float32)
        scale = _per_block(table, rows, blocks, encoding.block_size, block_size)
        offset = _per_block(encoding.offset, rows, blocks, encoding.block_size, block_size)
        # A grid of fewer than 4 bits keeps its integers; its signed middle is moved to 8.
        shift = 8.0 - 2.0 ** (encoding.bits - 1)
        grid = np.rint(shaped / scale[..., None]) - offset[..., None].astype(np.float32)
        grid = np.clip(grid, 0.0, 2.0**encoding.bits - 1) + shift
        zero = -offset + shift
    else:
        # The value of largest magnitude becomes -8 or 8's neighbour: all 16 levels are used.
        extreme = np.take_along_axis(shaped, np.abs(shaped).argmax(axis=2, keepdims=True), axis=2)[
            ..., 0
        ]
        scale = (-extreme / 8.0).astype(np.float32)
        scale[np.abs(scale) < TINY / 8] = TINY
        grid = np.clip(np.rint(shaped / scale[..., None]) + 8.0, 0.0, 15.0)
        zero = np.full((rows, blocks), 8.0)
    integers = grid.astype(np.uint8)
    return Int4Rows(
        packed=integers[..., 0::2] | (integers[..., 1::2] << 4),
        scale=np.ascontiguousarray(scale, dtype=np.float32),
        zero_point=zero.astype(np.uint8),
        exact=exact,
    )


def pack_nibbles(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[rows, blocks] of 0 .. 15 -> [rows, ceil(blocks / 2)], the even block in the low nibble."""
    rows, blocks = values.shape
    even = np.zeros((rows, blocks + blocks % 2), dtype=np.uint8)
    even[:, :blocks] = values
    packed: NDArray[np.uint8] = even[:, 0::2] | (even[:, 1::2] << 4)
    return packed


def _per_block(
    table: NDArray[np.floating], rows: int, blocks: int, own: int | None, block_size: int
) -> NDArray[np.floating]:
    """Spread a scalar, [rows] or [rows, own blocks] table over [rows, blocks]."""
    if table.ndim < 2:
        return np.broadcast_to(np.reshape(table, (-1, 1)), (rows, blocks))
    assert own is not None
    index = np.minimum(np.arange(blocks) * block_size // own, table.shape[1] - 1)
    spread: NDArray[np.floating] = table[:, index]
    return spread


def _block_values(weight: Floats, encoding: Encoding) -> Floats:
    """What a 16-bit, block or half-step encoding makes of the weight."""
    return fake_quantize(weight, encoding, channel_axis=0)
