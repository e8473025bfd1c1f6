"""A broken or hostile S3 server behind a store: each answer ends in one error, soon, and small."""

from __future__ import annotations

import gzip
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from genai_core.errors import (
    GenAIError,
    SourceChanging,
    StoreUnavailable,
    StoreUnreadable,
)
from genai_core.names import Key
from genai_core.network.addresses import why_refused
from genai_core.store.address import StoreCredentials, parse_address
from genai_core.store.s3 import client as s3_client
from genai_core.store.s3 import guard as s3_guard
from genai_core.store.s3 import objects as s3_objects
from genai_core.store.s3 import source_folder as s3_source
from genai_core.store.s3 import transfer as s3_transfer
from genai_core.store.s3.s3_store import S3Store
from genai_core.store.s3.source_folder import S3Source
from genai_core.tasks.record import Blob

KEYS = StoreCredentials("access", "secret")
HEAD = "<?xml version='1.0'?><ListBucketResult><Name>b</Name><IsTruncated>true</IsTruncated>"
ITEM = (
    "<Contents><Key>m/{}</Key><Size>1</Size><ETag>e</ETag>"
    "<LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
)
PAGE = f"{HEAD}{ITEM.format(1)}</ListBucketResult>".encode()
BOMB = gzip.compress(bytes(64 << 20))

Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def served(answer: Answer) -> Iterator[str]:
    """A server that answers everything alike."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer(self)

        do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = _any

        def log_message(self, *_: object) -> None:
            return

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            return

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def send(request: BaseHTTPRequestHandler, body: bytes, code: int = 200, **headers: str) -> None:
    request.send_response(code)
    request.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body)


def chunked(request: BaseHTTPRequestHandler, piece: bytes, code: int, **headers: str) -> None:
    """A body without an end."""
    request.send_response(code)
    request.send_header("Transfer-Encoding", "chunked")
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    for _ in range(5000):
        request.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))


def entities(request: BaseHTTPRequestHandler) -> None:
    names = "abcdefghijklm"
    text = "<?xml version='1.0'?><!DOCTYPE a [<!ENTITY a '" + "x" * 1000 + "'>"
    for name, inner in zip(names[1:], names, strict=False):
        text += f"<!ENTITY {name} '" + f"&{inner};" * 10 + "'>"
    send(request, (text + "]><Error><Code>&m;</Code></Error>").encode(), 400)


def drip(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.send_header("ETag", '"e"')
    request.end_headers()
    for _ in range(600):
        request.wfile.write(b"x")
        request.wfile.flush()
        time.sleep(0.05)


def drip_headers(request: BaseHTTPRequestHandler) -> None:
    for _ in range(600):
        request.wfile.write(b"x")
        request.wfile.flush()
        time.sleep(0.05)


def many_tags(request: BaseHTTPRequestHandler) -> None:
    send(request, b"<ListBucketResult>" + b"<a/>" * 1_500_000 + b"</ListBucketResult>")


def endless_continues(request: BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 200_000)


ANSWERS: dict[str, Answer] = {
    "html": lambda r: send(r, b"<html>hi</html>", ETag='"x"'),
    "entities": entities,
    "endless error": lambda r: chunked(r, b"A" * (1 << 20), 400),
    "endless body": lambda r: chunked(r, b"A" * (1 << 20), 200, ETag='"x"'),
    "many tags": many_tags,
    "gzip bomb": lambda r: send(r, BOMB, 400, Content_Encoding="gzip"),
    "no date": lambda r: send(r, b"", 404),
    "500": lambda r: send(r, b"", 500),
    "hangs up": lambda r: setattr(r, "close_connection", True),
    "short": lambda r: send(r, b"", ETag='"x"', Content_Length="10"),
    "bad date": lambda r: send(r, PAGE.replace(b"2026-01", b"9999-99"), Last_Modified="never"),
    "no fields": lambda r: send(r, b"<ListBucketResult><Contents></Contents></ListBucketResult>"),
    "bad length": lambda r: send(r, b"", ETag='"x"', Content_Length="much"),
    "drips": drip,
    "drips headers": drip_headers,
    "continues": endless_continues,
}
USES: dict[str, Callable[[str], object]] = {
    "probe": lambda e: S3Store(parse_address(f"s3://buc/p?endpoint={e}"), credentials=KEYS).probe(),
    "lookup": lambda e: S3Store(parse_address(f"s3://buc/p?endpoint={e}"), credentials=KEYS).lookup(
        "resolve", Key("a" * 64)
    ),
    "list": lambda e: S3Source(parse_address(f"s3://buc/p?endpoint={e}"), KEYS).list(),
}


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "_ATTEMPTS", 2)
    monkeypatch.setattr(s3_guard.guard, "__kwdefaults__", {"seconds": 1.5})
    monkeypatch.setattr(s3_transfer, "CALL_SECONDS", 1.5)
    monkeypatch.setattr(s3_transfer, "_READ_SECONDS", 0.5)
    monkeypatch.setattr(s3_transfer, "_ATTEMPTS", 2)


@pytest.mark.usefixtures("_soon")
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", ANSWERS)
def test_store_ends_soon_and_small_when_a_server_is_hostile(kind: str, use: str) -> None:
    with served(ANSWERS[kind]) as endpoint:
        tracemalloc.start()
        began = time.monotonic()
        with suppress(GenAIError):
            USES[use](endpoint)
        seconds = time.monotonic() - began
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert seconds < 12
    assert peak < 48 << 20


def test_listing_is_refused_when_it_never_ends() -> None:
    pages = [0]

    def page(request: BaseHTTPRequestHandler) -> None:
        pages[0] += 1
        items = "".join(ITEM.format(f"{pages[0]}-{n}") for n in range(1000))
        more = f"<NextContinuationToken>t{pages[0]}</NextContinuationToken>"
        send(request, f"{HEAD}{more}{items}</ListBucketResult>".encode())

    with (
        served(page) as endpoint,
        pytest.raises(StoreUnreadable, match="holds more than 10000 objects"),
    ):
        S3Source(parse_address(f"s3://buc/m?endpoint={endpoint}"), KEYS).list()
    assert pages[0] <= 12


def test_listing_is_refused_when_its_pages_are_empty_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pages = [0]

    def page(request: BaseHTTPRequestHandler) -> None:
        pages[0] += 1
        more = f"<NextContinuationToken>t{pages[0]}</NextContinuationToken>"
        send(request, f"{HEAD}{more}</ListBucketResult>".encode())

    monkeypatch.setattr(s3_source, "_MOST_FILES", 1000)
    with served(page) as endpoint:
        with pytest.raises(StoreUnreadable, match="holds more than"):
            S3Source(parse_address(f"s3://buc/m?endpoint={endpoint}"), KEYS).list()
        pages[0] = 0
        monkeypatch.setattr(s3_source, "_LISTING_SECONDS", 0.1)
        with pytest.raises(StoreUnavailable, match="takes longer than 0 s"):
            S3Source(parse_address(f"s3://buc/m?endpoint={endpoint}"), KEYS).list()
    assert s3_objects._MOST_NAMES > 10_000


def test_fetch_writes_no_more_than_was_asked_for_when_a_server_ignores_ranges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 3 << 20
    monkeypatch.setattr(s3_transfer, "PART_BYTES", 1 << 20)

    def answer(request: BaseHTTPRequestHandler) -> None:
        if request.command == "HEAD":
            request.send_response(200)
            request.send_header("Content-Length", str(size))
            request.send_header("ETag", '"e"')
            request.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            request.end_headers()
        else:
            chunked(request, b"A" * (1 << 20), 200, ETag='"e"')

    with served(answer) as endpoint:
        source = S3Source(parse_address(f"s3://buc/m?endpoint={endpoint}"), KEYS)
        source.fetch("x", tmp_path / "x", size=size)
        assert (tmp_path / "x").stat().st_size == size
        store = S3Store(parse_address(f"s3://buc/m?endpoint={endpoint}"), credentials=KEYS)
        assert store.check_blob(Blob(sha256="a" * 64, size=size)) == f"has more than {size} bytes"
        with pytest.raises(SourceChanging, match="changed while the source was read"):
            source.digest("x", tag="e")


@pytest.mark.parametrize(
    ("location", "said"),
    {
        "https://s3.example:9000/b?sig=x": "write endpoint=https://s3.example:9000 if",
        "https://user:secret@s3.example/": "write endpoint=https://s3.example if",
        "//[": "redirects to another address",
        "": "redirects to another address",
    }.items(),
    ids=["address", "with a password", "none", "empty"],
)
@pytest.mark.parametrize("use", USES)
def test_store_names_the_other_address_when_a_server_redirects(
    use: str, location: str, said: str
) -> None:
    asked: list[str] = []

    def elsewhere(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        send(request, b"", 301, Location=location)

    with served(elsewhere) as endpoint, pytest.raises(StoreUnreadable) as caught:
        USES[use](endpoint)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)
    assert len(asked) <= 2, "one call, and the probe's removal of what it wrote"


def test_client_is_refused_an_address_also_when_its_name_has_many() -> None:
    with served(ANSWERS["no date"]) as endpoint:
        where = parse_address(f"s3://buc/p?endpoint={endpoint.replace('127.0.0.1', 'localhost')}")
        store = S3Store(where, credentials=KEYS, refuse=lambda address, _: why_refused(address))
        with pytest.raises(StoreUnreadable, match="address of the machine itself"):
            store.lookup("resolve", Key("a" * 64))


def test_client_tries_few_addresses_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    from urllib3.connection import HTTPConnection
    from urllib3.exceptions import NewConnectionError

    tried: list[str] = []

    def fails(self: HTTPConnection) -> object:
        tried.append(self._dns_host)
        raise NewConnectionError(self, "no route")

    entry = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    monkeypatch.setattr(s3_client, "_ATTEMPTS", 2)
    many = [(*entry, (f"192.0.2.{n}", 80)) for n in range(250)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: many)
    monkeypatch.setattr(HTTPConnection, "_new_conn", fails)
    store = S3Store(parse_address("s3://buc/p?endpoint=http://many.test"), credentials=KEYS)
    with pytest.raises(StoreUnavailable):
        store.lookup("resolve", Key("a" * 64))
    assert tried[:4] == [f"192.0.2.{n}" for n in range(4)]
    assert len(tried) <= 8, "four an attempt"
