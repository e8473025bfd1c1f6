"""Models in archives and volumes, resolved as a Job does it and read as ingest does it."""

from __future__ import annotations

import io
import json
import os
import ssl
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from genai_core.canonical import digest_file
from genai_core.errors import BadModel
from genai_core.files.digest_cache import FileCache
from genai_core.kinds.build import BuildSpec
from genai_core.names import Key
from genai_core.network.download_rules import Rules
from genai_core.sources.resolved import (
    RESOLVE,
    ResolvedSource,
    content_key,
    pinned_content,
    resolve_file,
)
from genai_core.sources.source_files import inspect_source
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.layered import LayeredStore
from genai_core.store.pod_store import open_job_store
from genai_core.store.protocol import Hit
from genai_core.tasks.task_file import TaskFileInput, pack
from genai_core.testing import S3Server, certificate, s3_server
from genai_stages.worker import source_access
from genai_stages.worker.job import run_job
from genai_stages.worker.source_access import fetch_source_file

MODEL = Path(__file__).parents[2] / "examples" / "tiny-llama" / "model"
SPEC = BuildSpec.model_validate({"model": {"source": str(MODEL)}, "targets": ["cpu"]})
Job = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def expected() -> str:
    """The digest that the model has as a folder of a laptop."""
    return inspect_source(SPEC, MODEL, FileCache(None)).digest


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder, and the https address that serves it."""
    folder = tmp_path / "site"
    folder.mkdir()
    ca, key = certificate(tmp_path)

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("SSL_CERT_FILE", str(ca))
    yield folder, f"https://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let archives come from this very machine, which is refused otherwise."""
    monkeypatch.setattr(
        source_access, "Rules", lambda **options: Rules(checks_addresses=False, **options)
    )


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


@pytest.fixture
def job(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Job:
    """Resolve an address; returns exit code and termination message."""
    monkeypatch.setenv("GENAI_STORE", str(store.root))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("GENAI_SCRATCH", str(scratch))

    def run(address: str, *, pin: str | None = None) -> tuple[int, dict[str, Any]]:
        monkeypatch.setenv("GENAI_TASK", pack(resolve_file(SPEC, address, pin=pin)))
        log = tmp_path / "termination-log"
        code = run_job(log)
        assert not list(scratch.iterdir()), "scratch was left behind"
        return code, json.loads(log.read_text())

    return run


def pack_model(path: Path, extra: dict[str, bytes] | None = None) -> str:
    with tarfile.open(path, "w") as packed:
        for file in sorted(MODEL.rglob("*")):
            if file.is_file():
                packed.add(file, f"tiny-llama/{file.relative_to(MODEL).as_posix()}")
        for name, data in (extra or {}).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            packed.addfile(info, io.BytesIO(data))
    return digest_file(path)


def resolved(store: DirectoryStore, message: dict[str, Any]) -> ResolvedSource:
    found = store.lookup(RESOLVE, Key(message["record"]))
    assert isinstance(found, Hit)
    return ResolvedSource.model_validate(found.record.facts)


@pytest.mark.usefixtures("near")
def test_an_archive_has_the_digest_of_its_folder_and_its_files_are_the_stores(
    site: tuple[Path, str], job: Job, store: DirectoryStore, expected: str
) -> None:
    folder, url = site
    digest = pack_model(folder / "m.tar.gz")
    code, message = job(f"{url}/m.tar.gz")
    assert (code, message["outcome"]) == (0, "run")
    found = resolved(store, message)
    assert (found.digest, found.stored) == (expected, True)
    for file in found.files.values():
        stat = store.head_blob(file.sha256)  # type: ignore[arg-type]
        assert stat is not None
        assert stat.size == file.size
    again, message2 = job(f"{url}/m.tar.gz")
    assert (again, message2["outcome"], message2["record"]) == (0, "cached", message["record"])
    pinned = f"{url}/m.tar.gz#sha256={digest}"
    assert job(pinned)[1]["outcome"] == "run"
    (folder / "m.tar.gz").unlink()
    question = resolve_file(SPEC, pinned)
    code, message = job(pinned)
    assert (code, message["outcome"]) == (0, "cached"), "what is pinned is not fetched again"
    assert message["record"] == content_key(question, pinned_content(question) or "")


@pytest.mark.usefixtures("near")
def test_another_archive_under_a_pinned_address_is_refused(
    site: tuple[Path, str], job: Job, store: DirectoryStore, expected: str
) -> None:
    folder, url = site
    digest = pack_model(folder / "m.tar.gz")
    pack_model(folder / "m.tar.gz", {"tiny-llama/more": b"x"})
    code, message = job(f"{url}/m.tar.gz#sha256={digest}")
    assert (code, message["error"]["code"]) == (2, "BadModel")
    assert f"not the {digest} that the address pins" in message["error"]["message"]
    assert job(f"{url}/m.tar.gz", pin=expected)[0] == 0, "the model in it is the same"
    code, message = job(f"{url}/m.tar.gz", pin=f"sha256:{'0' * 64}")
    assert (code, message["error"]["code"]) == (2, "BadModel")
    assert "that the spec pins" in message["error"]["message"]


@pytest.mark.usefixtures("near")
def test_an_archive_that_does_harm_leaves_nothing(
    site: tuple[Path, str], job: Job, store: DirectoryStore
) -> None:
    folder, url = site
    pack_model(folder / "m.tar.gz", {"../../evil": b"x"})
    code, message = job(f"{url}/m.tar.gz")
    assert (code, message["error"]["code"]) == (2, "BadModel")
    assert "../../evil" in message["error"]["message"]
    assert list(store.list_records()) == []


def test_a_tenant_cannot_send_a_pod_to_its_own_node(
    site: tuple[Path, str], job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = site
    pack_model(folder / "m.tar.gz")
    code, message = job(f"{url}/m.tar.gz")
    assert (code, message["error"]["code"]) == (2, "InvalidSpec")
    assert "127.0.0.1 is an address of the machine itself" in message["error"]["message"]
    monkeypatch.setenv("GENAI_SOURCE_HOSTS", "models.example, *.trusted.example")
    code, message = job(f"{url}/m.tar.gz")
    assert "127.0.0.1 is not among the hosts" in message["error"]["message"]


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is mounted; the model lies in `models/tiny`."""
    root = tmp_path / "mounted"
    folder = root / "models" / "tiny"
    folder.mkdir(parents=True)
    for file in MODEL.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    monkeypatch.setenv("GENAI_SOURCE_ROOT", str(root))
    return folder


def as_input(address: str, path: Path) -> TaskFileInput:
    return TaskFileInput(sha256=digest_file(path), size=path.stat().st_size, path=address)


def test_a_volume_has_the_digest_of_its_folder_and_copies_nothing(
    volume: Path, job: Job, store: DirectoryStore, expected: str
) -> None:
    code, message = job("pvc://claim/models/tiny")
    assert (code, message["outcome"]) == (0, "run")
    found = resolved(store, message)
    assert (found.digest, found.stored) == (expected, False)
    assert list(store.list_blobs()) == []
    assert job("pvc://claim/models/tiny")[1]["record"] == message["record"]
    (volume / "config.json").write_text('{"model_type": "llama"}')
    changed = job("pvc://claim/models/tiny")[1]
    assert changed["record"] != message["record"]
    assert resolved(store, changed).digest != expected


def test_what_a_task_reads_from_a_volume_is_what_was_resolved(volume: Path, tmp_path: Path) -> None:
    path = volume / "config.json"
    file = as_input("pvc://claim/models/tiny/config.json", path)
    dest = tmp_path / "config.json"
    fetch_source_file(file, dest)
    assert dest.read_bytes() == path.read_bytes()
    dest.unlink()
    stat = path.stat()
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b" ")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(BadModel, match=r"pvc://claim/models/tiny/config\.json: it changed"):
        fetch_source_file(file, dest)
    path.unlink()
    with pytest.raises(BadModel, match="it changed"):
        fetch_source_file(file, dest)


def test_a_link_out_of_the_volume_is_refused(volume: Path, job: Job, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (volume / "config.json").unlink()
    (volume / "config.json").symlink_to(secret)
    code, message = job("pvc://claim/models/tiny")
    assert (code, message["error"]["code"]) == (2, "BadModel")
    assert message["error"]["where"] == "pvc://claim/models/tiny/config.json"
    with pytest.raises(BadModel, match="leaves the volume"):
        fetch_source_file(as_input("pvc://claim/models/tiny/config.json", secret), tmp_path / "x")
    (volume.parent / "away").symlink_to(tmp_path)
    assert "leaves the volume" in job("pvc://claim/models/away")[1]["error"]["message"]


def test_a_folder_that_is_not_there_is_named(volume: Path, job: Job) -> None:
    del volume
    code, message = job("pvc://claim/models/small")
    assert code == 2
    assert "there is no folder models/small" in message["error"]["message"]


# Stores of a Job


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as found:
        yield found


def test_a_job_reads_from_further_stores_and_writes_its_own(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not server.checks_signatures:
        pytest.skip(f"{server.name} does not look at credentials")
    blob = server.store("team").put_bytes(b"of the team")
    own = DirectoryStore(tmp_path / "own")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another-tenant")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-key")
    monkeypatch.setenv("GENAI_STORE", str(own.root))
    other = {"address": str(server.where("team"))}
    monkeypatch.setenv("GENAI_READ_FROM", json.dumps([other]))
    monkeypatch.setenv("GENAI_READ_0_ACCESS_KEY_ID", server.credentials.access_key_id)
    monkeypatch.setenv("GENAI_READ_0_SECRET_ACCESS_KEY", server.credentials.secret_access_key)
    store = open_job_store()
    assert isinstance(store, LayeredStore)
    store.fetch_blob(blob, tmp_path / "here")
    assert (tmp_path / "here").read_bytes() == b"of the team"
    assert own.head_blob(blob.sha256) is not None, "what is used is copied"
    store.put_bytes(b"new")
    assert len(list(server.store("team").list_blobs())) == 1


def test_each_store_is_checked_with_its_own_certificates(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from genai_core.errors import StoreUnreadable
    from genai_core.testing import FaultProxy

    ca, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca, key)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.credentials.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.credentials.secret_access_key)
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    with FaultProxy(server.endpoint).running(context) as proxy:
        address = str(server.where("tls", endpoint=proxy.endpoint))
        monkeypatch.setenv("GENAI_STORE", address)
        with pytest.raises(StoreUnreadable, match="certificate is not accepted"):
            open_job_store().probe()
        monkeypatch.setenv("GENAI_STORE_CA", ca.read_text())
        assert open_job_store().probe().checksums
        source = source_access.open_source(address)
        assert source.where.ca is not None, "a source on the store's endpoint is checked likewise"
        elsewhere = str(server.where("tls", endpoint="https://s3.example:9000"))
        assert source_access.open_source(elsewhere).where.ca is None


def test_a_presigned_query_is_neither_recorded_nor_told(
    site: tuple[Path, str], store: DirectoryStore, job: Job, near: None
) -> None:
    folder, server = site
    query = "X-Amz-Signature=TOPSECRETSIG&X-Amz-Credential=AKIA"
    pack_model(folder / "m.tar")
    code, message = job(f"{server}/m.tar?{query}")
    assert (code, message.get("error")) == (0, None)
    found = store.get_record(RESOLVE, Key(message["record"]))
    assert found is not None
    assert found.record.source.startswith(f"{server}/m.tar?...(")
    held = [path for path in store.root.rglob("*") if path.is_file()]
    assert len(held) > 5
    assert not [path for path in held if b"TOPSECRETSIG" in path.read_bytes()]
    code, message = job(f"{server}/none.tar?{query}")
    assert code == 2
    assert "none.tar" in json.dumps(message)
    assert "TOPSECRETSIG" not in json.dumps(message)
