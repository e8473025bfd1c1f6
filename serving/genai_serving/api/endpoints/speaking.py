"""How the answers of a conversation are held to what was asked, and how they are read."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from genai_core.errors import BadInput
from genai_runtime.sampling import Constraint
from genai_serving.api.endpoints.structured import form_of
from genai_serving.api.messages import NamedTool, Tool
from genai_serving.api.model import ServedModel
from genai_serving.api.schemas import ChatBody
from genai_serving.api.service import Service
from genai_serving.structure.answer_forms import Form, of_calls, of_schema
from genai_serving.structure.grammars import Grammar
from genai_serving.tools import calls, thoughts
from genai_serving.tools.calls import ToolForm
from genai_serving.tools.parts import PlainReader, Reader

__all__ = ["Speech", "speech_of"]

_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class Speech:
    """See the module's docstring.

    Attributes:
        reader: Makes what finds the parts of one answer.
        shown: Special tokens that are text to it.
        constraint: Makes what holds one answer to its form; None = any.
        called: Why an answer with calls has ended.
        new_id: Names a call.
    """

    reader: Callable[[], Reader] = PlainReader
    shown: Mapping[int, str] = field(default_factory=dict)
    constraint: Callable[[], Constraint] | None = None
    called: str = "tool_calls"
    new_id: Callable[[], str] = lambda: f"call_{secrets.token_hex(12)}"


async def speech_of(service: Service, body: ChatBody, rendered: str) -> Speech:
    """Of a request.

    Args:
        service: Compiles forms.
        body: The request.
        rendered: Its prompt as text.

    Raises:
        BadInput: The model's template has no tools, or their form is not known; or the form that
            is asked for is not valid.
    """
    model = service.model
    source = model.template.source if model.template is not None else ""
    tools = body.callable_tools
    form = _form_of_calls(source, tools, body) if tools else None
    grammar = await service.compiled(lambda: _form(body, tools))
    reader = _reader(body, tools, form)
    constraint: Callable[[], Constraint] | None = None if grammar is None else grammar.begin
    thinks = thoughts.thinks(source)
    if thinks:
        reader, constraint = _behind_thoughts(model, rendered, reader, grammar)
    named = isinstance(body.tool_choice, NamedTool)
    return Speech(
        reader,
        _shown(model) if thinks or tools else {},
        constraint,
        "stop" if named else "tool_calls",
        _mistral_id if form is ToolForm.MISTRAL else Speech.new_id,
    )


def _form_of_calls(source: str, tools: list[Tool], body: ChatBody) -> ToolForm | None:
    if "tools" not in source:
        raise BadInput("the model's chat template shows no tools to it", where="tools")
    form = calls.form_of_template(source)
    if form is None and tools and body.tool_choice in (None, "auto"):
        raise BadInput(
            "the form of calls in the model's chat template is not known here",
            where="tools",
            remedy="set tool_choice to required, or to a tool",
        )
    return form


def _form(body: ChatBody, tools: list[Tool]) -> Form | None:
    if isinstance(body.tool_choice, NamedTool):
        wanted = body.tool_choice.function.name
        (tool,) = [tool for tool in tools if tool.function.name == wanted]
        return of_schema(_arguments(tool), "tools")
    if body.tool_choice == "required":
        schemas = {tool.function.name: _arguments(tool) for tool in tools}
        return of_calls(schemas, "tools", several=body.parallel_tool_calls is not False)
    return form_of(body)


def _arguments(tool: Tool) -> Mapping[str, object]:
    parameters = tool.function.parameters
    return _NO_ARGUMENTS if parameters is None else parameters


def _reader(body: ChatBody, tools: list[Tool], form: ToolForm | None) -> Callable[[], Reader]:
    names = frozenset(tool.function.name for tool in tools)
    choice = body.tool_choice
    if isinstance(choice, NamedTool):
        return lambda: calls.ArgumentsReader(choice.function.name)
    if choice == "required":
        return lambda: calls.list_reader(names)
    return PlainReader if form is None else lambda: calls.reader_of(form, names)


def _behind_thoughts(
    model: ServedModel, rendered: str, reader: Callable[[], Reader], grammar: Grammar | None
) -> tuple[Callable[[], Reader], Callable[[], Constraint] | None]:
    """Thoughts are free, whatever form the answer has, where their end is a token."""
    begin, end = model.token(thoughts.BEGIN), model.token(thoughts.END)
    within = rendered.rstrip().endswith(thoughts.BEGIN)
    if grammar is None:
        return (lambda: thoughts.ThoughtReader(reader(), within=within)), None
    if end is None:
        return reader, grammar.begin
    return (
        lambda: thoughts.ThoughtReader(reader(), within=within),
        lambda: thoughts.AfterThoughts(grammar.begin(), begin=begin, end=end, within=within),
    )


def _shown(model: ServedModel) -> dict[int, str]:
    """Special tokens have no text, and these are looked for in it."""
    marks = (*(form.value for form in ToolForm), *calls.FURTHER_MARKS)
    marks += (thoughts.BEGIN, thoughts.END)
    found = {mark: model.token(mark) for mark in marks}
    return {token: mark for mark, token in found.items() if token and not model.shows(token)}


def _mistral_id() -> str:
    """Its templates take no other."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
