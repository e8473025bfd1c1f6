"""One packed graph and what is bound to it: the slots' buffers stay bound from pass to pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from genai_runtime.cpu.layout import PassLayout
from genai_runtime.cpu.packing import IMAGE_VALUES, cache_inputs
from genai_runtime.cpu.slots import Slot


@dataclass(frozen=True)
class PassOutput:
    """What a run yields.

    Attributes:
        logits: [W, V].
        hidden: [W, H], what the output layer reads.
        states: [N, width] each, of all tokens, in the order of the graph's outputs.
    """

    logits: NDArray[np.float32]
    hidden: NDArray[np.float32]
    states: list[NDArray[np.float32]]


class BoundGraph:
    """See the module's docstring.

    Args:
        session: Of a packed model.
        rows: Its slots.
        trees: It takes positions and masks by row.
        tables: Rotary tables by input name.
        filler: The slot of places that nobody takes.
    """

    def __init__(
        self,
        session: Any,
        rows: int,
        *,
        trees: bool,
        tables: Mapping[str, ort.OrtValue],
        filler: Slot,
    ) -> None:
        self.rows = rows
        self.trees = trees
        self._session = session
        given = {value.name: value.shape for value in session.get_inputs()}
        self._inputs = frozenset(given)
        self.embedding_size = int(given[IMAGE_VALUES][1]) if IMAGE_VALUES in given else 0
        shapes = {value.name: value.shape for value in session.get_outputs()}
        self._states = {
            name: int(shape[2])
            for name, shape in shapes.items()
            if name not in ("logits", "packed.hidden") and not name.startswith("present.")
        }
        self._vocab_size, self.hidden_size = (
            int(shapes["logits"][2]),
            int(shapes["packed.hidden"][2]),
        )
        self._binding = session.io_binding()
        self._filler = filler
        self._slots: list[Slot | None] = [None] * rows
        self._values: list[Mapping[str, ort.OrtValue]] = [{}] * rows
        for name, value in tables.items():
            if name in self._inputs:
                self._binding.bind_ortvalue_input(name, value)
        for place in range(rows):
            self._bind(place, filler)

    def places(self, slots: Sequence[Slot]) -> list[int | None]:
        """For each place of the graph the slot that takes it, by number; bound ones stay."""
        chosen: list[int | None] = [None] * self.rows
        left = []
        for number, slot in enumerate(slots):
            place = next((p for p, bound in enumerate(self._slots) if bound is slot), None)
            if place is None:
                left.append(number)
            else:
                chosen[place] = number
        free = [place for place, number in enumerate(chosen) if number is None]
        # Places of the filler first: whoever is bound may come back in the next pass.
        free.sort(key=lambda place: self._slots[place] is not self._filler)
        for place, number in zip(free, left, strict=False):
            chosen[place] = number
        return chosen

    def run(self, slots: Sequence[Slot | None], layout: PassLayout) -> PassOutput:
        """One run.

        Args:
            slots: By place; None is the filler.
            layout: Of the same places.

        Returns:
            Arrays of the caller's.
        """
        binding = self._binding
        for place, slot in enumerate(slots):
            self._bind(place, slot or self._filler)
        for name, array in layout.inputs.items():
            if name in self._inputs:
                binding.bind_cpu_input(name, array)
        logits = np.empty((1, layout.count, self._vocab_size), np.float32)
        hidden = np.empty((1, layout.count, self.hidden_size), np.float32)
        tokens = layout.inputs["input_ids"].size
        states = {
            name: np.empty((1, tokens, width), np.float32) for name, width in self._states.items()
        }
        outputs = {"logits": logits, "packed.hidden": hidden, **states}
        held = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in outputs.items()}
        for name, value in held.items():
            binding.bind_ortvalue_output(name, value)
        self._session.run_with_iobinding(binding)
        return PassOutput(logits[0], hidden[0], [state[0] for state in states.values()])

    def release(self, slot: Slot) -> None:
        """Let go of a slot's buffers."""
        for place, bound in enumerate(self._slots):
            if bound is slot:
                self._bind(place, self._filler)

    def _bind(self, place: int, slot: Slot) -> None:
        if self._slots[place] is slot and self._values[place] is slot.values:
            return
        for name, value in slot.values.items():
            past, present = cache_inputs(name, place)
            self._binding.bind_ortvalue_input(past, value)
            self._binding.bind_ortvalue_output(present, value)
        self._slots[place], self._values[place] = slot, slot.values
