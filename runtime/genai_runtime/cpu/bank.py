"""The adapters that a CPU executor holds: their matrices beside one another along the rank."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load

from genai_core.container.adapters import LARGEST_WEIGHT
from genai_core.errors import BadInput, CorruptBlob
from genai_runtime.cpu.branches import BLOCK, PART, ROWS, input_names, least_rows, mask_name
from genai_runtime.executor import AdapterUse, AdapterWeights

__all__ = ["AdapterBank", "AdapterWeights", "bank_bytes", "read_adapter"]

_FLOAT = 4


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


def bank_bytes(adapters: Iterable[AdapterWeights], columns: int) -> int:
    """Memory of a bank of so many columns, with branches where one of the adapters has one."""
    sizes: dict[str, int] = {
        linear: int(a.shape[0] + b.shape[1])
        for adapter in adapters
        for linear, (a, b) in adapter.branches.items()
    }
    return sum(sizes.values()) * columns * _FLOAT


class AdapterBank:
    """Adapters laid beside one another, for all linears that one of them touches.

    Memory is (in + out) x columns x 4 bytes a linear, taken at once and not when adapters come.

    Args:
        adapters: By name.
        threads: Of the executor; see `branches.least_rows`.
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
        self._threads = max(threads, 1)
        self._columns: dict[str, slice] = {}
        end = 0
        for name, adapter in adapters.items():
            self._columns[name] = _placed(end, adapter.rank)
            end = self._columns[name].stop
        self.columns = -(-max(end, columns) // BLOCK) * BLOCK if self.linears else 0
        self.values: dict[str, ort.OrtValue] = {}
        self._sizes = {linear: _size_of(linear, adapters) for linear in self.linears}
        self._parts = [
            slice(start, min(start + PART, self.columns)) for start in range(0, self.columns, PART)
        ]
        self._laid_out: dict[str, list[tuple[NDArray[np.float32], NDArray[np.float32]]]] = {}
        for number, (linear, (inputs, outputs)) in enumerate(self._sizes.items()):
            self._laid_out[linear] = []
            for part, span in enumerate(self._parts):
                ranks = span.stop - span.start
                a = np.empty((ranks // BLOCK, inputs, BLOCK), np.float32)
                b = np.empty((ranks, outputs), np.float32)
                a.fill(0)  # resident from now on: nothing of it is found out later
                b.fill(0)
                self._laid_out[linear].append((a, b))
                for name, array in zip(input_names(number, part), (a, b), strict=True):
                    # The same memory: what is written into it later is seen by the next pass.
                    self.values[name] = ort.OrtValue.ortvalue_from_numpy(array)
        for name, adapter in adapters.items():
            self._write(adapter, self._columns[name])

    @property
    def parts(self) -> int:
        """Of the ranks; see `branches`."""
        return len(self._parts)

    @property
    def bytes(self) -> int:
        """Memory of all columns."""
        return sum(map(sum, self._sizes.values())) * self.columns * _FLOAT

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
            if linear not in self._sizes:
                raise BadInput(
                    f"it touches {linear}, which no adapter of the container does",
                    where=f"adapter {name}",
                    remedy="serve a container that carries such an adapter",
                )
            inputs, outputs = self._sizes[linear]
            if (a.shape[0], b.shape[1]) != (inputs, outputs):
                raise BadInput(
                    f"{linear} takes {inputs} values and gives {outputs}, the "
                    f"adapter's takes {a.shape[0]} and gives {b.shape[1]}",
                    where=f"adapter {name}",
                )
        taken = self._room(adapter.rank, name)
        self._write(adapter, taken)
        self._columns[name] = taken

    def take_out(self, name: str) -> None:
        """Let an adapter's columns go; rows must not wear it any more.

        Raises:
            BadInput: It is not there.
        """
        if self._columns.pop(name, None) is None:
            raise BadInput("is not loaded", where=f"adapter {name}")

    def inputs(
        self, worn: Sequence[tuple[Sequence[AdapterUse], int]], wide: NDArray[np.int64]
    ) -> dict[str, NDArray[np.generic]]:
        """The masks of a pass and the rows of its products; see `branches`.

        Args:
            worn: For each place what its row wears, and how many of the M tokens are its.
            wide: [M], the tokens that attention is given.
        """
        outputs = min(size for _, size in self._sizes.values())
        count = least_rows(wide.size, threads=self._threads, outputs=outputs)
        mask = np.zeros((count, self.columns), np.float32)
        start = 0
        for adapters, tokens in worn:
            for use in adapters:
                mask[start : start + tokens, self._columns[use.name]] += np.float32(use.alpha)
            start += tokens
        blocks = mask.reshape(count, -1, BLOCK).transpose(1, 0, 2)
        rows = np.pad(wide, (0, count - wide.size), mode="edge")
        masks = {
            mask_name(part): np.ascontiguousarray(blocks[span.start // BLOCK : span.stop // BLOCK])
            for part, span in enumerate(self._parts)
        }
        return {ROWS: rows, **masks}

    def _room(self, rank: int, name: str) -> slice:
        """The first columns behind one another that are free."""
        start = 0
        for taken in sorted(self._columns.values(), key=lambda columns: columns.start):
            if _placed(start, rank).stop <= taken.start:
                break
            start = max(start, taken.stop)
        found = _placed(start, rank)
        if found.stop > self.columns:
            raise BadInput(
                f"it has rank {rank}, and of {self.columns} columns {self.free} are free",
                where=f"adapter {name}",
                remedy="unload another, or start the server with a larger --max-adapter-rank",
            )
        return found

    def _write(self, adapter: AdapterWeights, taken: slice) -> None:
        """Into its columns: zeros where it does not touch a linear, or has fewer of them there."""
        for linear, parts in self._laid_out.items():
            inputs, outputs = self._sizes[linear]
            none = np.zeros((inputs, 0), np.float32), np.zeros((0, outputs), np.float32)
            a, b = adapter.branches.get(linear, none)
            for (wide_a, wide_b), part in zip(parts, self._parts, strict=True):
                low = max(taken.start, part.start)
                high = min(taken.stop, part.stop)
                if low >= high:
                    continue
                full = min(high, max(low, taken.start + a.shape[1]))
                wide_b[low - part.start : full - part.start] = b[
                    low - taken.start : full - taken.start
                ]
                wide_b[full - part.start : high - part.start] = 0
                for block in range(low // BLOCK, -(-high // BLOCK)):
                    start, stop = max(low, block * BLOCK), min(high, (block + 1) * BLOCK)
                    end = min(stop, max(start, full))
                    columns = wide_a[block - part.start // BLOCK]
                    columns[:, start - block * BLOCK : end - block * BLOCK] = a[
                        :, start - taken.start : end - taken.start
                    ]
                    columns[:, end - block * BLOCK : stop - block * BLOCK] = 0


def _placed(start: int, rank: int) -> slice:
    """Columns from `start` on, none of which lies in another part than it would elsewhere."""
    if start % PART and start % PART + rank > PART:
        start += PART - start % PART
    return slice(start, start + rank)


def _size_of(linear: str, adapters: Mapping[str, AdapterWeights]) -> tuple[int, int]:
    """What a linear takes and gives.

    Raises:
        BadInput: Two adapters say different things.
    """
    sizes = {
        (a.shape[0], b.shape[1])
        for adapter in adapters.values()
        for name, (a, b) in adapter.branches.items()
        if name == linear
    }
    if len(sizes) != 1:
        raise BadInput(f"adapters give {linear} different sizes: {sorted(sizes)}")
    ((inputs, outputs),) = sizes
    return inputs, outputs
