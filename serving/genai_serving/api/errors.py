"""Every refusal in OpenAI's shape: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import ValidationError
from starlette.responses import JSONResponse, Response

from genai_core.errors import BadInput, BadModel, GenAIError
from genai_runtime.executor.adapter_weights import NoRoom
from genai_serving.adapters.loaded import NoColumns, NotLoaded, Unreadable
from genai_serving.requests import Closed
from genai_serving.scheduler import QueueFull

_MOST_NAME = 256
"""Characters of a client's name that an answer repeats."""
RETRY_SECONDS = 2
"""What Retry-After says: an answer of ordinary length is done by then."""


@dataclass
class RequestRefused(Exception):
    """A refusal.

    Attributes:
        status: Of HTTP.
        message: For people.
        param: The field concerned.
        code: For programs.
        headers: Further ones.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, object]:
        """The answer's JSON."""
        kind = {
            401: "authentication_error",
            404: "not_found_error",
            429: "rate_limit_error",
            503: "service_unavailable_error",
        }.get(self.status, "invalid_request_error" if self.status < 500 else "internal_error")
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> Response:
        """The answer."""
        return JSONResponse(self.body, self.status, headers=dict(self.headers))


def of_validation(error: ValidationError) -> RequestRefused:
    """What is wrong with a body: its first fault, of several forms that of the closest one."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    field = faults[0]["loc"][:1]
    first = max((f for f in faults if f["loc"][:1] == field), key=lambda f: len(f["loc"]))
    place = ".".join(str(part) for part in first["loc"] if not _names_a_form(part))
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "is not a parameter of this endpoint"
    return RequestRefused(
        400, f"{place}: {message}" if place else message, place or None, "invalid_body"
    )


def _names_a_form(part: int | str) -> bool:
    """Whether a part of a place names one of several allowed forms, and no field of the body."""
    return isinstance(part, str) and ("[" in part or part in {"str", "constrained-str"})


def of_failure(error: GenAIError, *, param: str | None = None) -> RequestRefused:
    """An error of the engine or the tokenizer."""
    later = {"Retry-After": str(math.ceil(RETRY_SECONDS))}
    text = " ".join(str(error).split())
    if isinstance(error, QueueFull):
        return RequestRefused(429, text, code="queue_full", headers=later)
    if isinstance(error, Closed):
        return RequestRefused(503, text, code="shutting_down", headers=later)
    if isinstance(error, NoColumns | Unreadable):
        return RequestRefused(503, text, "model", error.code, headers=later)
    if isinstance(error, NoRoom):
        return RequestRefused(413, text, error.where or param, error.code)
    if isinstance(error, NotLoaded):  # it went while its request was read
        return RequestRefused(404, text, "model", "model_not_found")
    if isinstance(error, BadInput) and not isinstance(error, BadModel):  # that is not the client's
        return RequestRefused(400, text, error.where.replace("-", "_") or param, error.code)
    return RequestRefused(500, text, code="internal_error")


def too_long(tokens: int, context_length: int, param: str) -> RequestRefused:
    """A prompt that no answer could follow; by OpenAI's code, which clients cut prompts on."""
    return RequestRefused(
        400,
        f"the prompt has {tokens} tokens, the context length is {context_length}; shorten it",
        param,
        "context_length_exceeded",
    )


def not_found(model: str, known: str) -> RequestRefused:
    """A model that is not served; never answered by another."""
    return RequestRefused(
        404,
        f"the model {model[:_MOST_NAME]!r} does not exist; this server has {known}",
        "model",
        "model_not_found",
    )
