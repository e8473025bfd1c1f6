"""Reader of version 1.0.0: lists of entries with arrays of scales and offsets.

Per-block arrays are flattened with the output channel outermost. LPBQ: `scale` is one float for
each output channel, `per_block_int_scale` one integer for each block, `compressed_bw` the bits of
the weights themselves and `bw` those that the product of both could have.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from genai_stages.aimet.fields import EncodingEntry, kind
from genai_stages.aimet.model import Encoding, Floats

SECTIONS = ("activation_encodings", "param_encodings")


def entries(section: object, where: str) -> Iterator[Encoding]:
    """The encodings of one section.

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
    form = entry.text("enc_type")
    bits = entry.whole("bw", low=2, high=32)
    dtype = entry.text("dtype").upper() if entry.has("dtype") else "INT"
    if dtype == "FLOAT":
        return entry.float_encoding(bits)
    if dtype != "INT":
        entry.fail(f"dtype is {dtype!r}, not INT or FLOAT")
    symmetric = entry.data.get("is_sym")
    if not isinstance(symmetric, bool):
        entry.fail(f"is_sym must be true or false, not {kind(symmetric)}")
    scale = entry.scales("scale").reshape(-1)
    offset = entry.array("offset").reshape(-1)
    if entry.has("zero_point_shift"):
        # A 2-bit grid without a zero (-3, -1, 1, 3): the shift is half a step towards its middle.
        shift = entry.array("zero_point_shift").reshape(-1)
        offset = offset + np.abs(np.broadcast_to(shift, offset.shape))
    if form == "PER_TENSOR":
        if scale.size != 1:
            entry.fail(f"PER_TENSOR with {scale.size} scales")
        return entry.encoding(bits, scale.reshape(()), offset[:1].reshape(()), symmetric=symmetric)
    if form == "PER_CHANNEL":
        return entry.encoding(bits, scale, offset, symmetric=symmetric)
    if form == "PER_BLOCK":
        # Channels x blocks: only the tensor tells how many of each (`Encoding.blocked`).
        block = entry.whole("block_size", low=1, high=1 << 24)
        return entry.encoding(bits, scale, offset, symmetric=symmetric, block_size=block)
    if form == "LPBQ":
        return _lpbq(entry, scale)
    raise entry.error(f"enc_type is {form!r}, not PER_TENSOR, PER_CHANNEL, PER_BLOCK or LPBQ")


def _lpbq(entry: EncodingEntry, scale: Floats) -> Encoding:
    bits = entry.whole("compressed_bw", low=2, high=16)
    block = entry.whole("block_size", low=1, high=1 << 24)
    flat = entry.scales("per_block_int_scale")
    if flat.size % scale.size:
        entry.fail(f"{flat.size} block scales for {scale.size} channels")
    factors = flat.reshape(scale.size, -1)
    if np.any(factors != np.rint(factors)):
        entry.fail("per_block_int_scale holds a fraction")
    # LPBQ is symmetric by definition; its offset is written for the wider grid.
    return entry.encoding(
        bits,
        factors * scale[:, None],
        np.broadcast_to(-(2.0 ** (bits - 1)), factors.shape),
        symmetric=True,
        block_size=block,
        block_int_scale=factors.astype(np.int64),
        channel_scale=scale,
    )
