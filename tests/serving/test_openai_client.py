"""The official client, with its strict validation: what it is told has its own types."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from openai.types.shared_params import ResponseFormatJSONSchema
from running import Paced, Reciting, Running, run_server

from genai_runtime.tokenizer import TextTokenizer
from genai_serving.engine import ServingLimits

LIMITS = ServingLimits(sequences=4, tokens=256, waiting=32, cache_bytes=4 * 512)
TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}{# <tool_call> </think> #}"
    "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}"
)
PLACE = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}, "far": {"enum": ["y"]}},
    "required": ["x", "far"],
    "additionalProperties": False,
}
TOOLS: list[ChatCompletionToolParam] = [
    {"type": "function", "function": {"name": "go", "parameters": PLACE, "strict": True}}
]
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Where?"}]


def client_of(running: Running) -> openai.OpenAI:
    return openai.OpenAI(
        api_key="none",
        base_url=f"http://127.0.0.1:{running.client.port}/v1",
        _strict_response_validation=True,
        max_retries=0,
    )


@pytest.fixture(scope="module", params=[Paced, Reciting], ids=["free", "reciting"])
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    made = run_server(template=TEMPLATE, kind=request.param, limits=LIMITS, context=512)
    yield made
    made.stop()
    assert made.executor.open_slots == frozenset()


@pytest.fixture
def client(running: Running) -> Iterator[openai.OpenAI]:
    with client_of(running) as made:
        yield made


def test_models_and_completions(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["scripted", "c", "upper", "both"]
    assert client.models.retrieve("c").id == "c"
    told = client.completions.create(
        model="scripted", prompt=["a", "b"], n=2, max_tokens=4, logprobs=2, seed=1
    )
    assert len(told.choices) == 4
    assert told.usage is not None
    assert told.usage.prompt_tokens_details is not None
    # Of streams its type has no null in finish_reason, which OpenAI's own API sends.
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.completions.create(model="nobody", prompt="a")
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        client.completions.create(model="scripted", prompt="a", max_tokens=-1)


def test_chat_with_logprobs_and_streams(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "scripted", "messages": MESSAGES, "max_tokens": 6}
    asked |= {"n": 2, "seed": 3}
    told = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    assert len(told.choices) == 2
    assert told.choices[0].logprobs is not None
    pieces = list(client.chat.completions.create(**asked, stream=True))
    texts = ["", ""]
    for piece in pieces:
        for choice in piece.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in told.choices]


def test_structured_answers(running: Running, client: openai.OpenAI) -> None:
    if isinstance(running.executor, Reciting):
        running.recite(())
    form: ResponseFormatJSONSchema = {
        "type": "json_schema",
        "json_schema": {"name": "p", "strict": True, "schema": PLACE},
    }
    told = client.chat.completions.create(
        model="scripted", messages=MESSAGES, response_format=form, seed=2, max_tokens=300
    )
    jsonschema.validate(json.loads(told.choices[0].message.content or ""), PLACE)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "go"}}])
def test_calls_of_tools(client: openai.OpenAI, choice: dict[str, Any] | str) -> None:
    asked: dict[str, Any] = {"model": "scripted", "messages": MESSAGES}
    asked |= {"tools": TOOLS, "tool_choice": choice}
    told = client.chat.completions.create(**asked, seed=4, parallel_tool_calls=False)
    message = told.choices[0].message
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.type == "function"
    assert call.function.name == "go"
    jsonschema.validate(json.loads(call.function.arguments), PLACE)
    # What the client gives back, with its nulls.
    back: list[Any] = [
        *MESSAGES,
        message.model_dump(),
        {"role": "tool", "tool_call_id": call.id, "content": "1"},
    ]
    assert client.chat.completions.create(model="scripted", messages=back, max_tokens=3).choices
    arguments = ""
    for piece in client.chat.completions.create(
        **asked, seed=4, parallel_tool_calls=False, stream=True
    ):
        for part in piece.choices[0].delta.tool_calls or []:
            assert part.function is not None
            arguments += part.function.arguments or ""
    assert arguments == call.function.arguments


@pytest.mark.parametrize("running", [Reciting], ids=["reciting"], indirect=True)
def test_a_call_that_the_model_chooses_and_its_thoughts(
    running: Running, client: openai.OpenAI
) -> None:
    tokenizer = running.service.model.tokenizer
    assert isinstance(tokenizer, TextTokenizer)
    text = '<think>far</think><tool_call>{"name": "go", "arguments": {"x": 1}}</tool_call>'
    running.recite(tokenizer.encode(text, special=False).tolist())
    told = client.chat.completions.create(
        model="scripted", messages=MESSAGES, tools=TOOLS, temperature=0
    )
    (choice,) = told.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert call.function.arguments == '{"x": 1}'
    assert choice.message.model_dump()["reasoning_content"] == "far"
    running.recite(())


def test_refusals_are_the_client_s_own_errors(running: Running) -> None:
    with (
        client_of(running) as client,
        pytest.raises(openai.NotFoundError, match="chat/completions"),
    ):
        client.responses.create(model="scripted", input="x")
