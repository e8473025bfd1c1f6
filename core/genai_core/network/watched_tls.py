"""Connections over TLS that end where they lead to a refused address, and that can be hung up."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from genai_core.errors import InvalidSpec
from genai_core.network.addresses import check_peer
from genai_core.network.deadlines import hang_up
from genai_core.network.download_rules import Rules

__all__ = ["CONNECT_SECONDS", "HttpsHandler", "NoRedirects", "WatchedTls", "watched_context"]

CONNECT_SECONDS = 60.0
"""For an address to answer at all."""
_MOST_ADDRESSES = 4
"""Of a name that are tried."""


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Leaves redirects to `download`."""

    def http_error_302(self, *_: Any, **__: Any) -> None:
        """Follow none, and do not even read where it leads."""

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class WatchedTls(ssl.SSLContext):
    """Hangs up before the handshake where a connection led to a refused address, or when told."""

    rules: Rules
    connected: socket.socket | None = None

    def wrap_socket(self, sock: socket.socket, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        """Look where it leads, then go on."""
        check_peer(sock, self.rules.refused)
        self.forget()
        # Another name of the connection: the handshake takes the first one away.
        self.connected = sock.dup()
        return super().wrap_socket(sock, *arguments, **options)

    def hang_up(self) -> None:
        """End whatever waits for the last connection."""
        hang_up(self.connected)

    def forget(self) -> None:
        """The last connection is over."""
        if self.connected is not None:
            self.connected.close()
            self.connected = None


class _Connection(http.client.HTTPSConnection):
    """Tries few addresses of a name: each may take its time."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._create_connection = _connected


def _connected(
    address: tuple[str, int], timeout: float = CONNECT_SECONDS, source_address: Any = None
) -> socket.socket:
    found = socket.getaddrinfo(*address, 0, socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))[:_MOST_ADDRESSES]
    for host in addresses[:-1]:
        with suppress(OSError):
            return socket.create_connection((host, address[1]), timeout, source_address)
    return socket.create_connection((addresses[-1], address[1]), timeout, source_address)


class HttpsHandler(urllib.request.HTTPSHandler):
    """Opens addresses with connections of ours."""

    def https_open(self, req: urllib.request.Request) -> Any:
        """Open with a connection of ours."""
        context: Any = self._context  # type: ignore[attr-defined]
        return self.do_open(_Connection, req, context=context)


def watched_context(rules: Rules, authorities_beside: str) -> WatchedTls:
    """The context of one download.

    Args:
        rules: Which addresses are refused.
        authorities_beside: Certificates (PEM) that count beside the usual ones.

    Raises:
        InvalidSpec: They are no certificates.
    """
    context = WatchedTls(ssl.PROTOCOL_TLS_CLIENT)
    context.rules = rules
    authorities = os.environ.get("SSL_CERT_FILE")
    with _certificates(f"SSL_CERT_FILE={authorities}"):
        if authorities:
            context.load_verify_locations(authorities)
        else:
            context.load_default_certs()
    if authorities_beside:
        with _certificates("the store's caBundle"):
            context.load_verify_locations(cadata=authorities_beside)
    return context


@contextmanager
def _certificates(where: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # ssl.SSLError is one
        raise InvalidSpec(
            f"it holds no certificates: {error.strerror or error}",
            where=where,
            remedy="name a file of PEM certificates",
        ) from error
