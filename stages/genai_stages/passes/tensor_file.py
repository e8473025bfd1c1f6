"""Writes initializers to a graph's data file, one at a time and in pieces.

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

if TYPE_CHECKING:
    from types import TracebackType

_ALIGNMENT = 64
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
        where: str = "",
    ) -> ir.Value:
        """Append a float weight on its grid.

        Args:
            name: Of the new initializer.
            weight: float32; mapped from disk, it is read in pieces.
            encoding: Integer encoding.
            channel_axis: The axis that counts output channels.
            signed: Whether the integers are; None = as the encoding prefers.
            where: What a message names.

        Raises:
            BadEncodings: The encoding does not fit the weight's shape.
            BadModel: The weight holds a value that is not finite.
        """
        values = weight.numpy()
        shape = values.shape
        scale, offset = expand(encoding, shape, channel_axis=channel_axis, where=where)
        dtype = storage_dtype(encoding, signed=signed)
        return self._append(
            name,
            ir.DataType.from_numpy(dtype),
            shape,
            _quantized(
                values, scale, offset, encoding=encoding, signed=signed, where=where or name
            ),
        )

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


def _quantized(
    values: npt.NDArray[np.float32],
    scale: npt.NDArray[np.float64],
    offset: npt.NDArray[np.float64],
    *,
    encoding: Encoding,
    signed: bool | None,
    where: str,
) -> Iterator[npt.NDArray[np.generic]]:
    """The weight on its grid, some rows at a time; an even number, so that nibbles stay paired."""
    flat = np.atleast_1d(values)
    step = max(2, _PIECE // max(1, flat[:1].size)) & ~1
    for start in range(0, flat.shape[0], step):
        rows = slice(start, start + step)
        piece = np.asarray(flat[rows], dtype=np.float32)
        if not np.all(np.isfinite(piece)):
            raise BadModel(
                "the weight holds a value that is not finite",
                where=where,
                remedy="export the model again",
            )
        yield on_grid(
            piece, _part(scale, rows), _part(offset, rows), encoding=encoding, signed=signed
        )


def _part(table: npt.NDArray[np.float64], rows: slice) -> npt.NDArray[np.float64]:
    return table[rows] if table.ndim and table.shape[0] > 1 else table


def _raw(array: npt.NDArray[np.generic]) -> bytes:
    if ir.DataType.from_numpy(array.dtype).itemsize >= 1:
        return np.ascontiguousarray(array).tobytes()
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8) & 0x0F
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return (flat[0::2] | (flat[1::2] << 4)).tobytes()
