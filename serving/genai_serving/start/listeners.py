"""Where a server listens."""

from __future__ import annotations

import socket

from genai_core.errors import BadInput
from genai_core.names import Backend
from genai_runtime.container.container import Container
from genai_serving.start.options import AdminOptions, Options

__all__ = ["admin_port", "bound"]


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address, before anything is loaded; it listens when the server is ready.

    Raises:
        BadInput: No such address.
        OSError: It is taken, or not this machine's.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise BadInput(f"no such address: {error}", where=f"host {host}") from error
    made = socket.socket(family, kind, proto)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(address)
    except OSError as error:
        made.close()
        raise OSError(error.errno, error.strerror, f"{host}:{port}") from error
    return made


def admin_port(options: Options, admin: AdminOptions, opened: Container) -> socket.socket:
    """The admin port's socket.

    Raises:
        BadInput: No adapter could come to this container.
        OSError: The address is taken.
    """
    none = opened.manifest.target.backend is Backend.HTP or not opened.adapters().adapters
    if none and admin.declared is None:
        raise BadInput(
            "no adapter can come to this container: its graphs have branches where its own "
            "adapters have them, and it carries none",
            where="--admin-port",
            remedy="serve a cpu container with an adapter, see `genai adapter add`",
        )
    return bound(options.host, admin.port)
