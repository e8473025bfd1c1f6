"""A model in a bucket: mirrored once, and built under the keys that a folder's would have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from genai_cli.engine.local_engine import plan_build
from genai_cli.engine.local_source import bring_source, token_of
from genai_core.errors import BadModel
from genai_core.files.digest_cache import FileCache
from genai_core.kinds.build import BuildSpec
from genai_core.sources.build_sources import sources_of
from genai_core.sources.source_files import SourceFacts, inspect_source
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.s3.source_folder import S3Source
from genai_core.testing import S3Server, s3_server

SOURCE = Path(__file__).parents[1] / "fixtures" / "architectures" / "llama"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3"), prefer_moto=True) as found:
        yield found


@pytest.fixture
def bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Server:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.credentials.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.credentials.secret_access_key)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("model.onnx", "config.json"):
        put(server, name, (SOURCE / name).read_bytes())
    put(server, "notes/readme.txt", b"no part of the model")
    return server


def put(server: S3Server, name: str, data: bytes | None) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name="us-east-1",
        aws_access_key_id=server.credentials.access_key_id,
        aws_secret_access_key=server.credentials.secret_access_key,
    )
    if data is None:
        client.delete_object(Bucket=server.bucket, Key=f"models/llama/{name}")
    else:
        client.put_object(Bucket=server.bucket, Key=f"models/llama/{name}", Body=data)


def spec_of(source: str) -> BuildSpec:
    document = {
        "model": {"source": source},
        "targets": ["cpu"],
        "graphs": {"contextLengths": [64]},
        "quantization": {"gaps": "Float"},
    }
    return BuildSpec.model_validate(document)


def facts(spec: BuildSpec, cache: Path) -> SourceFacts:
    return inspect_source(bring_source(spec, cache), Path("/nowhere"), FileCache(None))


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    real = S3Source.fetch

    def fetch(self: S3Source, name: str, dest: Path, *, size: int, tag: str = "") -> object:
        names.append(name)
        return real(self, name, dest, size=size, tag=tag)

    monkeypatch.setattr(S3Source, "fetch", fetch)
    return names


def test_bucket_and_folder_have_one_digest(bucket: S3Server, tmp_path: Path) -> None:
    from_bucket = facts(spec_of(str(bucket.where("models/llama"))), tmp_path)
    from_folder = inspect_source(spec_of(str(SOURCE)), Path("/nowhere"), FileCache(None))
    assert from_bucket.digest == from_folder.digest


def test_only_what_changed_is_fetched_again(
    bucket: S3Server, tmp_path: Path, fetched: list[str]
) -> None:
    spec = spec_of(str(bucket.where("models/llama")))
    first = facts(spec, tmp_path)
    assert sorted(fetched) == ["config.json", "model.onnx", "notes/readme.txt"]
    fetched.clear()
    assert facts(spec, tmp_path).digest == first.digest
    assert fetched == []
    put(bucket, "config.json", (SOURCE / "config.json").read_bytes() + b"\n")
    put(bucket, "notes/readme.txt", None)
    second = facts(spec, tmp_path)
    assert fetched == ["config.json"]
    assert second.digest != first.digest
    assert not list(tmp_path.rglob("readme.txt"))


def test_a_folder_may_take_a_files_place_and_the_other_way_round(
    bucket: S3Server, tmp_path: Path
) -> None:
    spec = spec_of(str(bucket.where("models/llama")))
    put(bucket, "extra", b"a file")
    put(bucket, "more/x", b"in a folder")
    facts(spec, tmp_path)
    put(bucket, "extra", None)
    put(bucket, "extra/x", b"now in a folder")
    put(bucket, "more/x", None)
    put(bucket, "more", b"now a file")
    root = facts(spec, tmp_path).root
    assert (root / "extra/x").read_bytes() == b"now in a folder"
    assert (root / "more").read_bytes() == b"now a file"
    for name in ("extra/x", "more"):
        put(bucket, name, None)


def test_damaged_mirror_is_mended(bucket: S3Server, tmp_path: Path) -> None:
    spec = spec_of(str(bucket.where("models/llama")))
    first = facts(spec, tmp_path)
    first.files["model.onnx"].path.write_bytes(b"cut off")
    assert facts(spec, tmp_path).digest == first.digest


def test_empty_place_is_named(bucket: S3Server, tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="models/nothing"):
        facts(spec_of(str(bucket.where("models/nothing"))), tmp_path)


def test_plan_from_a_bucket_has_the_keys_of_a_folder(bucket: S3Server, tmp_path: Path) -> None:
    def keys(source: str) -> list[str]:
        store = DirectoryStore(tmp_path / "store")
        planned = plan_build(spec_of(source), Path("/nowhere"), store, name="b")
        return [task.key for task in planned.ready.tasks if task.key]

    address = str(bucket.where("models/llama"))
    assert keys(address) == keys(str(SOURCE)) != []


@pytest.mark.parametrize(
    ("model", "adapters", "told"),
    [
        ("https://mine.example/m.zip", ["https://mine.example/a.zip"], [True, True]),
        ("https://mine.example/m.zip", ["https://theirs.example/a.zip"], [True, False]),
        ("https://mine.example/m.zip", ["https://mine.example@theirs.example/a"], [True, False]),
        ("./folder", ["https://one.example/a", "https://two.example/a"], [False, True, False]),
        ("s3://bucket/m", ["./a"], [False, False]),
    ],
)
def test_token_of_is_sent_to_the_host_of_the_first_source_alone(
    monkeypatch: pytest.MonkeyPatch, model: str, adapters: list[str], told: list[bool]
) -> None:
    monkeypatch.setenv("GENAI_SOURCE_TOKEN", "secret")
    named = [{"name": f"a{n}", "source": address} for n, address in enumerate(adapters)]
    value = {"model": {"source": model}, "targets": ["cpu"], "store": {"name": "s"}}
    spec = BuildSpec.model_validate({**value, "lora": {"adapters": named}})
    found = [token_of(source.address, spec) for source in sources_of(spec)]
    assert found == ["secret" if sent else None for sent in told]
