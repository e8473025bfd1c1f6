"""Tools and thoughts through the API: what a client sees, streamed and at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from running import Answered, Paced, Reciting, Running, example_tokenizer, run_server

from genai_runtime.tokenizer import TextTokenizer
from genai_serving.engine import ServingLimits

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama" / "model"
HEAD = "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}"
TALK = """{% for m in messages %}{{ m.role }}:{{ m.content }}{% for c in m.tool_calls or [] %}
{{ c.function.name }}({% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %})
{% endfor %}{% endfor %}"""
TEMPLATES = {
    "hermes": HEAD + "{# <tool_call> #}" + TALK,
    "llama": HEAD + '{# {"name": , "parameters": } #}' + TALK,
    "mistral": HEAD + "{# [TOOL_CALLS] #}" + TALK,
    "unknown": HEAD + "{# functools[] #}" + TALK,
    "none": TALK,
    "thinking": HEAD + "{# <tool_call> </think> #}" + TALK + "<think>\n",
}
ADD = {
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/n"}, "b": {"$ref": "#/$defs/n"}},
    "required": ["a", "b"],
    "additionalProperties": False,
    "$defs": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
}
TOOLS = [
    {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": ADD}},
    {"type": "function", "function": {"name": "now", "strict": True}},
]
USER = {"role": "user", "content": "1 and 2?"}
LIMITS = ServingLimits(sequences=4, tokens=256, waiting=32, cache_bytes=4 * 512)
CALL = '{"name": "add", "arguments": {"a": 1, "b": 2}}'
SAID = {
    "hermes": ("Well.\n<tool_call>\n" + CALL + "\n</tool_call>", "Well."),
    "llama": (CALL.replace("arguments", "parameters"), None),
    "mistral": (f"[TOOL_CALLS] [{CALL}]", None),
    "thinking": (f"I add.\n</think>\n\n<tool_call>{CALL}</tool_call>", None),
}


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return example_tokenizer()


@pytest.fixture(scope="module")
def servers() -> Iterator[Callable[[str], Running]]:
    """One for each template, and whatever is recited by them."""
    made = {}

    def server(name: str) -> Running:
        if name not in made:
            made[name] = run_server(
                template=TEMPLATES[name], kind=Reciting, limits=LIMITS, context=512
            )
        return made[name]

    yield server
    for running in made.values():
        running.stop()
        assert running.executor.open_slots == frozenset()


def ask(running: Running, **changed: Any) -> Answered:
    body = {"messages": [USER], "tools": TOOLS, "temperature": 0, "max_tokens": 200} | changed
    return running.client.post("/v1/chat/completions", body)


def joined(events: list[Any]) -> tuple[dict[str, Any], str | None]:
    """A streamed message as the whole one, and its finish_reason."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    end = None
    assert events[-1] == "[DONE]"
    for event in events[:-1]:
        for choice in event["choices"]:
            end = choice["finish_reason"] or end
            delta = choice["delta"]
            for name in ("content", "reasoning_content"):
                message[name] += delta.get(name) or ""
            for call in delta.get("tool_calls", ()):
                if "id" in call:
                    assert call["index"] == len(message["tool_calls"])
                    message["tool_calls"].append({"id": call["id"], **call["function"]})
                else:
                    message["tool_calls"][call["index"]]["arguments"] += call["function"][
                        "arguments"
                    ]
    return message, end


@pytest.mark.parametrize("name", SAID)
def test_a_call_is_told_in_each_form(
    servers: Callable[[str], Running], tokenizer: TextTokenizer, name: str
) -> None:
    running = servers(name)
    text, content = SAID[name]
    running.recite(tokenizer.encode(text, special=False).tolist())
    told = ask(running)
    assert told.status == 200, told.raw
    (choice,) = told.json["choices"]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert message["content"] == content
    (call,) = message["tool_calls"]
    assert call["function"]["name"] == "add"
    assert json.loads(call["function"]["arguments"]) == {"a": 1, "b": 2}
    assert (len(call["id"]) == 9) == (name == "mistral")
    assert message.get("reasoning_content") == ("I add." if name == "thinking" else None)
    streamed, end = joined(ask(running, stream=True).events)
    assert end == "tool_calls"
    assert streamed["content"] == (content or "")
    assert [c["arguments"] for c in streamed["tool_calls"]] == [call["function"]["arguments"]]


def test_without_tools_the_same_text_is_content(
    servers: Callable[[str], Running], tokenizer: TextTokenizer
) -> None:
    running = servers("hermes")
    text = SAID["hermes"][0]
    running.recite(tokenizer.encode(text, special=False).tolist())
    for changed in ({"tool_choice": "none"}, {"tools": None}):
        (choice,) = ask(running, **changed).json["choices"]
        assert choice["message"]["content"] == text
        assert "tool_calls" not in choice["message"]
        assert choice["finish_reason"] == "stop"


def test_a_conversation_with_calls_and_their_results_is_rendered(
    servers: Callable[[str], Running], tokenizer: TextTokenizer
) -> None:
    running = servers("hermes")
    running.recite(tokenizer.encode("3", special=False).tolist())
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "add", "arguments": '{"a": 1}'},
    }
    # As the openai client gives a message back.
    said = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "call_1", "content": "3"}
    body = {"messages": [USER, said, result], "tools": TOOLS}
    tokens = running.client.post("/tokenize", body).json["tokens"]
    text = running.client.post("/detokenize", {"tokens": tokens}).json["prompt"]
    assert text == "add now user:1 and 2?assistant:add(a=1)\ntool:3"
    told = ask(running, messages=[USER, said, result], return_token_ids=True).json
    assert told["prompt_token_ids"] == tokens
    assert told["choices"][0]["message"]["content"] == "3"


@pytest.fixture(scope="module")
def free() -> Iterator[Callable[[str], Running]]:
    made = {}

    def server(name: str) -> Running:
        if name not in made:
            made[name] = run_server(
                template=TEMPLATES[name], kind=Paced, limits=LIMITS, context=512
            )
        return made[name]

    yield server
    for running in made.values():
        running.stop()


@pytest.mark.parametrize("name", ["hermes", "unknown"])
@pytest.mark.parametrize("stream", [False, True])
def test_required_calls_are_valid_whatever_the_model_would_like(
    free: Callable[[str], Running], name: str, stream: bool
) -> None:
    schemas = {"add": ADD, "now": {"type": "object", "maxProperties": 0}}
    for seed in range(4):
        told = ask(
            free(name),
            tool_choice="required",
            temperature=1,
            seed=seed,
            parallel_tool_calls=False,
            stream=stream,
        )
        assert told.status == 200, told.raw
        if stream:
            message, end = joined(told.events)
            calls = message["tool_calls"]
        else:
            (choice,) = told.json["choices"]
            message, end = choice["message"], choice["finish_reason"]
            calls = [call["function"] for call in message["tool_calls"]]
        assert end == "tool_calls"
        assert not message["content"]
        (call,) = calls
        jsonschema.validate(json.loads(call["arguments"]), schemas[call["name"]])


def test_a_named_tool_is_called_and_thoughts_come_first(
    free: Callable[[str], Running], servers: Callable[[str], Running], tokenizer: TextTokenizer
) -> None:
    choice = {"type": "function", "function": {"name": "add"}}
    for seed in range(3):
        kind = "hermes" if seed else "unknown"
        told = ask(free(kind), tool_choice=choice, temperature=1, seed=seed).json["choices"][0]
        (call,) = told["message"]["tool_calls"]
        assert (call["function"]["name"], told["finish_reason"]) == ("add", "stop")
        jsonschema.validate(json.loads(call["function"]["arguments"]), ADD)


REFUSED = {
    "no tools in the template": ("none", {}, "chat template shows no tools"),
    "an unknown form": ("unknown", {}, "form of calls"),
    "a tool that is not there": (
        "hermes",
        {"tool_choice": {"type": "function", "function": {"name": "rm"}}},
        "there is no tool rm",
    ),
    "a choice without tools": ("hermes", {"tools": [], "tool_choice": "required"}, "no tools"),
    "a tool without tools": (
        "hermes",
        {"tools": [], "tool_choice": {"type": "function", "function": {"name": "x"}}},
        "no tools",
    ),
    "a penalty that divides by nothing": ("hermes", {"repetition_penalty": 5e-324}, "0.001"),
    "two of a name": ("hermes", {"tools": [TOOLS[0], TOOLS[0]]}, "same name"),
    "beside a form": ("hermes", {"response_format": {"type": "json_object"}}, "not beside a form"),
    "a schema that is none": (
        "hermes",
        {
            "tools": [{"type": "function", "function": {"name": "x", "parameters": {"type": 5}}}],
            "tool_choice": "required",
        },
        "tools: ",
    ),
    "a name that is none": (
        "hermes",
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        "tools.0.function.name",
    ),
    "nothing said": ("hermes", {"messages": [{"role": "user"}]}, "content: Field required"),
    "a call of a user": (
        "hermes",
        {"messages": [USER | {"tool_calls": [{"function": {"name": "x", "arguments": ""}}]}]},
        "only of the assistant",
    ),
}


@pytest.mark.parametrize(("name", "changed", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_tools_that_cannot_be_called_are_refused(
    servers: Callable[[str], Running], name: str, changed: dict[str, Any], words: str
) -> None:
    told = ask(servers(name), **changed)
    assert told.status == 400, told.raw
    assert words in told.json["error"]["message"]


def test_a_form_holds_behind_thoughts_where_their_end_is_no_token(
    servers: Callable[[str], Running], free: Callable[[str], Running], tokenizer: TextTokenizer
) -> None:
    """This vocabulary has no token for it: the form holds from the beginning."""
    assert tokenizer.token("</think>") is None
    body = {"response_format": {"type": "json_schema", "json_schema": {"schema": ADD}}}
    told = ask(free("thinking"), tools=None, temperature=1, seed=1, **body).json["choices"][0]
    jsonschema.validate(json.loads(told["message"]["content"]), ADD)
