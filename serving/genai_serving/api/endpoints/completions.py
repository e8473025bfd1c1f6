"""`/v1/completions`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

from genai_runtime.sampling import TokenLogprob
from genai_serving.api.answering import Piece, RunningAnswer
from genai_serving.api.bodies import read_body
from genai_serving.api.endpoints.structured import form_of
from genai_serving.api.model import ServedModel
from genai_serving.api.schemas import CompletionBody
from genai_serving.api.service import (
    Service,
    check_end,
    collect,
    events,
    merged,
    new_id,
    usage,
)


async def completions(request: HttpRequest, service: Service) -> Response:
    """Continue each prompt `n` times."""
    body = await read_body(request, service.bodies, CompletionBody)
    chosen = service.chosen(body.model)
    prompts = [
        await service.tokens_of(prompt, special=body.add_special_tokens) for prompt in body.prompts
    ]
    grammar = await service.compiled(lambda: form_of(body))
    running = service.begin(
        body,
        prompts,
        most=None if body.max_tokens is None else max(1, body.max_tokens),
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
        adapters=service.chosen(body.model).adapters,  # an adapter may have been replaced
        constraint=None if grammar is None else grammar.begin,
    )
    head = {
        "id": new_id("cmpl"),
        "object": "text_completion",
        "created": int(service.now()),
        "model": chosen.name,
    }
    if body.stream:
        chunks = _chunks(body, running, service.model, head)
        return StreamingResponse(events(chunks, running), media_type="text/event-stream")
    told = await collect(request, running)
    # Logprobs of long prompts are megabytes of JSON: not in the loop.
    return await asyncio.to_thread(
        _whole,
        body,
        told,
        running,
        service.model,
        prompts=[prompt.tokens for prompt in prompts],
        head=head,
    )


def _whole(
    body: CompletionBody,
    told: Sequence[Sequence[Piece]],
    running: Sequence[RunningAnswer],
    model: ServedModel,
    *,
    prompts: Sequence[NDArray[np.int64]],
    head: Mapping[str, Any],
) -> Response:
    """The answer in one piece."""
    choices = [
        {
            "index": index,
            **_choice(body, prompts[index // body.n], pieces, running[index], model),
        }
        for index, pieces in enumerate(told)
    ]
    told_usage = usage(running, body.n, shown=body.max_tokens != 0)
    return JSONResponse({**head, "choices": choices, "usage": told_usage})


def _choice(
    body: CompletionBody,
    prompt: NDArray[np.int64],
    pieces: Sequence[Piece],
    running: RunningAnswer,
    model: ServedModel,
) -> dict[str, Any]:
    answer = running.answer
    nothing = body.max_tokens == 0  # one token was written all the same
    text = "" if nothing else "".join(piece.text for piece in pieces)
    tokens = [] if nothing else [token for piece in pieces for token in piece.tokens]
    told = [] if nothing else [item for piece in pieces for item in piece.logprobs]
    shown, offset = text, 0
    if body.echo and model.tokenizer is not None:
        before = model.text([int(token) for token in prompt])
        shown, offset = before + text, len(before)
    choice: dict[str, Any] = {
        "text": shown,
        "logprobs": None,
        "finish_reason": "length" if nothing else check_end(answer.ended),
        "stop_reason": answer.stop_reason,
    }
    if body.logprobs is not None:
        if body.echo:
            first = [TokenLogprob(int(prompt[0]), 0.0)]
            read = _logprobs([first, *answer.prompt_logprobs], body.logprobs, model, 0)
            # Nothing comes before the first token, so nothing predicts it.
            read["token_logprobs"][0] = read["top_logprobs"][0] = None
            written = _logprobs(told, body.logprobs, model, offset)
            choice["logprobs"] = {key: read[key] + written[key] for key in read}
        else:
            choice["logprobs"] = _logprobs(told, body.logprobs, model, 0)
    if body.return_token_ids:
        choice |= {"token_ids": tokens, "prompt_token_ids": [int(token) for token in prompt]}
    return choice


def _logprobs(
    told: Sequence[list[TokenLogprob]], top: int, model: ServedModel, offset: int
) -> dict[str, list[Any]]:
    """As the completions endpoint tells them."""
    token_text, shows = cache(model.token_text), cache(model.shows)
    texts = [token_text(item[0].token) for item in told]
    offsets = []
    for item, text in zip(told, texts, strict=True):
        offsets.append(offset)
        # Special tokens are told by name, and are not in the text.
        offset += len(text) if shows(item[0].token) else 0
    return {
        "tokens": texts,
        "token_logprobs": [item[0].logprob for item in told],
        "top_logprobs": [
            # The token itself is told too, also where it is none of the most likely.
            {token_text(t.token): t.logprob for t in [*item[1 : top + 1], item[0]]}
            for item in told
        ],
        "text_offset": offsets,
    }


async def _chunks(
    body: CompletionBody, running: Sequence[RunningAnswer], model: ServedModel, head: dict[str, Any]
) -> AsyncIterator[dict[str, Any]]:
    offsets = [0] * len(running)
    async for index, piece in merged(running):
        answer = running[index].answer
        choice: dict[str, Any] = {
            "index": index,
            "text": "" if piece is None else piece.text,
            "logprobs": None,
            "finish_reason": None if piece is not None else check_end(answer.ended),
            "stop_reason": None if piece is not None else answer.stop_reason,
        }
        if piece is not None and body.logprobs is not None:
            choice["logprobs"] = _logprobs(piece.logprobs, body.logprobs, model, offsets[index])
            offsets[index] += len(piece.text)
        if piece is not None and body.return_token_ids:
            choice["token_ids"] = list(piece.tokens)
        yield {**head, "choices": [choice]}
    if body.stream_options is not None and body.stream_options.include_usage:
        yield {**head, "choices": [], "usage": usage(running, body.n)}
