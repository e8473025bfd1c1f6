"""Connections that wait, trickle or never read: none keeps others out, or stays for ever."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from running import Client, Running

from genai_serving.connections import Connections, Patience, room_for

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
WAIT = 20.0


def opened(client: Client, begun: bytes = b"") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", client.port), timeout=WAIT)
    made.sendall(begun)
    return made


def ended(held: socket.socket) -> bool:
    """The server has closed it, or does so soon."""
    try:
        while held.recv(65536):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


def is_open(held: socket.socket) -> bool:
    """The server has not closed it yet."""
    held.setblocking(False)
    try:
        return bool(held.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


@pytest.fixture
def small_house(make_server: Callable[..., Running]) -> tuple[Running, Connections]:
    """A server of eight connections; what it knows of them."""
    connections = Connections(8, reserve=2)
    return make_server(connections=connections, seconds=0.0), connections


@pytest.mark.parametrize(
    "begun",
    [b"", b"POST /v1/compl", HEAD + b"Content-Length: 5000\r\n\r\n{",
     HEAD + b"Transfer-Encoding: chunked\r\n\r\n"],
    ids=["nothing", "half a head", "half a body", "chunks"],
)  # fmt: skip
def test_a_full_house_of_connections_without_a_request_lets_another_client_in(
    small_house: tuple[Running, Connections], begun: bytes
) -> None:
    running, connections = small_house
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(opened(running.client, begun)) for _ in range(20)]
        until(lambda: len(connections) >= 8)
        for _ in range(3):
            answer = running.client.post("/v1/completions", {"prompt": "a", "max_tokens": 1})
            assert answer.status == 200, answer.raw
        assert running.client.get("/health").status == 200
        assert len(connections) <= 8
        until(lambda: sum(is_open(each) for each in held) <= 8)


def test_what_is_being_answered_is_never_let_go_and_probes_are_told_in_a_full_house(
    small_house: tuple[Running, Connections], monkeypatch: pytest.MonkeyPatch
) -> None:
    running, connections = small_house
    monkeypatch.setattr(running.executor, "seconds", 0.05)
    body = {"prompt": "a", "max_tokens": 60, "ignore_eos": True, "stream": True}
    raw = json.dumps(body).encode()
    request = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(opened(running.client, request)) for _ in range(8)]
        until(lambda: sum(known.answering for known in list(connections._open)) == 8)
        answer = running.client.post("/v1/completions", {"prompt": "a", "max_tokens": 1})
        assert answer.status == 503
        assert answer.json["error"]["code"] == "too_many_connections"
        assert answer.headers["retry-after"]
        assert answer.headers["connection"] == "close"
        for path in ("/health", "/ready", "/metrics"):
            assert running.client.get(path).status == 200
        for each in held:
            told = b""
            while part := each.recv(65536):
                told += part
            assert told.rstrip().endswith(b"0"), "each answer came to its end"
            assert b"data: [DONE]" in told


@pytest.mark.parametrize(
    "begun",
    [b"", b"GET /hea", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
     b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"],
    ids=["nothing", "half a head", "an answer", "a body that nobody asked for"],
)  # fmt: skip
def test_a_connection_ends_however_slowly_it_sends(
    make_server: Callable[..., Running], begun: bytes
) -> None:
    patience = Patience(idle=0.5, head=0.5, stalled=5.0, closing=0.5)
    running = make_server(connections=Connections(8, patience=patience))
    with opened(running.client, begun) as held:
        held.settimeout(0.05)
        limit, over = time.monotonic() + WAIT, False
        while not over:
            assert time.monotonic() < limit, "each byte gave it new time"
            try:
                held.sendall(b"x")
                over = held.recv(65536) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                over = True


def test_an_answer_that_nobody_reads_is_broken_off(make_server: Callable[..., Running]) -> None:
    """Echoed logprobs of a long prompt are more than sockets hold."""
    patience = Patience(idle=5.0, head=5.0, stalled=0.5, closing=0.5)
    connections = Connections(8, patience=patience)
    running = make_server(connections=connections)
    body = {"prompt": [[7] * 90] * 32, "max_tokens": 1, "echo": True, "logprobs": 20}
    raw = json.dumps(body).encode()
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    held.connect(("127.0.0.1", running.client.port))
    with held:
        held.sendall((HEAD + b"Content-Length: %d\r\n\r\n" % len(raw) + raw) * 3)
        until(lambda: len(connections) == 1)
        until(lambda: len(connections) == 0)
    assert running.client.post("/v1/completions", {"prompt": "a", "max_tokens": 1}).status == 200


def test_what_is_no_http_behind_the_beginning_of_an_answer_ends_the_connection(
    small_house: tuple[Running, Connections],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    running, connections = small_house
    monkeypatch.setattr(running.executor, "seconds", 0.02)
    raw = b'{"prompt": "a", "max_tokens": 90, "ignore_eos": true, "stream": true}'
    with opened(running.client, HEAD + b"Content-Length: %d\r\n\r\n" % len(raw) + raw) as held:
        assert held.recv(8).startswith(b"HTTP/1.1")
        held.sendall(b"\x00\x01 no http\r\n\r\n")
        assert ended(held)
    until(lambda: running.engine.load.running == 0)
    assert not [record for record in caplog.records if record.exc_info]
    assert len(connections) == 0


def test_room_for_asks_for_files_and_takes_what_it_gets() -> None:
    program = (
        "import resource, sys\n"
        "from genai_serving.connections import room_for\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))\n"
        "print(room_for(1024, say=lambda text: print(text, file=sys.stderr)))\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
    )

    def told(soft: int, hard: int) -> tuple[list[int], str]:
        done = subprocess.run(
            [sys.executable, "-c", program, str(soft), str(hard)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return [int(line) for line in done.stdout.split()], done.stderr

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY or hard >= 2000:
        assert told(256, 2000) == ([1024, 1280], "")
    assert told(200, 400)[0] == [200, 400]
    assert "400 open files are allowed" in told(200, 400)[1]
    assert callable(room_for)
