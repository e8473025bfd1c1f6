"""Bodies of requests: read within budgets of bytes, values, time and memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import MutableMapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from genai_core.files.json_budgets import Budget
from genai_serving.api.errors import RETRY_SECONDS, RequestRefused, of_validation

MAX_BODY_BYTES = 8 << 20
BODY_SECONDS = 30.0
"""A body that has not come by then is not waited for."""

BODY = Budget("body", MAX_BODY_BYTES, 64, 400_000)
"""A prompt of 128k tokens is 131,072 values; a few MiB of `[],[],[]` would be a GiB of objects."""
MOST_KEYS = 20_000
"""4096 messages have three each; each that is wrong is an error of its own."""
MOST_BODIES_BYTES = 128 << 20
"""Of all bodies that are there: being read, waiting to be tokens, or of requests under way."""
LONG_TEXT = 64 << 10
"""Characters: the tokens of a longer text take some hundred bytes each, so it is cut alone."""

_NESTED = (dict, list)
"""What JSON's values are read as that hold others."""

_HELD = "genai.body"
"""Key of an ASGI scope: bytes of its body."""

_B = TypeVar("_B", bound=BaseModel)


class Bodies:
    """What requests hold before they are requests; of one event loop."""

    def __init__(self) -> None:
        self.bytes = 0
        """Of bodies that are there."""
        self.long = asyncio.Semaphore(1)
        """Of long texts that are cut into tokens."""

    def of(self, characters: int) -> contextlib.AbstractAsyncContextManager[None]:
        """What cutting so long a text waits for."""
        return self.long if characters > LONG_TEXT else contextlib.nullcontext()

    def release(self, scope: MutableMapping[str, Any]) -> None:
        """Give back what a request's body took, once the request is over."""
        self.bytes -= scope.pop(_HELD, 0)


async def read_body(request: HttpRequest, bodies: Bodies, kind: type[_B]) -> _B:
    """The request's body.

    Raises:
        ApiError: It is too large, too slow, one of too many, no JSON object, or lacks the form.
    """
    try:
        async with asyncio.timeout(BODY_SECONDS):
            raw = await _bytes(request, bodies)
    except TimeoutError:
        raise RequestRefused(408, f"the body did not come within {BODY_SECONDS:g} s") from None
    except ClientDisconnect:
        raise RequestRefused(400, "the client went away") from None
    try:
        text = BODY.within(raw).decode("utf-8")
        content = json.loads(text, parse_constant=_no_constant)
        _check_keys(content)
    except (ValueError, RecursionError) as error:
        raise RequestRefused(
            400, f"the body cannot be read as JSON: {error}", code="invalid_json"
        ) from None
    if not isinstance(content, dict):
        raise RequestRefused(400, "the body must be a JSON object", code="invalid_json")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise of_validation(error) from None
    except RecursionError:
        raise RequestRefused(400, "the body is nested too deeply", code="invalid_json") from None


async def _bytes(request: HttpRequest, bodies: Bodies) -> bytes:
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        bodies.bytes += len(chunk)
        request.scope[_HELD] = len(raw)
        if len(raw) > MAX_BODY_BYTES:
            raise RequestRefused(
                413, f"the body has more than {MAX_BODY_BYTES >> 20} MiB", code="body_too_large"
            )
        if bodies.bytes > MOST_BODIES_BYTES:
            raise RequestRefused(
                429,
                "too many large bodies come at once",
                code="queue_full",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
    return bytes(raw)


def _check_keys(content: object) -> None:
    """Refuse mappings of more keys than any request has.

    Raises:
        ValueError: There are.
    """
    count, stack = 0, [content]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            count += len(value)
            stack += value.values()
        elif isinstance(value, list):
            stack += [item for item in value if type(item) in _NESTED]
    if count > MOST_KEYS:
        raise ValueError(f"it has {count} keys, and {MOST_KEYS} are read")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")
