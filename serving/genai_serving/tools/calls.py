"""Calls of tools in the text of an answer, in the forms that chat templates teach.

Hermes      text <tool_call>{"name": ..., "arguments": {...}}</tool_call> ...
Llama 3     {"name": ..., "parameters": {...}}; {...}        from the beginning, or all is text
Mistral     text [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]
            text [TOOL_CALLS]name[ARGS]{...}[TOOL_CALLS] ...

What is no call of a tool that the request has is text, as it stands there.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Collection, Iterator

from genai_serving.tools.call_object import CallObject
from genai_serving.tools.parts import AnswerPart, Reader, Seeker

__all__ = [
    "FURTHER_MARKS",
    "ArgumentsReader",
    "ToolForm",
    "form_of_template",
    "list_reader",
    "reader_of",
]

_SEPARATORS = ";,"


class ToolForm(enum.Enum):
    """How a model was taught to call tools; the value begins a call."""

    HERMES = "<tool_call>"
    MISTRAL = "[TOOL_CALLS]"
    LLAMA = "<|python_tag|>"


_HERMES_END = "</tool_call>"
_ARGUMENTS = "[ARGS]"
FURTHER_MARKS = (_HERMES_END, _ARGUMENTS)
"""Beside those that begin a call."""


def form_of_template(source: str) -> ToolForm | None:
    """The form that a chat template shows; None = it shows none that is known here."""
    if "tools" not in source:
        return None
    for form in (ToolForm.HERMES, ToolForm.MISTRAL):
        if form.value in source:
            return form
    return ToolForm.LLAMA if '"parameters"' in source and '"name"' in source else None


def reader_of(form: ToolForm, names: Collection[str]) -> Reader:
    """Finds calls of the named tools."""
    if form is ToolForm.HERMES:
        return _MarkedReader(form.value, names, end=_HERMES_END)
    if form is ToolForm.MISTRAL:
        return _MarkedReader(form.value, names)
    return _LlamaReader(names)


def list_reader(names: Collection[str]) -> Reader:
    """Of an answer that is a list of calls and nothing else."""
    return _ListReader(names)


class ArgumentsReader:
    """Of an answer that is the arguments of one tool and nothing else."""

    def __init__(self, name: str) -> None:
        self._name: str | None = name

    def push(self, text: str) -> Iterator[AnswerPart]:
        """The call, and its arguments."""
        if text and self._name is not None:
            yield AnswerPart("call", self._name)
            self._name = None
        if text:
            yield AnswerPart("arguments", text)

    def finish(self) -> Iterator[AnswerPart]:
        """Nothing was held back."""
        yield from ()


class _Objects:
    """Calls behind one another, until something else comes: that is `left`.

    Args:
        names: Of tools.
        listed: They may stand in a list.
        bare: A call may also be a name, [ARGS], and the arguments.
    """

    def __init__(self, names: Collection[str], *, listed: bool = False, bare: bool = False) -> None:
        self._names = names
        self._between = _SEPARATORS + ("[]" if listed else "")
        self._bare = bare
        self._object: CallObject | None = None
        self._head = ""
        self._begun = False
        self._told = 0
        self._raw = ""
        self.calls = 0
        """That were told."""
        self.left: str | None = None
        """Text behind the calls, as far as it came; None = they go on."""

    def push(self, text: str) -> Iterator[AnswerPart]:
        """Parts of calls; nothing more once something is left."""
        for place, char in enumerate(text):
            if self.left is not None:
                self.left += text[place:]
                return
            if self._object is None and char == "{":
                self._open()
            if self._object is not None:
                yield from self._on(self._object, char)
            elif self._bare and (self._head or not self._is_between(char)):
                self._head += char
            elif not self._is_between(char):
                self.left = char

    def finish(self) -> Iterator[AnswerPart]:
        """What was no call is text."""
        unfinished = "" if self._begun else self._raw
        text = unfinished + self._head + (self.left or "")
        self._raw = self._head = ""
        self.left = ""
        if text:
            yield AnswerPart("content", text)

    def _is_between(self, char: str) -> bool:
        return char.isspace() or char in self._between

    def _open(self) -> None:
        self._object, self._raw = CallObject(), self._head
        self._begun, self._told = False, 0
        if self._head:
            # Calls follow one another with a mark each, whose bracket looks like a list's.
            name = self._head.removeprefix(ToolForm.MISTRAL.value[1:]).removesuffix(_ARGUMENTS)
            name = name.strip()
            for char in json.dumps({"name": name})[:-1] + ', "arguments": ':
                self._object.push(char)

    def _on(self, called: CallObject, char: str) -> Iterator[AnswerPart]:
        called.push(char)
        self._raw += char
        if called.name in self._names and called.arguments:
            if not self._begun:
                self._begun = True
                self.calls += 1
                yield AnswerPart("call", str(called.name))
            new = called.arguments[self._told :]
            self._told += len(new)
            if new:
                yield AnswerPart("arguments", new)
        if called.done or (self._head and called.closed):
            if not self._begun:
                self.left = self._raw
            self._object, self._head, self._raw, self._begun = None, "", "", False


class _ListReader:
    """Of an answer that is a list of calls and nothing else."""

    def __init__(self, names: Collection[str]) -> None:
        self._calls = _Objects(names, listed=True)

    def push(self, text: str) -> Iterator[AnswerPart]:
        """Its calls."""
        return self._calls.push(text)

    def finish(self) -> Iterator[AnswerPart]:
        """What was no call."""
        return self._calls.finish()


class _LlamaReader:
    """Calls from the beginning, or text."""

    def __init__(self, names: Collection[str]) -> None:
        self._calls = _Objects(names)
        self._begun = False
        self._held = ""

    def push(self, text: str) -> Iterator[AnswerPart]:
        """Its calls, or its text."""
        if not self._begun:
            self._held += text
            mark = ToolForm.LLAMA.value
            if not self._held.strip() or mark.startswith(self._held.strip()):
                return
            self._begun = True
            marked = self._held.lstrip().startswith(mark)
            text = self._held.lstrip().removeprefix(mark) if marked else self._held
            if not text.lstrip().startswith("{"):
                self._calls.left = ""
            self._held = ""
        yield from _with_left(self._calls, text)

    def finish(self) -> Iterator[AnswerPart]:
        """What was held back."""
        if self._held:
            yield AnswerPart("content", self._held)
        yield from self._calls.finish()


class _MarkedReader:
    """Text, and calls behind marks.

    Args:
        mark: Begins calls.
        names: Of tools.
        end: Ends a call; empty = whatever is no call does.
    """

    def __init__(self, mark: str, names: Collection[str], *, end: str = "") -> None:
        self._mark = mark
        self._names = names
        self._end = end
        self._seeker = Seeker(mark)
        self._calls: _Objects | None = None
        self._called = False

    def push(self, text: str) -> Iterator[AnswerPart]:
        """Text and calls."""
        while text:
            if self._calls is None:
                shown, behind = self._seeker.push(text)
                if shown:
                    yield AnswerPart("content", shown)
                if behind is None:
                    return
                self._calls = _Objects(self._names, listed=not self._end, bare=not self._end)
                text = behind
                continue
            yield from self._calls.push(text)
            text = ""
            left = self._calls.left
            if left is None:
                return
            if self._end.startswith(left) and left != self._end:
                return  # it may become the end of this call
            text = left
            if self._calls.calls:
                self._called = True
                text = left.removeprefix(self._end)
            else:
                yield AnswerPart("content", self._mark)
            self._calls = None

    def finish(self) -> Iterator[AnswerPart]:
        """What was held back."""
        if self._calls is not None:
            parts = list(self._calls.finish())
            self._called |= self._calls.calls > 0
            held = "".join(part.text for part in parts)
            held = held if self._called else self._mark + held
            held = "" if self._end.startswith(held) else held
        else:
            held = self._seeker.finish()
        if held.strip() or (held and not self._called):
            yield AnswerPart("content", held)


def _with_left(calls: _Objects, text: str) -> Iterator[AnswerPart]:
    """Parts of calls, and the text behind them as it comes."""
    yield from calls.push(text)
    if calls.left:
        yield AnswerPart("content", calls.left)
        calls.left = ""
