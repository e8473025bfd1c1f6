"""Keeps boto3 from talking to addresses that it must not be sent to, and from talking for ever.

Whoever writes a store's endpoint is not whoever runs the process, and a name that was harmless when
it was looked at may lead elsewhere when it is connected to. So each new connection is judged by its
peer's address, before a byte of a request goes over it. Each call as a whole has a time limit,
and what a server answers has one of bytes: boto3 reads the body of an error, or of a listing, as
long as the server sends it.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from genai_core.network.addresses import Refuse, check_peer
from genai_core.network.deadlines import hang_up, hung_up_after

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["CALL_SECONDS", "AnswerTooLarge", "CallTooLong", "Redirected", "guard", "within"]

CALL_SECONDS = 120.0
"""Longest that a call may take, its repetitions included, beside the time that its body takes."""
_LEAST_BYTES_PER_SECOND = 64 << 10
"""Of what is sent."""
_ANSWER_BYTES = 8 << 20
"""Of an answer that is no object: a page of a listing has about 1 MB."""
_ANSWER_TAGS = 60_000
"""`<` of an answer; a page of a thousand names has 24,000."""
_ERROR_BYTES = 64 << 10
"""What is read of an error."""
_REDIRECTS = {301, 302, 303, 307, 308}
_REGION = "x-amz-bucket-region"
_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}")
_MOST_ADDRESSES = 4
"""Of a name that are tried, each for as long as a connection may take."""


class CallTooLong(Exception):
    """A call took longer than it may."""


class AnswerTooLarge(Exception):
    """An answer is none that an S3 server gives."""


class Redirected(Exception):
    """A server sends elsewhere, and not to another region of AWS.

    Attributes:
        host: Where to, as an endpoint is written; empty where that is not said.
    """

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.host = host


class _Thread(threading.local):
    """What a thread is at: each has one request at a time."""

    connection: Any = None
    began: float = 0.0

    def hang_up(self) -> Callable[[], None]:
        """What ends the waiting of this thread; called by another."""
        mine = self.__dict__
        return lambda: hang_up(getattr(mine.get("connection"), "sock", None))


_here = _Thread()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Read of an answer's body; not longer than so many seconds.

    Raises:
        CallTooLong: It took longer.
    """
    with hung_up_after(seconds, _here.hang_up()) as deadline:
        try:
            yield
        except Exception as error:
            if deadline.expired:
                raise _too_long(seconds) from error
            raise
    if deadline.expired:
        raise _too_long(seconds)


def _too_long(seconds: float) -> CallTooLong:
    return CallTooLong(f"it sends too slowly, and was given {seconds:.0f} s")


class _Session:
    """botocore's HTTP session, with limits of time and bytes."""

    def __init__(self, session: Any, seconds: float) -> None:
        self._session = session
        self._seconds = seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def begin(self, request: Any, **_: object) -> None:
        """A call's first attempt, or a further one, which has the same context."""
        _here.began = request.context.setdefault("genai_began", time.monotonic())

    def send(self, request: Any) -> Any:
        """Send a request and read its answer, but for the body of an object."""
        body = request.body if isinstance(request.body, bytes | bytearray) else b""
        allowed = self._seconds + len(body) / _LEAST_BYTES_PER_SECOND
        left = _here.began + allowed - time.monotonic()
        if left <= 0:
            raise CallTooLong(f"it does not answer within {allowed:.0f} s")
        streamed, request.stream_output = request.stream_output, True
        _here.connection = None
        with within(left):
            answer = self._session.send(request)
            _refuse_redirect(answer)
            if answer.status_code >= 300:
                answer._content = _start_of(answer.raw)  # noqa: SLF001 - what `content` returns
            elif not streamed:
                answer._content = _whole(answer.raw)  # noqa: SLF001
        return answer


def _refuse_redirect(answer: Any) -> None:
    """End the call where boto3 would ask again and again which region it is sent to.

    AWS names the region of a bucket that lies in another one.

    Raises:
        Redirected: This answer names none.
    """
    if answer.status_code in _REDIRECTS and _REGION not in answer.headers:
        answer.raw.close()
        raise Redirected(_host(answer.headers.get("Location", "")))


def _host(address: str) -> str:
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or not _HOST.fullmatch(host):
        return ""
    return f"{parts.scheme}://{host}" + (f":{port}" if port else "")


def _start_of(raw: Any) -> bytes:
    """What an error says, if it is short; a status says the rest."""
    data = bytes(raw.read(_ERROR_BYTES + 1))
    if len(data) <= _ERROR_BYTES and raw.read(1) == b"":
        return b"" if _is_strange(data) else data
    raw.close()  # not to be used again: more of it is on its way
    return b""


def _whole(raw: Any) -> bytes:
    pieces, size = [], 0
    while data := raw.read(min(1 << 20, _ANSWER_BYTES + 1 - size)):
        pieces.append(data)
        size += len(data)
        if size > _ANSWER_BYTES:
            raw.close()
            raise AnswerTooLarge(f"its answer has more than {_ANSWER_BYTES} bytes")
    text = b"".join(pieces)
    if _is_strange(text):
        raise AnswerTooLarge("its answer is none of an S3 server")
    return text


def _is_strange(text: bytes) -> bool:
    """It has a document type, whose entities may stand for anything, or more tags than any page."""
    return b"<!DOCTYPE" in text or b"\0" in text or text.count(b"<") > _ANSWER_TAGS


def guard(client: S3Client, refuse: Refuse | None, *, seconds: float = CALL_SECONDS) -> None:
    """Judge every connection that a client makes from now on, and bound its calls.

    Args:
        client: Fresh, without connections.
        refuse: Address and port -> why not, or None; None = any address will do.
        seconds: Longest that a call may take.
    """

    class Watched:
        """What both kinds of connections do."""

        sock: Any
        port: int
        _dns_host: str

        def connect(self) -> None:
            _here.connection = self
            super().connect()  # type: ignore[misc]
            if refuse is not None:
                assert isinstance(self.sock, socket.socket)
                check_peer(self.sock, refuse)

        def request(self, *arguments: Any, **options: Any) -> Any:
            _here.connection = self
            return super().request(*arguments, **options)  # type: ignore[misc]

        def _new_conn(self) -> Any:
            name = self._dns_host
            try:
                found = socket.getaddrinfo(name.strip("[]"), self.port, 0, socket.SOCK_STREAM)
            except (OSError, UnicodeError):
                return super()._new_conn()  # type: ignore[misc] # says so in its own words
            addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
            try:
                for address in addresses[:_MOST_ADDRESSES]:
                    self._dns_host = address
                    try:
                        return super()._new_conn()  # type: ignore[misc]
                    except (NewConnectionError, ConnectTimeoutError):
                        if address == addresses[:_MOST_ADDRESSES][-1]:
                            raise
            finally:
                self._dns_host = name
            return super()._new_conn()  # type: ignore[misc]

    class Plain(Watched, AWSHTTPConnection):  # type: ignore[misc]
        pass

    class Secure(Watched, AWSHTTPSConnection):  # type: ignore[misc]
        pass

    class PlainPool(AWSHTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(AWSHTTPSConnectionPool):
        ConnectionCls = Secure

    endpoint: Any = client._endpoint  # type: ignore[attr-defined] # noqa: SLF001 - no other way
    endpoint.http_session._manager.pool_classes_by_scheme = {  # noqa: SLF001
        "http": PlainPool,
        "https": SecurePool,
    }
    bounded = _Session(endpoint.http_session, seconds)
    endpoint.http_session = bounded
    client.meta.events.register("request-created.s3", bounded.begin)
