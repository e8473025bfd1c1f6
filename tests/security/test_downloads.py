"""Attacks on downloads over https: hosts, redirects, names that move, tokens, slow servers."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from genai_core.errors import BadModel, GenAIError, InvalidSpec, StoreUnavailable
from genai_core.network import addresses
from genai_core.network import download as downloads
from genai_core.network.download import download
from genai_core.network.download_rules import Rules
from genai_core.testing import certificate

NEAR = Rules(checks_addresses=False)


@dataclass
class Site:
    """An https server on this machine.

    Attributes:
        plan: Path -> where it redirects to, or what it does.
        seen: Path and Authorization of each request.
    """

    plan: dict[str, str | Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=dict)
    seen: list[tuple[str, str | None]] = field(default_factory=list)
    port: int = 0


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site()
    folder = tmp_path_factory.mktemp("site")
    ca, key = certificate(folder, "rebind.test")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.seen.append((self.path, self.headers.get("Authorization")))
            what = site.plan.get(self.path.partition("?")[0])
            if callable(what):
                what(self)
                return
            self.send_response(302 if what else 200)
            if what:
                self.send_header("Location", what)
            self.send_header("Content-Length", "0" if what else "10")
            self.end_headers()
            self.wfile.write(b"" if what else b"x" * 10)

        def log_message(self, *_: object) -> None:
            return

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            return

    server = Server(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    site.port = server.server_address[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(ca))
        yield site
    server.shutdown()
    server.server_close()


@pytest.fixture
def site(running: Site) -> Site:
    running.plan.clear()
    running.seen.clear()
    return running


def fetch(url: str, dest: Path, rules: Rules | None = None, token: str | None = None) -> None:
    download(url, dest, rules=rules or Rules(), token=token, sleep=lambda _: None)


HOSTS = [
    "127.0.0.1",
    "localhost",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "2130706433",
    "0x7f.1",
    "0177.0.0.1",
    "127.1",
    "0",
    "[::]",
    "169.254.169.254",
    "2852039166",
    "[::ffff:169.254.169.254]",
    "[fd00:ec2::254]",
    "[64:ff9b::a9fe:a9fe]",
]


@pytest.mark.parametrize("host", HOSTS)
def test_download_refuses_a_host_that_is_this_machine_or_a_metadata_service(
    site: Site, tmp_path: Path, host: str
) -> None:
    with pytest.raises(InvalidSpec):
        fetch(f"https://{host}:{site.port}/a", tmp_path / "f")
    assert site.seen == []


def test_download_refuses_a_name_that_moves_between_look_and_connection(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo

    def moves(host: str, port: int | None, *more: Any, **options: Any) -> Any:
        where = "127.0.0.1" if port else "93.184.216.34"
        return real(where if host == "rebind.test" else host, port or 443, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", moves)
    with pytest.raises(InvalidSpec, match="address of the machine itself"):
        fetch(f"https://rebind.test:{site.port}/a", tmp_path / "f")
    assert site.seen == []


@pytest.mark.parametrize(
    "led",
    ["http://{}/a", "file:///etc/passwd", "ftp://{}/x", "/here", "https://[", "data:,x"],
)
def test_download_refuses_a_redirect_that_leads_elsewhere(
    site: Site, tmp_path: Path, led: str
) -> None:
    site.plan["/here"] = led.format(f"127.0.0.1:{site.port}")
    with pytest.raises(GenAIError):
        fetch(f"https://127.0.0.1:{site.port}/here", tmp_path / "f", NEAR)
    assert not (tmp_path / "f").exists()


def test_download_refuses_a_redirect_to_a_host_that_is_not_allowed(
    site: Site, tmp_path: Path
) -> None:
    site.plan["/here"] = f"https://localhost:{site.port}/a"
    rules = Rules(hosts=("127.0.0.1",), checks_addresses=False)
    with pytest.raises(InvalidSpec, match="not among the hosts"):
        fetch(f"https://127.0.0.1:{site.port}/here", tmp_path / "f", rules)


@pytest.mark.parametrize("led", ["https://169.254.169.254/latest", "https://[::1]:{}/a"])
def test_download_refuses_a_redirect_into_refused_addresses(
    site: Site, tmp_path: Path, led: str
) -> None:
    site.plan["/here"] = led.format(site.port)

    def refuse(address: str, _: int) -> str | None:
        return None if address == "127.0.0.1" else addresses.why_refused(address)

    with pytest.raises(InvalidSpec):
        fetch(f"https://127.0.0.1:{site.port}/here", tmp_path / "f", Rules(refuse=refuse))
    assert len(site.seen) == 1


def test_download_sends_a_token_to_the_first_host_alone(site: Site, tmp_path: Path) -> None:
    site.plan["/here"] = f"https://localhost:{site.port}/a"
    fetch(f"https://127.0.0.1:{site.port}/here", tmp_path / "f", NEAR, token="T")
    assert site.seen == [("/here", "Bearer T"), ("/a", None)]


# Servers that do not end


def dripping(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "100000")
    request.end_headers()
    for _ in range(400):
        request.wfile.write(b"x")
        time.sleep(0.05)


def dripping_headers(request: BaseHTTPRequestHandler) -> None:
    for _ in range(400):
        request.wfile.write(b"H")
        request.wfile.flush()
        time.sleep(0.05)


def endless_error(request: BaseHTTPRequestHandler) -> None:
    request.send_response(500)
    request.end_headers()
    for _ in range(2000):
        request.wfile.write(b"x" * (1 << 20))


@pytest.mark.parametrize("how", [dripping, dripping_headers, endless_error])
def test_download_ends_soon_when_a_server_does_not(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Any
) -> None:
    monkeypatch.setattr(downloads, "_ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(downloads, "_PIECE_SECONDS", 0.5)
    monkeypatch.setattr(downloads, "_ATTEMPTS", 2)
    site.plan["/slow"] = how
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"too slowly|answers 500"):
        fetch(f"https://127.0.0.1:{site.port}/slow?sig=SECRET", tmp_path / "f", NEAR)
    assert time.monotonic() - began < 8


def test_download_ends_when_the_handshake_never_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "_ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(downloads, "_ATTEMPTS", 1)
    with socket.create_server(("127.0.0.1", 0)) as mute:

        def drip() -> None:
            connected, _ = mute.accept()
            with connected:
                for _ in range(400):  # a record's header announces 16 kB, which come one by one
                    try:
                        connected.send(b"\x16\x03\x03\x40\x00" if _ == 0 else b"\x00")
                    except OSError:
                        return
                    time.sleep(0.05)

        threading.Thread(target=drip, daemon=True).start()
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            fetch(f"https://127.0.0.1:{mute.getsockname()[1]}/a", tmp_path / "f", NEAR)
    assert time.monotonic() - began < 5


def test_download_is_given_up_when_it_takes_longer_than_its_rules_allow(
    site: Site, tmp_path: Path
) -> None:
    with pytest.raises(StoreUnavailable, match="longer than 0 s"):
        fetch(f"https://127.0.0.1:{site.port}/a", tmp_path / "f", Rules(("*",), False, seconds=0))


def test_download_tries_few_addresses_of_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    tried: list[object] = []

    def fails(address: object, *_: object) -> socket.socket:
        tried.append(address)
        raise ConnectionRefusedError

    many = [(*entry, (f"203.0.113.{n}", 443)) for n in range(250)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: many)
    monkeypatch.setattr(socket, "create_connection", fails)
    with pytest.raises(StoreUnavailable):
        fetch("https://many.test/a", tmp_path / "f", NEAR)
    assert len(tried) == 16, "four an attempt"


# What is shown


@pytest.mark.parametrize(
    "what",
    [
        lambda request: request.send_error(404),
        lambda request: request.send_error(403),
        lambda request: request.send_error(503),
        lambda request: setattr(request, "close_connection", True),
    ],
)
def test_download_shows_no_query_when_it_fails(site: Site, tmp_path: Path, what: Any) -> None:
    site.plan["/m.tar"] = what
    url = f"https://127.0.0.1:{site.port}/m.tar?X-Amz-Signature=TOPSECRET"
    for rules in (NEAR, Rules(), Rules(hosts=("x",)), Rules(most_bytes=1, checks_addresses=False)):
        with pytest.raises(GenAIError) as raised:
            fetch(url, tmp_path / "f", rules)
        assert "TOPSECRET" not in str(raised.value)
        assert "/m.tar" in raised.value.where


def test_download_shows_no_query_when_a_redirect_is_no_address(site: Site, tmp_path: Path) -> None:
    site.plan["/m.tar"] = "https://[?sig=TOPSECRET"
    with pytest.raises((InvalidSpec, BadModel)) as raised:
        fetch(f"https://127.0.0.1:{site.port}/m.tar", tmp_path / "f", NEAR)
    assert "TOPSECRET" not in str(raised.value)
