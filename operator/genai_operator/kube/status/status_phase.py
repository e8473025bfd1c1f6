"""How an object stands, in a word for people: `status.phase`. Pure."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Phase"]


class Phase(StrEnum):
    """How a build stands; the words of `status.phase`."""

    NEW = "New"
    """No pass over it has ended yet, so its status says nothing: counted, never written."""
    BUILDING = "Building"
    READY = "Ready"
    STALLED = "Failed"
    WAITING = "Waiting"
    SUSPENDED = "Suspended"
