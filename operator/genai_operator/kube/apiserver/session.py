"""HTTP sessions whose listings and watches hand on what is read of each object, and no more.

Both clients of the apiserver (kopf's for the watches, ours for listings) get answers that are
projected while they are parsed; see `projection`. Everything else passes as it is.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import aiohttp

from genai_core.files.deep_json import read_json
from genai_operator.kube.apiserver.connection import Connection
from genai_operator.kube.apiserver.projection import OURS, Listing, lean, plural_of, whole
from genai_operator.timing import SYSTEM, Timing

__all__ = ["LeanResponse", "lean_session"]

_PIECE = 64 << 10
_TOKEN_SECONDS = 60.0
_SILENT_SECONDS = 30.0
"""How long an apiserver may say nothing before, or within, an answer; a listing may take longer."""


class LeanResponse(aiohttp.ClientResponse):
    """An answer whose `json()` of a listing, and whose lines of a watch, are projected."""

    async def json(self, **how: Any) -> Any:
        """See `aiohttp.ClientResponse.json`."""
        plural = plural_of(self.url.path)
        if plural is None or self.status >= 400 or self.method != "GET":
            return await super().json(**{"loads": read_json, **how})
        one = plural in OURS and "fieldSelector" in self.url.query
        listing = Listing(whole if one else partial(lean, plural))
        pieces = aiter(self.content.iter_chunked(_PIECE))
        while True:  # as long as it takes, while there is something
            async with asyncio.timeout(_SILENT_SECONDS):
                piece = await anext(pieces, None)
            if piece is None:
                return listing.end()
            listing.feed(piece)

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        """Begin to read; see `aiohttp.ClientResponse.start`."""
        await super().start(connection)
        plural = plural_of(self.url.path)
        if plural is not None and self.url.query.get("watch") == "true" and self.status < 400:
            self.content = _LeanLines(self.content, plural)  # type: ignore[assignment]
        return self


class _LeanLines:
    """The lines of a watch; in all else the stream that it stands for."""

    def __init__(self, stream: aiohttp.StreamReader, plural: str) -> None:
        self._stream = stream
        self._plural = plural

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def iter_chunked(self, n: int) -> AsyncIterator[bytes]:
        """Whole lines, one or several at a time."""
        left = b""
        async for piece in self._stream.iter_chunked(n):
            *lines, left = (left + piece).split(b"\n")
            for line in lines:
                yield self._lean(line) + b"\n"
        if left:
            yield self._lean(left)

    def _lean(self, line: bytes) -> bytes:
        if not line.strip():
            return line
        event = read_json(line)
        if event.get("type") in {"ADDED", "MODIFIED", "DELETED"}:
            event["object"] = lean(self._plural, event["object"])
        return json.dumps(event).encode()


class _Bearer:
    """Puts the current token on each request, since tokens of pods rotate; awaits an answer."""

    def __init__(self, to: Connection, timing: Timing) -> None:
        self._to = to
        self._timing = timing
        self._token = to.token
        self._read = float("-inf")

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Hand a request on."""
        file = self._to.token_file
        if file is not None and self._timing.monotonic() - self._read > _TOKEN_SECONDS:
            self._token = file.read_text(encoding="utf-8").strip()
            self._read = self._timing.monotonic()
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        async with asyncio.timeout(_SILENT_SECONDS):
            return await handler(request)


def lean_session(
    to: Connection,
    *,
    limit: int = 0,
    timeout: aiohttp.ClientTimeout | None = None,
    timing: Timing = SYSTEM,
) -> aiohttp.ClientSession:
    """A session with the apiserver.

    Args:
        to: Where it is, and who we are.
        limit: Connections at once; 0: any number.
        timeout: Of each request that says nothing else.
        timing: The clocks.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=to.tls, limit=limit),
        response_class=LeanResponse,
        middlewares=(_Bearer(to, timing),),
        timeout=timeout or aiohttp.ClientTimeout(total=30, connect=10),
    )
