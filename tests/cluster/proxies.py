"""Bad connections: an S3 server that is slow or overloaded, an apiserver whose streams are cut.

Both stand between a client and the real server, in threads of the tests' own process.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Rewrite = Callable[[str, str, dict[str, str], bytes], dict[str, str]]

_PIECE = 1 << 16
_REFUSAL = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)


class S3Proxy:
    """An S3 endpoint that passes requests on: late, slowly, or not at all.

    Args:
        address: To listen on; pods must reach it.
        upstream: The real endpoint.
        seed: Of the choice of requests that are refused.
    """

    def __init__(self, address: str, upstream: str, *, seed: int = 0) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.delay = 0.0
        """Seconds before each request."""
        self.rate = float("inf")
        """Bytes a second, of each request."""
        self.refused = 0.0
        """Share of the requests that are answered 503."""
        self.broken = 0.0
        """Share of the answers with a body that break off in the middle."""
        self.rewrite: Rewrite = lambda _command, _path, headers, _body: headers
        """Makes the headers that the server sees."""
        self.answers: Counter[str] = Counter()
        self.random = random.Random(seed)
        handler = type("Handler", (_Forward,), {"proxy": self})
        self._server = ThreadingHTTPServer((address, 0), handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://{address}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class _Forward(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: S3Proxy

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Pass on; so the others."""
        proxy = self.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        time.sleep(proxy.delay + len(body) / proxy.rate)
        if proxy.random.random() < proxy.refused:
            proxy.answers["refused"] += 1
            self._answer(503, {"Content-Type": "application/xml"}, _REFUSAL)
            return
        connection = http.client.HTTPConnection(proxy.upstream, timeout=60)
        try:
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            headers = proxy.rewrite(self.command, self.path, dict(self.headers), body)
            for name, value in headers.items():
                if name.lower() not in {"connection", "expect"}:
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            found = connection.getresponse()
            content = found.read()
            headers = dict(found.getheaders())
        except OSError:
            proxy.answers["unreachable"] += 1
            self._answer(503, {}, b"")
            return
        finally:
            connection.close()
        time.sleep(len(content) / proxy.rate)
        if len(content) > 1000 and proxy.random.random() < proxy.broken:
            proxy.answers["broken"] += 1
            self._answer(found.status, headers, content, sent=len(content) // 2)
            self.close_connection = True
            return
        proxy.answers["passed"] += 1
        self._answer(found.status, headers, content)

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

    def _answer(
        self, status: int, headers: dict[str, str], body: bytes, *, sent: int | None = None
    ) -> None:
        self.send_response_only(status)
        known = {name.lower() for name in headers}
        for name, value in headers.items():
            if name.lower() not in {"connection", "transfer-encoding", "content-length"}:
                self.send_header(name, value)
        if self.command == "HEAD" and "content-length" in known:
            length = next(v for n, v in headers.items() if n.lower() == "content-length")
            self.send_header("Content-Length", length)
        elif status not in {204, 304}:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD" and body:
            self.wfile.write(body[:sent])


@dataclass
class _Stream:
    client: socket.socket
    server: socket.socket
    asked: float = field(default_factory=time.monotonic)
    """When the client last sent something."""


class CutProxy:
    """Passes a TCP stream on, until it is cut or falls silent.

    Args:
        upstream: Address of the real server, e.g. that of a kubeconfig.
    """

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        assert parts.hostname is not None
        self._upstream = (parts.hostname, parts.port or 443)
        self._open: list[tuple[socket.socket, socket.socket]] = []
        self._silent: set[socket.socket] = set()
        self._patience = float("inf")
        self._refusing = False
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, *, refuse: bool = False) -> int:
        """Reset every stream, and refuse new ones until `mend`; returns how many there were."""
        self._refusing = refuse
        with self._lock:
            streams, self._open = self._open, []
        for pair in streams:
            for end in pair:
                _reset(end)
        return len(streams)

    def silence(self) -> int:
        """Let every stream of this moment stand open and deliver nothing any more."""
        with self._lock:
            for pair in self._open:
                self._silent |= set(pair)
            return len(self._open)

    def starve(self, seconds: float) -> None:
        """Let every stream fall silent that asked nothing for so long: watches, not requests."""
        self._patience = seconds

    def mend(self) -> None:
        """Take new streams again."""
        self._refusing = False

    def close(self) -> None:
        """End it."""
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refusing:
                _reset(client)
                continue
            try:
                server = socket.create_connection(self._upstream, timeout=10)
            except OSError:
                _reset(client)
                continue
            server.settimeout(None)
            with self._lock:
                self._open.append((client, server))
            stream = _Stream(client, server)
            for source, sink in ((client, server), (server, client)):
                threading.Thread(
                    target=self._pump, args=(stream, source, sink), daemon=True
                ).start()

    def _pump(self, stream: _Stream, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_PIECE):
                now = time.monotonic()
                if source is stream.client:
                    stream.asked = now
                elif now - stream.asked > self._patience:
                    self._silent |= {source, sink}
                if source not in self._silent:
                    sink.sendall(data)
            if source in self._silent:
                return  # not even its end is told
            sink.shutdown(socket.SHUT_WR)


def _reset(end: socket.socket) -> None:
    """Close with RST, and wake whoever reads."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RDWR)
    end.close()


def through(kubeconfig: dict[str, Any], address: str) -> dict[str, Any]:
    """A kubeconfig that reaches its apiserver at another address."""
    clusters = [
        {**entry, "cluster": {**entry["cluster"], "server": address}}
        for entry in kubeconfig["clusters"]
    ]
    return {**kubeconfig, "clusters": clusters}
