"""Reader of version 0.6.1: objects by tensor name, one element per channel.

An element says bitwidth, dtype, is_symmetric (as a string), min, max, scale, offset; a floating
point one only dtype and bitwidth. There is no axis: channels are output channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from genai_stages.aimet.fields import EncodingEntry, kind
from genai_stages.aimet.model import Encoding

SECTIONS = ("activation_encodings", "param_encodings")


def entries(section: object, where: str) -> Iterator[Encoding]:
    """The encodings of one section.

    Raises:
        BadEncodings: An entry does not follow the format.
    """
    assert isinstance(section, Mapping)
    for name, elements in section.items():
        yield _read(EncodingEntry({"elements": elements}, where, str(name)))


def _read(whole: EncodingEntry) -> Encoding:
    elements = whole.data["elements"]
    if not isinstance(elements, list) or not elements:
        whole.fail(f"a list of encodings was expected, not {kind(elements)}")
    rows = [EncodingEntry(element, whole.where.removesuffix(f": {whole.name}"), whole.name)
            for element in elements]  # fmt: skip
    first = rows[0]
    bits = first.whole("bitwidth", low=2, high=32)
    dtype = first.text("dtype") if first.has("dtype") else "int"
    if dtype not in ("int", "float"):
        first.fail(f"dtype is {dtype!r}, not int or float")
    if any(row.data.get("bitwidth") != first.data.get("bitwidth") for row in rows):
        whole.fail("channels differ in bitwidth")
    if dtype == "float":
        return first.float_encoding(bits)
    scale = np.concatenate([row.scales("scale").reshape(1) for row in rows])
    offset = np.concatenate([row.array("offset").reshape(1) for row in rows])
    if len(rows) == 1:
        scale, offset = scale.reshape(()), offset.reshape(())
    return whole.encoding(bits, scale, offset, symmetric=_truth(first))


def _truth(row: EncodingEntry) -> bool:
    value = row.data.get("is_symmetric")
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if text not in ("true", "false"):
        row.fail(f"is_symmetric is {kind(value)}, not True or False")
    return text == "true"
