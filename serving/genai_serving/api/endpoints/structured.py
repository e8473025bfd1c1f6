"""What a request says of its answer's form."""

from __future__ import annotations

import json
from typing import Any

from genai_core.errors import BadInput
from genai_core.files.json_budgets import Budget
from genai_serving.api.schemas import ResponseFormat, SamplingFields, StructuredOutputs
from genai_serving.structure.answer_forms import Form, any_object, of_choices, of_regex, of_schema

__all__ = ["form_of"]

_SCHEMA = Budget("schema", 1 << 20, 64, 100_000)


def form_of(body: SamplingFields) -> Form | None:
    """The form that an answer must have; None = any.

    Raises:
        BadInput: A schema that is given as text is not one.
    """
    if body.structured_outputs is not None:
        return _of_vllm(body.structured_outputs, "structured_outputs")
    if body.response_format is not None:
        return _of_openai(body.response_format, "response_format")
    return None


def _of_openai(wanted: ResponseFormat, field: str) -> Form | None:
    if wanted.type == "text":
        return None
    if wanted.json_schema is None or wanted.json_schema.schema_ is None:
        return any_object(field)
    return of_schema(wanted.json_schema.schema_, field)


def _of_vllm(wanted: StructuredOutputs, field: str) -> Form:
    if wanted.json_ is not None:
        given = wanted.json_
        return of_schema(_read(given, field) if isinstance(given, str) else given, field)
    if wanted.regex is not None:
        return of_regex(wanted.regex, field)
    if wanted.choice is not None:
        return of_choices(wanted.choice, field)
    return any_object(field)


def _read(text: str, field: str) -> dict[str, Any]:
    try:
        schema = json.loads(_SCHEMA.within(text.encode()))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"json cannot be read as JSON: {error}", where=field) from None
    if not isinstance(schema, dict):
        raise BadInput("json must be an object", where=field)
    return schema
