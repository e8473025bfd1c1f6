"""A call of a tool as a JSON object, `{"name": ..., "arguments": {...}}`, read as it comes."""

from __future__ import annotations

import json

__all__ = ["CallObject"]

_ARGUMENTS = frozenset({"arguments", "parameters"})


class CallObject:
    """One object.

    It is not checked as JSON is: its strings and brackets are followed, no more. What a model
    writes as arguments is told as it is.

    Attributes:
        raw: All of its text so far.
        name: Of the tool, once it is known.
        done: It is closed.
        wrong: It is no object.
    """

    def __init__(self) -> None:
        self.raw = ""
        self.name: str | None = None
        self.done = False
        self.wrong = False
        self._depth = 0
        self._string: int | None = None
        self._escaped = False
        self._key: str | None = None
        self._value = False
        self._begin: int | None = None
        self._end: int | None = None

    @property
    def closed(self) -> bool:
        """The arguments are there as a whole."""
        return self.done or self._end is not None

    @property
    def arguments(self) -> str:
        """As far as they are certain; only as a whole where they are no object."""
        if self._begin is None:
            return "{}" if self.done else ""
        end = len(self.raw) if self._end is None else self._end
        text = self.raw[self._begin : end]
        if text.startswith("{"):
            return text
        return _of_other(text) if self.closed else ""

    def push(self, char: str) -> None:
        """The next character; none once it is done or wrong."""
        place = len(self.raw)
        self.raw += char
        if self._string is not None:
            self._in_string(char)
            return
        if self._depth == 0:
            self.wrong = char != "{"
            self._depth = 1
            return
        blank = char.isspace()
        if self._value and self._key in _ARGUMENTS and self._begin is None and not blank:
            self._begin = place
        if char == '"':
            self._string = place
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            if self._depth == 1:
                self._close(place + 1)
            elif self._depth == 0:
                self._close(place)
                self.done = True
        elif self._depth == 1 and char == ":":
            self._value = True
        elif self._depth == 1 and char == ",":
            self._close(place)
            self._key, self._value = None, False

    def _in_string(self, char: str) -> None:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            start, self._string = self._string, None
            if self._depth != 1:
                return
            try:
                text = json.loads(self.raw[start:])
            except ValueError:
                return
            if not self._value:
                self._key = text
            elif self._key == "name":
                self.name = text

    def _close(self, place: int) -> None:
        """A value at the first level ends before a place."""
        if self._begin is not None and self._end is None and self._key in _ARGUMENTS:
            self._end = place


def _of_other(text: str) -> str:
    """Arguments that are no object: some models write one as a string, or null for none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, str) else "{}" if value is None else text
