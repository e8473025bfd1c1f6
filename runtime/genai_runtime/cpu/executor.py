"""Slots on the CPU: passes of packed rows, each slot on its own buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from genai_core.errors import BadInput
from genai_core.facts import RopeTable
from genai_runtime.cpu.bank import AdapterBank, AdapterWeights
from genai_runtime.cpu.binding import BoundGraph
from genai_runtime.cpu.layout import RowPart, lay_out
from genai_runtime.cpu.model import CpuModel
from genai_runtime.cpu.packing import IMAGE_ROWS, IMAGE_VALUES
from genai_runtime.cpu.prefix import prefix_inputs
from genai_runtime.cpu.sessions import Sessions
from genai_runtime.cpu.slots import SPARE, Slot, bucketed, cache_bytes
from genai_runtime.executor.adapter_weights import AdapterShape
from genai_runtime.executor.row_checks import checked_places, checked_rows, checked_truncation
from genai_runtime.executor.rows import Embeddings, Row, RowOutput
from genai_runtime.executor.slot_table import SlotTable
from genai_runtime.rope import cos_sin

_FILLER = 2
"""Tokens of a filler's attention: its row of a pass that has fewer rows than its graph."""


class CpuExecutor:
    """See `genai_runtime.executor.Executor`.

    Args:
        model: The container's.
        sessions: Its packed graphs. A pass with more rows than the largest takes several runs.
        context_length: The most tokens of a slot.
        rope: Rotary tables; None = those that the model itself states.
        bank: The adapters that rows may wear; None = none. The sessions' graphs have branches at
            its linears.
        numerics: See `KeyValueHost`.
        prefix: Trained keys and values that tokens of trees may see, as `cpu.prefix` takes them;
            None = none. The sessions' graphs with trees take it.
        doubled: A lone token is given twice to attention; see `packing`. Without, its numbers are
            not, to the bit, those that it has among others.

    Raises:
        BadInput: The context length is below 1.
        BadModel: A session cannot be opened.
    """

    def __init__(
        self,
        model: CpuModel,
        sessions: Sessions,
        *,
        context_length: int,
        rope: Mapping[str, RopeTable] | None = None,
        bank: AdapterBank | None = None,
        numerics: Mapping[str, Any] | None = None,
        prefix: NDArray[np.float32] | None = None,
        doubled: bool = True,
    ) -> None:
        if context_length < 1:
            raise BadInput("must be at least 1", where="context length")
        self._model = model
        self._context_length = context_length
        self.numerics: Mapping[str, Any] = {**(numerics or {}), "doubled": doubled}
        self._doubled = doubled
        self._bank = AdapterBank({}) if bank is None else bank
        rope = model.rope if rope is None else rope
        self._prefix = 0 if prefix is None else prefix.shape[3]
        # Attention wants a row of them for every place, whatever the positions are.
        self._tables = _tables(rope, context_length + SPARE + self._prefix)
        if prefix is not None:
            self._tables |= prefix_inputs(model, prefix, rope)
        self._tables |= self._bank.values
        self._slots: SlotTable[Slot] = SlotTable()
        self._filler = Slot(model.cache, _FILLER)
        self._sessions: Sessions | None = sessions
        self._graphs: dict[tuple[int, bool], BoundGraph] = {}
        for rows in sessions.sizes:
            self._graph(rows, trees=False)

    @property
    def context_length(self) -> int:
        """The most tokens of a slot."""
        return self._context_length

    @property
    def vocab_size(self) -> int:
        """Last axis of the logits."""
        return self._model.vocab_size

    @property
    def token_count(self) -> int:
        """Rows of the embedding table."""
        return self._model.token_count

    @property
    def hidden_size(self) -> int:
        """Of what the output layer reads."""
        return next(iter(self._graphs.values())).hidden_size

    @property
    def adapters(self) -> frozenset[str]:
        """Those of the bank."""
        return self._bank.names

    @property
    def adapter_columns(self) -> tuple[int, int]:
        """Columns of the bank, and how many of them are free."""
        return self._bank.columns, self._bank.free

    @property
    def adapter_bytes(self) -> int:
        """Memory of the bank."""
        return self._bank.bytes

    def check_adapter(self, name: str, shape: AdapterShape) -> None:
        """Whether it could come. See `AdapterHost`."""
        self._bank.check(name, shape)

    def reserve_adapters(self, ranks: Mapping[str, int]) -> None:
        """Columns for some. See `AdapterHost`."""
        self._bank.reserve(ranks)

    def fill_adapter(self, name: str, weights: AdapterWeights) -> None:
        """Lay one in. See `AdapterHost`."""
        self._bank.fill(name, weights)

    def load_adapter(self, name: str, weights: AdapterWeights) -> None:
        """Take one in. See `AdapterHost`."""
        self._bank.lay_in(name, weights)

    def unload_adapter(self, name: str) -> None:
        """Let one go. See `AdapterHost`."""
        self._bank.take_out(name)

    @property
    def trees(self) -> bool:
        """Where no layer has a window: a window counts places, which in a tree are no positions."""
        return not self._model.windows

    @property
    def prefix(self) -> int:
        """As given."""
        return self._prefix

    @property
    def states(self) -> Mapping[str, int]:
        """As the model names its further outputs."""
        return self._model.states

    @property
    def given(self) -> Mapping[str, int]:
        """As the model names its further inputs."""
        return self._model.given

    @property
    def embedding_size(self) -> int:
        """As the sessions' graphs take them."""
        return next(iter(self._graphs.values())).embedding_size

    def cache_bytes(self, tokens: int) -> int:
        """Memory of a slot of so many tokens."""
        return cache_bytes(self._model.cache, tokens)

    def open(self) -> int:
        """An empty slot."""
        return self._slots.add(Slot(self._model.cache, bucketed(1)))

    def copy(self, slot: int, length: int) -> int:
        """A new slot with the first tokens of another."""
        held = self._slots[slot]
        return self._slots.add(held.copy(checked_truncation(length, held.length)))

    def slot_bytes(self, slot: int) -> int:
        """Memory that a slot occupies now."""
        return self._slots[slot].bytes

    def length(self, slot: int) -> int:
        """Tokens in a slot."""
        return self._slots[slot].length

    def forward(self, rows: Sequence[Row]) -> list[RowOutput]:
        """One pass; in several runs where there are more rows than the largest graph has."""
        checked = checked_rows(rows, self)
        slots = [self._slots[row.slot] for row in rows]
        for row, slot, tokens in zip(rows, slots, checked, strict=True):
            self._grow(slot, slot.length + tokens.size + self._prefix_of(row))
        outputs: list[RowOutput] = []
        assert self._sessions is not None
        most = self._sessions.sizes[-1]
        for start in range(0, len(rows), most):
            part = slice(start, start + most)
            outputs += self._run(rows[part], slots[part], checked[part])
        return outputs

    def truncate(self, slot: int, length: int) -> None:
        """Keep the first `length` tokens."""
        held = self._slots[slot]
        held.length = checked_truncation(length, held.length)

    def grow(self, slot: int, tokens: int) -> None:
        """Make room for so many tokens."""
        if tokens > self._context_length:
            raise BadInput(
                f"the context length is {self._context_length}", where=f"{tokens} tokens"
            )
        self._grow(self._slots[slot], tokens)

    def move(self, slot: int, start: int, places: Sequence[int]) -> None:
        """Keep the first tokens and those at `places`."""
        held = self._slots[slot]
        held.move(start, checked_places(start, places, held.length))

    def keys_values(self, slot: int) -> list[NDArray[np.float32]]:
        """What a slot holds. See `KeyValueHost`."""
        held = self._slots[slot]
        return [buffer[0, :, : held.length] for buffer in held.buffers.values()]

    def lay_in(self, slot: int, values: Sequence[NDArray[np.float32]]) -> None:
        """Append keys and values. See `KeyValueHost`."""
        held = self._slots[slot]
        start, end = held.length, held.length + values[0].shape[1]
        self.grow(slot, end)
        for buffer, part in zip(held.buffers.values(), values, strict=True):
            buffer[0, :, start:end] = part
        held.length = end

    def free(self, slot: int) -> None:
        """Close a slot."""
        self._release(self._slots.pop(slot))

    def close(self) -> None:
        """Free graphs and slots."""
        self._graphs.clear()
        self._slots.open_slots.clear()
        self._sessions = None

    def _run(
        self, rows: Sequence[Row], slots: Sequence[Slot], tokens: Sequence[NDArray[np.int64]]
    ) -> list[RowOutput]:
        assert self._sessions is not None
        size = next(size for size in self._sessions.sizes if size >= len(rows))
        graph = self._graph(size, trees=any(row.tree is not None for row in rows))
        # A slot stays where it is bound; what a row yields does not depend on its place.
        chosen = graph.places(slots)
        parts = [
            None
            if number is None
            else RowPart(
                tokens[number],
                slots[number].length,
                rows[number].want,
                rows[number].tree,
                self._prefix_of(rows[number]),
            )
            for number in chosen
        ]
        layout = lay_out(parts, trees=graph.trees, doubled=self._doubled)
        if self._bank.linears:
            lengths = layout.inputs["packed.lengths"].tolist()
            worn = [() if number is None else rows[number].adapters for number in chosen]
            # A prefix lies behind all tokens, and no linear reads it: any row will do for it there.
            last = layout.inputs["input_ids"].size - 1
            wide = np.minimum(np.asarray(layout.inputs["packed.wide"], np.int64), last)
            layout.inputs.update(self._bank.inputs(list(zip(worn, lengths, strict=True)), wide))
        for name in self._model.given:
            values = [rows[number].given[name] for number in chosen if number is not None]
            layout.inputs[name] = np.concatenate(values).astype(np.float32, copy=False)[None]
        if graph.embedding_size:
            layout.inputs.update(
                _embeddings(
                    [(rows[n].embeddings, tokens[n].size) for n in chosen if n is not None],
                    graph.embedding_size,
                )
            )
        made = graph.run([None if n is None else slots[n] for n in chosen], layout)
        outputs: dict[int, RowOutput] = {}
        first = 0
        for number, (begin, end) in zip(chosen, layout.wanted, strict=True):
            if number is not None:
                count, tree = tokens[number].size, rows[number].tree
                slots[number].length += count - (0 if tree is None else tree.prefixed)
                outputs[number] = RowOutput(
                    made.logits[begin:end],
                    made.hidden[begin:end] if rows[number].hidden else None,
                    np.concatenate([one[first : first + count] for one in made.states], axis=1)
                    if rows[number].states
                    else None,
                )
                first += count
        return [outputs[number] for number in range(len(rows))]

    def _prefix_of(self, row: Row) -> int:
        """Places of the prefix that stand among a row's tokens for the pass."""
        return self._prefix if row.tree is not None and row.tree.prefixed else 0

    def _grow(self, slot: Slot, tokens: int) -> None:
        before = slot.values
        slot.grow(tokens)
        if slot.values is not before:
            self._release(slot)

    def _release(self, slot: Slot) -> None:
        """Buffers that are bound somewhere would stay in memory."""
        for graph in self._graphs.values():
            graph.release(slot)

    def _graph(self, rows: int, *, trees: bool) -> BoundGraph:
        if (rows, trees) not in self._graphs:
            assert self._sessions is not None
            self._graphs[rows, trees] = BoundGraph(
                self._sessions.session(rows, trees=trees),
                rows,
                trees=trees,
                tables=self._tables,
                filler=self._filler,
            )
        return self._graphs[rows, trees]


def _embeddings(
    rows: Sequence[tuple[Embeddings | None, int]], size: int
) -> dict[str, NDArray[np.generic]]:
    """What stands in tokens' places, of rows with so many tokens each, behind one another."""
    places: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    values: list[NDArray[np.float32]] = [np.zeros((0, size), np.float32)]
    start = 0
    for embeddings, count in rows:
        if embeddings is not None:
            places.append(start + embeddings.places)
            values.append(embeddings.values)
        start += count
    flat = np.concatenate(places)
    return {
        IMAGE_ROWS: np.stack([np.zeros_like(flat), flat], axis=1),
        IMAGE_VALUES: np.concatenate(values).astype(np.float32, copy=False),
    }


def _tables(rope: Mapping[str, RopeTable], positions: int) -> dict[str, ort.OrtValue]:
    """Rotary tables of all positions, by input name."""
    made = {}
    for name, table in rope.items():
        suffix = "" if name == "default" else f"_{name}"
        cos, sin = cos_sin(np.arange(positions), table)
        for kind, values in (("cos_cache", cos), ("sin_cache", sin)):
            made[f"{kind}{suffix}"] = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(values))
    return made
