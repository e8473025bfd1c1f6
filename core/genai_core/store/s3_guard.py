"""Keeps boto3 from talking to addresses that it must not be sent to.

Whoever writes a store's endpoint is not whoever runs the process, and a name that was harmless when
it was looked at may lead elsewhere when it is connected to. So each new connection is judged by its
peer's address, before a byte of a request goes over it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)

from genai_core.addresses import check_peer

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["Refuse", "guard"]

Refuse: TypeAlias = Callable[[str, int], str | None]


def guard(client: S3Client, refuse: Refuse) -> None:
    """Judge every connection that a client makes from now on.

    Args:
        client: Fresh, without connections.
        refuse: Address and port -> why not, or None.
    """

    def judged(connection: Any) -> None:
        peer = connection.sock
        assert isinstance(peer, socket.socket)
        check_peer(peer, refuse)

    class Plain(AWSHTTPConnection):
        def connect(self) -> None:
            super().connect()
            judged(self)

    class Secure(AWSHTTPSConnection):
        def connect(self) -> None:
            super().connect()
            judged(self)

    class PlainPool(AWSHTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(AWSHTTPSConnectionPool):
        ConnectionCls = Secure

    endpoint: Any = client._endpoint  # type: ignore[attr-defined] # noqa: SLF001 - no other way
    endpoint.http_session._manager.pool_classes_by_scheme = {  # noqa: SLF001
        "http": PlainPool,
        "https": SecurePool,
    }
