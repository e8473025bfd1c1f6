"""Models in archives on this machine: fetched when they have changed, refused when they do harm."""

from __future__ import annotations

import ssl
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from genai_cli.engine.local_source import bring_source
from genai_core.canonical import digest_bytes
from genai_core.errors import BadModel, InvalidSpec
from genai_core.files.digest_cache import FileCache
from genai_core.kinds.build import BuildSpec
from genai_core.sources.source_files import inspect_source
from genai_core.testing import certificate

SOURCE = Path(__file__).parents[1] / "fixtures" / "architectures" / "llama"


class Site:
    def __init__(self) -> None:
        self.data = b""
        self.sent = 0
        self.url = ""

    def pack(self, folder: Path, top: str = "llama") -> str:
        path = folder.parent / "m.tar"
        with tarfile.open(path, "w") as packed:
            packed.add(folder, top)
        self.data = path.read_bytes()
        return digest_bytes(self.data)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    found = Site()
    ca, key = certificate(tmp_path)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tag = f'"{digest_bytes(found.data)[:12]}"'
            if self.headers.get("If-None-Match") == tag:
                self.send_response(304)
                self.end_headers()
                return
            found.sent += 1
            self.send_response(200)
            self.send_header("ETag", tag)
            self.send_header("Content-Length", str(len(found.data)))
            self.end_headers()
            self.wfile.write(found.data)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("SSL_CERT_FILE", str(ca))
    found.url = f"https://127.0.0.1:{server.server_address[1]}/m.tar"
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in SOURCE.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def spec_of(source: str) -> BuildSpec:
    return BuildSpec.model_validate({"model": {"source": source}, "targets": ["cpu"]})


def digest(source: str, cache: Path) -> str:
    spec = bring_source(spec_of(source), cache)
    return inspect_source(spec, Path("/nowhere"), FileCache(None)).digest


def test_an_archive_is_the_folder_that_was_packed_and_fetched_when_it_changed(
    site: Site, model: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    site.pack(model)
    folder = inspect_source(spec_of(str(model)), model, FileCache(None)).digest
    assert digest(site.url, cache) == folder
    assert digest(site.url, cache) == folder
    assert site.sent == 1
    (model / "config.json").write_text((model / "config.json").read_text() + " ")
    site.pack(model, top=".")
    assert digest(site.url, cache) != folder
    assert site.sent == 2
    kept = list((cache / "sources").rglob("model.onnx"))
    assert len(kept) == 1, "the old one is not kept"


def test_a_pinned_archive_is_fetched_once_and_another_is_refused(
    site: Site, model: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    pinned = f"{site.url}#sha256={site.pack(model)}"
    assert digest(pinned, cache) == digest(pinned, cache)
    assert site.sent == 1
    site.data += b"more"
    assert digest(pinned, cache)
    with pytest.raises(BadModel, match="that the address pins"):
        digest(f"{site.url}#sha256={'0' * 64}", cache)


def test_a_volume_of_a_cluster_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match="genai build --remote"):
        bring_source(spec_of("pvc://claim/models/tiny"), tmp_path)
