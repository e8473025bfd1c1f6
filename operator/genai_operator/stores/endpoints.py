"""Which S3 endpoints a tenant may send the operator to. Pure but for the resolver.

A store's endpoint is written by a tenant and called by the operator, so it must not lead to what
only the operator can reach: the metadata service of a cloud, the apiserver, the operator's host.
The name is resolved and judged before a store is opened; since a name may lead elsewhere a moment
later, the client asks again about the address that it was really connected to (`Peers`), also
after a redirect.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from urllib.parse import SplitResult, urlsplit

from genai_core.network.addresses import why_refused
from genai_core.reasons import Reason
from genai_operator.errors import Stalled

__all__ = ["Peers", "check_endpoint"]

Resolver = Callable[[str], Iterable[str]]
_PORTS = {"http": 80, "https": 443}


def _resolve(host: str) -> Iterable[str]:
    try:
        return {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return ()


class Peers:
    """Judges the addresses that a client was connected to.

    Args:
        apiserver: Its URL; it is no S3 server.
        resolve: Host -> addresses.
    """

    def __init__(self, apiserver: str, resolve: Resolver = _resolve) -> None:
        own = urlsplit(apiserver)
        self._port = _port(own)
        self._addresses = frozenset(resolve(own.hostname)) if own.hostname else frozenset()

    def refuse(self, address: str, port: int) -> str | None:
        """Why not, or None."""
        if address in self._addresses and port == self._port:
            return "is the apiserver"
        return why_refused(address)


def check_endpoint(
    endpoint: str | None,
    *,
    allowed: Sequence[str],
    apiserver: str,
    resolve: Resolver = _resolve,
) -> None:
    """Refuse an endpoint that is not allowed.

    Args:
        endpoint: URL; None = AWS.
        allowed: Patterns of URLs or of hosts.
        apiserver: Its URL.
        resolve: Host -> addresses.

    Raises:
        Stalled: Says which rule.
    """
    if endpoint is None:
        return
    if "@" in endpoint:  # not quoted: what stands before it may be a password
        raise Stalled(
            Reason.ENDPOINT_NOT_ALLOWED,
            "user and password must not stand in an endpoint: name a Secret in spec.secretRef",
        )
    try:
        parts = urlsplit(endpoint)
        host, port = parts.hostname or "", _port(parts)
    except ValueError as error:
        raise Stalled(Reason.ENDPOINT_NOT_ALLOWED, f"{endpoint} is no URL: {error}") from error
    if parts.scheme not in _PORTS or not host:
        raise Stalled(Reason.ENDPOINT_NOT_ALLOWED, f"{endpoint} is not an http:// or https:// URL")
    if not any(fnmatchcase(endpoint, p) or fnmatchcase(host, p) for p in allowed):
        raise Stalled(
            Reason.ENDPOINT_NOT_ALLOWED,
            f"{endpoint} is not among the endpoints that the operator may use "
            f"({', '.join(allowed) or 'none'})",
        )
    peers = Peers(apiserver, resolve)
    for address in resolve(host):
        why = peers.refuse(address, port)
        if why is not None:
            raise Stalled(Reason.ENDPOINT_NOT_ALLOWED, f"{endpoint} {why}")


def _port(parts: SplitResult) -> int:
    return parts.port or _PORTS.get(parts.scheme, 0)
