"""`/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import cache
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

from genai_runtime.sampling import TokenLogprob
from genai_serving.api.answering import Piece, RunningAnswer
from genai_serving.api.bodies import read_body
from genai_serving.api.endpoints.speaking import Speech, speech_of
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
from genai_serving.tools.parts import AnswerPart


async def chat_completions(request: HttpRequest, service: Service) -> Response:
    """Answer a conversation `n` times."""
    body = await read_body(request, service.bodies, ChatBody)
    chosen = service.chosen(body.model)
    variables = body.chat_template_kwargs or {}
    rendered, prompt = await service.chat_prompt(body.messages, variables, body.callable_tools)
    speech = await speech_of(service, body, rendered)
    running = service.begin(
        body,
        [prompt],
        most=body.max_completion_tokens or body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        adapters=service.chosen(body.model).adapters,  # an adapter may have been replaced
        constraint=speech.constraint,
        shown=speech.shown,
    )
    head = {
        "id": new_id("chatcmpl"),
        "object": "chat.completion.chunk" if body.stream else "chat.completion",
        "created": int(service.now()),
        "model": chosen.name,
    }
    if body.stream:
        chunks = _chunks(body, running, service.model, head, speech)
        return StreamingResponse(events(chunks, running), media_type="text/event-stream")
    told = await collect(request, running)
    choices = []
    for index, pieces in enumerate(told):
        answer = running[index].answer
        message = _message(pieces, speech)
        end = check_end(answer.ended)
        choice: dict[str, Any] = {
            "index": index,
            "message": message,
            "logprobs": None,
            "finish_reason": speech.called if "tool_calls" in message and end == "stop" else end,
            "stop_reason": answer.stop_reason,
        }
        if body.logprobs:
            choice["logprobs"] = _logprobs(pieces, service.model)
        if body.return_token_ids:
            choice["token_ids"] = [number for piece in pieces for number in piece.tokens]
        choices.append(choice)
    answer_body: dict[str, Any] = {**head, "choices": choices, "usage": usage(running, body.n)}
    if body.return_token_ids:
        answer_body["prompt_token_ids"] = [int(token) for token in prompt.tokens]
    return JSONResponse(answer_body)


def _message(pieces: Sequence[Piece], speech: Speech) -> dict[str, Any]:
    """The whole answer."""
    reader = speech.reader()
    parts = [part for piece in pieces for part in reader.push(piece.text)]
    parts += reader.finish()
    content = "".join(part.text for part in parts if part.kind == "content")
    reasoning = "".join(part.text for part in parts if part.kind == "reasoning")
    calls: list[dict[str, Any]] = []
    for part in parts:
        if part.kind == "call":
            function = {"name": part.text, "arguments": ""}
            calls.append({"id": speech.new_id(), "type": "function", "function": function})
        elif part.kind == "arguments":
            calls[-1]["function"]["arguments"] += part.text
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message |= {"content": content or None, "tool_calls": calls}
    return message


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


class _Deltas:
    """One streamed answer as OpenAI's deltas."""

    def __init__(self, speech: Speech) -> None:
        self._speech = speech
        self._reader = speech.reader()
        self.calls = 0

    def of(self, piece: Piece | None) -> Iterator[dict[str, Any]]:
        """What a piece brings; None = the end."""
        for part in self._reader.finish() if piece is None else self._reader.push(piece.text):
            yield self._of_part(part)

    def _of_part(self, part: AnswerPart) -> dict[str, Any]:
        if part.kind == "content":
            return {"content": part.text}
        if part.kind == "reasoning":
            return {"reasoning_content": part.text}
        if part.kind == "arguments":
            call = {"index": self.calls - 1, "function": {"arguments": part.text}}
            return {"tool_calls": [call]}
        function = {"name": part.text, "arguments": ""}
        call = {"index": self.calls, "id": self._speech.new_id(), "type": "function"}
        self.calls += 1
        return {"tool_calls": [{**call, "function": function}]}


async def _chunks(
    body: ChatBody,
    running: Sequence[RunningAnswer],
    model: ServedModel,
    head: dict[str, Any],
    speech: Speech,
) -> AsyncIterator[dict[str, Any]]:
    deltas = [_Deltas(speech) for _ in running]
    for index in range(len(running)):
        delta: dict[str, Any] = {"role": "assistant", "content": ""}
        yield {**head, "choices": [_delta(index, delta)]}
    async for index, piece in merged(running):
        told = [_delta(index, delta) for delta in deltas[index].of(piece)]
        if piece is None:
            answer = running[index].answer
            end = check_end(answer.ended)
            end = speech.called if deltas[index].calls and end == "stop" else end
            told.append(_delta(index, {}))
            told[-1] |= {"finish_reason": end, "stop_reason": answer.stop_reason}
        elif body.logprobs or body.return_token_ids:
            told = told or [_delta(index, {"content": ""})]
            if body.logprobs:
                told[0]["logprobs"] = _logprobs([piece], model)
            if body.return_token_ids:
                told[0]["token_ids"] = list(piece.tokens)
        for choice in told:
            yield {**head, "choices": [choice]}
    if body.stream_options is not None and body.stream_options.include_usage:
        yield {**head, "choices": [], "usage": usage(running, body.n)}


def _delta(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
