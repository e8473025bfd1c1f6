"""The open slots of an executor, by number."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from genai_core.errors import BadInput

_S = TypeVar("_S")


@dataclass
class SlotTable(Generic[_S]):
    """The open slots of an executor, by number. A freed number is used again, the lowest first."""

    open_slots: dict[int, _S] = field(default_factory=dict)

    def add(self, slot: _S) -> int:
        """File a slot under a free number."""
        number = next(n for n in range(len(self.open_slots) + 1) if n not in self.open_slots)
        self.open_slots[number] = slot
        return number

    def __getitem__(self, number: int) -> _S:
        """The slot of a number.

        Raises:
            BadInput: It is not open.
        """
        try:
            return self.open_slots[number]
        except KeyError:
            raise BadInput("is not open", where=f"slot {number}") from None

    def pop(self, number: int) -> _S:
        """Take a slot out.

        Raises:
            BadInput: It is not open.
        """
        slot = self[number]
        del self.open_slots[number]
        return slot
