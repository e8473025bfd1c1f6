"""A build's file on a laptop names a server: what of the user's is sent there."""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from genai_cli.engine.bucket_access import bucket_access
from genai_cli.engine.local_plan import read_plan
from genai_cli.engine.local_source import bring_source
from genai_core.errors import StoreUnreadable
from genai_core.kinds.build import BuildSpec
from genai_core.store.address import ANONYMOUS
from genai_core.store.location import open_store
from genai_core.store.s3.client import shared_session

DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
Foreign = tuple[str, list[dict[str, str]]]


@pytest.fixture
def foreign() -> Iterator[Foreign]:
    """A server that gives nothing and remembers what it was sent."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(403)
            self.send_header("Content-Length", str(len(DENIED)))
            self.end_headers()
            self.wfile.write(DENIED)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", seen
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    shared_session.cache_clear()  # it remembers the environment's credentials
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "USERKEYID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "USER-SESSION-TOKEN")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    shared_session.cache_clear()


def spec_of(source: str, *adapters: str) -> BuildSpec:
    named = [{"name": f"a{n}", "source": address} for n, address in enumerate(adapters)]
    value = {"model": {"source": source}, "targets": ["cpu"], "lora": {"adapters": named}}
    return BuildSpec.model_validate(value if adapters else {**value, "lora": None})


@pytest.mark.parametrize("source", ["model", "adapter"])
def test_read_plan_sends_no_credentials_when_the_file_names_the_server(
    foreign: Foreign, tmp_path: Path, source: str
) -> None:
    endpoint, seen = foreign
    address = f"s3://models/x?endpoint={endpoint}"
    model = Path(__file__).parents[1] / "fixtures" / "architectures" / "llama"
    spec = spec_of(address) if source == "model" else spec_of(str(model), address)
    with pytest.raises(StoreUnreadable) as raised:
        read_plan(spec, tmp_path, open_store(tmp_path / "store"), name="x")
    assert seen
    assert "USER" not in json.dumps(seen)
    assert "authorization" not in seen[0]
    error = raised.value
    field = "spec.model.source" if source == "model" else "spec.lora.adapters[0].source"
    assert error.where.startswith(f"{field} (s3://models/x")
    assert f"your credentials are not sent to {endpoint}" in error.message
    assert f"AWS_ENDPOINT_URL_S3={shlex.quote(endpoint)}" in error.remedy
    assert "--store" in error.remedy


@pytest.mark.parametrize("way", ["variable", "store", "read_from"])
def test_read_plan_signs_when_the_user_named_the_server(
    foreign: Foreign, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str
) -> None:
    endpoint, seen = foreign
    theirs, folder = f"s3://artifacts/t?endpoint={endpoint}", tmp_path / "store"
    if way == "variable":
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    store = open_store(
        theirs if way == "store" else folder, read_from=[theirs] if way == "read_from" else []
    )
    with pytest.raises(StoreUnreadable, match="access is denied") as raised:
        read_plan(spec_of(f"s3://models/x?endpoint={endpoint}"), tmp_path, store, name="x")
    assert "USERKEYID" in seen[0]["authorization"]
    assert "not sent" not in str(raised.value)


def test_bring_source_reads_what_is_public_when_the_server_is_foreign(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from genai_core.store.s3.source_folder import S3Source

    used: list[object] = []

    def listing(self: S3Source) -> dict[str, object]:
        used.append(self._credentials)
        return {}

    monkeypatch.setattr(S3Source, "list", listing)
    bring_source(spec_of("s3://models/x?endpoint=https://models.example"), tmp_path)
    bring_source(spec_of("s3://models/x"), tmp_path)
    assert used == [ANONYMOUS, None]


def test_bucket_access_signs_when_the_user_typed_the_address() -> None:
    address = "s3://adapters/x?endpoint=https://s3.example"
    assert bucket_access(address, [address]).credentials is None
    assert bucket_access(address, [address + ":444"]).credentials == ANONYMOUS


def test_bucket_access_takes_the_stores_certificates_when_it_is_the_stores_server() -> None:
    address = "s3://models/x?endpoint=https://s3.example&ca=./brought.pem"
    store = "s3://artifacts/t?endpoint=https://s3.example:443&ca=/etc/mine.pem"
    found = bucket_access(address, ["/a/folder", store])
    assert (found.where.ca, found.credentials) == ("/etc/mine.pem", None)
    assert bucket_access(address, ["s3://artifacts/t"]).credentials == ANONYMOUS
