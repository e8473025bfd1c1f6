"""Forms of answers as grammars of llguidance."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLParserLimits

from genai_core.errors import BadInput

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

__all__ = [
    "LARGEST",
    "Form",
    "any_object",
    "limits",
    "of_calls",
    "of_choices",
    "of_regex",
    "of_schema",
]

_BLANKS = r"( |\n[ \t]{0,20})"
"""Between parts of JSON: one, or a line's indentation; a model that is unsure writes on and on."""

LARGEST = 1 << 20
"""Characters of a form, and of its grammar."""

_OPTIONS: JsonCompileOptions = {"whitespace_pattern": _BLANKS}


@dataclass(frozen=True)
class Form:
    """What an answer must look like.

    Attributes:
        grammar: In llguidance's JSON; equal forms have equal texts.
        field: Of the request, for messages.
    """

    grammar: str
    field: str


def of_schema(schema: Mapping[str, Any], field: str) -> Form:
    """JSON that a schema allows.

    Raises:
        BadInput: The library cannot read it, e.g. half of a surrogate pair.
    """
    text = json.dumps(schema)
    _check_length(len(text), field)
    with _readable(field):
        grammar = LLMatcher.grammar_from_json_schema(text, overrides=_OPTIONS)
    return Form(grammar, field)


def any_object(field: str) -> Form:
    """Any JSON object."""
    return of_schema({"type": "object"}, field)


def of_regex(regex: str, field: str) -> Form:
    """A text that a regular expression matches as a whole; Rust's syntax.

    Raises:
        BadInput: As `of_schema`.
    """
    with _readable(field):
        return Form(LLMatcher.grammar_from_regex(regex), field)


def of_choices(choices: Sequence[str], field: str) -> Form:
    """One of some texts.

    Raises:
        BadInput: As `of_schema`.
    """
    _check_length(sum(map(len, choices)), field)
    return of_regex("|".join(re.escape(choice) for choice in choices), field)


def of_calls(schemas: Mapping[str, Mapping[str, Any]], field: str, *, several: bool) -> Form:
    """A list of calls of tools: `[{"name": NAME, "arguments": {...}}, ...]`.

    Args:
        schemas: Of the arguments, by the tool's name. Each is a document of its own.
        field: Of the request, for messages.
        several: Else one.

    Raises:
        BadInput: As `of_schema`.
    """
    rules = ['start: "[" call ("," " "? call)* "]"' if several else 'start: "[" call "]"']
    rules.append("call: " + " | ".join(f"call{number}" for number in range(len(schemas))))
    for number, (name, schema) in enumerate(schemas.items()):
        begin = json.dumps(f'{{"name": {json.dumps(name)}, "arguments": ')
        rules.append(f'call{number}: {begin} arguments{number} "}}"')
        rules.append(f"arguments{number}: %json {json.dumps({**schema, 'x-guidance': _OPTIONS})}")
    _check_length(sum(map(len, rules)), field)
    with _readable(field):
        return Form(LLMatcher.grammar_from_lark("\n".join(rules) + "\n"), field)


def _check_length(characters: int, field: str) -> None:
    """Refuse what is too long to be a form before it is turned over: that takes a second."""
    if characters > LARGEST:
        raise BadInput(f"is longer than {LARGEST >> 20} MiB", where=field)


@contextmanager
def _readable(field: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise BadInput(
            f"cannot be read: {' '.join(str(error).split())[:200]}", where=field
        ) from error


def limits() -> LLParserLimits:
    """Work that a grammar may make: a second to compile, some milliseconds a token, 64 MiB."""
    return LLParserLimits(
        max_lexer_states=40_000,  # 1 to 2 kB each
        precompute_large_lexemes=False,  # it reads the whole vocabulary
        verbose_errors=False,
    )
