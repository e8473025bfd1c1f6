"""A task as a Job runs it: everything from the environment, the model from a bucket."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genai_core.canonical import digest_bytes
from genai_core.errors import BadModel
from genai_core.files.digest_cache import FileCache
from genai_core.kinds.build import BuildSpec
from genai_core.names import Digest
from genai_core.operations import IngestConfig, operation_of
from genai_core.sources.resolved import (
    RESOLVE,
    ResolvedSource,
    ResolveFile,
    resolve_file,
    resolve_key,
)
from genai_core.sources.source_files import inspect_source
from genai_core.store.protocol import Hit
from genai_core.store.s3.client import new_client
from genai_core.store.s3.source_folder import S3Source
from genai_core.tasks.keys import task_key
from genai_core.tasks.task_file import TaskFile, TaskFileInput, pack
from genai_core.tasks.toolchain import toolchain_of
from genai_core.testing import S3Server, s3_server
from genai_stages.worker import job as jobs
from genai_stages.worker.job import run_job
from genai_stages.worker.source_access import fetch_source_file

MODEL = Path(__file__).parents[2] / "examples" / "tiny-llama" / "model"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as found:
        client = new_client(found.where("x"), found.credentials)
        for path in MODEL.iterdir():
            client.put_object(Bucket="artifacts", Key=f"m/{path.name}", Body=path.read_bytes())
        yield found


@pytest.fixture
def job(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run a document; returns exit code and termination message."""
    assert server.credentials is not None
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.credentials.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.credentials.secret_access_key)
    monkeypatch.setenv("GENAI_STORE", str(server.where("store")))
    monkeypatch.setenv("GENAI_SCRATCH", str(tmp_path))

    def run(document: ResolveFile) -> tuple[int, dict[str, Any]]:
        monkeypatch.setenv("GENAI_TASK", pack(document))
        log = tmp_path / "termination-log"
        code = run_job(log)
        return code, json.loads(log.read_text())

    return run


def spec(**model: str) -> BuildSpec:
    return BuildSpec.model_validate({"model": {"source": "x", **model}, "targets": ["cpu"]})


def test_a_source_in_a_bucket_has_the_digest_that_it_has_on_a_laptop(
    job: Any, server: S3Server
) -> None:
    where = server.where("m")
    question = resolve_file(spec(), str(where))
    assert job(question)[0] == 0

    key = resolve_key(question, S3Source(where, server.credentials).list())
    found = server.store("store").lookup(RESOLVE, key)
    assert isinstance(found, Hit)
    resolved = ResolvedSource.model_validate(found.record.facts)
    local_spec = BuildSpec.model_validate({"model": {"source": str(MODEL)}, "targets": ["cpu"]})
    local = inspect_source(local_spec, MODEL, FileCache(None))
    assert resolved.digest == local.digest
    assert resolved.config == dict(local.config)
    assert resolved.weight_bits == local.weight_bits
    assert {r: (f.sha256, f.size) for r, f in resolved.files.items()} == {
        r: (f.sha256, f.size) for r, f in local.files.items()
    }
    code, message = job(question)
    assert (code, message["outcome"]) == (0, "cached")


def test_what_is_wrong_is_said_of_the_address_and_the_log_outlives_the_pod(
    job: Any, server: S3Server, tmp_path: Path
) -> None:
    where = server.where("m")
    code, message = job(resolve_file(spec(onnx="other.onnx"), str(where)))
    assert code == 2
    assert message["outcome"] == "failed"
    assert "other.onnx" in message["error"]["message"]
    assert str(tmp_path) not in json.dumps(message)
    assert "artifacts/m" in json.dumps(message)
    log = server.store("store").head_blob(message["log"])
    assert log is not None
    assert log.size > 0
    assert not list(tmp_path.glob("genai-task-*")), "scratch was left behind"


def test_an_empty_folder_and_a_missing_bucket_are_told_apart(job: Any, server: S3Server) -> None:
    code, message = job(resolve_file(spec(), str(server.where("nothing-here"))))
    assert (code, message["error"]["code"]) == (2, "SourceNotFound")
    elsewhere = dataclasses.replace(server.where("m"), bucket="no-such-bucket")
    code, message = job(resolve_file(spec(), str(elsewhere)))
    assert (code, message["error"]["code"]) == (2, "SourceNotFound")
    assert "no bucket no-such-bucket" in json.dumps(message["error"])


@pytest.mark.parametrize("name", ["GENAI_STORE", "GENAI_TASK", "GENAI_READ_FROM"])
def test_a_broken_environment_is_told_to_the_kubelet_too(
    job: Any, server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    document = resolve_file(spec(), str(server.where("m")))
    values = {"GENAI_STORE": "s3://", "GENAI_TASK": "nothing", "GENAI_READ_FROM": "[{"}
    monkeypatch.setenv("GENAI_TASK", pack(document))
    monkeypatch.setenv(name, values[name])
    log = tmp_path / "termination-log"
    code = run_job(log)
    message = json.loads(log.read_text())
    assert (code, message["outcome"]) == (2 if name == "GENAI_STORE" else 1, "failed")
    assert message["error"]["message"]
    assert not list(tmp_path.glob("genai-task-*")), "scratch was left behind"


def test_a_file_that_changed_meanwhile_is_refused(
    server: S3Server, job: Any, tmp_path: Path
) -> None:
    del job  # for its environment
    data = (MODEL / "config.json").read_bytes()
    file = TaskFileInput(sha256="0" * 64, size=len(data), path=str(server.where("m/config.json")))
    with pytest.raises(BadModel, match="changed while the build was running"):
        fetch_source_file(file, tmp_path / "config.json")
    longer = file.model_copy(update={"size": len(data) + 1})
    with pytest.raises(BadModel, match="changed while the build was running"):
        fetch_source_file(longer, tmp_path / "config.json")


def test_names_with_spaces_are_found_under_their_addresses(
    server: S3Server, job: Any, tmp_path: Path
) -> None:
    del job  # for its environment
    where = server.where("my models/v2 #1/a%20b.json")
    client = new_client(where, server.credentials)
    client.put_object(Bucket=where.bucket, Key=where.prefix, Body=b"{}")
    digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    fetch_source_file(TaskFileInput(sha256=digest, size=2, path=str(where)), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"{}"


def test_a_job_names_the_users_own_file_when_its_role_has_another_name(
    job: Any, server: S3Server
) -> None:
    data = b"no graph at all"
    client = new_client(server.where("x"), server.credentials)
    client.put_object(Bucket="artifacts", Key="odd/decode.onnx", Body=data)
    address = server.where("odd")
    path = str(dataclasses.replace(address, prefix=f"{address.prefix}/decode.onnx"))
    file = TaskFileInput(sha256=digest_bytes(data), size=len(data), path=path)
    row, config = operation_of("ingest"), IngestConfig().model_dump(mode="json")
    toolchain = toolchain_of(row)
    key = task_key(
        "ingest", row.code_version, toolchain_id=Digest(toolchain.id), config=config,
        inputs={"source": {"model.onnx": Digest(file.sha256)}},
    )  # fmt: skip
    task = TaskFile(
        id="ingest", operation="ingest", key=key, code_version=row.code_version, config=config,
        inputs={"source": {"model.onnx": file}}, toolchain=toolchain,
    )  # fmt: skip
    code, message = job(task)
    assert code == 2
    assert message["error"]["code"] == "BadModel"
    assert message["error"]["where"] == "decode.onnx"


class PanicException(BaseException):
    """As pyo3 calls what a library in Rust raises."""


def test_a_job_tells_the_kubelet_when_a_library_panics(
    job: Any, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def panic() -> None:
        raise PanicException("index out of bounds")

    monkeypatch.setattr(jobs, "_work", lambda *_: panic)
    code, message = job(resolve_file(spec(), str(server.where("m"))))
    assert code == 1
    assert "PanicException: index out of bounds" in message["error"]["message"]


def test_a_job_tells_the_operator_when_memory_is_short(
    job: Any, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy() -> None:
        np.zeros(1 << 60, np.uint8)

    monkeypatch.setattr(jobs, "_work", lambda *_: greedy)
    code, message = job(resolve_file(spec(), str(server.where("m"))))
    assert (code, message["error"]["code"]) == (1, "OOMKilled")
