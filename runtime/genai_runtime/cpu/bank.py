"""The adapters that a CPU executor holds: their matrices beside one another along the rank."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load

from genai_core.container.adapters import LARGEST_WEIGHT
from genai_core.errors import BadInput, CorruptBlob
from genai_runtime.cpu.branches import input_names
from genai_runtime.executor import AdapterUse, AdapterWeights

__all__ = ["AdapterBank", "AdapterWeights", "read_adapter"]

COLUMNS_PER_THREAD = 96
"""MLAS cuts the sum of a product by its number of columns below that: equal results want more."""


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
            tensors = load(data)
        else:
            with safe_open(path, framework="np") as opened:
                tensors = {name: opened.get_tensor(name) for name in list(opened.keys())}
    except (OSError, SafetensorError) as error:
        raise BadInput(f"no adapter: {error}", where=str(path)) from error
    names = [name.removesuffix(".A") for name in tensors if name.endswith(".A")]
    branches = {}
    for name in names:
        a, b = tensors[f"{name}.A"], tensors.get(f"{name}.B", np.zeros(0))
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


class AdapterBank:
    """Adapters laid beside one another, for all linears that one of them touches.

    Args:
        adapters: By name.
        threads: Of the executor: results are equal to the bit from so many columns on.
        columns: At least so many, as room for adapters to come; every pass pays for them.

    Raises:
        BadInput: Two adapters give a linear different sizes.
    """

    def __init__(
        self, adapters: Mapping[str, AdapterWeights], *, threads: int = 1, columns: int = 0
    ) -> None:
        self.linears: tuple[str, ...] = tuple(
            dict.fromkeys(name for adapter in adapters.values() for name in adapter.branches)
        )
        self._columns: dict[str, slice] = {}
        start = 0
        for name, adapter in adapters.items():
            self._columns[name] = slice(start, start + adapter.rank)
            start += adapter.rank
        least = max(COLUMNS_PER_THREAD * max(threads, 1), columns) if start else 0
        self.columns = max(start, least)
        self.values: dict[str, ort.OrtValue] = {}
        self._laid_out: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
        for number, linear in enumerate(self.linears):
            self._laid_out[linear] = self._laid(linear, adapters)
            for name, array in zip(input_names(number), self._laid_out[linear], strict=True):
                # The same memory: what is written into it later is seen by the next pass.
                self.values[name] = ort.OrtValue.ortvalue_from_numpy(array)

    @property
    def names(self) -> frozenset[str]:
        """What a row may wear."""
        return frozenset(self._columns)

    @property
    def free(self) -> int:
        """Columns that no adapter has."""
        return self.columns - sum(int(taken.stop - taken.start) for taken in self._columns.values())

    def lay_in(self, name: str, adapter: AdapterWeights) -> None:
        """Take an adapter in, into columns that none has; not while a pass runs.

        Raises:
            BadInput: The name is taken; it touches a linear without a branch, or of another size;
                or there is no room.
        """
        if name in self._columns:
            raise BadInput("is loaded already", where=f"adapter {name}")
        for linear, (a, b) in adapter.branches.items():
            if linear not in self._laid_out:
                raise BadInput(
                    f"it touches {linear}, which no adapter of the container does",
                    where=f"adapter {name}",
                    remedy="serve a container that carries such an adapter",
                )
            wide_a, wide_b = self._laid_out[linear]
            if (a.shape[0], b.shape[1]) != (wide_a.shape[0], wide_b.shape[1]):
                raise BadInput(
                    f"{linear} takes {wide_a.shape[0]} values and gives {wide_b.shape[1]}, the "
                    f"adapter's takes {a.shape[0]} and gives {b.shape[1]}",
                    where=f"adapter {name}",
                )
        taken = self._room(adapter.rank, name)
        for linear, (wide_a, wide_b) in self._laid_out.items():
            wide_a[:, taken] = 0
            wide_b[taken] = 0
            if linear in adapter.branches:
                a, b = adapter.branches[linear]
                wide_a[:, taken.start : taken.start + a.shape[1]] = a
                wide_b[taken.start : taken.start + b.shape[0]] = b
        self._columns[name] = taken

    def take_out(self, name: str) -> None:
        """Let an adapter's columns go; rows must not wear it any more.

        Raises:
            BadInput: It is not there.
        """
        if self._columns.pop(name, None) is None:
            raise BadInput("is not loaded", where=f"adapter {name}")

    def _room(self, rank: int, name: str) -> slice:
        """The first columns behind one another that are free."""
        start = 0
        for taken in sorted(self._columns.values(), key=lambda columns: columns.start):
            if taken.start - start >= rank:
                break
            start = max(start, taken.stop)
        if start + rank > self.columns:
            raise BadInput(
                f"it has rank {rank}, and of {self.columns} columns {self.free} are free",
                where=f"adapter {name}",
                remedy="unload another, or start the server with a larger --max-adapter-rank",
            )
        return slice(start, start + rank)

    def mask(self, worn: Sequence[tuple[Sequence[AdapterUse], int]]) -> NDArray[np.float32]:
        """The mask of a pass, [1, M, R].

        Args:
            worn: For each place what its row wears, and how many of the M tokens are its.
        """
        rows = []
        for adapters, count in worn:
            row = np.zeros(self.columns, np.float32)
            for use in adapters:
                row[self._columns[use.name]] += np.float32(use.alpha)
            rows.append(np.broadcast_to(row, (count, self.columns)))
        return np.ascontiguousarray(np.concatenate(rows)[None])

    def _laid(
        self, linear: str, adapters: Mapping[str, AdapterWeights]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """A [in, R] and B [R, out]; zeros where an adapter does not touch the linear."""
        sizes = {
            (a.branches[linear][0].shape[0], a.branches[linear][1].shape[1])
            for a in adapters.values()
            if linear in a.branches
        }
        if len(sizes) != 1:
            raise BadInput(f"adapters give {linear} different sizes: {sorted(sizes)}")
        ((inputs, outputs),) = sizes
        wide_a = np.zeros((inputs, self.columns), np.float32)
        wide_b = np.zeros((self.columns, outputs), np.float32)
        for name, adapter in adapters.items():
            if linear in adapter.branches:
                a, b = adapter.branches[linear]
                start = self._columns[name].start
                wide_a[:, start : start + a.shape[1]] = a
                wide_b[start : start + b.shape[0]] = b
        return wide_a, wide_b
