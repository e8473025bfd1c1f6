"""What is asked of the engine, and what it tells while it answers."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from genai_core.errors import GenAIError
from genai_runtime.executor.rows import AdapterUse, Embeddings
from genai_runtime.prefixes.cache import Pictures
from genai_runtime.sampling import Constraint, Sampling, TokenLogprob
from genai_runtime.speculation.control import Counts


class Closed(GenAIError):
    """The engine takes no more requests."""

    code = "ShuttingDown"


class Finish(enum.Enum):
    """Why an answer ended."""

    STOP = "stop"
    """An end token, or its reader had enough (a stop string)."""
    LENGTH = "length"
    """As many tokens as were asked for, or as the context holds."""
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ERROR = "error"


@dataclass(frozen=True)
class Scope:
    """What keys and values depend on beside tokens, within one process and one model.

    Attributes:
        adapters: What every pass wears. A name of the executor's means one content for ever.
        salt: The client's own: requests share nothing with those of another.
    """

    adapters: tuple[AdapterUse, ...] = ()
    salt: str = ""


@dataclass(frozen=True)
class AnswerRequest:
    """One answer to write.

    Attributes:
        prompt: Token ids [T], T >= 1.
        max_tokens: Of the answer; never beyond the context.
        sampling: Of its tokens.
        stop_tokens: End the answer; the token itself is told too.
        min_tokens: Before so many, no stop token is taken.
        logprobs: So many of the most likely tokens are told with each token; None = none.
        prompt_logprobs: The same for the prompt's tokens.
        deadline: When it must have ended, by the engine's clock; None = whenever.
        adapters: What every pass of it wears.
        constraint: Makes what the answer must look like; None = anything.
        speculation: Tokens may be guessed; the answer is the same.
        cache_salt: Only requests of the same salt share cached beginnings with it.
        pin: Nobody asked it: its prompt is read to be kept, as a beginning of others' prompts.
        embeddings: What stands in places of the prompt: pictures.
        pictures: Of each its first place and the digest of its embeddings.
    """

    prompt: NDArray[np.int64]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop_tokens: frozenset[int] = frozenset()
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    deadline: float | None = None
    adapters: tuple[AdapterUse, ...] = ()
    constraint: Callable[[], Constraint] | None = None
    speculation: bool = True
    cache_salt: str = ""
    pin: bool = False
    embeddings: Embeddings | None = None
    pictures: Pictures = ()

    @property
    def scope(self) -> Scope:
        """With whom it may share keys and values."""
        return Scope(self.adapters, self.cache_salt)


@dataclass(frozen=True)
class Times:
    """By the engine's clock: when a request arrived, got a slot, told its first and last token."""

    arrived: float
    admitted: float | None
    first: float | None
    ended: float


@dataclass(frozen=True)
class Ended:
    """How an answer ended.

    Attributes:
        reason: Why.
        prompt_tokens: Of the prompt.
        tokens: Of the answer.
        times: When what happened.
        error: With `Finish.ERROR`.
        cached_tokens: Of the prompt, taken from the prefix cache; None = it was not asked.
        guessed: What came of guesses; None = nothing was guessed.
    """

    reason: Finish
    prompt_tokens: int
    tokens: int
    times: Times
    error: GenAIError | None = None
    cached_tokens: int | None = None
    guessed: Counts | None = None


class Listener(Protocol):
    """Who hears of an answer, in the engine's thread: it must be quick and raise nothing."""

    def on_prompt(self, logprobs: list[list[TokenLogprob]]) -> None:
        """Logprobs of prompt tokens 1 .. T - 1, in pieces from the front; only where asked for."""
        ...

    def on_token(self, token: int, logprobs: list[TokenLogprob] | None) -> bool:
        """A token of the answer; True ends it."""
        ...

    def on_end(self, ended: Ended) -> None:
        """The last call."""
        ...
