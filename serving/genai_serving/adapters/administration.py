"""The server beside the server: one port more, for whoever may change what is served."""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from genai_serving.connections import Connections

__all__ = ["AdminServer"]

_CONNECTIONS = 16


class AdminServer(uvicorn.Server):
    """Runs beside another in one event loop; that one hears the signals.

    Args:
        app: ASGI.
    """

    def __init__(self, app: Any) -> None:
        connections = Connections(_CONNECTIONS, reserve=0)
        super().__init__(
            uvicorn.Config(
                app,
                http=connections.protocol,  # type: ignore[arg-type]
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                timeout_graceful_shutdown=1,
                timeout_keep_alive=math.ceil(connections.patience.idle),
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None of them."""
        yield

    async def run_on(self, listener: socket.socket) -> None:
        """Until it is told to end."""
        await self.serve(sockets=[listener])
