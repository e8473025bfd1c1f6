"""A namespace's store from a laptop: where it is, with whose keys, and what comes out of it."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from genai_cli.cluster import port_forward
from genai_cli.cluster.connection import Access, Cluster, connect
from genai_cli.cluster.port_forward import reachable, service_of
from genai_cli.cluster.stores import (
    StoreOptions,
    blob_of,
    named_by,
    opened_stores,
    place_of,
    reaching,
)
from genai_cli.cluster.tasks import _records
from genai_cli.cluster.testing import Apiserver, apiserver, build, job
from genai_cli.testing import InProcess, Ran
from genai_core.canonical import digest_bytes
from genai_core.container.manifest import Manifest
from genai_core.errors import InvalidSpec
from genai_core.kinds.artifact_store import ArtifactStoreSpec
from genai_core.kinds.base import SecretRef
from genai_core.names import Digest, Key
from genai_core.store.address import StoreCredentials
from genai_core.store.protocol import RecordRef, Store
from genai_core.store.s3.client import new_client
from genai_core.tasks.record import Measurements, Output, Record, ToolchainUsed
from genai_core.testing import S3Server, certificate, s3_server

KEYS = {"AWS_ACCESS_KEY_ID": "an-access-key", "AWS_SECRET_ACCESS_KEY": "a-secret-key"}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3"), prefer_moto=True) as found:
        yield found


@pytest.fixture
def server() -> Iterator[Apiserver]:
    with apiserver() as found:
        found.add("namespaces", {"metadata": {"name": "team"}})
        yield found


@pytest.fixture
def cluster(server: Apiserver, tmp_path: Path) -> Cluster:
    return connect(Access(server.kubeconfig(tmp_path / "config")))


def secret(**data: str) -> dict[str, Any]:
    coded = {name: base64.b64encode(text.encode()).decode() for name, text in data.items()}
    return {"metadata": {"name": "s3", "namespace": "team"}, "data": coded}


def artifact_store(**spec: Any) -> dict[str, Any]:
    value = {"bucket": "genai", "prefix": "cache", "secretRef": {"name": "s3"}} | spec
    return {"metadata": {"name": "default", "namespace": "team"}, "spec": value}


# Where


def test_a_store_is_named_by_what_a_status_says() -> None:
    spec = ArtifactStoreSpec(
        bucket="genai", prefix="/cache/", endpoint="http://s3:1", secret_ref=SecretRef(name="s3")
    )
    place = place_of(spec, "team")
    assert str(place) == "s3://genai/cache/team?endpoint=http://s3:1&region=us-east-1"
    query = "?endpoint=http://s3:1&region=us-east-1"
    digest = "ab" * 32
    for name in ("records/package/00.json", f"blobs/ab/{digest}"):
        assert named_by(f"s3://genai/cache/team/{name}{query}") == place
    assert blob_of(f"s3://genai/cache/team/blobs/ab/{digest}{query}") == digest
    assert named_by("s3://genai/blobs/ab/00").prefix == ""
    assert (
        named_by("s3://genai/records/blobs/x/records/package/00.json").prefix == "records/blobs/x"
    )
    with pytest.raises(InvalidSpec, match="no address of a record"):
        named_by("s3://genai/cache/team")


@pytest.mark.parametrize(
    ("endpoint", "found"),
    [
        ("http://minio.storage.svc:9000", ("storage", "minio")),
        ("http://minio.storage.svc.cluster.local", ("storage", "minio")),
        ("http://minio.storage.svc.cluster.local.", ("storage", "minio")),
        ("http://minio.storage:9000", ("storage", "minio")),
        ("http://minio:9000", ("team", "minio")),
        ("http://localhost:9000", None),
        ("http://10.0.0.7:9000", None),
        ("http://[::1]:9000", None),
        ("https://s3.eu-central-1.amazonaws.com", None),
    ],
)
def test_an_endpoint_may_be_a_services_name(endpoint: str, found: tuple[str, str] | None) -> None:
    assert service_of(endpoint, "team") == found


# With whose keys


def test_the_secrets_keys_are_used_where_it_may_be_read(
    server: Apiserver, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add("artifactstores", artifact_store())
    server.add("secrets", secret(**KEYS))
    with reaching(cluster, "team", "default", options=StoreOptions()) as place:
        assert place.credentials == StoreCredentials(*KEYS.values())
    server.forbidden = {"secrets"}
    with reaching(cluster, "team", "default", options=StoreOptions()) as place:
        assert place.credentials is None
    assert "team/s3 cannot be read" in capsys.readouterr().err
    server.forbidden = {"secrets", "artifactstores"}
    near = "s3://other/team/records/package/00.json"
    with reaching(cluster, "team", "default", options=StoreOptions(), near=near) as place:
        assert (place.where.bucket, place.credentials) == ("other", None)


def test_an_incomplete_secret_is_none(server: Apiserver, cluster: Cluster) -> None:
    server.add("artifactstores", artifact_store())
    server.add("secrets", secret(AWS_ACCESS_KEY_ID="half"))
    with reaching(cluster, "team", "default", options=StoreOptions()) as place:
        assert place.credentials is None


def test_a_stores_own_certificates_are_trusted_while_it_is_read(
    server: Apiserver, cluster: Cluster
) -> None:
    server.add("artifactstores", artifact_store(caBundle="-----BEGIN CERTIFICATE-----"))
    server.add("secrets", secret(**KEYS))
    with reaching(cluster, "team", "default", options=StoreOptions()) as place:
        file = Path(str(place.where.ca))
        assert file.read_text() == "-----BEGIN CERTIFICATE-----"
        assert place.public.ca is None
    assert not file.exists()


def test_what_the_user_says_comes_first(server: Apiserver, cluster: Cluster) -> None:
    server.add("artifactstores", artifact_store(endpoint="http://10.0.0.7:9000"))
    server.add("secrets", secret(**KEYS))
    options = StoreOptions(endpoint="http://127.0.0.1:9")
    with reaching(cluster, "team", "default", options=options) as place:
        assert place.where.endpoint == "http://127.0.0.1:9"
        assert place.public.endpoint == "http://10.0.0.7:9000"
    with reaching(cluster, "team", "x", options=StoreOptions("s3://mine/team")) as place:
        assert (place.where.bucket, place.credentials) == ("mine", None)


# Through a pod


@pytest.fixture
def unresolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Service's name means nothing here, whatever this machine's resolver says."""
    monkeypatch.setattr(port_forward, "_resolves", lambda _: False)


HOST = "minio.storage.svc.cluster.local"


def service(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "minio", "namespace": "storage"}, "spec": spec}


PODS = {
    "metadata": {"name": "minio-0", "namespace": "storage", "labels": {"app": "minio"}},
    "spec": {"containers": [{"ports": [{"name": "s3", "containerPort": 9000}]}]},
    "status": {"conditions": [{"type": "Ready", "status": "True"}]},
}


@pytest.mark.usefixtures("unresolved")
def test_bytes_go_through_a_pods_port_both_ways(
    server: Apiserver, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[str, int, str]] = []

    def forward(pod: str, port: int, *, namespace: str) -> socket.socket:
        opened.append((pod, port, namespace))
        near, far = socket.socketpair()

        def echo() -> None:
            while data := far.recv(65536):
                far.sendall(data.upper())
            far.close()

        threading.Thread(target=echo, daemon=True).start()
        return near

    monkeypatch.setattr(cluster, "forward", forward)
    resolve = socket.getaddrinfo
    ports = [{"port": 80, "targetPort": "s3"}]
    server.add("services", service(selector={"app": "minio"}, ports=ports))
    server.add("pods", PODS)
    with reachable(cluster, "http://minio.storage.svc", "team") as url:
        host, _, number = str(url).removeprefix("http://").rpartition(":")
        assert host == "minio.storage.svc"
        port = int(number)
        data = b"abc" * 500_000
        for _ in range(2):  # every connection has a way of its own
            with socket.create_connection((host, port)) as stream:
                threading.Thread(target=stream.sendall, args=(data,), daemon=True).start()
                got = b""
                while len(got) < len(data):
                    got += stream.recv(1 << 20)
                assert got == data.upper()
    assert opened == [("minio-0", 9000, "storage")] * 2
    assert socket.getaddrinfo is resolve, "the name still means this machine"


@pytest.mark.usefixtures("unresolved")
def test_a_servers_certificate_is_checked_through_a_pod_as_without_one(
    server: Apiserver,
    store: Store,
    s3: S3Server,
    genai: Callable[..., Ran],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record, revision = container(store, CPU)
    server.add("genaibuilds", ready(store, record, revision))
    ports = [{"port": 443, "targetPort": 9000}]
    server.add("services", service(selector={"app": "minio"}, ports=ports))
    server.add("pods", PODS)
    pem, key = certificate(tmp_path, HOST)
    at = urlsplit(s3.endpoint)

    def forward(_cluster: Cluster, _pod: str, _port: int, *, namespace: str) -> socket.socket:
        """What a pod's port is: TLS, and S3 behind it."""
        near, far = socket.socketpair()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem, key)

        def serve() -> None:
            with contextlib.suppress(OSError):
                plain = context.wrap_socket(far, server_side=True)
                behind = socket.create_connection((at.hostname, at.port))
                back = threading.Thread(
                    target=port_forward._copy, args=(behind, plain), daemon=True
                )
                back.start()
                port_forward._copy(plain, behind)

        threading.Thread(target=serve, daemon=True).start()
        return near

    monkeypatch.setattr(Cluster, "forward", forward)
    spec = server.objects["artifactstores", "team", "default"]["spec"]
    spec["caBundle"] = pem.read_text()
    way = ("--endpoint", f"https://{HOST}", "--json")
    pulled = genai("pull", "tiny", "-o", "out", *way)
    assert pulled.code == 0, pulled.err
    assert pulled.json["revision"] == revision
    (tmp_path / "other").mkdir()
    spec["caBundle"] = certificate(tmp_path / "other", HOST)[0].read_text()
    assert "certificate" in genai("pull", "tiny", "-o", "no", *way).errors[0]


@pytest.mark.usefixtures("unresolved")
@pytest.mark.parametrize(
    ("value", "endpoint", "says"),
    [
        (None, "http://minio.storage.svc", "no such Service"),
        ({"ports": [{"port": 80}]}, "http://minio.storage.svc", "no pods of its own"),
        ({"selector": {"a": "b"}, "ports": []}, "http://minio.storage.svc", "no port 80"),
        (
            {"selector": {"a": "b"}, "ports": [{"port": 80}]},
            "http://minio.storage.svc",
            "none of its pods is ready",
        ),
        ({"ports": [{"port": 80}]}, "https://minio.storage.svc", "no port 443"),
    ],
)
def test_a_service_without_a_way_in_is_named(
    server: Apiserver, cluster: Cluster, value: Any, endpoint: str, says: str
) -> None:
    if value is not None:
        server.add("services", service(**value))
    with pytest.raises(Exception, match=says) as caught, reachable(cluster, endpoint, "team"):
        pass
    assert "--endpoint" in str(caught.value) or "try again" in str(caught.value)


# What comes out


@pytest.fixture
def genai(server: Apiserver, tmp_path: Path) -> Callable[..., Ran]:
    run = InProcess(tmp_path)
    config = str(tmp_path / "config")
    server.kubeconfig(tmp_path / "config")
    return lambda *arguments: run(*arguments, env={"KUBECONFIG": config})


@pytest.fixture
def store(s3: S3Server, server: Apiserver, tmp_path: Path) -> Store:
    """The store of namespace `team`, as its ArtifactStore says."""
    prefix = tmp_path.name.replace("_", "-")
    server.add(
        "artifactstores",
        artifact_store(bucket=s3.bucket, prefix=prefix, endpoint=s3.endpoint),
    )
    keys = s3.credentials
    server.add(
        "secrets",
        secret(AWS_ACCESS_KEY_ID=keys.access_key_id, AWS_SECRET_ACCESS_KEY=keys.secret_access_key),
    )
    return s3.store(f"{prefix}/team")


def client(s3: S3Server) -> Any:
    return new_client(s3.where(""), s3.credentials)


def committed(store: Store, operation: str, files: dict[str, bytes], log: str = "") -> Record:
    outputs = {}
    for name, data in files.items():
        blob = store.put_bytes(data)
        outputs[name] = Output(sha256=blob.sha256, size=blob.size)
    record = Record(
        operation=operation,
        key=Key(digest_bytes(operation.encode() + b"".join(files.values()))),
        outputs=outputs,
        toolchain=ToolchainUsed(id=Digest("0" * 64)),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        measurements=Measurements(seconds=2.0, log=store.put_bytes(log.encode()) if log else None),
    )
    store.commit(record)
    return record


def container(
    store: Store, target: dict[str, Any], changed: dict[str, bytes] | None = None
) -> tuple[Record, str]:
    named = {
        "model.data": b"weights" * 1000,
        "tokenizer.json": b"{}",
        "genie_config.json": b"{}",
    }
    manifest = {
        "model": {},
        "architecture": "llama",
        "target": target,
        "context_length": 256,
        "files": {n: {"sha256": digest_bytes(d), "size": len(d)} for n, d in named.items()},
    }
    text = json.dumps(manifest).encode()
    files = {
        **named,
        "manifest.json": text,
        "report.json": b"{}",
        "emulation/part.onnx": b"twin",
        **(changed or {}),
    }
    return committed(store, "package", files), Manifest.model_validate_json(text).revision()


def ready(store: Store, record: Record, revision: str, target: str = "cpu") -> dict[str, Any]:
    head, _, query = store.location.partition("?")
    artifact = {
        "target": target,
        "revision": revision,
        "url": f"{head}/records/package/{record.key}.json?{query}",
        "sizeBytes": 7000,
        "builtAt": "2026-01-01T12:00:30Z",
        "verified": "Cpu",
    }
    condition = {"type": "Ready", "status": "True", "reason": "Built", "message": ""}
    return build("tiny", phase="Ready", conditions=[condition], artifacts=[artifact])


CPU = {"name": "cpu", "backend": "Cpu"}
HTP = {
    "name": "sm8750",
    "backend": "Htp",
    "soc_model": 69,
    "dsp_arch": 79,
    "library": {"buildId": "v2.51.0.260929"},
}


def test_a_pulled_report_shows_what_the_build_measured(
    server: Apiserver, store: Store, genai: Callable[..., Ran], tmp_path: Path
) -> None:
    """Not what the build measured whose package it shares; and status and pull agree."""
    report = {"schema_version": 1, "verified": "Cpu", "fidelity": {"natsPerToken": 1.0}}
    files = {"report.json": json.dumps(report).encode()}
    record, revision = container(store, CPU, files)
    value = ready(store, record, revision)
    measured = {"natsPerToken": 2.5, "baselineNats": 2.4, "budget": 0.3, "within": True}
    value["status"]["artifacts"][0]["fidelity"] = measured
    server.add("genaibuilds", value)
    for changed in (True, False):
        assert genai("pull", "tiny", "--json").json["changed"] is changed
        path = tmp_path / "containers" / "tiny" / "cpu" / "report.json"
        assert json.loads(path.read_text())["fidelity"] == measured
    assert genai("status", "tiny", "--json").json["containers"]["cpu"]["fidelity"] == measured
    assert "fidelity 2.5000 nats a token, +0.1000 of at most 0.3" in genai("status", "tiny").out


def test_a_container_is_pulled_verified_and_healed(
    server: Apiserver, store: Store, genai: Callable[..., Ran], tmp_path: Path
) -> None:
    record, revision = container(store, CPU)
    server.add("genaibuilds", ready(store, record, revision))
    pulled = genai("pull", "tiny", "--json")
    assert pulled.code == 0, pulled.err
    path = tmp_path / "containers" / "tiny" / "cpu"
    assert pulled.json["path"] == str(path)
    assert (pulled.json["revision"], pulled.json["changed"]) == (revision, True)
    assert pulled.json["steps"][0]["commands"][0].startswith(f"genai run {path}")
    assert genai("pull", "tiny", "--json").json["changed"] is False
    (path / "model.data").write_bytes(b"weightz" * 1000)
    assert genai("pull", "tiny", "--json").json["changed"] is True
    assert (path / "model.data").read_bytes() == b"weights" * 1000
    assert sorted(p.name for p in path.parent.iterdir()) == ["cpu"], "a draft was left"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("the only copy")
    refused = genai("pull", "tiny", "-o", "mine")
    assert refused.code == 2
    assert "it holds other files, which would be lost" in refused.errors[0]
    assert (tmp_path / "mine/thesis.tex").read_text() == "the only copy"


def test_a_wrong_byte_in_the_store_never_becomes_a_container(
    server: Apiserver, store: Store, s3: S3Server, genai: Callable[..., Ran], tmp_path: Path
) -> None:
    record, revision = container(store, CPU)
    server.add("genaibuilds", ready(store, record, revision))
    digest = record.outputs["model.data"].sha256
    where = store.location.partition("?")[0].removeprefix("s3://")
    bucket, _, prefix = where.partition("/")
    client(s3).put_object(
        Bucket=bucket, Key=f"{prefix}/blobs/{digest[:2]}/{digest}", Body=b"weightz" * 1000
    )
    ran = genai("pull", "tiny", "-o", "out")
    assert ran.code == 1
    assert digest[:12] in ran.errors[0]
    assert not (tmp_path / "out").exists()


def test_a_snapdragon_container_comes_with_the_commands_for_its_device(
    server: Apiserver, store: Store, genai: Callable[..., Ran]
) -> None:
    record, revision = container(store, HTP)
    server.add("genaibuilds", ready(store, record, revision, "sm8750"))
    out = genai("pull", "tiny", "--target", "SM8750", "-o", "a folder").out
    commands = [line for line in out.splitlines() if "adb" in line]
    assert "adb shell mkdir -p /data/local/tmp/genai/tiny-sm8750" in commands
    push = next(line for line in commands if "genie_config.json" in line)
    assert "a folder' && adb push genie_config.json manifest.json model.data tokenizer.json" in push
    assert "emulation" not in push
    assert "hexagon-v79/unsigned/libQnnHtpV79Skel.so" in out
    assert "2.51 or later" in out
    start = next(line for line in commands if "genie-t2t-run -c" in line)
    assert "LD_LIBRARY_PATH=. ADSP_LIBRARY_PATH=. ./genie-t2t-run -c genie_config.json -p" in start


def test_a_container_that_is_not_there(server: Apiserver, genai: Callable[..., Ran]) -> None:
    server.add("genaibuilds", build("tiny", phase="Building"))
    ran = genai("pull", "tiny")
    assert ran.code == 2
    assert "no container yet: it is Building" in ran.errors[0]
    assert "did you mean tiny?" in genai("pull", "tinny").errors[0]


def test_a_failed_tasks_log_is_read_without_its_pod(
    server: Apiserver, store: Store, genai: Callable[..., Ran]
) -> None:
    blob = store.put_bytes(b"ERROR it is not a model\n")
    head, _, query = store.location.partition("?")
    failure = {
        "task": "ingest",
        "reason": "BadModel",
        "message": "it is not a model",
        "log": f"{head}/blobs/{blob.sha256[:2]}/{blob.sha256}?{query}",
    }
    server.add("genaibuilds", build("bad", phase="Failed", failures=[failure]))
    assert genai("logs", "bad").out == "ERROR it is not a model\n"
    assert genai("logs", "bad", "ingest").out == "ERROR it is not a model\n"


def test_a_finished_tasks_log_comes_with_its_record(
    server: Apiserver, store: Store, genai: Callable[..., Ran]
) -> None:
    spoke = committed(store, "ingest", {"a": b"1"}, "it was read\n")
    silent = committed(store, "convert", {"a": b"2"})
    server.add("genaibuilds", build("tiny", phase="Building"))
    server.add(
        "jobs",
        job("ingest", "tiny", state="Complete", key=spoke.key),
        job("convert", "tiny", state="Complete", key=silent.key),
    )
    assert genai("logs", "tiny", "ingest").out == "it was read\n"
    assert "it said nothing: ended 2026-01-01" in genai("logs", "tiny", "convert").out


@pytest.fixture
def further(s3: S3Server, server: Apiserver, store: Store, tmp_path: Path) -> Store:
    """A store `shared` that `default` reads besides, in a bucket's other place."""
    prefix = tmp_path.name.replace("_", "-")
    shared = artifact_store(bucket=s3.bucket, prefix=f"{prefix}-shared", endpoint=s3.endpoint)
    shared["metadata"]["name"] = "shared"
    own = artifact_store(
        bucket=s3.bucket, prefix=prefix, endpoint=s3.endpoint, readFrom=[{"name": "shared"}]
    )
    server.add("artifactstores", shared, own)
    return s3.store(f"{prefix}-shared/team")


def test_a_log_is_found_in_a_store_that_is_read_besides(
    server: Apiserver, store: Store, further: Store, genai: Callable[..., Ran]
) -> None:
    """A cached task ran for somebody else, and its record was never copied."""
    elsewhere = committed(further, "ingest", {"a": b"1"}, "it was read by others\n")
    here = committed(store, "convert", {"a": b"2"}, "it was converted here\n")
    server.add("genaibuilds", build("tiny", phase="Building"))
    server.add(
        "jobs",
        job("ingest", "tiny", state="Complete", key=elsewhere.key),
        job("convert", "tiny", state="Complete", key=here.key),
    )
    assert genai("logs", "tiny", "ingest").out == "it was read by others\n"
    assert genai("logs", "tiny", "convert").out == "it was converted here\n"
    assert list(store.list_records("ingest")) == [], "looking copies nothing"


def test_a_source_resolved_by_a_newer_version_is_said_to_be_so(
    server: Apiserver, store: Store, genai: Callable[..., Ran]
) -> None:
    record = committed(store, "resolve", {"a": b"1"})
    store.delete_record(RecordRef(record.operation, record.key))
    store.commit(record.model_copy(update={"facts": {"digest": "sha256:0", "brandNew": 1}}))
    status: dict[str, Any] = {
        "sources": [{"uri": "s3://m/x", "digest": "", "record": f"sha256:{record.key}"}]
    }
    server.add("genaibuilds", build("tiny", phase="Ready", **status))
    ran = genai("logs", "tiny", "ingest")
    assert ran.code == 2
    assert "team/tiny: its plan cannot be made here" in ran.errors[0]
    assert "use the genai of the operator's version" in ran.errors[0]


def test_records_of_all_stores_are_matched_with_the_plan(
    cluster: Cluster, store: Store, further: Store
) -> None:
    committed(further, "ingest", {"a": b"1"})
    committed(store, "convert", {"a": b"2"})
    with opened_stores(cluster, "team", "default", options=StoreOptions()) as opened:
        found = _records(opened, {"ingest", "convert"})
    assert {record.operation for record in found} == {"ingest", "convert"}


def test_a_further_store_that_cannot_be_reached_is_told_and_left_out(
    server: Apiserver, store: Store, further: Store, genai: Callable[..., Ran]
) -> None:
    here = committed(store, "convert", {"a": b"2"}, "it was converted here\n")
    server.add("genaibuilds", build("tiny", phase="Building"))
    server.add("jobs", job("convert", "tiny", state="Complete", key=here.key))
    shared = artifact_store(endpoint="http://nowhere.storage.svc:9000")
    shared["metadata"]["name"] = "shared"
    server.add("artifactstores", shared)
    ran = genai("logs", "tiny", "convert")
    assert (ran.code, ran.out) == (0, "it was converted here\n")
    assert "a further store is left out: Service storage/nowhere: " in ran.err


def test_fields_of_a_newer_version_are_passed_over(
    server: Apiserver, store: Store, genai: Callable[..., Ran], s3: S3Server, tmp_path: Path
) -> None:
    here = committed(store, "convert", {"a": b"2"}, "it was converted here\n")
    server.add("genaibuilds", build("tiny", phase="Building"))
    server.add("jobs", job("convert", "tiny", state="Complete", key=here.key))
    prefix = tmp_path.name.replace("_", "-")
    server.add(
        "artifactstores",
        artifact_store(bucket=s3.bucket, prefix=prefix, endpoint=s3.endpoint, brandNew={"a": 1}),
    )
    assert genai("logs", "tiny", "convert").out == "it was converted here\n"


# What goes in


MODEL = Path(__file__).parents[2] / "tests" / "fixtures" / "architectures" / "llama"


def test_a_model_is_uploaded_once_under_its_digest_and_applied_by_its_address(
    server: Apiserver, store: Store, s3: S3Server, genai: Callable[..., Ran], tmp_path: Path
) -> None:
    server.add("genaitargets", {"metadata": {"name": "cpu"}})
    shutil.copytree(MODEL, tmp_path / "m")
    (tmp_path / "m" / next((tmp_path / "m").glob("*.onnx")).name).rename(tmp_path / "m/mine.onnx")
    spec = {"model": {"source": "./m", "onnx": "mine.onnx"}, "targets": ["cpu"]}
    document = {
        "apiVersion": "genai-operator.dev/v1alpha1",
        "kind": "GenAIBuild",
        "metadata": {"name": "up", "labels": {"team": "a"}},
        "spec": spec,
    }
    (tmp_path / "build.yaml").write_text(json.dumps(document))
    first = genai("build", "-f", "build.yaml", "--remote", "--detach", "--json")
    assert first.code == 0, first.err
    assert "upload   mine.onnx" in first.err
    ((body, query),) = server.applied
    assert query == {"fieldManager": "genai-cli", "force": "false"}
    assert body["metadata"]["labels"] == {"team": "a"}
    model = body["spec"]["model"]
    digest = model["digest"].removeprefix("sha256:")
    assert model["onnx"] == "model.onnx", "files are called by their roles there"
    assert model["source"].endswith(f"/team/sources/sha256-{digest}")
    bucket, _, folder = model["source"].removeprefix("s3://").partition("/")
    bucket_client = client(s3)
    data = bucket_client.get_object(Bucket=bucket, Key=f"{folder}/model.onnx")["Body"].read()
    assert data == (tmp_path / "m/mine.onnx").read_bytes()

    # Until the cluster's own lease names it, the sender's does.
    (lease,) = store.list_leases()
    assert lease.uploads == (f"sha256-{digest}",)
    assert lease.expires_at > datetime.now(UTC) + timedelta(days=6)

    # Only what is missing is sent, and another name of a file is the same model.
    bucket_client.delete_object(Bucket=bucket, Key=f"{folder}/config.json")
    (tmp_path / "m/mine.onnx").rename(tmp_path / "m/yours.onnx")
    document["spec"] = {"model": {"source": "./m"}, "targets": ["cpu"]}
    (tmp_path / "build.yaml").write_text(json.dumps(document))
    second = genai("build", "-f", "build.yaml", "--remote", "--detach")
    sent = [line.split()[1] for line in second.err.splitlines() if line.startswith("upload ")]
    assert "config.json" in sent
    assert not any(name.endswith(".onnx") for name in sent)
    assert server.applied[-1][0]["spec"]["model"]["source"] == model["source"]


def test_a_model_is_claimed_before_it_is_looked_for(
    server: Apiserver,
    store: Store,
    genai: Callable[..., Ran],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What stands already is as old as it is: a gc must not take it after we have seen it."""
    from genai_core.store.s3 import source_upload as s3_upload

    server.add("genaitargets", {"metadata": {"name": "cpu"}})
    shutil.copytree(MODEL, tmp_path / "m")
    right = s3_upload.SourceUpload.missing
    held: list[list[str]] = []

    def looking(self: s3_upload.SourceUpload) -> list[str]:
        held.append([name for lease in store.list_leases() for name in lease.uploads or ()])
        assert held[-1] == [self.name]
        return right(self)

    monkeypatch.setattr(s3_upload.SourceUpload, "missing", looking)
    ran = genai("build", "m", "--target", "cpu", "--remote", "--detach")
    assert ran.code == 0, ran.err
    assert len(held) == 1
    # With credentials of its own, a command would be given them by the environment.
    monkeypatch.setattr("genai_cli.store.upkeep.opened", lambda *_: store)
    collected = genai("cache", "gc", "--keep-days", "0", "--json").json
    assert collected["uploads"] == {"kept": 1, "deleted": 0}
    for lease in store.list_leases():
        store.delete_lease(lease.name)
    ran = genai("cache", "gc", "--keep-days", "0")
    assert ran.out.startswith("0 entries, 1 uploaded model and ")
    assert store.list_uploads() == []


def test_a_file_that_changes_while_it_is_sent_is_not_stored(
    server: Apiserver,
    store: Store,
    genai: Callable[..., Ran],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from genai_core.store.s3 import source_upload as s3_upload

    server.add("genaitargets", {"metadata": {"name": "cpu"}})
    shutil.copytree(MODEL, tmp_path / "m")
    right = s3_upload.SourceUpload.missing

    def changing(self: s3_upload.SourceUpload) -> list[str]:
        found = right(self)
        path = self.files["config.json"].path
        path.write_text(path.read_text() + " ")
        return found

    monkeypatch.setattr(s3_upload.SourceUpload, "missing", changing)
    ran = genai("build", "m", "--target", "cpu", "--remote", "--detach")
    assert ran.code == 2
    assert "changed while it was sent" in ran.errors[0]
    assert server.applied == []
