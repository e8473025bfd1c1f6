"""A request on its way: what the engine knows of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from genai_runtime.executor.executor import Executor
from genai_runtime.prefixes.cache import Held
from genai_runtime.sampling import Sampler
from genai_serving.requests import AnswerRequest, Listener
from genai_serving.scheduler import Sequence

__all__ = ["EngineAnswer"]


@dataclass
class EngineAnswer:
    """See the module's docstring.

    Attributes:
        request: What was asked.
        listener: Who hears.
        sampler: Takes its tokens.
        arrived: When, by the engine's clock; as the further times.
        need: Bytes that its slot may come to occupy.
        sequence: As the scheduler knows it.
        admitted: When it got a place among those that run.
        first: When it wrote its first token.
        last: When its newest.
        slot: Of the executor.
        tokens: That it has written.
        cached: Tokens of its prompt that were not computed for it; None = nobody looked.
        done: It is at its end.
        steady: Tokens at the front of its slot whose numbers do not depend on how they were read;
            None = all.
        states: The model's, of the prompt, until guessing begins.
    """

    request: AnswerRequest
    listener: Listener
    sampler: Sampler
    arrived: float
    need: int
    sequence: Sequence
    admitted: float | None = None
    first: float | None = None
    last: float | None = None
    slot: int | None = None
    tokens: list[int] = field(default_factory=list)
    cached: int | None = None
    done: bool = False
    steady: int | None = None
    states: list[tuple[int, NDArray[np.float32]]] = field(default_factory=list)

    def begun(self, tokens: int) -> int:
        """Its slot begins with tokens from elsewhere; how many."""
        if self.steady is not None:
            self.steady = tokens
        return tokens

    def read(self, start: int, count: int) -> None:
        """A pass has read so many tokens of its prompt: two and more are steady, alone or not."""
        if self.steady is not None and start == self.steady and count > 1:
            self.steady += count

    def held(self, executor: Executor) -> Held | None:
        """What its slot holds for others; None where it has none."""
        if self.slot is None:
            return None
        known = np.concatenate([self.request.prompt, np.asarray(self.tokens, np.int64)])
        held = executor.length(self.slot)
        return Held(
            self.slot,
            self.request.scope,
            known[: held if self.steady is None else min(held, self.steady)],
            self.request.pictures,
        )
