"""Messages between the emulator's worker and its parent: a JSON head and raw arrays.

12 bytes  length of the head (uint32) and of the body (uint64), little-endian
head      JSON: the message, and `arrays`: [{name, dtype, shape}] in the order of the body
body      the arrays' bytes, one after another, C order
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.generic]]

_SIZES = struct.Struct("<IQ")


def pack(message: Mapping[str, Any], arrays: Mapping[str, NDArray[np.generic]]) -> list[bytes]:
    """The pieces to write, in order."""
    listed, body = [], []
    for name, array in arrays.items():
        listed.append({"name": name, "dtype": array.dtype.name, "shape": list(array.shape)})
        body.append(np.ascontiguousarray(array).tobytes())
    head = json.dumps({**message, "arrays": listed}).encode()
    return [_SIZES.pack(len(head), sum(map(len, body))), head, *body]


def unpack(read: Callable[[int], bytes]) -> tuple[dict[str, Any], Arrays]:
    """Read one message; `read(n)` returns exactly n bytes or raises EOFError."""
    head_size, body_size = _SIZES.unpack(read(_SIZES.size))
    message: dict[str, Any] = json.loads(read(head_size))
    body = read(body_size) if body_size else b""
    arrays: Arrays = {}
    start = 0
    for entry in message.pop("arrays"):
        dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        arrays[entry["name"]] = np.frombuffer(body[start : start + size], dtype).reshape(shape)
        start += size
    return message, arrays
