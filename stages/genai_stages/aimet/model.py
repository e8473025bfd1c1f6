"""Quantization encodings in one form, whatever version of AIMET's file they came from.

An integer encoding says `real = scale * (q + offset)` with q unsigned, 0 .. 2^bits - 1: the
convention of AIMET 0.6.1 and 1.0.0 (AIMET, "Encoding Format Specification"). A symmetric encoding
has offset -2^(bits-1), which is the signed grid without a zero point.

Shapes of `scale` and `offset`: () per tensor; [channels] per channel; [channels, blocks] per block,
where channels are always the *output* channels and blocks divide the input channels, in whatever
layout the tensor itself has. So a weight that was transposed on its way keeps its encoding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from genai_core.errors import BadEncodings

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Encoding:
    """How one tensor's values are put on a grid.

    Attributes:
        name: The tensor's name in the source model.
        bits: 2 .. 32.
        symmetric: The grid has no zero point when read as signed integers.
        scale: float64, > 0; shapes above. For `dtype` "float": an empty array.
        offset: float64 of the same shape; whole numbers but for 2-bit grids such as -3, -1, 1, 3.
        axis: As the file gives it, in the source tensor's layout: of the channels, or of the
            blocks; None in 1.0.0 and 0.6.1. Ingest refuses any but that of output channels
            (`passes.check_scales`).
        block_size: Input channels that share a scale, for per-block encodings.
        dtype: "float" marks a tensor that stays floating point, at `bits`.
        block_int_scale: For LPBQ: integer factors [channels, blocks] with
            `scale = block_int_scale * channel_scale[:, None]`; else None.
        channel_scale: For LPBQ: [channels]; else None.
    """

    name: str
    bits: int
    symmetric: bool
    scale: Floats
    offset: Floats
    axis: int | None = None
    block_size: int | None = None
    dtype: Literal["int", "float"] = "int"
    block_int_scale: npt.NDArray[np.int64] | None = None
    channel_scale: Floats | None = None

    @property
    def per_tensor(self) -> bool:
        """One scale for all values."""
        return self.dtype == "int" and self.scale.ndim == 0

    @property
    def signed(self) -> bool:
        """Best written with signed integers: the signed grid needs no zero point."""
        return self.symmetric and bool(np.all(self.offset == -(2.0 ** (self.bits - 1))))

    @property
    def channels(self) -> int | None:
        """Output channels that have their own scale; None per tensor."""
        return int(self.scale.shape[0]) if self.scale.ndim else None

    @property
    def low(self) -> Floats:
        """The smallest value on the grid; shape of `scale`."""
        return self.scale * self.offset

    @property
    def high(self) -> Floats:
        """The largest value on the grid; shape of `scale`."""
        return self.scale * (self.offset + (2.0**self.bits - 1))

    def zero_point(self, *, signed: bool) -> Floats:
        """The zero point of ONNX: `real = scale * (q - zero_point)`, on that grid."""
        return -(self.offset + (2.0 ** (self.bits - 1) if signed else 0.0))

    def blocked(self, inputs: int) -> Encoding:
        """Per-block scales as [channels, blocks], for a tensor of so many input channels.

        1.0.0 writes them flat and only the tensor tells how many blocks a channel has; any other
        encoding is returned as it is.

        Raises:
            BadEncodings: The scales do not fill whole channels.
        """
        if self.block_size is None or self.scale.ndim != 1:
            return self
        blocks, rest = divmod(inputs, self.block_size)
        if rest or self.scale.size % blocks:
            raise BadEncodings(
                f"{self.scale.size} scales of blocks of {self.block_size} do not fit a tensor with "
                f"{inputs} input channels",
                where=self.name,
                remedy="export model and encodings from the same simulation",
            )
        view = (-1, blocks)
        return replace(self, scale=self.scale.reshape(view), offset=self.offset.reshape(view))

    def rows(self, start: int, stop: int) -> Encoding:
        """The encoding of output channels [start, stop); call `blocked` first.

        Raises:
            BadEncodings: There are fewer channels.
        """
        return self.picked(range(start, stop))

    def picked(self, channels: Sequence[int]) -> Encoding:
        """The encoding of these output channels, in their order; call `blocked` first.

        Raises:
            BadEncodings: There are fewer channels.
        """
        if self.scale.ndim == 0 or self.dtype == "float":
            return self
        needed = max(channels) + 1
        if needed > self.scale.shape[0]:
            raise BadEncodings(
                f"has {self.scale.shape[0]} channels, but the tensor has at least {needed}",
                where=self.name,
                remedy="export model and encodings from the same simulation",
            )
        part = list(channels)
        return replace(
            self,
            scale=self.scale[part],
            offset=self.offset[part],
            block_int_scale=None if self.block_int_scale is None else self.block_int_scale[part],
            channel_scale=None if self.channel_scale is None else self.channel_scale[part],
        )

    def same_grid(self, other: Encoding) -> bool:
        """Both put the same values on the same integers."""
        return (
            self.dtype == other.dtype
            and self.bits == other.bits
            and self.scale.shape == other.scale.shape
            and bool(np.array_equal(self.scale, other.scale))
            and bool(np.array_equal(self.offset, other.offset))
        )


@dataclass(frozen=True)
class Outline:
    """The form of an integer encoding without its numbers.

    Attributes:
        shape: Of its scales: (), [channels] or [channels, blocks]; flat [channels x blocks] where
            the file has blocks in one row.
        axis: As the file gives it; None where it gives none.
        block_size: Input channels that share a scale.
    """

    shape: tuple[int, ...]
    axis: int | None = None
    block_size: int | None = None


@dataclass(frozen=True)
class EncodingSet(Mapping[str, Encoding]):
    """The encodings of one file, by tensor name.

    Attributes:
        version: As the file states it.
        where: The file, for messages.
        entries: Name -> encoding, in the file's order.
        parameters: Names that the file lists as parameters; empty for 2.x, which does not tell.
        all_names: Of all entries of the file, where some were not kept; else empty.
        outlines: The form of every integer entry of the file, kept or not.
    """

    version: str
    where: str
    entries: Mapping[str, Encoding]
    parameters: frozenset[str] = field(default_factory=frozenset)
    all_names: tuple[str, ...] = ()
    outlines: Mapping[str, Outline] = field(default_factory=dict)

    @property
    def listed(self) -> tuple[str, ...]:
        """Every tensor that the file has an entry for, in its order."""
        return self.all_names or tuple(self.entries)

    def __getitem__(self, name: str) -> Encoding:
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def per_tensor(name: str, low: float, high: float, *, bits: int, symmetric: bool) -> Encoding:
    """The encoding of a tensor whose values lie in [low, high].

    The range is widened to hold 0, which is then exactly on the grid. Symmetric grids hold
    +-max(|low|, |high|) on 2^bits - 1 values, as AIMET makes them: offset is -2^(bits-1).
    """
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    half = 2.0 ** (bits - 1)
    tiny = float(np.finfo(np.float32).eps)
    if symmetric:
        scale = max(max(-low, high) / (half - 1), tiny)
        offset = -half
    else:
        scale = max((high - low) / (2.0**bits - 1), tiny)
        offset = float(np.rint(low / scale))
    return Encoding(name, bits, symmetric, np.float64(np.float32(scale)) + np.zeros(()),
                    np.asarray(offset, dtype=np.float64))  # fmt: skip


def channel_scales(name: str, largest: npt.NDArray[np.floating], *, bits: int = 8) -> Encoding:
    """The symmetric encoding of a weight with a scale for each output channel.

    Args:
        name: Of the weight.
        largest: Absolute values, [channels].
        bits: Of the grid.
    """
    scale = np.maximum(largest / (2.0 ** (bits - 1) - 1), np.finfo(np.float32).eps)
    scale = scale.astype(np.float32).astype(np.float64)
    offset = np.full(scale.shape, -(2.0 ** (bits - 1)))
    return Encoding(name, bits, symmetric=True, scale=scale, offset=offset)
