"""A model that is replaced while it is read: refused by name, never built of two versions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from genai_cli.engine.local_source import bring_source
from genai_core.canonical import digest_bytes, digest_file
from genai_core.errors import BadModel, SourceChanging
from genai_core.files.digest_cache import FileCache
from genai_core.kinds.build import BuildSpec
from genai_core.names import Digest
from genai_core.sources.resolved import RESOLVE, ResolvedSource, resolve_file, resolve_key
from genai_core.sources.source_files import SourceFacts, inspect_source
from genai_core.store.protocol import Hit
from genai_core.store.s3.client import new_client
from genai_core.store.s3.source_folder import S3Source
from genai_core.tasks.task_file import TaskFileInput, pack
from genai_core.testing import FaultProxy, S3Server, ServerFault, s3_server
from genai_stages.worker.job import run_job
from genai_stages.worker.source_access import fetch_source_file

SOURCE = Path(__file__).parents[1] / "fixtures" / "architectures" / "llama"
FILES = ("model.onnx", "config.json")
LARGE = (16 << 20) * 2 + 5


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as found:
        yield found


@pytest.fixture
def bucket(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[FaultProxy]:
    """A model's folder `m`, behind a server at whose requests something may happen."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.credentials.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.credentials.secret_access_key)
    monkeypatch.setenv("GENAI_SCRATCH", str(tmp_path))
    for name in FILES:
        put(server, name, (SOURCE / name).read_bytes())
    with FaultProxy(server.endpoint).running() as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        monkeypatch.setenv("GENAI_STORE", str(server.where("store", endpoint=proxy.endpoint)))
        yield proxy


def put(server: S3Server, name: str, data: bytes, **options: dict[str, str]) -> None:
    client = new_client(server.where("x"), server.credentials)
    client.put_object(Bucket=server.bucket, Key=f"m/{name}", Body=data, **options)  # type: ignore[arg-type]


def another(name: str) -> bytes:
    """A version of a file with as many bytes."""
    data = (SOURCE / name).read_bytes()
    if name == "config.json":
        return data.replace(b'"llama"', b'"LLAMA"', 1)
    return data[:-1] + bytes([data[-1] ^ 1])


def put_others(server: S3Server, names: list[str]) -> None:
    for name in names:
        put(server, name, another(name))


def once(
    action: Callable[[], None], method: str, part: str
) -> Callable[[str, str, Mapping[str, str]], ServerFault | None]:
    """Do something just before the first request of a kind reaches the server."""
    left = [action]

    def rule(verb: str, path: str, _: Mapping[str, str]) -> ServerFault | None:
        if verb == method and part in path and left:
            left.pop()()
        return None

    return rule


def spec_of(source: str) -> BuildSpec:
    document = {
        "model": {"source": source},
        "targets": ["cpu"],
        "quantization": {"gaps": "Float"},
    }
    return BuildSpec.model_validate(document)


def local_digest(folder: Path, files: Mapping[str, bytes]) -> str:
    """The digest that a folder of these files has."""
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return inspect_source(spec_of(str(folder)), folder, FileCache(None)).digest


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("/m/config.json", ["config.json"]),
        ("/m/model.onnx", ["model.onnx"]),
        ("/m/model.onnx", ["config.json", "model.onnx"]),
        ("/m/model.onnx", ["config.json"]),
    ],
)
def test_resolve_leaves_no_answer_of_two_versions(
    bucket: FaultProxy,
    server: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    names: list[str],
) -> None:
    """Objects are replaced by others of equal size between the listing and the reading.

    The answer is kept under the listing's key: it would hold for the old objects when they return.
    """
    where = server.where("m", endpoint=bucket.endpoint)
    question = resolve_file(spec_of("x"), str(where))
    store = server.store("store")
    before = set(store.list_records(RESOLVE))

    def resolved() -> tuple[int, dict[str, dict[str, str]]]:
        monkeypatch.setenv("GENAI_TASK", pack(question))
        log = tmp_path / "termination-log"
        code = run_job(log)
        return code, json.loads(log.read_text())

    def digest() -> str:
        source = S3Source(server.where("m"), server.credentials)
        found = store.lookup(RESOLVE, resolve_key(question, source.list()))
        assert isinstance(found, Hit)
        return ResolvedSource.model_validate(found.record.facts).digest

    bucket.rule = once(lambda: put_others(server, names), "GET", part)
    code, message = resolved()
    assert (code, message["error"]["code"]) == (2, "SourceChanging")
    assert "while the source was read" in message["error"]["message"]
    assert set(store.list_records(RESOLVE)) == before
    new = {name: another(name) if name in names else (SOURCE / name).read_bytes() for name in FILES}
    assert resolved()[0] == 0
    assert digest() == local_digest(tmp_path / "new", new)
    for name in FILES:
        put(server, name, (SOURCE / name).read_bytes())
    assert resolved()[0] == 0
    assert digest() == inspect_source(spec_of(str(SOURCE)), SOURCE, FileCache(None)).digest


@pytest.mark.parametrize("names", [["config.json"], ["model.onnx"], ["config.json", "model.onnx"]])
def test_mirror_of_a_bucket_is_of_one_version(
    bucket: FaultProxy, server: S3Server, tmp_path: Path, names: list[str]
) -> None:
    """A laptop's build of a bucket's model, replaced while it is downloaded."""
    spec = spec_of(str(server.where("m", endpoint=bucket.endpoint)))

    def mirrored() -> SourceFacts:
        there = bring_source(spec, tmp_path / "cache")
        return inspect_source(there, Path("/nowhere"), FileCache(None))

    bucket.rule = once(lambda: put_others(server, names), "GET", "/m/model.onnx")
    with pytest.raises(SourceChanging, match="changed while the source was"):
        mirrored()
    new = {name: another(name) if name in names else (SOURCE / name).read_bytes() for name in FILES}
    assert mirrored().digest == local_digest(tmp_path / "new", new)


def as_input(server: S3Server, endpoint: str, data: bytes) -> TaskFileInput:
    where = server.where("m/large.data", endpoint=endpoint)
    return TaskFileInput(sha256=digest_bytes(data), size=len(data), path=str(where))


def test_ingest_refuses_weights_that_were_replaced_between_two_ranges(
    bucket: FaultProxy, server: S3Server, tmp_path: Path
) -> None:
    old, new = bytes(LARGE), b"\1" * LARGE
    put(server, "large.data", old)
    file = as_input(server, bucket.endpoint, old)
    ranges = [2]

    def rule(verb: str, path: str, _: Mapping[str, str]) -> ServerFault | None:
        if verb == "GET" and "large.data" in path:
            ranges[0] -= 1
            if ranges[0] == 0:
                put(server, "large.data", new)
        return None

    bucket.rule = rule
    with pytest.raises(BadModel, match=r"m/large\.data.*changed while the build was running"):
        fetch_source_file(file, tmp_path / "x")
    bucket.rule = lambda *_: None
    put(server, "large.data", old)
    fetch_source_file(file, tmp_path / "again")
    assert digest_file(tmp_path / "again") == file.sha256


def test_ingest_does_not_call_it_a_change_when_the_noted_digest_was_never_true(
    bucket: FaultProxy, server: S3Server, tmp_path: Path
) -> None:
    """A sender's own note beside an object sent in parts, copied from another object."""
    promised = digest_bytes(b"what was meant")
    put(server, "large.data", b"what is there", Metadata={"sha256": promised})
    where = server.where("m", endpoint=bucket.endpoint)
    if S3Source(where, server.credentials).noted("large.data") != promised:
        pytest.skip("this server's own digest counts")
    file = TaskFileInput(
        sha256=promised, size=13, path=str(server.where("m/large.data", endpoint=bucket.endpoint))
    )
    with pytest.raises(BadModel, match=r"that its bucket has noted for it; upload it again"):
        fetch_source_file(file, tmp_path / "x")


@pytest.mark.parametrize("name", FILES)
def test_inspect_source_refuses_a_file_that_changes_while_it_is_hashed(
    tmp_path: Path, name: str
) -> None:
    """What is read of it (its data's names, its configuration) would be of other bytes."""
    for file in FILES:
        (tmp_path / file).write_bytes((SOURCE / file).read_bytes())

    class Digests:
        def digest(self, path: Path) -> Digest:
            found = digest_file(path)
            if path.name == name:
                draft = tmp_path / "draft"
                draft.write_bytes(another(name))
                draft.replace(path)
            return found

    with pytest.raises(BadModel, match=rf"{name}: it changed while the model was read"):
        inspect_source(spec_of(str(tmp_path)), tmp_path, Digests())
