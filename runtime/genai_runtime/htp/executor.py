"""Drives the static graphs of a Snapdragon container in the emulator.

A pass of AR tokens at context length CL needs: the tokens (padded), an additive mask, cosines and
sines of their positions, and the cache of at most CL - AR earlier tokens. Past tokens sit at the
front of the CL axis, the new ones at its end; a pass returns the new tokens' slice of the cache.
The splits of a model are chained by handing boundary tensors on as raw integers.

The executor picks, for each piece of the input, the smallest CL that holds it, and cuts the input
by the largest AR, finishing with the smallest AR that takes the rest in one pass: what Genie does
on the device. The rows of a pass run one after another, each on its own slot.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from genai_core.errors import BadInput, BadModel
from genai_core.facts import AdapterInputs, AdapterRanges
from genai_runtime import masks, rope
from genai_runtime.executor.adapter_weights import AdapterWeights
from genai_runtime.executor.row_checks import checked_places, checked_rows, checked_truncation
from genai_runtime.executor.rows import AdapterUse, Logits, Row, RowOutput, Tokens, Tree
from genai_runtime.executor.slot_table import SlotTable
from genai_runtime.htp import emulation
from genai_runtime.htp.adapters import BranchFeeds
from genai_runtime.htp.arithmetic import Integers, dequantize, quantize
from genai_runtime.htp.chains import by_size, empty_caches, is_key, tensor_of
from genai_runtime.htp.client import Emulator
from genai_runtime.htp.graph_sizes import GraphSizes
from genai_runtime.session import SlotSession

_Given = Mapping[str, NDArray[np.floating]]


class Runner(Protocol):
    """What runs a graph: `genai_runtime.htp.client.Emulator`, or a stand-in."""

    def run(self, graph: str, inputs: Mapping[str, Integers]) -> dict[str, Integers]:
        """One pass: arrays in, arrays out, by name."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


@dataclass
class _Slot:
    """One sequence: its tokens, and its cache by input name."""

    tokens: NDArray[np.int64]
    cache: dict[str, Integers]

    @property
    def length(self) -> int:
        return int(self.tokens.size)


class HtpExecutor:
    """Slots in the emulator; the rows of a pass run one after another."""

    def __init__(
        self,
        folder: Path,
        *,
        constants: Mapping[str, NDArray[np.floating]] | None = None,
        inputs: AdapterInputs | None = None,
        ranges: AdapterRanges | None = None,
        adapters: Mapping[str, AdapterWeights] | None = None,
        context_length: int | None = None,
        ars: Collection[int] | None = None,
        run_timeout: float = 600.0,
        runner: Runner | None = None,
    ) -> None:
        """Open a container's `emulation/` folder.

        Args:
            folder: See `genai_runtime.htp.emulation`.
            constants: Float values of further inputs, the same in every pass; an input that is not
                named, and none of a row's adapters, gets zeros.
            inputs: With which the graphs take adapters; None = they take none.
            ranges: Of these inputs and what comes of them; None = they are floating point.
            adapters: What rows may wear, by name.
            context_length: Fewer tokens than the longest CL offers; None = all of them.
            ars: Graphs of these ARs alone are run; None = all.
            run_timeout: Seconds that one pass of one split may take.
            runner: Runs the graphs; None = the vendor's emulator in a child process.

        Raises:
            NotRunnableHere: No twin in the container, or no vendor libraries on this machine.
            BadModel: The graphs do not fit together.
            BadInput: The context length is below 1, or an adapter does not fit the graphs.
        """
        if context_length is not None and context_length < 1:
            raise BadInput("must be at least 1", where="context length")
        self._facts = emulation.load(folder)
        self._graphs = {
            size: chain
            for size, chain in by_size(self._facts).items()
            if ars is None or size[0] in ars
        }
        self._constants = dict(constants or {})
        self._feeds = BranchFeeds(inputs, adapters or {}, ranges=ranges)
        self._sizes = GraphSizes(self._graphs)
        longest = self._sizes.longest
        self._limit = longest if context_length is None else min(context_length, longest)
        last = self._graphs[min(self._graphs)][-1]
        self._vocabulary = int(tensor_of(last.outputs, "logits", last.name).shape[-1])
        self._empty = empty_caches(self._graphs, longest)
        self._slots: SlotTable[_Slot] = SlotTable()
        models = {g.name: folder / f"{g.name}.onnx" for gs in self._graphs.values() for g in gs}
        self._runner: Runner = runner or Emulator(
            models, soc_model=self._facts.soc_model, run_timeout=run_timeout
        )

    @property
    def context_length(self) -> int:
        """The longest CL of the container, or what it was opened with."""
        return self._limit

    @property
    def vocab_size(self) -> int:
        """V of the logits."""
        return self._vocabulary

    @property
    def hidden_size(self) -> int:
        """0: the static graphs give none out."""
        return 0

    @property
    def adapters(self) -> frozenset[str]:
        """Those that it was opened with."""
        return self._feeds.names

    @property
    def trees(self) -> bool:
        """A tree that fits in one pass is a mask like any other."""
        return True

    @property
    def prefix(self) -> int:
        """None: Genie drives a container that was trained to forecast."""
        return 0

    @property
    def states(self) -> Mapping[str, int]:
        """None: its graphs give logits out alone."""
        return {}

    @property
    def given(self) -> Mapping[str, int]:
        """None: its graphs read tokens alone."""
        return {}

    @property
    def embedding_size(self) -> int:
        """None: its graphs look tokens up themselves."""
        return 0

    @property
    def token_count(self) -> int:
        """As many as there are logits."""
        return self.vocab_size

    def cache_bytes(self, tokens: int) -> int:
        """The whole context's, whatever the length: the graphs' shapes are static."""
        del tokens
        return sum(values.nbytes for values in self._empty.values())

    def open(self) -> int:
        """An empty slot."""
        cache = {name: values.copy() for name, values in self._empty.items()}
        return self._slots.add(_Slot(np.zeros(0, np.int64), cache))

    def copy(self, slot: int, length: int) -> int:
        """A new slot with the first tokens of another."""
        held = self._slots[slot]
        kept = held.tokens[: checked_truncation(length, held.length)]
        cache = {name: values.copy() for name, values in held.cache.items()}
        return self._slots.add(_Slot(kept, cache))

    def slot_bytes(self, slot: int) -> int:
        """The whole context's."""
        return self.cache_bytes(self._slots[slot].length)

    def length(self, slot: int) -> int:
        """Tokens in a slot."""
        return self._slots[slot].length

    def forward(self, rows: Sequence[Row]) -> list[RowOutput]:
        """Run the rows one after another. See `Executor.forward`.

        Raises:
            BadInput: Also a tree that no graph takes in one pass, and adapters that have no room
                beside one another.
        """
        checked = checked_rows(rows, self)
        for row, tokens in zip(rows, checked, strict=True):
            self._feeds.of(row.adapters)
            if row.tree is not None:
                self._sizes.of_tree(self._slots[row.slot].length, tokens.size)
        outputs = []
        for row, tokens in zip(rows, checked, strict=True):
            slot = self._slots[row.slot]
            given = {**self._constants, **self._feeds.of(row.adapters)}
            if row.tree is None:
                logits = self._chain(slot, tokens, given)
            else:
                size = self._sizes.of_tree(slot.length, tokens.size)
                logits = self._pass(slot, size, slot.length, tokens, given=given, tree=row.tree)
                slot.tokens = np.concatenate([slot.tokens, tokens])
            outputs.append(RowOutput(logits[len(logits) - row.want.count(tokens.size) :].copy()))
        return outputs

    def truncate(self, slot: int, length: int) -> None:
        """Keep the first `length` tokens; what stands behind them is masked from then on."""
        held = self._slots[slot]
        held.tokens = held.tokens[: checked_truncation(length, held.length)]

    def grow(self, slot: int, tokens: int) -> None:
        """Only checks: a slot has the whole context's room from the start."""
        del slot
        if tokens > self._limit:
            raise BadInput(f"the context length is {self._limit}", where=f"{tokens} tokens")

    def move(self, slot: int, start: int, places: Sequence[int]) -> None:
        """Keep the first tokens and those at `places`. See `Executor.move`."""
        held = self._slots[slot]
        index = checked_places(start, places, held.length)
        end = start + index.size
        for name, values in held.cache.items():
            if is_key(name):
                values[..., start:end] = values[..., index]
            else:
                values[:, :, start:end] = values[:, :, index]
        held.tokens = np.concatenate([held.tokens[:start], held.tokens[index]])

    def free(self, slot: int) -> None:
        """Close a slot."""
        self._slots.pop(slot)

    def close(self) -> None:
        """End the emulator."""
        self._runner.close()

    def _chain(self, slot: _Slot, new: NDArray[np.int64], given: _Given) -> Logits:
        """Append tokens [T] to a slot, in as many passes as its graphs need; logits [T, V]."""
        pieces = []
        while new.size:
            size = self._sizes.of_chain(slot.length, int(new.size))
            ar, cl = size
            # Without a small AR the end of the context is reached by computing some tokens again.
            start = min(slot.length, cl - ar)
            again = slot.tokens[start:]
            taken = new[: ar - again.size]
            run = np.concatenate([again, taken])
            pieces.append(self._pass(slot, size, start, run, given=given)[again.size :])
            slot.tokens = np.concatenate([slot.tokens, taken])
            new = new[taken.size :]
        return np.concatenate(pieces)

    def _pass(
        self,
        slot: _Slot,
        size: tuple[int, int],
        start: int,
        tokens: NDArray[np.int64],
        *,
        given: _Given,
        tree: Tree | None = None,
    ) -> Logits:
        """One pass of all splits; the cache holds `start` tokens before it.

        `given` has the values of inputs that are none of the model's own.
        """
        ar, cl = size
        count = int(tokens.size)
        padded = np.zeros(ar, np.int64)
        padded[:count] = tokens
        queries = np.full(ar, masks.EMPTY, np.int64)
        queries[:count] = np.arange(start, start + count) if tree is None else tree.positions
        keys = np.full(cl, masks.EMPTY, np.int64)
        keys[:start] = np.arange(start)
        keys[cl - ar :] = queries
        positions = np.maximum(queries, 0)
        handed: dict[str, Integers] = {}
        for graph in self._graphs[size]:
            feeds: dict[str, Integers] = {}
            for tensor in graph.inputs:
                name = tensor.name
                if name in handed:
                    feeds[name] = handed[name]
                elif name == "input_ids":
                    feeds[name] = padded.astype(tensor.dtype).reshape(tensor.shape)
                elif name.startswith("attention_mask"):
                    window = int(name.partition("_w")[2] or 0)
                    values = masks.additive_mask(queries, keys, window=window)
                    if tree is not None:
                        seen = values[0, 0, :count, cl - ar : cl - ar + count]
                        seen[~tree.sees] = masks.HIDDEN
                    feeds[name] = quantize(values, tensor)
                elif name.startswith("position_ids_"):
                    feeds[name] = quantize(self._rotary(name, positions), tensor).reshape(
                        tensor.shape
                    )
                elif name in slot.cache:
                    past = slot.cache[name]
                    slots = past[..., : cl - ar] if is_key(name) else past[:, :, : cl - ar]
                    feeds[name] = np.ascontiguousarray(slots)
                else:
                    further = given.get(name)
                    floats = np.zeros(tensor.shape) if further is None else np.asarray(further)
                    feeds[name] = quantize(floats, tensor)
            outputs = self._runner.run(graph.name, feeds)
            _remember(slot, outputs, start, count)
            handed |= outputs
        final = self._graphs[size][-1]
        logits = dequantize(handed["logits"], tensor_of(final.outputs, "logits", final.name))
        return np.ascontiguousarray(logits.reshape(ar, -1)[:count])

    def _rotary(self, name: str, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        kind, _, suffix = name.removeprefix("position_ids_").partition("_")
        tables = self._facts.rope
        key = suffix or ("default" if "default" in tables else next(iter(tables), ""))
        if key not in tables or kind not in ("cos", "sin"):
            raise BadModel(f"no rotary table for it; known are {sorted(tables)}", where=name)
        cosines, sines = rope.cos_sin(positions, tables[key])
        return cosines if kind == "cos" else sines


class HtpSession(SlotSession):
    """One slot of an `HtpExecutor` of its own; same arguments, and what it wears."""

    def __init__(
        self,
        folder: Path,
        *,
        constants: Mapping[str, NDArray[np.floating]] | None = None,
        inputs: AdapterInputs | None = None,
        ranges: AdapterRanges | None = None,
        adapters: Mapping[str, AdapterWeights] | None = None,
        worn: Sequence[AdapterUse] = (),
        context_length: int | None = None,
        ars: Collection[int] | None = None,
        runner: Runner | None = None,
    ) -> None:
        executor = HtpExecutor(
            folder,
            constants=constants,
            inputs=inputs,
            ranges=ranges,
            adapters=adapters,
            context_length=context_length,
            ars=ars,
            runner=runner,
        )
        super().__init__(executor, worn)

    def prefill(self, tokens: Tokens) -> Logits:
        """`forward` on an emptied cache."""
        self.reset()
        return self.forward(tokens)

    def decode(self, token: int) -> Logits:
        """`forward` of one token; logits [1, V]."""
        return self.forward(np.array([token]))


def _remember(slot: _Slot, outputs: dict[str, Integers], start: int, count: int) -> None:
    """Take the new tokens' keys and values out of a pass's outputs, into the cache."""
    for name in [n for n in outputs if n.startswith(("past_key_", "past_value_"))]:
        new = outputs.pop(name)
        cache = slot.cache[name.removesuffix("_out") + "_in"]
        if is_key(name):
            cache[..., start : start + count] = new[..., :count]
        else:
            cache[:, :, start : start + count] = new[:, :, :count]
