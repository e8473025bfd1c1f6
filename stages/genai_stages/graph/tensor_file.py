"""The data file of a graph: initializers are appended one at a time, in pieces.

A weight is quantized while it is copied, some rows at a time from the mapped source, so that no
pass holds more than a few megabytes of any tensor. 4-bit values are packed two in a byte, the
first in the low half, as ONNX stores them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from genai_core.errors import BadModel
from genai_stages.aimet.arithmetic import expand, on_grid, storage_dtype
from genai_stages.aimet.model import Encoding
from genai_stages.graph.core_graph import mapped
from genai_stages.graph.packed_bits import pack_bits

if TYPE_CHECKING:
    from types import TracebackType

_ALIGNMENT = 64
_BYTE = 8
_PIECE = 1 << 20
"""Values quantized at a time: 4 MB of floats, which stay in the cache between the steps."""


class TensorFile:
    """An open data file.

    Args:
        path: The file; it must not exist. Tensors refer to it by its name alone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("xb")

    def __enter__(self) -> Self:
        """Return the file itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self._file.close()

    def add(self, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
        """Append an array as it is."""
        return self._append(name, ir.DataType.from_numpy(array.dtype), array.shape, [array])

    def add_quantized(
        self,
        name: str,
        weight: ir.TensorProtocol,
        encoding: Encoding,
        *,
        channel_axis: int,
        signed: bool | None = None,
        through: Encoding | None = None,
        where: str = "",
    ) -> ir.Value:
        """Append a float weight on its grid.

        Args:
            name: Of the new initializer.
            weight: float32; mapped from disk, it is read in pieces.
            encoding: Integer encoding.
            channel_axis: The axis that counts output channels.
            signed: Whether the integers are; None = as the encoding prefers.
            through: A grid that the weight is put on before.
            where: What a message names.

        Raises:
            BadEncodings: The encoding does not fit the weight's shape.
            BadModel: The weight holds a value that is not finite.
        """
        values = np.atleast_1d(mapped(weight))
        shape = tuple(weight.shape.numpy())
        grids = [one if one is None else _Grid(one, values.shape, channel_axis, where)
                 for one in (through, encoding)]  # fmt: skip
        dtype = storage_dtype(encoding, signed=signed)
        pieces = _quantized(values, grids[0], grids[1], signed=signed, where=where or name)
        return self._append(name, ir.DataType.from_numpy(dtype), shape, pieces)

    def add_rounded(
        self,
        name: str,
        weight: ir.TensorProtocol,
        encoding: Encoding,
        *,
        channel_axis: int,
        where: str = "",
    ) -> ir.Value:
        """Append a float weight as float32, each value as it comes back from a grid.

        Raises:
            BadEncodings: The encoding does not fit the weight's shape.
            BadModel: The weight holds a value that is not finite.
        """
        values = np.atleast_1d(mapped(weight))
        grid = _Grid(encoding, values.shape, channel_axis, where)
        pieces = (grid.back(piece, rows) for rows, piece in _pieces(values, where or name))
        return self._append(name, ir.DataType.FLOAT, tuple(weight.shape.numpy()), pieces)

    def _append(
        self,
        name: str,
        dtype: ir.DataType,
        shape: tuple[int, ...],
        pieces: Iterable[npt.NDArray[np.generic]],
    ) -> ir.Value:
        self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
        start = self._file.tell()
        for piece in pieces:
            self._file.write(_raw(piece))
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        value.const_value = ir.ExternalTensor(
            self._path.name,
            start,
            self._file.tell() - start,
            dtype,
            shape=ir.Shape(shape),
            name=name,
            base_dir=str(self._path.parent),
        )
        return value


class _Grid:
    """A weight's grid with its scales spread over the weight's shape."""

    def __init__(
        self, encoding: Encoding, shape: tuple[int, ...], channel_axis: int, where: str
    ) -> None:
        self.encoding = encoding
        self.scale, self.offset = expand(encoding, shape, channel_axis=channel_axis, where=where)

    def put(
        self, values: npt.NDArray[np.float32], rows: slice, *, signed: bool | None
    ) -> npt.NDArray[np.generic]:
        """Return some rows as integers."""
        scale, offset = _part(self.scale, rows), _part(self.offset, rows)
        return on_grid(values, scale, offset, encoding=self.encoding, signed=signed)

    def back(self, values: npt.NDArray[np.float32], rows: slice) -> npt.NDArray[np.float32]:
        """Return some rows quantized and dequantized."""
        scale, offset = _part(self.scale, rows), _part(self.offset, rows)
        grid = self.put(values, rows, signed=False).astype(np.float64)
        return (scale * (grid + offset)).astype(np.float32)


def _quantized(
    values: npt.NDArray[np.float32],
    through: _Grid | None,
    grid: _Grid | None,
    *,
    signed: bool | None,
    where: str,
) -> Iterator[npt.NDArray[np.generic]]:
    """Yield the weight's integers, some rows at a time."""
    assert grid is not None
    for rows, values_there in _pieces(values, where):
        piece = values_there if through is None else through.back(values_there, rows)
        yield grid.put(piece, rows, signed=signed)


def _pieces(
    values: npt.NDArray[np.float32], where: str
) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    """Go through the rows in pieces; each has an even number, so that nibbles stay paired."""
    step = max(2, _PIECE // max(1, values[:1].size)) & ~1
    for start in range(0, values.shape[0], step):
        rows = slice(start, start + step)
        piece = np.asarray(values[rows], dtype=np.float32)
        if not np.all(np.isfinite(piece)):
            raise BadModel(
                "the weight holds a value that is not finite",
                where=where,
                remedy="export the model again",
            )
        yield rows, piece


def _part(table: npt.NDArray[np.float64], rows: slice) -> npt.NDArray[np.float64]:
    return table[rows] if table.ndim and table.shape[0] > 1 else table


def _raw(array: npt.NDArray[np.generic]) -> bytes:
    bits = ir.DataType.from_numpy(array.dtype).bitwidth
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.tobytes() if bits >= _BYTE else pack_bits(flat.view(np.uint8), bits).tobytes()
