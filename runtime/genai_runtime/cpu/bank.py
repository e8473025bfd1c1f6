"""The adapters that a CPU executor holds: their matrices beside one another along the rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from genai_core.container.adapters import LARGEST_WEIGHT
from genai_core.errors import BadInput
from genai_runtime.cpu.branches import input_names
from genai_runtime.executor import AdapterUse

__all__ = ["AdapterBank", "AdapterWeights", "read_adapter"]

COLUMNS_PER_THREAD = 96
"""MLAS cuts the sum of a product by its number of columns below that: equal results want more."""


class AdapterWeights:
    """One adapter in memory.

    Attributes:
        rank: The largest of its branches.
        branches: Linear -> A [in, rank], B [rank, out], float32.
    """

    def __init__(
        self, branches: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
    ) -> None:
        self.branches = branches
        self.rank = max((int(a.shape[1]) for a, _ in branches.values()), default=0)


def read_adapter(path: Path) -> AdapterWeights:
    """Read an adapter of a container; see `genai_core.container.adapters`.

    Raises:
        BadInput: It is not one.
    """
    try:
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

    Raises:
        BadInput: Two adapters give a linear different sizes.
    """

    def __init__(self, adapters: Mapping[str, AdapterWeights], *, threads: int = 1) -> None:
        self.linears: tuple[str, ...] = tuple(
            dict.fromkeys(name for adapter in adapters.values() for name in adapter.branches)
        )
        self._columns: dict[str, slice] = {}
        start = 0
        for name, adapter in adapters.items():
            self._columns[name] = slice(start, start + adapter.rank)
            start += adapter.rank
        least = COLUMNS_PER_THREAD * max(threads, 1) if start else 0
        self.columns = max(start, least)
        self.values: dict[str, ort.OrtValue] = {}
        for number, linear in enumerate(self.linears):
            a, b = self._laid(linear, adapters)
            for name, array in zip(input_names(number), (a, b), strict=True):
                self.values[name] = ort.OrtValue.ortvalue_from_numpy(array)

    @property
    def names(self) -> frozenset[str]:
        """What a row may wear."""
        return frozenset(self._columns)

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
