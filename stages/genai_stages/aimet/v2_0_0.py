"""Reader of versions 2.0.0 and 2.1.0: one list whose fields are those of ONNX's QuantizeLinear.

`y_zero_point` counts on the grid of `output_dtype`, so its sign and origin differ from `offset`:
offset = -(y_zero_point + 2^(bits-1)) for signed types and -y_zero_point for unsigned ones.
2.1.0 adds scales that are themselves quantized (`y_scale` an object), used for LPBQ; 2.0.0 writes
the same with `per_block_int_scale` and `per_channel_float_scale`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np

from genai_stages.aimet.fields import EncodingEntry, kind
from genai_stages.aimet.model import Encoding, Floats

SECTIONS = ("encodings",)
_INTEGER = re.compile(r"(u?)int(2|4|8|16|32)")
_FLOAT = re.compile(r"float(4|8|16|32)?.*|bfloat16")


def entries(section: object, where: str) -> Iterator[Encoding]:
    """The encodings of the list.

    Raises:
        BadEncodings: An entry does not follow the format.
    """
    assert isinstance(section, list)
    for number, data in enumerate(section):
        name = data.get("name") if isinstance(data, dict) else None
        entry = EncodingEntry(data, where, name if isinstance(name, str) else f"entry {number}")
        entry.text("name")
        yield _read(entry)


def _read(entry: EncodingEntry) -> Encoding:
    dtype = entry.text("output_dtype")
    match = _INTEGER.fullmatch(dtype)
    if not match:
        if not _FLOAT.fullmatch(dtype):
            entry.fail(f"output_dtype is {dtype!r}, which is not known")
        if dtype not in ("float8", "float16", "float32", "bfloat16"):
            entry.fail(f"{dtype} grids are not supported; quantize to an integer type")
        return entry.float_encoding(16 if dtype == "bfloat16" else int(dtype[5:]))
    unsigned, bits = bool(match[1]), int(match[2])
    axis = entry.whole("axis", low=-8, high=7) if entry.has("axis") else None
    block = entry.whole("block_size", low=1, high=1 << 24) if entry.has("block_size") else None

    channel_scale = factors = None
    if entry.has("per_block_int_scale"):
        factors = entry.scales("per_block_int_scale")
        channel_scale = entry.scales("per_channel_float_scale")
        if channel_scale.ndim == 1 and axis is not None and factors.ndim > 1:
            channel_scale = _along(channel_scale, factors, 1 - axis % factors.ndim)
        scale = _product(entry, factors, channel_scale)
    elif isinstance(entry.data.get("y_scale"), Mapping):
        scale, factors, channel_scale = _double(entry)
    else:
        scale = entry.scales("y_scale")
    if scale.ndim == 1 and scale.size == 1 and axis is None:
        scale = scale.reshape(())
    if scale.ndim and axis is None:
        entry.fail(f"{scale.size} scales but no axis")
    if scale.ndim > 1 and block is None:
        entry.fail("nested scales but no block_size")

    zero = entry.array("y_zero_point") if entry.has("y_zero_point") else np.zeros(())
    if zero.size not in (scale.size, 1):
        entry.fail(f"{scale.size} scales but {zero.size} zero points")
    zero = zero.reshape(scale.shape) if zero.size == scale.size else zero.reshape(())
    offset = np.broadcast_to(-zero - (0.0 if unsigned else 2.0 ** (bits - 1)), scale.shape)
    # Nothing in 2.x says "symmetric": it shows in the zero point at the middle of the grid.
    middle = 2.0 ** (bits - 1)
    symmetric = bool(np.all(offset == -middle)) or bool(np.all(offset == -middle + 0.5))
    integers = None
    if scale.ndim > 1:
        assert axis is not None
        scale, offset = _output_major(scale, axis), _output_major(offset, axis)
        if factors is not None and channel_scale is not None:
            if np.any(factors != np.rint(factors)):
                factors = channel_scale = None  # a quantized scale, but not LPBQ's integers
            else:
                integers = _output_major(factors, axis).astype(np.int64)
                spread = np.broadcast_to(channel_scale, factors.shape)
                channel_scale = _output_major(spread, axis)[:, 0]
    return entry.encoding(
        bits,
        scale,
        np.array(offset),
        symmetric=symmetric,
        axis=axis,
        block_size=block,
        block_int_scale=integers,
        channel_scale=channel_scale if integers is not None else None,
    )


def _double(entry: EncodingEntry) -> tuple[Floats, Floats | None, Floats | None]:
    """2.1.0's meta encoding: x dequantized, x without its zero point, and its scale."""
    meta = entry.data["y_scale"]
    assert isinstance(meta, Mapping)
    x = entry.numbers(meta.get("x"), "y_scale.x")
    outer = entry.positive(entry.numbers(meta.get("x_scale"), "y_scale.x_scale"), "y_scale.x_scale")
    zero = entry.numbers(meta["x_zero_point"], "y_scale.x_zero_point") if meta.get(
        "x_zero_point"
    ) is not None else np.zeros(())  # fmt: skip
    axis = meta.get("axis")
    if outer.ndim == 1 and outer.size > 1:
        if not isinstance(axis, int) or not -x.ndim <= axis < x.ndim:
            entry.fail(f"y_scale.axis is {kind(axis)}, not an axis of y_scale.x")
        if x.shape[axis] != outer.size and meta.get("block_size") is None:
            entry.fail(f"y_scale.x_scale has {outer.size} values for {x.shape[axis]} of y_scale.x")
        block = meta.get("block_size")
        if isinstance(block, int) and block > 1:
            outer = np.repeat(outer, block)
        outer = _along(outer, x, axis % x.ndim)
        if zero.ndim == 1:
            zero = _along(zero, x, axis % x.ndim)
    scale = entry.positive(_product(entry, x - zero, outer), "y_scale")
    spread = np.broadcast_to(outer, scale.shape)
    return scale, x - np.broadcast_to(zero, x.shape), spread


def _product(entry: EncodingEntry, factors: Floats, outer: Floats) -> Floats:
    try:
        product = factors * outer
    except ValueError:
        product = np.zeros(())
    if product.shape != factors.shape:
        entry.fail(f"block scales {list(factors.shape)} and channel scales {list(outer.shape)}")
    return product


def _along(vector: Floats, like: Floats, axis: int) -> Floats:
    view = [1] * like.ndim
    view[axis] = vector.size
    return vector.reshape(view)


def _output_major(values: Floats, block_axis: int) -> Floats:
    """[channels, blocks] from the tensor's own layout: the block axis last, of what is not 1."""
    axis = block_axis % values.ndim
    moved = np.moveaxis(values, axis, -1)
    return np.ascontiguousarray(moved.reshape(-1, values.shape[axis]))
