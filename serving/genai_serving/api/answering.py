"""From the engine's thread to the event loop: an answer as pieces of text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

from genai_runtime.sampling import TokenLogprob
from genai_serving.engine import Engine
from genai_serving.requests import AnswerRequest, Ended, Finish
from genai_serving.text import Decode, Detokenizer, StopFinder


@dataclass(frozen=True)
class Piece:
    """What came of one or more tokens.

    Attributes:
        text: It may be empty: a cut character, or the beginning of a stop string.
        tokens: The tokens.
        logprobs: Of each of them, where asked for.
    """

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[list[TokenLogprob], ...] = ()


@dataclass
class Answer:
    """One answer; a listener of the engine and a source of pieces for the event loop.

    Args:
        loop: Where pieces go.
        decode: The tokenizer's; None = there is none, and no text.
        stops: Stop strings.
        include_stop: Show the one that was found.
        hidden: Tokens that end the answer and have no text.
        shown: Special tokens that are text here, and what text.
    """

    loop: asyncio.AbstractEventLoop
    decode: Decode | None
    stops: list[str] = field(default_factory=list)
    include_stop: bool = False
    hidden: frozenset[int] = frozenset()
    shown: Mapping[int, str] = field(default_factory=dict)
    prompt_logprobs: list[list[TokenLogprob]] = field(default_factory=list)
    ended: Ended | None = None

    def __post_init__(self) -> None:
        """Make what an answer of its own needs."""
        self._pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
        self._text = Detokenizer(self.decode) if self.decode is not None else None
        self._finder = StopFinder(self.stops, include=self.include_stop)

    @property
    def stop_reason(self) -> str | None:
        """The stop string that was found."""
        return self._finder.found

    def on_prompt(self, logprobs: list[list[TokenLogprob]]) -> None:
        """Keep them; they are complete before the first token comes."""
        self.prompt_logprobs += logprobs

    def on_token(self, token: int, logprobs: list[TokenLogprob] | None) -> bool:
        """Text of a token, as far as it can be shown; True at a stop string."""
        text = ""
        if self._text is not None and token not in self.hidden:
            mark = self.shown.get(token)
            new = self._text.push(token) if mark is None else self._text.finish() + mark
            text = self._finder.push(new)
        self._send(Piece(text, (token,), () if logprobs is None else (logprobs,)))
        return self._finder.found is not None

    def on_end(self, ended: Ended) -> None:
        """What was held back, and the end."""
        self.ended = ended
        try:
            left = self._finder.push(self._text.finish()) if self._text is not None else ""
            left += self._finder.finish()
            if left:
                self._send(Piece(left))
        finally:
            self._send(None)

    async def pieces(self) -> AsyncIterator[Piece]:
        """Pieces until the end; `ended` is set behind the last."""
        while (piece := await self._pieces.get()) is not None:
            yield piece

    def _send(self, piece: Piece | None) -> None:
        self.loop.call_soon_threadsafe(self._pieces.put_nowait, piece)


@dataclass(frozen=True)
class RunningAnswer:
    """An answer that the engine has taken on."""

    answer: Answer
    cancel: Callable[[], None]


def start(engine: Engine, request: AnswerRequest, answer: Answer) -> RunningAnswer:
    """Submit a request.

    Raises:
        GenAIError: As `Engine.submit`.
    """
    key = engine.submit(request, answer)
    return RunningAnswer(answer, lambda: engine.cancel(key))


FINISH_REASONS = {Finish.STOP: "stop", Finish.LENGTH: "length"}
"""As OpenAI's API names them; other ends are errors."""
