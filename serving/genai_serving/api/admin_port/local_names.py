"""By which names a server of this machine alone is asked.

A page of any site may let its own name mean 127.0.0.1 (DNS rebinding) and then ask what listens
there as if that were its own server. Its requests bear its name.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from genai_serving.api.errors import RequestRefused

__all__ = ["LocalNames", "is_loopback"]

_REFUSED = RequestRefused(
    403,
    "without an API key this server answers to localhost and to addresses of this machine alone: "
    "the request's Host is another name; start the server with --api-key or --host",
    code="unknown_host",
)


def is_loopback(name: str) -> bool:
    """Whether a name or an address means this machine: localhost, 127.0.0.1, ::1."""
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class LocalNames:
    """ASGI: refuses requests whose Host is no name of this machine."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        if scope["type"] == "http" and not all(
            is_loopback(_name(value.decode("latin-1")))
            for key, value in scope["headers"]
            if key == b"host"
        ):
            await _REFUSED.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
