"""Who counts what the engine does."""

from __future__ import annotations

from typing import Protocol

from genai_serving.requests import AnswerRequest, Ended

__all__ = ["NoObserver", "Observer"]


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
