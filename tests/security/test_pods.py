"""Where the pods of stages may be sent, and with whose credentials."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from genai_core.errors import GenAIError, InvalidSpec, StoreUnreadable
from genai_core.network.addresses import pod_peers
from genai_core.store.address import (
    ANONYMOUS,
    StoreCredentials,
    parse_address,
    same_server,
    source_credentials,
)
from genai_core.store.pod_store import open_job_store
from genai_core.store.s3.client import shared_session
from genai_stages.worker.source_access import open_source

POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


@pytest.fixture
def metadata() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Stands for a metadata service, or for a stranger's server; it tells what it was sent."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(200)
            self.send_header("Content-Length", "6")
            self.send_header("ETag", '"x"')
            self.end_headers()
            self.wfile.write(b"SECRET")

        do_HEAD = do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", seen
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    shared_session.cache_clear()  # it remembers the environment's credentials
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "STOREKEYID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "STORE-SESSION-TOKEN")
    monkeypatch.setenv("GENAI_STORE", "s3://artifacts/team?endpoint=https://store.example.com")
    yield
    shared_session.cache_clear()


def pod(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in POD.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"])
def test_pod_does_not_read_a_source_on_its_own_node(
    metadata: tuple[str, list[dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    host: str,
) -> None:
    endpoint, seen = metadata
    source = f"s3://latest/meta-data?endpoint={endpoint.replace('127.0.0.1', host)}"
    pod(monkeypatch)
    with pytest.raises(GenAIError) as raised:
        open_source(source).fetch("iam", tmp_path / "f", size=6)
    assert seen == []
    if host != "[::ffff:127.0.0.1]":
        assert "address of the machine itself" in str(raised.value)
        assert isinstance(raised.value, StoreUnreadable)


def test_pod_does_not_open_stores_on_its_own_node(
    metadata: tuple[str, list[dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, seen = metadata
    pod(monkeypatch)
    address = f"s3://artifacts/t?endpoint={endpoint}"
    monkeypatch.setenv("GENAI_STORE", address)
    with pytest.raises(StoreUnreadable, match="address of the machine itself"):
        open_job_store().lookup("ingest", "a" * 64)  # type: ignore[arg-type]
    monkeypatch.setenv("GENAI_STORE", str(Path("/nowhere")))
    monkeypatch.setenv("GENAI_READ_FROM", json.dumps([{"address": address}]))
    with pytest.raises(StoreUnreadable, match="address of the machine itself"):
        open_job_store().lookup("ingest", "a" * 64)  # type: ignore[arg-type]
    assert seen == []


@pytest.mark.parametrize(
    ("address", "port", "words"),
    [
        ("10.96.0.1", 443, "apiserver"),
        ("::ffff:10.96.0.1", 443, "apiserver"),
        ("10.96.0.1", 9000, None),
        ("169.254.169.254", 80, "metadata"),
        ("127.0.0.1", 9000, "machine itself"),
        ("10.0.0.7", 9000, None),
    ],
)
def test_pod_peers_refuses_the_apiserver_and_the_node(
    address: str, port: int, words: str | None
) -> None:
    refuse = pod_peers(POD)
    assert refuse is not None
    why = refuse(address, port)
    assert (why is None) == (words is None)
    assert words is None or words in str(why)
    assert pod_peers({}) is None, "a laptop's own MinIO may be its store"


def test_store_credentials_are_not_sent_to_a_source_elsewhere(
    metadata: tuple[str, list[dict[str, str]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    endpoint, seen = metadata
    open_source(f"s3://foreign/x?endpoint={endpoint}").fetch("iam", tmp_path / "f", size=6)
    assert "STORE" not in json.dumps(seen)
    assert "authorization" not in seen[0]
    monkeypatch.setenv("GENAI_STORE", f"s3://artifacts/t?endpoint={endpoint}")
    open_source(f"s3://own/x?endpoint={endpoint}").fetch("iam", tmp_path / "f", size=6)
    assert "STOREKEYID" in seen[-1]["authorization"]
    monkeypatch.setenv("GENAI_STORE", "s3://artifacts/t")
    monkeypatch.setenv("GENAI_SOURCE_ACCESS_KEY_ID", "SOURCEKEY")
    monkeypatch.setenv("GENAI_SOURCE_SECRET_ACCESS_KEY", "s")
    open_source(f"s3://foreign/x?endpoint={endpoint}").fetch("iam", tmp_path / "f", size=6)
    assert "SOURCEKEY" in seen[-1]["authorization"]
    assert "x-amz-security-token" not in seen[-1]


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirect_of_an_s3_server_is_not_followed(
    metadata: tuple[str, list[dict[str, str]]], tmp_path: Path, code: int
) -> None:
    endpoint, seen = metadata

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.send_header("Location", f"{endpoint}/latest/meta-data/iam")
            self.send_header("x-amz-bucket-region", "eu-1")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_address[1]}"
    with pytest.raises(GenAIError):
        open_source(f"s3://buc/x?endpoint={here}").fetch("iam", tmp_path / "f", size=6)
    server.shutdown()
    server.server_close()
    assert seen == []


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (None, None, True),
        (None, "https://s3.eu-west-1.amazonaws.com", True),
        ("https://S3.example.com", "https://s3.example.com:443/", True),
        ("https://s3.example.com", "http://s3.example.com", False),
        ("https://s3.example.com", "https://s3.example.com:9000", False),
        ("https://s3.example.com", "https://s3.example.com.evil.net", False),
        (None, "https://amazonaws.com.evil.net", False),
        (None, "https://evilamazonaws.com", False),
        (None, "http://s3.amazonaws.com", False),
        (None, "https://buc.s3.dualstack.us-gov-west-1.amazonaws.com", True),
        (None, "https://s3-eu-west-1.amazonaws.com", True),
        (None, "https://s3.cn-north-1.amazonaws.com.cn", True),
        (None, "https://a1b2c3d4e5.execute-api.us-east-1.amazonaws.com", False),
        (None, "https://s3-mine-1234.us-east-1.elb.amazonaws.com", False),
        (None, "https://ec2-1-2-3-4.compute-1.amazonaws.com", False),
    ],
)
def test_same_server_compares_scheme_host_and_port(
    one: str | None, other: str | None, same: bool
) -> None:
    assert same_server(one, other) is same
    source = parse_address("s3://buc/m" + (f"?endpoint={other}" if other else ""))
    store = parse_address("s3://buc/t" + (f"?endpoint={one}" if one else ""))
    keys = StoreCredentials("a", "b")
    used = source_credentials(source, own=None, store=store, of_store=keys)
    assert used == (keys if same else ANONYMOUS)
    own = StoreCredentials("c", "d")
    assert source_credentials(source, own=own, store=store, of_store=keys) == own


def test_source_names_no_file_of_the_pod_as_its_certificates(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("TOKEN")
    assert open_source(f"s3://buc/m?endpoint=https://h.example&ca={file}").where.ca is None


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://user:password@h.example",
        "https://password@h.example",
        "https://h.example?token=password",
        "https://h.example%23password",
        "file:///etc/password",
        "https://h.example:password",
        "gopher://password",
    ],
)
def test_endpoint_is_refused_without_being_shown(endpoint: str) -> None:
    with pytest.raises(InvalidSpec) as raised:
        parse_address(f"s3://bucket/prefix?endpoint={endpoint.replace('?', '%3F')}")
    assert raised.value.where == "s3://bucket/prefix"
    assert "password" not in str(raised.value)


def test_pods_of_these_tests_are_none() -> None:
    assert "KUBERNETES_SERVICE_HOST" not in os.environ
    assert pod_peers(os.environ) is None
