"""The adapters that a CPU executor holds: their matrices beside one another along the rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from genai_core.errors import BadInput
from genai_runtime.cpu.branches import BLOCK, PART, ROWS, input_names, least_rows, mask_name
from genai_runtime.executor.adapter_weights import AdapterShape, AdapterWeights, NoRoom
from genai_runtime.executor.rows import AdapterUse

__all__ = ["AdapterBank", "AdapterWeights", "bank_bytes"]

_FLOAT = 4


def bank_bytes(adapters: Iterable[AdapterShape], columns: int) -> int:
    """Memory of a bank of so many columns, with branches where one of the adapters has one."""
    sizes = {linear: sum(size) for adapter in adapters for linear, size in adapter.sizes.items()}
    return sum(sizes.values()) * columns * _FLOAT


class AdapterBank:
    """Adapters laid beside one another, for all linears that one of them touches.

    Memory is (in + out) x columns x 4 bytes a linear, taken at once and not when adapters come.

    Args:
        adapters: By name.
        threads: Of the executor; see `branches.least_rows`.
        columns: At least so many, as room for adapters to come; every pass pays for them.
        branches: Adapters that are not there and may come: their linears have branches too.

    Raises:
        BadInput: Two adapters give a linear different sizes.
    """

    def __init__(
        self,
        adapters: Mapping[str, AdapterWeights],
        *,
        threads: int = 1,
        columns: int = 0,
        branches: Iterable[AdapterShape] = (),
    ) -> None:
        shapes = [*map(AdapterShape.of, adapters.values()), *branches]
        self._sizes = _sizes_of(shapes)
        self.linears: tuple[str, ...] = tuple(self._sizes)
        self._threads = max(threads, 1)
        self._columns: dict[str, slice] = {}
        self._filled = set(adapters)
        end = 0
        for name, adapter in adapters.items():
            self._columns[name] = _placed(end, adapter.rank)
            end = self._columns[name].stop
        self.columns = -(-max(end, columns) // BLOCK) * BLOCK if self.linears else 0
        self.values: dict[str, ort.OrtValue] = {}
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
        return frozenset(self._filled)

    @property
    def free(self) -> int:
        """Columns that no adapter has."""
        return self.columns - sum(int(taken.stop - taken.start) for taken in self._columns.values())

    def check(self, name: str, shape: AdapterShape) -> None:
        """Whether an adapter could be laid in. See `AdapterHost`."""
        beyond = [linear for linear in shape.sizes if linear not in self._sizes]
        if beyond:
            raise BadInput(
                f"{len(beyond)} of the {len(shape.sizes)} linears that it touches have no branch "
                f"here, since none of the container's adapters touches them: {beyond[0]}"
                f"{' ...' if beyond[1:] else ''}",
                where=f"adapter {name}",
                remedy="serve a container that carries such an adapter",
            )
        for linear, (inputs, outputs) in shape.sizes.items():
            own = self._sizes[linear]
            if own != (inputs, outputs):
                raise BadInput(
                    f"{linear} takes {own[0]} values and gives {own[1]}, the adapter's takes "
                    f"{inputs} and gives {outputs}",
                    where=f"adapter {name}",
                )
        if shape.rank > self.columns:
            raise NoRoom(
                f"it has rank {shape.rank}, and a pass holds {self.columns}",
                where=f"adapter {name}",
                remedy="start the server with a larger --max-adapter-rank",
            )

    def reserve(self, ranks: Mapping[str, int]) -> None:
        """Columns side by side. See `AdapterHost`."""
        for name in ranks:
            if name in self._columns:
                raise BadInput("is loaded already", where=f"adapter {name}")
        total = sum(ranks.values())
        start = 0
        for taken in sorted(self._columns.values(), key=lambda columns: columns.start):
            if _placed(start, total).stop <= taken.start:
                break
            start = max(start, taken.stop)
        start = _placed(start, total).start
        laid = {}
        for name, rank in ranks.items():
            laid[name] = _placed(start, rank)
            start = laid[name].stop
        if start > self.columns:
            raise NoRoom(
                f"it has rank {total}, and of {self.columns} columns {self.free} are free",
                where=f"adapter {' and '.join(ranks)}",
                remedy="unload another, or start the server with a larger --max-adapter-rank",
            )
        self._columns |= laid

    def fill(self, name: str, adapter: AdapterWeights) -> None:
        """Lay an adapter in; where a pass runs, the mask of these columns is 0 in all its rows."""
        self._write(adapter, self._columns[name])
        self._filled.add(name)

    def lay_in(self, name: str, adapter: AdapterWeights) -> None:
        """Take an adapter in, into columns that none has; not while a pass runs.

        Raises:
            BadInput: The name is taken; it touches a linear without a branch, or of another size;
                or there is no room.
        """
        self.check(name, AdapterShape.of(adapter))
        self.reserve({name: adapter.rank})
        self.fill(name, adapter)

    def take_out(self, name: str) -> None:
        """Let an adapter's columns go; rows must not wear it any more.

        Raises:
            BadInput: It is not there.
        """
        if self._columns.pop(name, None) is None:
            raise BadInput("is not loaded", where=f"adapter {name}")
        self._filled.discard(name)

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


def _sizes_of(shapes: Iterable[AdapterShape]) -> dict[str, tuple[int, int]]:
    """What each linear takes and gives.

    Raises:
        BadInput: Two adapters say different things.
    """
    sizes: dict[str, tuple[int, int]] = {}
    for shape in shapes:
        for linear, size in shape.sizes.items():
            if sizes.setdefault(linear, size) != size:
                raise BadInput(
                    f"adapters give {linear} different sizes: {sizes[linear]} and {size}"
                )
    return sizes
