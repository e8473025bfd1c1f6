"""System prompts that are read once, before the first request, and kept.

What is kept is what every conversation with such a system message begins with: the tokens that two
conversations share which differ in the user's words alone. A model without a chat template is
given the text itself, as a completion's prompt would be.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from genai_core.errors import BadInput, GenAIError
from genai_runtime.executor.executor import Executor
from genai_runtime.executor.rows import AdapterUse
from genai_runtime.prefixes.cache import common
from genai_runtime.sampling import TokenLogprob
from genai_runtime.speculation.control import Speculation
from genai_serving.api.model import ServedModel
from genai_serving.engine import Engine
from genai_serving.requests import AnswerRequest, Ended
from genai_serving.scheduler import mebibytes

__all__ = ["SystemPrompts", "beginning"]

_OPTION = "--system-prompt"
_ANYTHING = ("x", "7")
"""What users may say: two that no tokenizer begins with the same token."""


@dataclass(frozen=True)
class SystemPrompts:
    """See the module's docstring.

    Attributes:
        prompts: Token ids [T] of each.
        names: Of the adapters and use cases with which they are read too.
        bytes: Memory of all of them, read with the base and with each of these.
    """

    prompts: tuple[NDArray[np.int64], ...] = ()
    names: tuple[str, ...] = ()
    bytes: int = 0

    @classmethod
    def of(
        cls,
        model: ServedModel,
        texts: Sequence[str],
        *,
        executor: Executor,
        speculation: Speculation | None = None,
    ) -> SystemPrompts:
        """Of texts, for all that requests may name now.

        Args:
            model: That is served.
            texts: System messages.
            executor: Its own.
            speculation: What guesses reads them too.

        Raises:
            BadInput: The model has no tokenizer, its template knows no system messages, or a
                prompt leaves nothing of the context.
        """
        prompts = []
        for number, text in enumerate(texts, 1):
            tokens = beginning(model, text, where=f"{_OPTION} {number}")
            if tokens.size + 1 >= model.context_length:
                raise BadInput(
                    f"it has {tokens.size} tokens, and the context holds {model.context_length}",
                    where=f"{_OPTION} {number}",
                    remedy="shorten it",
                )
            prompts.append(tokens)
        names = tuple(model.adapters.names) if prompts else ()
        size = (1 + len(names)) * sum(executor.cache_bytes(one.size) for one in prompts)
        if speculation is not None:
            size += sum(speculation.cache_bytes(one.size) for one in prompts)
        return cls(tuple(prompts), names, size)

    def check(self, cache_bytes: int, prefix_bytes: int, whole: int) -> None:
        """Whether there is room for them.

        Args:
            cache_bytes: For all keys and values.
            prefix_bytes: What of it may be kept.
            whole: Of one sequence of the whole context.

        Raises:
            BadInput: There is none; with the numbers.
        """
        room = min(prefix_bytes, cache_bytes - whole)
        if self.bytes <= room:
            return
        raise BadInput(
            f"{len(self.prompts)} of {sum(one.size for one in self.prompts)} tokens, read with the "
            f"base and with {len(self.names)} adapters and use cases, take "
            f"{mebibytes(self.bytes)} MiB; what may be kept beside one sequence of the whole "
            f"context is {mebibytes(max(room, 0))} MiB",
            where=_OPTION,
            remedy="raise --prefix-cache-mib and --kv-cache-mib, or give fewer",
        )

    def read(self, engine: Engine, model: ServedModel, say: Callable[[str], None]) -> None:
        """Read them, one after another; in any thread but the engine's.

        Raises:
            GenAIError: One could not be read.
        """
        if not self.prompts:
            return
        worn: list[tuple[AdapterUse, ...]] = [()]
        worn += [
            uses
            for name in self.names
            if (uses := model.adapters.worn(name)) is not None  # it may have gone meanwhile
        ]
        computed = kept = 0
        for adapters in worn:
            for prompt in self.prompts:
                ended = _read(engine, prompt, adapters)
                kept += prompt.size
                computed += prompt.size - (ended.cached_tokens or 0)
        say(f"{len(self.prompts)} system prompts are kept: {kept} tokens, {computed} computed now")


def beginning(model: ServedModel, text: str, *, where: str) -> NDArray[np.int64]:
    """What prompts with this system message begin with, as token ids.

    Raises:
        BadInput: As `SystemPrompts.of`.
    """
    if model.tokenizer is None:
        raise BadInput("the model has no tokenizer", where=where, remedy="leave it out")
    if model.template is None:
        one, other = (model.text_tokens(text + more, special=True) for more in _ANYTHING)
        return one[: common(one, other)]
    system = {"role": "system", "content": text}
    said = [model.chat_text([system, {"role": "user", "content": t}], {}) for t in _ANYTHING]
    if not all(text.strip() in whole for whole in said):
        raise BadInput(
            "the model's chat template shows no system message", where=where, remedy="leave it out"
        )
    one, other = (model.text_tokens(whole, special=False) for whole in said)
    return one[: common(one, other)]


@dataclass
class _Waiting:
    """A listener that hears of the end alone."""

    done: threading.Event = field(default_factory=threading.Event)
    ended: Ended | None = None

    def on_prompt(self, logprobs: list[list[TokenLogprob]]) -> None:
        """Nothing."""

    def on_token(self, token: int, logprobs: list[TokenLogprob] | None) -> bool:
        """Nothing."""
        return False

    def on_end(self, ended: Ended) -> None:
        """It has ended."""
        self.ended = ended
        self.done.set()


def _read(engine: Engine, prompt: NDArray[np.int64], adapters: tuple[AdapterUse, ...]) -> Ended:
    heard = _Waiting()
    engine.submit(AnswerRequest(prompt, 1, adapters=adapters, speculation=False, pin=True), heard)
    heard.done.wait()
    ended = heard.ended
    assert ended is not None
    if ended.error is not None:
        raise ended.error
    if not ended.tokens:
        raise GenAIError("the server was told to end before it was read", where=_OPTION)
    return ended
