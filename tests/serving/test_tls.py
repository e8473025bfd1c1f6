"""TLS: a certificate out of a folder, and another one while connections stand."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from genai_core.errors import BadInput
from genai_serving.connections import Connections
from genai_serving.tls import Certificate, bound_handshakes

PEM = serialization.Encoding.PEM


def lay(folder: Path, *, password: bytes = b"") -> bytes:
    """A new certificate for localhost and its key, as a kubelet lays them; the certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    kind: Any = serialization.NoEncryption()
    if password:
        kind = serialization.BestAvailableEncryption(password)
    data = made.public_bytes(PEM)
    place(folder / "tls.key", key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, kind))
    place(folder / "tls.crt", data)
    return data


def place(path: Path, data: bytes) -> None:
    draft = path.with_suffix(".new")
    draft.write_bytes(data)
    draft.replace(path)


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["scheme"].encode()})


class Front:
    """A server in a thread whose certificate is looked at when a test says so."""

    def __init__(self, folder: Path, seconds: float = 10.0) -> None:
        self.certificate = Certificate(folder)
        self.connections: list[HTTPSConnection] = []
        config = uvicorn.Config(
            app,
            port=0,
            log_config=None,
            lifespan="off",
            ws="none",
            http=Connections(64).protocol,  # type: ignore[arg-type]
        )
        config.load()
        config.ssl = self.certificate.context
        listener = config.bind_socket()
        self.port = int(listener.getsockname()[1])
        self.server = uvicorn.Server(config)

        async def run() -> None:
            bound_handshakes(asyncio.get_running_loop(), seconds)
            await self.server.serve(sockets=[listener])

        self.thread = threading.Thread(target=lambda: asyncio.run(run()))
        self.thread.start()
        while not self.server.started:
            time.sleep(0.005)

    def connect(self, trusted: bytes) -> HTTPSConnection:
        context = ssl.create_default_context(cadata=trusted.decode())
        made = HTTPSConnection("localhost", self.port, timeout=30, context=context)
        self.connections.append(made)
        return made

    def stop(self) -> None:
        for connection in self.connections:
            connection.close()
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Callable[..., Front]]:
    made = []

    def make(**given: Any) -> Front:
        made.append(Front(tmp_path, **given))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def ask(connection: HTTPSConnection) -> bytes:
    connection.request("GET", "/")
    return connection.getresponse().read()


def test_a_certificate_is_renewed_while_connections_stand(
    front: Callable[..., Front], tmp_path: Path
) -> None:
    first = lay(tmp_path)
    made = front()
    stands = made.connect(first)
    assert ask(stands) == b"https"
    assert not made.certificate.renew(), "nothing is new"
    second = lay(tmp_path)
    assert made.certificate.renew()
    assert ask(stands) == b"https", "what stands goes on"
    assert ask(made.connect(second)) == b"https"
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(made.connect(first))
    # Half of a pair, as between two writes: the one before goes on, until both are there.
    place(tmp_path / "tls.crt", first)
    with pytest.raises(BadInput, match=r"tls\.crt"):
        made.certificate.renew()
    assert ask(made.connect(second)) == b"https"
    os.unlink(tmp_path / "tls.key")
    with pytest.raises(OSError, match=r"tls\.key"):
        made.certificate.renew()
    third = lay(tmp_path)
    assert made.certificate.renew()
    assert ask(made.connect(third)) == b"https"


def test_follow_tells_of_each_certificate_that_cannot_be_used_once(tmp_path: Path) -> None:
    lay(tmp_path)
    certificate = Certificate(tmp_path)
    said: list[str] = []
    heard = asyncio.Event()

    def say(text: str) -> None:
        said.append(text)
        heard.set()

    async def run() -> None:
        following = asyncio.ensure_future(certificate.follow(say, 0.001))
        right = (tmp_path / "tls.key").read_bytes()
        place(tmp_path / "tls.key", b"nonsense")
        await heard.wait()
        for _ in range(20):  # looked at again, and nothing said again
            await asyncio.sleep(0.001)
        place(tmp_path / "tls.key", right)
        heard.clear()
        place(tmp_path / "tls.crt", (tmp_path / "tls.crt").read_bytes() + b"\n")
        await heard.wait()
        following.cancel()

    asyncio.run(run())
    assert [text.partition(":")[0] for text in said] == [
        "the certificate stays as it was",
        "the certificate was renewed",
    ]


@pytest.mark.parametrize("what", ["nothing", "no pair", "a password"])
def test_certificate_is_refused_where_it_cannot_be_used(tmp_path: Path, what: str) -> None:
    if what != "nothing":
        lay(tmp_path, password=b"secret" if what == "a password" else b"")
    if what == "no pair":
        key = (tmp_path / "tls.key").read_bytes()
        lay(tmp_path)
        place(tmp_path / "tls.key", key)
    with pytest.raises(BadInput, match="both PEM, the key without a password"):
        Certificate(tmp_path)


def test_a_handshake_that_does_not_come_to_its_end_is_closed(
    front: Callable[..., Front], tmp_path: Path
) -> None:
    lay(tmp_path)
    made = front(seconds=0.05)
    with socket.create_connection(("127.0.0.1", made.port), timeout=30) as silent:
        assert silent.recv(1) == b"", "asyncio's own patience is a minute, this client's 30 s"
