"""Integers of less than 8 bits, several in a byte, the first in the lowest bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_BLOCK = 1 << 22
"""Bytes that are unpacked at once."""


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` integers take; the last may be filled in part."""
    return -(-count * bits // 8)


def unpack_bits(
    data: npt.NDArray[np.uint8], bits: int, count: int, *, signed: bool = False
) -> npt.NDArray[Any]:
    """Unpack integers.

    Args:
        data: Bytes, flat; the last may be filled in part.
        bits: Of an integer: 1, 2, 4 or 8.
        count: How many integers there are.
        signed: Whether the highest of the bits is a sign.

    Returns:
        Flat uint8 or int8.
    """
    result = np.empty(count, np.uint8)
    each = 8 // bits
    shifts = np.arange(each, dtype=np.uint8) * np.uint8(bits)
    for start in range(0, len(data), _BLOCK):
        part = np.asarray(data[start : start + _BLOCK])
        values = ((part[:, None] >> shifts) & np.uint8((1 << bits) - 1)).reshape(-1)
        rest = result[start * each : (start + len(part)) * each]
        rest[:] = values[: len(rest)]
    if not signed:
        return result
    sign = np.uint8(1 << (bits - 1))
    return ((result ^ sign) - sign).view(np.int8)


def pack_bits(values: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Pack flat integers, of which the lowest bits count; the last byte is filled with zeros."""
    each = 8 // bits
    filled = np.pad(values & np.uint8((1 << bits) - 1), (0, -len(values) % each))
    packed = np.zeros(len(filled) // each, np.uint8)
    for index in range(each):
        packed |= filled[index::each] << np.uint8(index * bits)
    return packed
