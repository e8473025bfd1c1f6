"""What the engine holds, and the observer that counts what it does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from genai_serving.requests import AnswerRequest, Ended

__all__ = ["Load", "NoObserver", "Observer"]


@dataclass(frozen=True)
class Load:
    """What the engine holds now.

    Attributes:
        running: Sequences with a slot.
        waiting: Sequences without.
        reserved: Share of the cache's memory that running ones may come to take, 0 to 1.
    """

    running: int
    waiting: int
    reserved: float


class Observer(Protocol):
    """Who counts; called in the engine's thread."""

    def on_pass(self, *, rows: int, tokens: int, seconds: float) -> None:
        """A pass was run."""
        ...

    def on_token(self, gap: float | None) -> None:
        """A token was written, `gap` seconds behind the one before it; None = it is the first."""
        ...

    def on_end(self, request: AnswerRequest, ended: Ended) -> None:
        """A request ended."""
        ...


class NoObserver:
    """An observer that counts nothing."""

    def on_pass(self, *, rows: int, tokens: int, seconds: float) -> None:
        """Nothing."""

    def on_token(self, gap: float | None) -> None:
        """Nothing."""

    def on_end(self, request: AnswerRequest, ended: Ended) -> None:
        """Nothing."""
