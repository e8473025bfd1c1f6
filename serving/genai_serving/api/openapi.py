"""The API as an OpenAPI document, made from the schemas that read the bodies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from genai_serving.api.schemas import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody

__all__ = ["document"]

_REFERENCE = "#/components/schemas/{model}"
_COUNT = {"type": "integer", "minimum": 0}
_TEXT = {"type": "string"}

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_USAGE = {
    "type": "object",
    "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
    "properties": {
        "prompt_tokens": _COUNT,
        "completion_tokens": _COUNT,
        "total_tokens": _COUNT,
        "prompt_tokens_details": {"type": "object", "properties": {"cached_tokens": _COUNT}},
    },
}
_MODEL = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by", "parent"],
    "properties": {
        "id": _TEXT,
        "object": {"const": "model"},
        "created": {"type": "integer"},
        "owned_by": _TEXT,
        "parent": {"type": ["string", "null"]},
    },
}


def document(version: str) -> dict[str, Any]:
    """The document.

    Args:
        version: What changes when answers may.
    """
    bodies: Sequence[type[BaseModel]] = (CompletionBody, ChatBody, TokenizeBody, DetokenizeBody)
    _, made = models_json_schema([(body, "validation") for body in bodies], ref_template=_REFERENCE)
    schemas = dict(made.get("$defs", {}))
    schemas |= {"Error": _ERROR, "Usage": _USAGE, "Model": _MODEL}
    schemas |= {
        "Completion": _answer("text_completion"),
        "ChatCompletion": _answer("chat.completion"),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "genai serve", "version": version},
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
        "paths": {
            "/v1/completions": _post(
                "Continue prompts.", CompletionBody, "Completion", stream=True
            ),
            "/v1/chat/completions": _post(
                "Answer a conversation.", ChatBody, "ChatCompletion", stream=True
            ),
            "/tokenize": _post("Text or messages as tokens.", TokenizeBody, None),
            "/detokenize": _post("Tokens as text.", DetokenizeBody, None),
            "/v1/models": _get(
                "What requests may name.",
                {
                    "type": "object",
                    "required": ["object", "data"],
                    "properties": {
                        "object": {"const": "list"},
                        "data": {"type": "array", "items": _reference("Model")},
                    },
                },
            ),
            "/v1/models/{model}": _get("One of them.", _reference("Model"), name="model"),
            "/health": _get("Whether the process is worth keeping.", {"type": "object"}),
            "/ready": _get("Whether requests are welcome.", {"type": "object"}),
            "/metrics": _get("Prometheus' text.", {"type": "string"}, media="text/plain"),
        },
    }


def _answer(kind: str) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices", "usage"],
        "properties": {
            "id": _TEXT,
            "object": {"const": kind},
            "created": {"type": "integer"},
            "model": _TEXT,
            "choices": {"type": "array", "items": {"type": "object"}, "minItems": 1},
            "usage": _reference("Usage"),
        },
    }


def _reference(name: str) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=name)}


def _content(schema: Mapping[str, Any], media: str = "application/json") -> dict[str, Any]:
    return {media: {"schema": schema}}


def _refusals(*statuses: int) -> dict[str, Any]:
    words = {
        400: "The request is wrong; `param` names the field.",
        401: "A key is needed.",
        404: "No such model: never answered by another.",
        408: "The body did not come in time.",
        413: "The body is too large.",
        429: "As many wait as may; Retry-After says when to come again.",
        503: "The server is ending, or the answer took too long.",
    }
    return {
        str(status): {"description": words[status], "content": _content(_reference("Error"))}
        for status in statuses
    }


def _post(
    about: str, body: type[BaseModel], answer: str | None, *, stream: bool = False
) -> dict[str, Any]:
    told = _content({"type": "object"} if answer is None else _reference(answer))
    if stream:
        told |= {"text/event-stream": {}}  # OpenAPI has no word for events
    return {
        "post": {
            "summary": about,
            "requestBody": {"required": True, "content": _content(_reference(body.__name__))},
            "responses": {
                "200": {"description": "The answer.", "content": told},
                **_refusals(400, 401, 404, 408, 413, 429, 503),
            },
        }
    }


def _get(
    about: str, schema: Mapping[str, Any], *, media: str = "application/json", name: str = ""
) -> dict[str, Any]:
    parameter = {"name": name, "in": "path", "required": True, "schema": _TEXT}
    return {
        "get": {
            "summary": about,
            **({"parameters": [parameter]} if name else {}),
            "responses": {
                "200": {"description": "The answer.", "content": _content(schema, media)},
                **_refusals(401, 404, 503),
            },
        }
    }
