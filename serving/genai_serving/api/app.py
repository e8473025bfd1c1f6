"""The HTTP application: routes, keys, request ids, errors."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from genai_core.errors import BadInput, GenAIError
from genai_serving.api.admin_port.admin import AdapterAdmin, load_lora_adapter, unload_lora_adapter
from genai_serving.api.admin_port.declaration import Declarations, declare_adapters, list_adapters
from genai_serving.api.admin_port.local_names import LocalNames
from genai_serving.api.api_keys import ApiKeys
from genai_serving.api.bodies import Bodies, read_body
from genai_serving.api.endpoints.chat import chat_completions
from genai_serving.api.endpoints.completions import completions
from genai_serving.api.errors import RETRY_SECONDS, RequestRefused, of_failure
from genai_serving.api.openapi import document
from genai_serving.api.schemas import DetokenizeBody, TokenizeBody
from genai_serving.api.service import Service
from genai_serving.metrics import Metrics

_LOG = logging.getLogger("genai_serving")
_OPEN = frozenset({"/health", "/ready", "/metrics", "/openapi.json"})
_REQUEST_ID = re.compile(r"^[\w.:-]{1,128}$", re.ASCII)
_INSTEAD = {"/v1/responses": "this server has /v1/chat/completions"}

_CROWDED = RequestRefused(
    503,
    "the server has too many connections",
    code="too_many_connections",
    headers={"Retry-After": str(RETRY_SECONDS), "Connection": "close"},
)

_S = TypeVar("_S")
Handler = Callable[[HttpRequest, Service], Awaitable[Response]]
Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


def application(
    service: Service,
    metrics: Metrics,
    *,
    api_keys: Sequence[str] | ApiKeys = (),
    on_shutdown: Callable[[], Awaitable[None]] | None = None,
    draining: Callable[[], bool] = lambda: False,
    crowded: Callable[[], bool] = lambda: False,
    local: bool = False,
) -> Any:
    """The ASGI application.

    Args:
        service: What the endpoints need.
        metrics: What /metrics shows.
        api_keys: One of them must be sent as a bearer token; none = anybody is served. Health,
            readiness and metrics are for everybody.
        on_shutdown: Run when the server ends.
        draining: Whether it is about to end: it answers, is not ready, and keeps no connection.
        crowded: Whether there are more connections than are served: health, readiness and metrics
            are told all the same.
        local: It listens for this machine alone: without keys it answers to names of it.
    """

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        if on_shutdown is not None:
            await on_shutdown()

    def route(path: str, handler: Handler, method: str = "POST") -> Route:
        async def endpoint(request: HttpRequest) -> Response:
            return await _answer(request, handler, service)

        return Route(path, endpoint, methods=[method])

    async def scrape(_request: HttpRequest, _service: Service) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    described = document(service.model.revision)

    async def describe(_request: HttpRequest, _service: Service) -> Response:
        return JSONResponse(described)

    app = Starlette(
        routes=[
            route("/v1/completions", completions),
            route("/v1/chat/completions", chat_completions),
            route("/v1/models", _models, "GET"),
            route("/v1/models/{model:path}", _model, "GET"),
            route("/tokenize", _tokenize),
            route("/detokenize", _detokenize),
            route("/health", _health, "GET"),
            route("/ready", _ready, "GET"),
            route("/metrics", scrape, "GET"),
            route("/openapi.json", describe, "GET"),
        ],
        exception_handlers={HTTPException: _no_such_route},
        lifespan=lifespan,
    )
    keys = api_keys if isinstance(api_keys, ApiKeys) else ApiKeys(api_keys)
    front = _Front(app, keys, draining, service.bodies, crowded)
    return LocalNames(front) if local and not keys.wanted else front


def admin_application(
    admin: AdapterAdmin, tokens: ApiKeys, declarations: Declarations | None = None
) -> Any:
    """The ASGI application of the admin port: every request needs a token.

    Args:
        admin: Loads and unloads.
        tokens: One of them.
        declarations: Keeps what is declared for the next start; None = nobody does.
    """

    def route(
        path: str,
        handler: Callable[[HttpRequest, AdapterAdmin], Awaitable[Response]],
        method: str = "POST",
    ) -> Route:
        async def endpoint(request: HttpRequest) -> Response:
            return await _answer(request, handler, admin)

        return Route(path, endpoint, methods=[method])

    app = Starlette(
        routes=[
            route("/v1/load_lora_adapter", load_lora_adapter),
            route("/v1/unload_lora_adapter", unload_lora_adapter),
            route("/v1/adapters", list_adapters, "GET"),
            route("/v1/adapters", partial(declare_adapters, declarations=declarations), "PUT"),
        ],
        exception_handlers={HTTPException: _no_such_route},
    )
    return _Front(app, tokens, lambda: False, admin.bodies)


class _Front:
    """Keys, request ids, the end of connections; behind an answer, what its body took is free."""

    def __init__(
        self,
        app: Any,
        keys: ApiKeys,
        draining: Callable[[], bool],
        bodies: Bodies,
        crowded: Callable[[], bool] = lambda: False,
    ) -> None:
        self._app = app
        self._keys = keys
        self._draining = draining
        self._bodies = bodies
        self._crowded = crowded

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {key: value for key, value in scope["headers"]}  # noqa: C416 - the last counts
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        name = given if _REQUEST_ID.match(given) else secrets.token_hex(12)

        async def named(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", name.encode())]
                if self._draining():
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        if scope["path"] == "/ready" and self._draining():
            ending = RequestRefused(503, "the server is shutting down", code="shutting_down")
            await ending.response()(scope, receive, named)
            return
        if scope["path"] not in _OPEN and self._crowded():
            await _CROWDED.response()(scope, receive, named)
            return
        if scope["path"] in _OPEN or self._keys.allow(headers.get(b"authorization", b"")):
            try:
                await self._app(scope, receive, named)
            finally:
                self._bodies.release(scope)
            return
        refusal = RequestRefused(
            401,
            "a valid API key is needed: Authorization: Bearer <key>",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await refusal.response()(scope, receive, named)


async def _answer(
    request: HttpRequest, handler: Callable[[HttpRequest, _S], Awaitable[Response]], service: _S
) -> Response:
    try:
        return await handler(request, service)
    except RequestRefused as error:
        return error.response()
    except GenAIError as error:
        return of_failure(error).response()
    except Exception:  # noqa: BLE001 - a defect: it is logged, and the client gets its answer
        _LOG.exception("%s %s failed", request.method, request.url.path)
        return RequestRefused(500, "the server failed to answer", code="internal_error").response()


async def _no_such_route(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    hint = _INSTEAD.get(request.url.path)
    text = f"{request.method} {request.url.path}: {error.detail}" + (f"; {hint}" if hint else "")
    return RequestRefused(error.status_code, text, headers=error.headers or {}).response()


async def _models(_request: HttpRequest, service: Service) -> Response:
    names = [service.model.name, *service.model.adapters.names]
    return JSONResponse({"object": "list", "data": [_about(service, name) for name in names]})


async def _model(request: HttpRequest, service: Service) -> Response:
    return JSONResponse(_about(service, service.chosen(request.path_params["model"]).name))


def _about(service: Service, name: str) -> dict[str, Any]:
    model = service.model
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "genai",
        "root": model.name,
        "parent": None if name == model.name else model.name,
        "max_model_len": model.context_length,
        "revision": model.adapters.revision or model.revision,
        "emulated": model.emulated,
        "exact": model.exact,
        "bit_stable": {
            "chunks": model.steadiness.chunks,
            "neighbours": model.steadiness.neighbours,
        },
        "prefix_cache": model.prefix_cache,
        "speculation": model.speculation,
        "vision": service.pictures is not None,
        "adapter_state": service.adapter_state(name),
    }


async def _tokenize(request: HttpRequest, service: Service) -> Response:
    body = await read_body(request, service.bodies, TokenizeBody)
    service.chosen(body.model)
    if body.prompt is not None:
        prompt = await service.tokens_of(body.prompt, special=body.add_special_tokens)
    else:
        messages, variables = body.messages or [], body.chat_template_kwargs or {}
        _, prompt = await service.chat_prompt(messages, variables, body.tools or ())
    return JSONResponse(
        {
            "count": int(prompt.tokens.size),
            "max_model_len": service.model.context_length,
            "tokens": [int(token) for token in prompt.tokens],
        }
    )


async def _detokenize(request: HttpRequest, service: Service) -> Response:
    body = await read_body(request, service.bodies, DetokenizeBody)
    service.chosen(body.model)
    outside = [token for token in body.tokens if token >= service.vocab_size]
    if outside:
        raise BadInput(
            f"token id {outside[0]} is outside the vocabulary of {service.vocab_size}",
            where="tokens",
        )
    # A hundred thousand of them take a tenth of a second: not in the loop.
    async with service.bodies.of(len(body.tokens)):
        text = await asyncio.to_thread(service.model.text, body.tokens)
    return JSONResponse({"prompt": text})


async def _health(_request: HttpRequest, service: Service) -> Response:
    """Whether the process is worth keeping: its engine runs."""
    if not service.engine.alive:
        return RequestRefused(503, "the engine has ended", code="engine_dead").response()
    return JSONResponse({"status": "ok"})


async def _ready(_request: HttpRequest, service: Service) -> Response:
    """Whether new requests are welcome."""
    if not service.engine.accepting:
        return RequestRefused(503, "the server is shutting down", code="shutting_down").response()
    return JSONResponse({"status": "ready", "model": service.model.name})
