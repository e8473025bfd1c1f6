"""Adapters of containers, read: all of one, or what it takes."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from genai_core.container.adapters import LARGEST_WEIGHT
from genai_core.errors import BadInput, CorruptBlob
from genai_runtime.executor.adapter_weights import AdapterShape, AdapterWeights

__all__ = ["read_adapter", "read_shape"]

_FLOAT, _MATRIX = 4, 2
_LENGTH = 8
"""Bytes of the number that says how long a file's head is."""


def read_adapter(path: Path, *, sha256: str = "") -> AdapterWeights:
    """Read an adapter of a container; see `genai_core.container.adapters`.

    Args:
        path: The file.
        sha256: What it must be, of the bytes that are read here; empty = anything.

    Raises:
        BadInput: It is not one.
        CorruptBlob: It has other bytes.
    """
    try:
        if sha256:
            data = path.read_bytes()
            found = hashlib.sha256(data).hexdigest()
            if found != sha256:
                raise CorruptBlob(f"it has the digest {found}, not {sha256}", where=str(path))
            tensors = _tensors(data)
        else:
            with safe_open(path, framework="np") as opened:
                tensors = {name: opened.get_tensor(name) for name in list(opened.keys())}
    except (OSError, SafetensorError, _Malformed) as error:
        raise BadInput(f"no adapter: {error}", where=str(path)) from error
    names = [name.removesuffix(".A") for name in tensors if name.endswith(".A")]
    branches = {}
    for name in names:
        a, b = tensors[f"{name}.A"], tensors.get(f"{name}.B", np.zeros(0, np.float32))
        floats = a.dtype == b.dtype == np.float32
        if not floats or a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
            raise BadInput(f"its matrices of {name} do not belong together", where=str(path))
        if not all(np.abs(m).max(initial=0) <= LARGEST_WEIGHT for m in (a, b)):
            raise BadInput(
                f"its matrices of {name} hold values that are no numbers or overflow in a product",
                where=str(path),
            )
        branches[name] = (a, b)
    if len(tensors) != 2 * len(branches):
        raise BadInput("it holds more than pairs of matrices", where=str(path))
    return AdapterWeights(branches)


class _Malformed(Exception):
    """It is no safetensors file of float32 tensors."""


def _tensors(data: bytes) -> dict[str, NDArray[np.float32]]:
    """Tensors of a safetensors file in memory, as views of it.

    safetensors' own function copies all of them in one call that lets no other thread run: with
    300 MB every answer of a server stood still meanwhile.

    Raises:
        _Malformed: See there.
    """
    start = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    try:
        header = json.loads(data[_LENGTH:start]) if start <= len(data) else None
        if not isinstance(header, dict):
            raise _Malformed("it has no head")
        header.pop("__metadata__", None)
        tensors = {}
        for name, entry in header.items():
            shape, (begin, end) = [int(size) for size in entry["shape"]], entry["data_offsets"]
            count = math.prod(shape)
            if entry["dtype"] != "F32" or min(shape, default=0) < 0:
                raise _Malformed(f"{name} is not of float32")
            if not 0 <= begin <= end <= len(data) - start or end - begin != count * _FLOAT:
                raise _Malformed(f"{name} lies outside of it, or has another size")
            flat = np.frombuffer(data, np.float32, count, start + begin)
            tensors[str(name)] = flat.reshape(shape)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _Malformed("its head is not readable") from error
    return tensors


def read_shape(path: Path) -> AdapterShape:
    """What an adapter takes, from the head of its file.

    Raises:
        BadInput: It is not one.
    """
    try:
        with safe_open(path, framework="np") as opened:
            shapes = {name: opened.get_slice(name).get_shape() for name in list(opened.keys())}
    except (OSError, SafetensorError) as error:
        raise BadInput(f"no adapter: {error}", where=str(path)) from error
    sizes, rank, count = {}, 0, 0
    for name in [name.removesuffix(".A") for name in shapes if name.endswith(".A")]:
        a, b = shapes[f"{name}.A"], shapes.get(f"{name}.B", [])
        if len(a) != _MATRIX or len(b) != _MATRIX or a[1] != b[0]:
            raise BadInput(f"its matrices of {name} do not belong together", where=str(path))
        sizes[name] = (a[0], b[1])
        rank = max(rank, a[1])
        count += a[0] * a[1] + b[0] * b[1]
    return AdapterShape(rank, sizes, count * _FLOAT)
