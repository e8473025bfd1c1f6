"""Calls of tools and thoughts in the text of answers, however it is cut."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from genai_serving.tools.call_object import CallObject
from genai_serving.tools.calls import (
    ArgumentsReader,
    ToolForm,
    form_of_template,
    list_reader,
    reader_of,
)
from genai_serving.tools.parts import PlainReader, Reader
from genai_serving.tools.thoughts import AfterThoughts, ThoughtReader

NAMES = ("weather", "add", "none")
HERMES, LLAMA, MISTRAL = (
    functools.partial(reader_of, form, NAMES)
    for form in (ToolForm.HERMES, ToolForm.LLAMA, ToolForm.MISTRAL)
)
WEATHER = '{"city": "a \\"b\\" {c}", "days": [1, {"x": "]}"}]}'


def call(name: str, arguments: str, key: str = "arguments") -> str:
    return f'{{"name": "{name}", "{key}": {arguments}}}'


def read(reader: Reader, pieces: Iterable[str]) -> tuple[str, str, list[tuple[str, str]]]:
    """Content, reasoning, and calls as (name, arguments)."""
    parts = [part for piece in pieces for part in reader.push(piece)]
    parts += reader.finish()
    content = "".join(part.text for part in parts if part.kind == "content")
    reasoning = "".join(part.text for part in parts if part.kind == "reasoning")
    names: list[str] = []
    arguments: list[str] = []
    for part in parts:
        if part.kind == "call":
            names.append(part.text)
            arguments.append("")
        elif part.kind == "arguments":
            arguments[-1] += part.text
    return content, reasoning, list(zip(names, arguments, strict=True))


CASES: dict[str, tuple[Callable[[], Reader], str, tuple[str, list[tuple[str, str]]]]] = {
    "hermes": (
        HERMES,
        f"I look.\n<tool_call>\n{call('weather', WEATHER)}\n</tool_call>",
        ("I look.", [("weather", WEATHER)]),
    ),
    "hermes, two": (
        HERMES,
        (
            f"<tool_call>{call('add', '{}')}</tool_call>\n<tool_call>{call('weather', WEATHER)}"
            "</tool_call>\n"
        ),
        ("", [("add", "{}"), ("weather", WEATHER)]),
    ),
    "hermes, text behind": (
        HERMES,
        f"<tool_call>{call('add', '{}')}</tool_call> and so on",
        (" and so on", [("add", "{}")]),
    ),
    "hermes, another tool": (
        HERMES,
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
        ('<tool_call>{"name": "rm", "arguments": {}}</tool_call>', []),
    ),
    "hermes, no object": (HERMES, "a <tool_call> b", ("a<tool_call>b", [])),
    "hermes, cut in its arguments": (
        HERMES,
        '<tool_call>{"name": "add", "arguments": {"a": 1',
        ("", [("add", '{"a": 1')]),
    ),
    "hermes, cut before": (
        HERMES,
        '<tool_call>{"name": "ad',
        ('<tool_call>{"name": "ad', []),
    ),
    "hermes, arguments first": (
        HERMES,
        '<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call>',
        ("", [("add", '{"a": 1}')]),
    ),
    "arguments as text": (
        HERMES,
        '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>',
        ("", [("add", '{"a": 1}')]),
    ),
    "no arguments": (
        HERMES,
        (
            '<tool_call>{"name": "none"}</tool_call><tool_call>{"name": "add", "arguments": null}'
            "</tool_call>"
        ),
        ("", [("none", "{}"), ("add", "{}")]),
    ),
    "a text with a bracket": (HERMES, "if a <b> then <tool", ("if a <b> then <tool", [])),
    "text with blanks at its end": (HERMES, "yes \n", ("yes \n", [])),
    "llama": (LLAMA, call("weather", WEATHER, "parameters"), ("", [("weather", WEATHER)])),
    "llama, marked": (
        LLAMA,
        "<|python_tag|>" + call("weather", WEATHER, "parameters"),
        ("", [("weather", WEATHER)]),
    ),
    "llama, two": (
        LLAMA,
        call("weather", WEATHER, "parameters") + "; " + call("add", "{}", "parameters"),
        ("", [("weather", WEATHER), ("add", "{}")]),
    ),
    "llama, text": (LLAMA, 'So {"name": "add"} it is', ('So {"name": "add"} it is', [])),
    "llama, another object": (LLAMA, '{"answer": [42]} ', ('{"answer": [42]} ', [])),
    "mistral": (
        MISTRAL,
        f"[TOOL_CALLS] [{call('weather', WEATHER)}, {call('add', '{}')}]",
        ("", [("weather", WEATHER), ("add", "{}")]),
    ),
    "mistral, names before": (
        MISTRAL,
        f"Well. [TOOL_CALLS]weather[ARGS]{WEATHER}[TOOL_CALLS]add[ARGS]{{}}",
        ("Well.", [("weather", WEATHER), ("add", "{}")]),
    ),
    "mistral, names without a mark behind": (
        MISTRAL,
        '[TOOL_CALLS]add{"a": 2}',
        ("", [("add", '{"a": 2}')]),
    ),
    "mistral, text": (MISTRAL, "a list [1, 2]", ("a list [1, 2]", [])),
    "a list": (
        lambda: list_reader(NAMES),
        f"[{call('weather', WEATHER)},\n {call('add', '{}')}]",
        ("", [("weather", WEATHER), ("add", "{}")]),
    ),
    "arguments alone": (lambda: ArgumentsReader("add"), '{"a": 1}', ("", [("add", '{"a": 1}')])),
}


@pytest.mark.parametrize(("reader", "text", "expected"), CASES.values(), ids=CASES.keys())
def test_readers_find_calls_however_the_text_is_cut(
    reader: Callable[[], Reader], text: str, expected: tuple[str, list[tuple[str, str]]]
) -> None:
    content, calls = expected
    assert read(reader(), [text]) == (content, "", calls)
    assert read(reader(), list(text)) == (content, "", calls)
    for size in (2, 3, 7):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        assert read(reader(), pieces) == (content, "", calls)


def test_arguments_come_while_they_are_written() -> None:
    reader = HERMES()
    text = '<tool_call>{"name": "add", "arguments": {"a": '
    parts = [part for char in text for part in reader.push(char)]
    assert [part.kind for part in parts][:2] == ["call", "arguments"]
    assert "".join(part.text for part in parts[1:]) == '{"a": '


MARKS = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<think>"]
JSON = ["{", "}", "[", "]", '"', "\\", ",", ";", ":", '{"name": "add"', '"arguments": {']
WORDS = ["</think>", "add", " ", "\n", "text", call("add", '{"a": 1}')]
PIECES = st.sampled_from(MARKS + JSON + WORDS)


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(PIECES, max_size=12), data=st.data())
def test_readers_never_fail_and_tell_the_same_however_the_text_is_cut(
    texts: list[str], data: st.DataObject
) -> None:
    text = "".join(texts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    for made in (HERMES, LLAMA, MISTRAL, functools.partial(list_reader, NAMES)):
        for within in (True, False):
            whole = read(ThoughtReader(made(), within=within), [text])
            assert read(ThoughtReader(made(), within=within), pieces) == whole
            assert all(name in NAMES for name, _ in whole[2])


@pytest.mark.parametrize(
    ("text", "within", "expected"),
    [
        ("<think>\nso it is\n</think>\n\nYes.", False, ("Yes.", "so it is")),
        ("so it is</think>Yes.\n", True, ("Yes.\n", "so it is")),
        ("Yes. <think>", False, ("Yes. <think>", "")),
        ("  Yes", False, ("  Yes", "")),
        ("<think>cut off", False, ("", "cut off")),
        ("cut </thi", True, ("", "cut </thi")),
        ("<thi", False, ("<thi", "")),
        ("<think></think>a < b", False, ("a < b", "")),
    ],
)
def test_thoughts_are_split_from_the_answer(
    text: str, within: bool, expected: tuple[str, str]
) -> None:
    for pieces in ([text], list(text)):
        content, reasoning, calls = read(ThoughtReader(PlainReader(), within=within), pieces)
        assert (content, reasoning, calls) == (*expected, [])


def test_a_call_behind_a_thought_is_found() -> None:
    text = f"<think>I add</think>\n<tool_call>{call('add', '{}')}</tool_call>"
    expected = ("", "I add", [("add", "{}")])
    assert read(ThoughtReader(HERMES(), within=False), list(text)) == expected


@pytest.mark.parametrize(
    ("source", "form"),
    [
        ("{% if tools %}<tool_call>{% endif %}", ToolForm.HERMES),
        ("{{ tools }}[TOOL_CALLS]", ToolForm.MISTRAL),
        ('{{ tools }} {"name": function name, "parameters": dictionary}', ToolForm.LLAMA),
        ("{{ tools }} functools[...]", None),
        ("{{ messages }} <tool_call>", None),
    ],
)
def test_the_form_of_calls_is_the_template_s(source: str, form: ToolForm | None) -> None:
    assert form_of_template(source) is form


class Form:
    """Allows token 5 twice."""

    finished = False

    def __init__(self) -> None:
        self.left = 2

    def allowed(self) -> NDArray[np.bool_]:
        allowed: NDArray[np.bool_] = np.arange(8) == 5
        return allowed

    def consume(self, token: int) -> None:
        assert token == 5
        self.left -= 1
        self.finished = self.left == 0


def test_a_form_holds_behind_the_thoughts() -> None:
    thinking = AfterThoughts(Form(), begin=None, end=3, within=True)
    assert thinking.allowed().all()
    for token in (1, 5, 7, 3):
        thinking.consume(token)
    assert thinking.allowed().tolist() == Form().allowed().tolist()
    for token in (5, 5):
        assert not thinking.finished
        thinking.consume(token)
    assert thinking.finished
    maybe = AfterThoughts(Form(), begin=2, end=3, within=False)
    assert np.flatnonzero(maybe.allowed()).tolist() == [2, 5]
    maybe.consume(5)
    assert np.flatnonzero(maybe.allowed()).tolist() == [5]
    begun = AfterThoughts(Form(), begin=2, end=3, within=False)
    begun.consume(2)
    assert begun.allowed().all()


def test_what_was_told_of_a_call_is_json() -> None:
    _, _, calls = read(MISTRAL(), [f"[TOOL_CALLS] [{call('weather', WEATHER)}]"])
    assert json.loads(calls[0][1])["city"] == 'a "b" {c}'


def test_arguments_of_any_depth_are_told_as_they_stand() -> None:
    """Deeper than Python's reader goes: they ended the answer as a defect of the server."""
    deep = "[" * 3000 + "]" * 3000
    called = CallObject()
    for char in f'{{"name": "f", "arguments": {deep}}}':
        called.push(char)
    assert (called.name, called.arguments) == ("f", deep)
