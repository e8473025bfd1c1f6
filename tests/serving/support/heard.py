"""A listener of the engine that remembers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from genai_runtime.sampling import TokenLogprob
from genai_serving.requests import AnswerRequest, Ended

SECONDS = 20


class Heard:
    """A listener that remembers."""

    def __init__(self, *, enough: int = 0, on_first: Callable[[], object] | None = None) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[list[TokenLogprob] | None] = []
        self.prompt: list[list[TokenLogprob]] = []
        self._ended: Ended | None = None
        self.done = threading.Event()
        self.enough = enough
        self.on_first = on_first

    @property
    def ended(self) -> Ended:
        """How the answer ended; it must have."""
        assert self._ended is not None, "the request goes on"
        return self._ended

    def on_prompt(self, logprobs: list[list[TokenLogprob]]) -> None:
        self.prompt += logprobs

    def on_token(self, token: int, logprobs: list[TokenLogprob] | None) -> bool:
        if not self.tokens and self.on_first:
            self.on_first()
        self.tokens.append(token)
        self.logprobs.append(logprobs)
        return len(self.tokens) == self.enough

    def on_end(self, ended: Ended) -> None:
        self._ended = ended
        self.done.set()

    def wait(self) -> Self:
        assert self.done.wait(SECONDS), "the request never ended"
        return self


def ask(prompt: ArrayLike, most: int = 8, **given: Any) -> AnswerRequest:
    return AnswerRequest(np.asarray(prompt, np.int64), most, **given)
