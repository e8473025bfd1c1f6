"""`/v1/chat/completions`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

from genai_runtime.sampling import TokenLogprob
from genai_serving.api.answering import Piece, Running
from genai_serving.api.bodies import read_body
from genai_serving.api.model import ServedModel
from genai_serving.api.schemas import ChatBody
from genai_serving.api.service import (
    Service,
    check_end,
    collect,
    events,
    merged,
    new_id,
    usage,
)


async def chat_completions(request: HttpRequest, service: Service) -> Response:
    """Answer a conversation `n` times."""
    body = await read_body(request, service.bodies, ChatBody)
    chosen = service.chosen(body.model)
    prompt = await service.chat_tokens(body.messages, body.chat_template_kwargs or {})
    most = body.max_completion_tokens or body.max_tokens
    grammar = await service.grammar(body)
    running = service.begin(
        body,
        [prompt],
        most=most,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        adapters=chosen.adapters,
        grammar=grammar,
    )
    head = {
        "id": new_id("chatcmpl"),
        "object": "chat.completion.chunk" if body.stream else "chat.completion",
        "created": int(service.now()),
        "model": chosen.name,
    }
    if body.stream:
        chunks = _chunks(body, running, service.model, head)
        return StreamingResponse(events(chunks, running), media_type="text/event-stream")
    told = await collect(request, running)
    # Logprobs of long answers are megabytes of JSON: not in the loop.
    return await asyncio.to_thread(
        _whole, body, told, running, service.model, prompt=prompt, head=head
    )


def _whole(
    body: ChatBody,
    told: Sequence[Sequence[Piece]],
    running: Sequence[Running],
    model: ServedModel,
    *,
    prompt: NDArray[np.int64],
    head: Mapping[str, Any],
) -> Response:
    """The answer in one piece."""
    choices = []
    for index, pieces in enumerate(told):
        answer = running[index].answer
        choice: dict[str, Any] = {
            "index": index,
            "message": {
                "role": "assistant",
                "content": "".join(piece.text for piece in pieces),
                "refusal": None,
            },
            "logprobs": None,
            "finish_reason": check_end(answer.ended),
            "stop_reason": answer.stop_reason,
        }
        if body.logprobs:
            choice["logprobs"] = _logprobs(pieces, model)
        if body.return_token_ids:
            choice["token_ids"] = [number for piece in pieces for number in piece.tokens]
        choices.append(choice)
    answer_body: dict[str, Any] = {**head, "choices": choices, "usage": usage(running, body.n)}
    if body.return_token_ids:
        answer_body["prompt_token_ids"] = [int(token) for token in prompt]
    return JSONResponse(answer_body)


def _logprobs(pieces: Sequence[Piece], model: ServedModel) -> dict[str, Any]:
    """As the chat endpoint tells them."""
    told = [entry for piece in pieces for entry in piece.logprobs]
    text = cache(model.token_text)
    return {
        "content": [
            {**_token(item[0], text), "top_logprobs": [_token(t, text) for t in item[1:]]}
            for item in told
        ],
        "refusal": None,
    }


def _token(item: TokenLogprob, token_text: Callable[[int], str]) -> dict[str, Any]:
    text = token_text(item.token)
    return {"token": text, "logprob": item.logprob, "bytes": list(text.encode())}


async def _chunks(
    body: ChatBody, running: Sequence[Running], model: ServedModel, head: dict[str, Any]
) -> AsyncIterator[dict[str, Any]]:
    for index in range(len(running)):
        delta: dict[str, Any] = {"role": "assistant", "content": ""}
        yield {**head, "choices": [_delta(index, delta)]}
    async for index, piece in merged(running):
        if piece is None:
            answer = running[index].answer
            choice = _delta(index, {})
            choice |= {
                "finish_reason": check_end(answer.ended),
                "stop_reason": answer.stop_reason,
            }
            yield {**head, "choices": [choice]}
            continue
        choice = _delta(index, {"content": piece.text})
        if body.logprobs:
            choice["logprobs"] = _logprobs([piece], model)
        if body.return_token_ids:
            choice["token_ids"] = list(piece.tokens)
        if piece.text or body.logprobs or body.return_token_ids:
            yield {**head, "choices": [choice]}
    if body.stream_options is not None and body.stream_options.include_usage:
        yield {**head, "choices": [], "usage": usage(running, body.n)}


def _delta(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
