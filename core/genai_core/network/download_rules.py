"""Where a download may go: which hosts, which addresses, by what scheme, how much and how long."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import SplitResult, urlsplit

from genai_core.errors import InvalidSpec
from genai_core.network.addresses import why_refused
from genai_core.redaction import hidden_queries

__all__ = ["OUTSIDE", "Rules", "check_host"]

OUTSIDE = "name an address outside the cluster"


@dataclass(frozen=True)
class Rules:
    """Where a download may go.

    Attributes:
        hosts: Patterns of hosts; `*` = any.
        checks_addresses: Refuse the machine itself, link-local and metadata addresses: whoever
            wrote the URL is not whoever runs this process.
        refuse: What is asked instead of the general rule: address and port -> why not, or None.
        most_bytes: Of the file.
        seconds: Longest that one attempt may take as a whole; for each MiB there is a minute.
    """

    hosts: Sequence[str] = ("*",)
    checks_addresses: bool = True
    refuse: Callable[[str, int], str | None] | None = None
    most_bytes: int = 512 << 30
    seconds: float = 12 * 3600.0

    def refused(self, address: str, port: int) -> str | None:
        """Why nobody may be sent to an address, or None."""
        if not self.checks_addresses:
            return None
        return self.refuse(address, port) if self.refuse is not None else why_refused(address)


def check_host(here: str, url: str, rules: Rules) -> None:
    """Refuse an address, written or redirected to, that is not allowed.

    Raises:
        InvalidSpec: Says which rule.
    """
    shown = hidden_queries(url)
    try:
        parts = urlsplit(here)
        host = parts.hostname or ""
    except ValueError as error:
        raise InvalidSpec(
            f"it redirects to {hidden_queries(here)[:200]}, which is no address",
            where=shown,
            remedy=OUTSIDE,
        ) from error
    prefix = "" if here == url else f"it redirects to {parts.scheme}://{host}: "
    if parts.scheme != "https" or not host:
        raise InvalidSpec(
            f"{prefix}only https is read", where=shown, remedy="name an https:// address"
        )
    if not any(fnmatchcase(host, pattern) for pattern in rules.hosts):
        raise InvalidSpec(
            f"{prefix}{host} is not among the hosts that models may come from "
            f"({', '.join(rules.hosts)})",
            where=shown,
            remedy="upload the model to a bucket, or have the host allowed",
        )
    for address in _addresses(host) if rules.checks_addresses else ():
        why = rules.refused(address, _port(parts))
        if why is not None:
            raise InvalidSpec(f"{prefix}{address} {why}", where=shown, remedy=OUTSIDE)


def _port(parts: SplitResult) -> int:
    return parts.port or 443


def _addresses(host: str) -> set[str]:
    """Where a name leads just now; what is really connected to is judged again."""
    try:
        return {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return set()
