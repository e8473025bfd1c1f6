"""Which S3 endpoints a tenant may send the operator to. Pure but for the resolver.

A store's endpoint is written by a tenant and called by the operator, so it must not lead to what
only the operator can reach: the metadata service of a cloud, the apiserver, the operator's host.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from genai_operator.errors import Stalled

__all__ = ["check_endpoint"]

Resolver = Callable[[str], Iterable[str]]


def _resolve(host: str) -> Iterable[str]:
    try:
        return {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return ()


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
    host = urlsplit(endpoint).hostname or ""
    if not any(fnmatchcase(endpoint, p) or fnmatchcase(host, p) for p in allowed):
        raise Stalled(
            "EndpointNotAllowed",
            f"{endpoint} is not among the endpoints that the operator may use "
            f"({', '.join(allowed)})",
        )
    own = urlsplit(apiserver)
    refused = set(resolve(own.hostname or "")) if own.hostname else set()
    for address in resolve(host):
        found = ipaddress.ip_address(address.partition("%")[0])
        port = urlsplit(endpoint).port
        if found.is_link_local or found.is_loopback or found.is_unspecified or found.is_multicast:
            raise Stalled("EndpointNotAllowed", f"{endpoint} is an address of the node itself")
        if address in refused and port in {own.port, None}:
            raise Stalled("EndpointNotAllowed", f"{endpoint} is the apiserver")
