"""For tests: a real S3 server on this machine, a proxy that makes its answers go wrong, records.

`versitygw` (Apache-2.0, built once with `go install` into the user's cache) has real conditional
writes, checks signatures and keeps objects as files. Where there is no Go toolchain, moto's server
takes its place; `S3Server.name` says which one it is, and tests show it.
"""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from genai_core.store.address import StoreAddress, StoreCredentials
from genai_core.store.s3.s3_store import S3Store
from genai_core.tasks.record import Blob, Record
from genai_core.tasks.task_file import TaskFile

__all__ = [
    "FaultProxy",
    "S3Server",
    "ServerFault",
    "certificate",
    "record_of_task",
    "s3_server",
]

_VERSITYGW = "1.8.0"
_BUILD_SECONDS = 600
_START_SECONDS = 20
_CREDENTIALS = StoreCredentials("test-access", "test-secret-key")


@dataclass(frozen=True)
class S3Server:
    """A server with one bucket, `artifacts`.

    Attributes:
        name: Program and version.
        folder: Where the bucket's objects lie as files; None where they do not.
    """

    name: str
    endpoint: str
    folder: Path | None
    bucket: str = "artifacts"
    credentials: StoreCredentials = _CREDENTIALS
    program: Path | None = None

    def add_user(self, access: str, secret: str) -> StoreCredentials:
        """Make an account that may do nothing until a bucket's policy says so."""
        assert self.program is not None
        admin = self.credentials
        subprocess.run(  # noqa: S603
            [
                *(str(self.program), "admin", "--endpoint-url", self.endpoint),
                *("--access", admin.access_key_id, "--secret", admin.secret_access_key),
                *("create-user", "--access", access, "--secret", secret, "--role", "user"),
            ],
            check=True,
            capture_output=True,
        )
        return StoreCredentials(access, secret)

    @property
    def checks_signatures(self) -> bool:
        """It is a whole server: signatures, checksums, errors as S3 words them."""
        return self.name.startswith("versitygw")

    def where(self, prefix: str, *, endpoint: str | None = None) -> StoreAddress:
        """Return a place in the bucket, optionally behind another endpoint (a proxy)."""
        return StoreAddress(
            self.bucket, prefix, endpoint or self.endpoint, "us-east-1", None, "path"
        )

    def store(self, prefix: str, *, endpoint: str | None = None, **options: Any) -> S3Store:
        """Open a store in the bucket."""
        where = self.where(prefix, endpoint=endpoint)
        return S3Store(where, credentials=self.credentials, **options)


@contextmanager
def s3_server(folder: Path, *, prefer_moto: bool = False) -> Iterator[S3Server]:
    """Run a server while the block runs.

    Args:
        folder: For objects and logs.
        prefer_moto: Take moto's server even where versitygw can be had.
    """
    program = None if prefer_moto else _versitygw()
    with _run_moto() if program is None else _run_versitygw(program, folder) as server:
        server.store("").create_bucket()
        yield server


def _versitygw() -> Path | None:
    """Return the program, built where that is possible."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "genai-operator" / "tools" / f"versitygw-{_VERSITYGW}"
    program = folder / "versitygw"
    if program.is_file():
        return program
    go = shutil.which("go")
    if go is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    package = f"github.com/versity/versitygw/cmd/versitygw@v{_VERSITYGW}"
    with suppress(subprocess.SubprocessError, OSError):
        subprocess.run(  # noqa: S603
            [go, "install", package],
            env={**os.environ, "GOBIN": str(folder), "GOFLAGS": "-buildvcs=false"},
            check=True,
            capture_output=True,
            timeout=_BUILD_SECONDS,
        )
    return program if program.is_file() else None


@contextmanager
def _run_versitygw(program: Path, folder: Path) -> Iterator[S3Server]:
    root = folder / "s3"
    root.mkdir(parents=True, exist_ok=True)
    accounts = folder / "s3-accounts"
    accounts.mkdir(exist_ok=True)
    versions = folder / "s3-versions"  # of buckets that keep them; none does at first
    versions.mkdir(exist_ok=True)
    port = _free_port()
    with (folder / "versitygw.log").open("wb") as output:
        process = subprocess.Popen(  # noqa: S603
            [
                *(str(program), "--port", f"127.0.0.1:{port}"),
                *("--iam-dir", str(accounts)),
                *("posix", "--versioning-dir", str(versions), str(root)),
            ],
            env={
                **os.environ,
                "ROOT_ACCESS_KEY": _CREDENTIALS.access_key_id,
                "ROOT_SECRET_KEY": _CREDENTIALS.secret_access_key,
            },
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_for(port)
            yield S3Server(
                f"versitygw {_VERSITYGW}",
                f"http://127.0.0.1:{port}",
                root / "artifacts",
                program=program,
            )
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:  # it waits for connections that clients keep open
                process.kill()
                process.wait()


@contextmanager
def _run_moto() -> Iterator[S3Server]:
    from importlib.metadata import version

    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", _free_port(), verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield S3Server(f"moto {version('moto')}", f"http://{host}:{port}", None)
    finally:
        server.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


@dataclass
class ServerFault:
    """What goes wrong with one request.

    Attributes:
        status: Answer this instead of asking the server.
        seconds: Wait before anything else.
        cut_after: Close the connection after so many bytes of the answer's body.
        flip: Flip a bit of the answer's body at this offset.
        drop: Headers (lower case) that the server does not get to see.
        headers: Of the answer (lower case), instead of the server's.
        error: Code of the answer that `status` is of.
        body: Of the answer, instead of the server's.
        lose_answer: Let the server act, then close without an answer.
    """

    status: int = 0
    seconds: float = 0.0
    cut_after: int | None = None
    flip: int | None = None
    drop: frozenset[str] = frozenset()
    headers: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    body: bytes | None = None
    lose_answer: bool = False


@dataclass
class FaultProxy:
    """An HTTP proxy before a server, whose requests can be made to fail.

    Attributes:
        target: The server's URL.
        rule: Called with method, path and headers (lower case); None = pass on.
        seen: `METHOD /path` of all requests so far.
    """

    target: str
    rule: Callable[[str, str, Mapping[str, str]], ServerFault | None] = lambda *_: None
    seen: list[str] = field(default_factory=list)
    endpoint: str = ""

    @contextmanager
    def running(self, tls: ssl.SSLContext | None = None) -> Iterator[FaultProxy]:
        """Serve while the block runs, with https where a context is given."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _handle(self) -> None:
                proxy.pass_on(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle  # noqa: N815

            def log_message(self, *_: object) -> None:
                return

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                return  # a client that hangs up is what many tests want

        server = Server(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        scheme = "https" if tls else "http"
        self.endpoint = f"{scheme}://127.0.0.1:{server.server_address[1]}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join(10)

    def pass_on(self, request: BaseHTTPRequestHandler) -> None:
        """Handle one request."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        fault = self.rule(request.command, request.path, headers) or ServerFault()
        self.seen.append(f"{request.command} {request.path}")
        if headers.get("expect", "").lower() == "100-continue" and fault.status:
            request.close_connection = True
        body = request.rfile.read(int(headers.get("content-length", 0)))
        time.sleep(fault.seconds)
        if fault.status:
            self._refuse(request, fault)
            return
        url = urlsplit(self.target)
        assert url.hostname is not None
        upstream = http.client.HTTPConnection(url.hostname, url.port, timeout=60)
        upstream.putrequest(
            request.command, request.path, skip_host=True, skip_accept_encoding=True
        )
        for name, value in request.headers.items():
            if name.lower() not in {*fault.drop, "expect", "connection"}:
                upstream.putheader(name, value)
        upstream.endheaders(body)
        answer = upstream.getresponse()
        data = answer.read()
        upstream.close()
        if fault.body is not None:
            data = fault.body
        if fault.lose_answer:
            request.close_connection = True
            return
        if fault.flip is not None and fault.flip < len(data):
            data = data[: fault.flip] + bytes([data[fault.flip] ^ 1]) + data[fault.flip + 1 :]
        request.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in {"transfer-encoding", "connection", "content-length"}:
                request.send_header(name, fault.headers.get(name.lower(), value))
        length = answer.getheader("content-length") if request.command == "HEAD" else len(data)
        request.send_header("Content-Length", str(length or 0))
        request.end_headers()
        if request.command == "HEAD":
            return
        if fault.cut_after is not None:
            request.wfile.write(data[: fault.cut_after])
            request.close_connection = True
            return
        request.wfile.write(data)

    @staticmethod
    def _refuse(request: BaseHTTPRequestHandler, fault: ServerFault) -> None:
        codes = {404: "NoSuchUpload", 501: "NotImplemented", 503: "SlowDown"}
        codes[507] = "InsufficientStorage"
        code = fault.error or codes.get(fault.status, str(fault.status))
        data = f"<Error><Code>{code}</Code><Message>by the proxy</Message></Error>".encode()
        request.send_response_only(fault.status)
        for name, value in fault.headers.items():
            request.send_header(name, value)
        request.send_header("Content-Type", "application/xml")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data)


def certificate(folder: Path, *hosts: str) -> tuple[Path, Path]:
    """Write a certificate for these hosts, 127.0.0.1 and localhost, signed by itself; its key."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    names = [
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        *(x509.DNSName(host) for host in ("localhost", *hosts)),
    ]
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(made.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "ca.pem", folder / "key.pem"


def record_of_task(task: TaskFile, outputs: Mapping[str, Blob], **more: object) -> Record:
    """The record that a stage commits for a task, as far as its key vouches for it."""
    values: dict[str, object] = {
        "operation": task.operation,
        "key": task.key,
        "model": task.slug,
        "config": task.config,
        "inputs": {
            name: {path: file.identity for path, file in files.items()}
            for name, files in task.inputs.items()
        },
        "outputs": {
            path: {"sha256": blob.sha256, "size": blob.size} for path, blob in outputs.items()
        },
        "toolchain": {"id": task.toolchain.id, "versions": task.toolchain.versions},
        "created_at": datetime.now(UTC),
    }
    return Record.model_validate(values | more)
