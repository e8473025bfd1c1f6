"""What the endpoints share: the engine, the model, how a body becomes answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.requests import Request as HttpRequest

from genai_core.errors import BadInput, GenAIError
from genai_core.kinds.lora import BASE
from genai_runtime.executor.rows import AdapterUse
from genai_runtime.sampling import Constraint
from genai_runtime.vision.places import PicturedPrompt, marked_text, with_pictures
from genai_serving.adapters.loaded import AT_REST, ORDER
from genai_serving.api.answering import FINISH_REASONS, Answer, Piece, RunningAnswer, start
from genai_serving.api.bodies import Bodies
from genai_serving.api.errors import RETRY_SECONDS, RequestRefused, not_found, of_failure, too_long
from genai_serving.api.messages import ChatMessage, Tool
from genai_serving.api.model import ServedModel
from genai_serving.api.schemas import ChatBody, SamplingFields
from genai_serving.engine import Engine
from genai_serving.requests import AnswerRequest, Ended, Finish
from genai_serving.scheduler import ServingLimits
from genai_serving.structure.answer_forms import Form
from genai_serving.structure.grammars import Grammar, Grammars

if TYPE_CHECKING:  # it decodes pictures, which most containers do not read
    from genai_serving.api.request_pictures import RequestPictures

_COMPILING = 2
"""Grammars at a time: each takes a second of a core at most."""
_MOST_COMPILING = 32
"""That are being compiled or wait for it; a thousand would keep everybody waiting for minutes."""

MOST_TOLD = 400_000
"""Logprobs of prompts in one answer, each some 100 bytes here and again in JSON: a short body may
ask for a hundred times as many. Those of answers come no faster than tokens do."""


@dataclass(frozen=True)
class ServedName:
    """What a request is answered by.

    Attributes:
        name: As it is told in the answer.
        adapters: What its passes wear; none for the base.
    """

    name: str
    adapters: tuple[AdapterUse, ...] = ()


class Forms:
    """Forms of answers that are being compiled; of one event loop."""

    def __init__(self) -> None:
        self.count = 0
        """That are, or wait for it."""
        self.turn = asyncio.Semaphore(_COMPILING)


@dataclass(frozen=True)
class Service:
    """See the module's docstring.

    Attributes:
        engine: It runs.
        model: It is served.
        limits: The engine's.
        vocab_size: Token ids lie below it.
        grammars: Of its vocabulary.
        seconds: That a request may take; 0 = for ever.
        now: Seconds since 1970, for `created`.
        pictures: What reads those of requests; None = the model reads none.
    """

    engine: Engine
    model: ServedModel
    limits: ServingLimits
    vocab_size: int
    grammars: Grammars
    seconds: float = 0.0
    now: Callable[[], float] = time.time  # noqa: TID251 - shown to clients, decides nothing
    bodies: Bodies = field(default_factory=Bodies)
    forms: Forms = field(default_factory=Forms)
    pictures: RequestPictures | None = None

    def chosen(self, name: str) -> ServedName:
        """What a request's `model` means: the base, an adapter, or a use case.

        Raises:
            ApiError: 404: a name that is not here is never answered by another.
        """
        if name in {"", BASE, self.model.name}:
            return ServedName(self.model.name)
        worn = self.model.adapters.worn(name)
        if worn is None:
            raise not_found(name, ", ".join([self.model.name, *self.model.adapters.names]))
        return ServedName(name, worn)

    def adapter_state(self, name: str) -> str | None:
        """Where the adapters of a name are, the farthest of them; None for the base."""
        worn = self.model.adapters.worn(name)
        if not worn:
            return None
        states = self.engine.adapter_states
        return min((states.get(use.name, AT_REST) for use in worn), key=ORDER.index)

    async def tokens_of(self, prompt: str | list[int], *, special: bool) -> PicturedPrompt:
        """A prompt's token ids; the engine checks them."""
        if isinstance(prompt, str):
            # A text of a megabyte takes a second: not in the loop.
            async with self.bodies.of(len(prompt)):
                tokens = self.model.text_tokens
                return PicturedPrompt(await asyncio.to_thread(tokens, prompt, special=special))
        try:
            return PicturedPrompt(np.asarray(prompt, dtype=np.int64))
        except OverflowError:
            raise BadInput("a token id is outside the vocabulary", where="prompt") from None

    async def chat_prompt(
        self,
        messages: Sequence[ChatMessage],
        variables: Mapping[str, Any],
        tools: Sequence[Tool] = (),
    ) -> tuple[str, PicturedPrompt]:
        """A conversation as text, and its token ids with pictures in their places.

        Raises:
            RequestRefused: A picture cannot be read.
            BadInput: The model reads none, or they are more or fewer than their places.
        """
        images = sum(len(message.images) for message in messages)
        if images and self.pictures is None:
            raise BadInput("the model reads no pictures", where="messages", remedy="send text")
        seen = await self.pictures.seen(messages) if self.pictures is not None and images else []

        def rendered() -> tuple[str, PicturedPrompt]:
            shown = [tool.plain() for tool in tools]
            if not seen or self.pictures is None:
                text = self.model.chat_text([m.plain() for m in messages], variables, shown)
                return text, PicturedPrompt(self.model.text_tokens(text, special=False))
            info = self.pictures.info
            listed = self.model.template is not None and self.model.template.lists_images
            told = [m.plain(info.image_token, listed=listed) for m in messages]
            text = self.model.chat_text(told, variables, shown)
            marked = marked_text(text, self.model.tokenizer_for(text), info, special=False)
            return text, with_pictures(marked, seen, info, where="messages")

        async with self.bodies.of(sum(len(message.text) for message in messages)):
            return await asyncio.to_thread(rendered)

    async def compiled(self, form_of: Callable[[], Form | None]) -> Grammar | None:
        """What holds answers to a form; None where there is none.

        Raises:
            BadInput: As `Grammars.compile`.
            ApiError: 429: too many wait for it.
        """
        form = form_of()
        if form is None:
            return None
        known = self.grammars.known(form)
        if known is not None:  # it waits for nobody
            return known
        if self.forms.count >= _MOST_COMPILING:
            raise RequestRefused(
                429,
                "too many new forms of answers wait to be compiled",
                form.field,
                "queue_full",
                {"Retry-After": str(RETRY_SECONDS)},
            )
        self.forms.count += 1
        try:
            async with self.forms.turn:
                return await asyncio.to_thread(self.grammars.compile, form)
        finally:
            self.forms.count -= 1

    def begin(
        self,
        body: SamplingFields,
        prompts: Sequence[PicturedPrompt],
        *,
        most: int | None,
        logprobs: int | None,
        prompt_logprobs: int | None = None,
        adapters: tuple[AdapterUse, ...] = (),
        constraint: Callable[[], Constraint] | None = None,
        shown: Mapping[int, str] | None = None,
    ) -> list[RunningAnswer]:
        """Submit every choice of every prompt, in order; all or none.

        Args:
            body: The request.
            prompts: Token ids of each, and pictures in their places.
            most: Tokens of an answer; None = as many as the context holds.
            logprobs: Of answers; see `genai_serving.requests.Request`.
            prompt_logprobs: Of prompts.
            adapters: That every answer wears.
            constraint: Makes what holds each answer to its form; None = any.
            shown: Special tokens that are text to the answers' reader.

        Raises:
            ApiError: A prompt is longer than the context.
            GenAIError: As `Engine.submit`.
        """
        context = self.model.context_length
        for prompt in prompts:
            if prompt.tokens.size > context:
                param = "messages" if isinstance(body, ChatBody) else "prompt"
                raise too_long(prompt.tokens.size, context, param)
        total, room = len(prompts) * body.n, self.limits.sequences + self.limits.waiting
        if total > room:
            raise BadInput(f"{total} answers are asked for, the server takes {room}", where="n")
        told = body.n * sum(prompt.tokens.size for prompt in prompts) * ((prompt_logprobs or 0) + 1)
        if prompt_logprobs is not None and told > MOST_TOLD:
            raise BadInput(
                f"{told} numbers of prompts are asked for, {MOST_TOLD} are told at once",
                where="logprobs",
                remedy="send fewer prompts in a request, or ask for fewer logprobs",
            )
        end = frozenset() if body.ignore_eos else self.model.stop_tokens
        # Ids beyond the vocabulary never come.
        own = (token for token in body.stop_token_ids or () if token < self.vocab_size)
        stops = end | frozenset(own)
        loop = asyncio.get_running_loop()
        tokenizer = self.model.tokenizer
        if tokenizer is None and body.stops:
            raise BadInput("the model has no tokenizer", where="stop")
        deadline = time.monotonic() + self.seconds if self.seconds else None
        running: list[RunningAnswer] = []
        try:
            for prompt in prompts:
                for index in range(body.n):
                    request = AnswerRequest(
                        prompt=prompt.tokens,
                        embeddings=prompt.embeddings,
                        pictures=prompt.pictures,
                        max_tokens=most if most is not None else context,
                        sampling=self.model.sampling(body, index),
                        stop_tokens=stops,
                        min_tokens=body.min_tokens,
                        logprobs=logprobs,
                        prompt_logprobs=prompt_logprobs,
                        deadline=deadline,
                        adapters=adapters,
                        constraint=constraint,
                        speculation=not body.disable_spec_decode,
                        cache_salt=body.cache_salt or "",
                    )
                    answer = Answer(
                        loop,
                        None if tokenizer is None else tokenizer.decode,
                        stops=body.stops,
                        include_stop=body.include_stop_str_in_output,
                        hidden=frozenset() if body.include_stop_str_in_output else stops,
                        shown=shown or {},
                    )
                    running.append(start(self.engine, request, answer))
        except BaseException:
            cancel(running)
            raise
        return running


def cancel(running: Sequence[RunningAnswer]) -> None:
    """End what is still running; nothing for what has ended."""
    for one in running:
        one.cancel()


async def collect(request: HttpRequest, running: Sequence[RunningAnswer]) -> list[list[Piece]]:
    """All pieces of all answers; the answers end when the client goes away.

    Raises:
        ApiError: An answer failed, or ran out of time.
    """

    async def pieces(answer: Answer) -> list[Piece]:
        return [piece async for piece in answer.pieces()]

    async def all_pieces() -> list[list[Piece]]:
        return list(await asyncio.gather(*(pieces(one.answer) for one in running)))

    gathered = asyncio.ensure_future(all_pieces())
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait([gathered, gone], return_when=asyncio.FIRST_COMPLETED)
        if not gathered.done():
            raise RequestRefused(400, "the client went away")
        told = gathered.result()
    finally:
        cancel(running)
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone
        if not gathered.done():
            gathered.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await gathered
    for one in running:
        check_end(one.answer.ended)
    return told


async def _gone(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def check_end(ended: Ended | None) -> str:
    """OpenAI's finish_reason.

    Raises:
        ApiError: The answer failed, ran out of time, or was ended by the server.
    """
    assert ended is not None
    if ended.reason in FINISH_REASONS:
        return FINISH_REASONS[ended.reason]
    if ended.reason is Finish.DEADLINE:
        raise RequestRefused(503, "the answer took more time than a request may", code="timeout")
    if ended.reason is Finish.CANCELLED:
        raise RequestRefused(503, "the server is shutting down", code="shutting_down")
    raise of_failure(ended.error or GenAIError("the answer failed"))


async def events(
    chunks: AsyncIterator[dict[str, Any]], running: Sequence[RunningAnswer]
) -> AsyncIterator[str]:
    """Server-sent events of chunks; a failure is the last of them. Ends the answers with itself."""
    try:
        async for chunk in chunks:
            yield f"data: {dumps(chunk)}\n\n"
        yield "data: [DONE]\n\n"
    except RequestRefused as error:
        yield f"data: {dumps(error.body)}\n\n"
    finally:
        cancel(running)


async def merged(running: Sequence[RunningAnswer]) -> AsyncIterator[tuple[int, Piece | None]]:
    """Pieces of several answers as they come, each with its answer's number; None ends one."""
    queue: asyncio.Queue[tuple[int, Piece | None]] = asyncio.Queue()

    async def forward(number: int, answer: Answer) -> None:
        async for piece in answer.pieces():
            queue.put_nowait((number, piece))
        queue.put_nowait((number, None))

    tasks = [
        asyncio.ensure_future(forward(number, one.answer)) for number, one in enumerate(running)
    ]
    try:
        left = len(running)
        while left:
            number, piece = await queue.get()
            left -= piece is None
            yield number, piece
    finally:
        for task in tasks:
            task.cancel()


def usage(running: Sequence[RunningAnswer], choices: int, *, shown: bool = True) -> dict[str, Any]:
    """Tokens of a request: each prompt once, every answer if it was shown."""
    ended = [one.answer.ended for one in running]
    read = [e for e in ended[::choices] if e is not None]
    prompt = sum(e.prompt_tokens for e in read)
    cached = sum(e.cached_tokens or 0 for e in read)
    written = sum(e.tokens for e in ended if e is not None) if shown else 0
    told: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    guessed = [e.guessed for e in ended if e is not None and e.guessed is not None]
    if guessed:
        accepted = sum(counts.accepted for counts in guessed)
        told["completion_tokens_details"] = {
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": sum(counts.guessed for counts in guessed) - accepted,
        }
    return told


def new_id(kind: str) -> str:
    """A name for an answer."""
    return f"{kind}-{secrets.token_hex(12)}"


def dumps(value: object) -> str:
    """JSON, short."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
