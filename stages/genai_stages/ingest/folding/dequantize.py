"""Weights that a source holds as integers with scales, as the floats that they stand for.

They stay integers on disk: the floats are computed where a weight is used, one weight at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from genai_core.errors import BadModel, UnsupportedOperator
from genai_stages.graph.packed_bits import packed_bytes, unpack_bits
from genai_stages.ingest.folding.folded_graph import StaticNode
from genai_stages.ingest.source.source_model import Array, Constant, is_float

FloatArray = npt.NDArray[np.float32]
_BITS = (2, 4, 8)


@dataclasses.dataclass(frozen=True)
class Grid:
    """Scales and zero points of a weight.

    Attributes:
        scale: One value, one for each index of the axis, or one for each block along it.
        zero: Likewise; None = zero.
        axis: Of the weight.
        block: Elements of a block along the axis, 0 = no blocks.
    """

    scale: Constant
    zero: Constant | None
    axis: int
    block: int

    def floats(self, values: Array) -> FloatArray:
        """(values - zero) * scale, as float32."""
        result = np.asarray(values).astype(np.float32)
        scale = self._spread(self.scale.array().astype(np.float32), result.shape)
        if self.zero is not None:
            if values.dtype.itemsize >= 4:
                # Sums of products: float32 does not hold them before the subtraction.
                whole = values.astype(np.int64) - self._spread(
                    self.zero.array().astype(np.int64), result.shape
                )
                result = whole.astype(np.float32)
            else:
                result -= self._spread(self.zero.array().astype(np.float32), result.shape)
        result *= scale
        return result

    def _spread(self, array: Array, shape: Sequence[int]) -> Array:
        axis = self.axis % max(len(shape), 1)
        if array.size == 1:
            return array.reshape(())
        if self.block:
            wide = np.repeat(array, self.block, axis=axis)
            return wide[(slice(None),) * axis + (slice(shape[axis]),)]
        return array.reshape(tuple(-1 if index == axis else 1 for index in range(len(shape))))

    def check(self, shape: Sequence[int], where: str) -> None:
        """Whether scales and zero points fit a weight of this shape.

        Raises:
            BadModel: They do not.
        """
        axis = self.axis % max(len(shape), 1)
        blocks = -(-shape[axis] // self.block) if self.block else 0
        for one in (self.scale, self.zero):
            if one is None or one.size == 1:
                continue
            blocked = tuple(blocks if index == axis else size for index, size in enumerate(shape))
            if one.shape != (blocked if self.block else (shape[axis],)):
                raise BadModel(
                    f"{one.name} has the shape {list(one.shape)}, which does not fit a weight of "
                    f"shape {list(shape)} along axis {axis}",
                    where=where,
                    remedy="export the model again",
                )


def dequantized(node: StaticNode, constants: Sequence[Constant | None]) -> Constant:
    """What DequantizeLinear makes of a known tensor.

    Raises:
        BadModel: Scales do not fit.
    """
    values, scale, zero = [*constants, None][:3]
    assert values is not None
    assert scale is not None
    grid = Grid(
        scale,
        zero,
        int(node.attributes.get("axis", 1)) if len(values.shape) > 1 else 0,
        int(node.attributes.get("block_size", 0)),
    )
    grid.check(values.shape, node.where())
    (name,) = node.outputs
    load = values.load
    return Constant(
        name, values.shape, np.dtype(np.float32), lambda: grid.floats(load()), origin=name
    )


def matrix_of_bits(node: StaticNode, constants: Mapping[str, Constant], name: str) -> Constant:
    """The weight of a MatMulNBits, [K, N] float32.

    Args:
        node: The node; its weight, scales and zero points are known.
        constants: Known tensors.
        name: Of the result.

    Raises:
        UnsupportedOperator: Bits or an arrangement that have no form here.
        BadModel: Sizes that do not fit.
    """
    packed, scales = constants[node.inputs[1]], constants[node.inputs[2]]
    zeros, groups = (constants[one] if one else None for one in [*node.inputs[3:5], "", ""][:2])
    rows, columns = int(node.attributes["N"]), int(node.attributes["K"])
    block, bits = int(node.attributes["block_size"]), int(node.attributes.get("bits", 4))
    if bits not in _BITS or int(node.attributes.get("weight_prepacked", 0)):
        raise UnsupportedOperator(
            f"its weight has {bits} bits, or is arranged for one kind of device",
            where=node.where(),
            remedy="export the model with weights of 2, 4 or 8 bits that are not prepacked",
        )
    blocks = -(-columns // block)
    needed = rows * blocks * packed_bytes(block, bits)
    if packed.size != needed or scales.size != rows * blocks:
        raise BadModel(
            f"its weight has {packed.size} bytes and {scales.size} scales, not {needed} and "
            f"{rows * blocks}",
            where=node.where(),
            remedy="export the model again",
        )

    def load() -> Array:
        raw = np.ascontiguousarray(packed.load()).reshape(-1).view(np.uint8)
        values = unpack_bits(raw, bits, rows * blocks * block).reshape(rows, -1)[:, :columns]
        grid = scales.array().reshape(rows, blocks)
        points = _points(zeros, rows, blocks, bits)
        index = np.arange(columns) // block
        if groups is not None:
            index = groups.array().reshape(-1).astype(np.int64)
        result = values.astype(np.float32)
        result -= points[:, index] if isinstance(points, np.ndarray) else np.float32(points)
        result *= grid[:, index]
        return result.T

    return Constant(
        name, (columns, rows), np.dtype(np.float32), load, origin=packed.origin or packed.name
    )


def _points(zeros: Constant | None, rows: int, blocks: int, bits: int) -> FloatArray | float:
    """Zero points [rows, blocks]: packed as the weight is, plain, or the middle."""
    if zeros is None:
        return float(1 << (bits - 1))
    array = zeros.load()
    if is_float(array.dtype):
        return array.astype(np.float32).reshape(rows, blocks)
    each = packed_bytes(blocks, bits)
    raw = np.ascontiguousarray(array).reshape(rows, each)
    unpacked = [unpack_bits(row, bits, blocks) for row in raw.view(np.uint8)]
    return np.stack(unpacked).astype(np.float32)


def table_of_bits(node: StaticNode, constants: Mapping[str, Constant], name: str) -> Constant:
    """The table of a GatherBlockQuantized, float32.

    Raises:
        UnsupportedOperator: Bits or an arrangement that have no form here.
    """
    data, scales = constants[node.inputs[0]], constants[node.inputs[2]]
    zero = constants[node.inputs[3]] if len(node.inputs) > 3 and node.inputs[3] else None
    bits = int(node.attributes.get("bits", 4))
    axis = int(node.attributes.get("quantize_axis", 1)) % len(data.shape)
    shape, load = data.shape, data.load
    if data.dtype == np.uint8:
        # Packed along the last axis.
        if bits not in _BITS or axis != len(shape) - 1:
            raise UnsupportedOperator(
                f"its table has {bits} bits along axis {axis}",
                where=node.where(),
                remedy="export the model with a float embedding",
            )
        shape = (*shape[:-1], shape[-1] * 8 // bits)
        load = _unpacked(data, bits, shape)
        zero = _middle(bits) if zero is None else _packed_points(zero, bits, scales.shape)
    grid = Grid(scales, zero, axis, int(node.attributes.get("block_size", 128)))
    grid.check(shape, node.where())
    return Constant(
        name, shape, np.dtype(np.float32), lambda: grid.floats(load()),
        origin=data.origin or data.name,
    )  # fmt: skip


def _unpacked(data: Constant, bits: int, shape: tuple[int, ...]) -> Any:
    count = int(np.prod(shape, dtype=np.int64))
    return lambda: unpack_bits(np.ascontiguousarray(data.load()).reshape(-1), bits, count).reshape(
        shape
    )


def _middle(bits: int) -> Constant:
    return Constant.of("middle", np.array(1 << (bits - 1), np.uint8))


def _packed_points(zero: Constant, bits: int, shape: tuple[int, ...]) -> Constant:
    rows = int(np.prod(shape[:-1], dtype=np.int64))
    raw = np.ascontiguousarray(zero.load()).reshape(rows, -1)
    points = np.stack([unpack_bits(row, bits, shape[-1]) for row in raw])
    return Constant.of(zero.name, points.reshape(shape))
