"""Which network addresses a tenant may make someone else's process connect to. Pure.

An endpoint or a download is written by a tenant and called by a process that can reach more than
the tenant: the metadata service of a cloud, the host's own services, the apiserver. A name is no
protection, since it may lead to another address a moment later; so the rule is asked again about
the address that was really connected to, before a byte is sent.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Mapping
from typing import TypeAlias

__all__ = ["AddressRefused", "Refuse", "check_peer", "pod_peers", "why_refused"]

Refuse: TypeAlias = Callable[[str, int], str | None]
"""Address and port -> why nobody is connected to it, or None."""

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in (
        *("fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:42::42"),
        *("100.100.100.200", "192.0.0.192", "168.63.129.16"),
    )
)
"""Metadata services beside 169.254.0.0/16: AWS, Google and Scaleway over IPv6, Alibaba, Oracle,
Azure's host."""
_OWN = ipaddress.ip_network("0.0.0.0/8")
"""This network: Linux takes the first of it for itself."""
_TEREDO = ipaddress.ip_network("2001::/32")
_ISATAP = 0x5EFE
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class AddressRefused(Exception):
    """A connection led where it must not; no OSError, so that no library tries again."""


def why_refused(address: str) -> str | None:
    """Return why nobody may be sent to an address, or None where it is an ordinary one.

    Args:
        address: As a resolver or a socket gives it.
    """
    found = _plain(ipaddress.ip_address(address.partition("%")[0]))
    if found.is_link_local or found in _METADATA:
        return "is a metadata service's or link-local address"
    if found.is_loopback or found.is_unspecified or found in _OWN:
        return "is an address of the machine itself"
    tunnels = found.version == 6 and (found in _TEREDO or found.is_site_local)
    if found.is_multicast or found.is_reserved or tunnels:
        return "is no address of one machine"
    return None


def _plain(address: _Address) -> _Address:
    """The IPv4 address inside an IPv6 one, where it is only another way to write it."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    inside = address.ipv4_mapped or address.sixtofour
    isatap = int(address) >> 32 & 0xFFFF == _ISATAP and not address.is_link_local
    if inside is None and (address in _NAT64 or isatap):
        inside = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return inside or address


def pod_peers(environment: Mapping[str, str]) -> Refuse | None:
    """What a pod must not be sent to; None where this is no pod of a cluster.

    Args:
        environment: Of the process: a kubelet tells every pod where the apiserver is.

    Returns:
        Address and port -> why not, or None.
    """
    host = environment.get("KUBERNETES_SERVICE_HOST", "")
    if not host:
        return None
    ports = {environment.get(f"KUBERNETES_SERVICE_PORT{end}", "443") for end in ("", "_HTTPS")}

    def refuse(address: str, port: int) -> str | None:
        if str(port) in ports and _same(address, host):
            return "is the apiserver"
        return why_refused(address)

    return refuse


def _same(address: str, other: str) -> bool:
    try:
        pair = [_plain(ipaddress.ip_address(text.partition("%")[0])) for text in (address, other)]
    except ValueError:
        return address == other
    return pair[0] == pair[1]


def check_peer(connected: socket.socket, refuse: Refuse) -> None:
    """Hang up where a connection leads to a refused address.

    Args:
        connected: A TCP connection over which nothing was asked yet.
        refuse: Address and port -> why not, or None.

    Raises:
        AddressRefused: Says which address, and why.
    """
    address, port = connected.getpeername()[:2]
    why = refuse(str(address), int(port))
    if why is not None:
        connected.close()
        raise AddressRefused(f"{address} {why}")
