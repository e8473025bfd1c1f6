"""What a tenant may make the operator and its pods do: endpoints, credentials, what pods tell."""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_apiserver import FakeApiserver

from genai_core.errors import CorruptBlob, GenAIError
from genai_core.helper_jobs import HelperAnswer, LookFile, answer_lines, read_answer, ref_of
from genai_core.kinds.artifact_store import ArtifactStoreSpec, WebIdentity
from genai_core.kinds.build import BuildSpec, Run
from genai_core.names import Digest, Key
from genai_core.sources.build_sources import sources_of
from genai_core.store.address import StoreAddress, parse_address
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.layered import LayeredStore
from genai_core.store.protocol import RecordRef
from genai_core.tasks.keys import task_key
from genai_core.tasks.record import Blob, Output, Record, ToolchainUsed
from genai_operator.builds.sources import source_place
from genai_operator.errors import Stalled
from genai_operator.jobs.access import ReadAccess, StoreAccess, check_certificates
from genai_operator.jobs.job_manifest import JobRequest, Owner, render
from genai_operator.settings import Settings
from genai_operator.stores.endpoints import Peers, check_endpoint
from genai_operator.stores.lookups import Lookups, ToldLookups, Unanswered
from genai_operator.stores.open_stores import Stores
from genai_operator.stores.remembered import stripped
from genai_stages.worker.helper_jobs import answer_question

SERVER = "https://10.96.0.1:443"


def names(**known: str) -> Callable[[str], list[str]]:
    return lambda host: [known.get(host.replace(".", "_").replace("-", "_"), host)]


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://169.254.169.254", "http://[fe80::1]", "http://[::ffff:169.254.169.254]:80",
        "https://127.0.0.1:9000", "http://[::1]", "http://0.0.0.0:9000", "http://224.0.0.1",
        "https://10.96.0.1", "https://10.96.0.1:443", "http://100.100.100.200",
        "http://user@s3.example", "ftp://s3.example", "http://", "http://s3.example:99999", "s3",
    ],
)  # fmt: skip
def test_endpoints_that_nobody_may_name(endpoint: str) -> None:
    with pytest.raises(Stalled) as caught:
        check_endpoint(endpoint, allowed=["*"], apiserver=SERVER, resolve=names())
    assert caught.value.reason == "EndpointNotAllowed"


def test_a_password_in_an_endpoint_is_not_shown() -> None:
    for endpoint in ("http://user:hunter2@s3.example", "http://user:hunter2@[::1"):
        with pytest.raises(Stalled) as caught:
            check_endpoint(endpoint, allowed=["*"], apiserver=SERVER, resolve=names())
        assert "hunter2" not in caught.value.message
        with pytest.raises(GenAIError) as refused:
            parse_address(f"s3://bucket/x?endpoint={endpoint}")
        assert "hunter2" not in str(refused.value)


def test_a_name_is_judged_by_where_it_leads() -> None:
    resolve = names(
        metadata_example="169.254.169.254", kube_example="10.96.0.1", s3_example="10.96.0.9"
    )
    ask = {"allowed": ["*.example", "s3.example"], "apiserver": SERVER, "resolve": resolve}
    check_endpoint("https://s3.example", **ask)  # type: ignore[arg-type]
    check_endpoint("https://kube.example:9000", **ask)  # type: ignore[arg-type]
    check_endpoint(None, **ask)  # type: ignore[arg-type]
    for endpoint in ("https://metadata.example", "https://kube.example"):
        with pytest.raises(Stalled):
            check_endpoint(endpoint, **ask)  # type: ignore[arg-type]
    with pytest.raises(Stalled, match="not among the endpoints"):
        check_endpoint("https://s3.elsewhere", **ask)  # type: ignore[arg-type]


def test_a_connection_is_judged_by_its_peer_whatever_the_name_said() -> None:
    peers = Peers("https://kube", names(kube="10.0.0.1"))
    assert peers.refuse("10.0.0.1", 443) == "is the apiserver"
    assert peers.refuse("10.0.0.1", 9000) is None
    assert peers.refuse("169.254.169.254", 80) is not None


def test_a_store_has_one_identity() -> None:
    identity = {"roleArn": "arn:x"}
    for wrong in (
        {}, {"secretRef": {"name": "a"}, "serviceAccountName": "b"},
        {"secretRef": {"name": "a"}, "webIdentity": identity},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"secretRef|serviceAccountName"):
            ArtifactStoreSpec.model_validate({"bucket": "abc", **wrong})
    fine = {"bucket": "abc", "serviceAccountName": "b", "webIdentity": identity}
    assert ArtifactStoreSpec.model_validate(fine).web_identity is not None


def pod(access: StoreAccess, *, reads_source: bool = False, **run: Any) -> dict[str, Any]:
    request = JobRequest(
        namespace="n", key=Key("a" * 64), operation="look", task="look",
        document=LookFile(refs=()), image="i", memory_bytes=1, reads_source=reads_source,
    )  # fmt: skip
    job = render(request, Owner("b", "u"), run=Run.model_validate(run), access=access)
    found: dict[str, Any] = job["spec"]["template"]["spec"]
    return found


def environment(found: dict[str, Any]) -> dict[str, Any]:
    return {
        entry["name"]: entry.get("value") or entry["valueFrom"]["secretKeyRef"]
        for entry in found["containers"][0]["env"]
    }


def test_a_pod_gets_secrets_by_reference_and_no_token_of_the_apiserver() -> None:
    readers = (ReadAccess("s3://t/x", "team", "PEM"), ReadAccess("s3://t/y"))
    found = pod(StoreAccess("s3://b/n", "mine", read_from=readers))
    values = environment(found)
    assert values["AWS_ACCESS_KEY_ID"]["name"] == "mine"
    assert values["GENAI_READ_0_SECRET_ACCESS_KEY"]["name"] == "team"
    assert "GENAI_READ_1_ACCESS_KEY_ID" not in values
    assert json.loads(values["GENAI_READ_FROM"]) == [
        {"address": "s3://t/x", "ca": "PEM"}, {"address": "s3://t/y"},
    ]  # fmt: skip
    assert "GENAI_TELL" not in values
    assert found["automountServiceAccountToken"] is False


def test_a_service_account_brings_its_own_credentials() -> None:
    identity = WebIdentity(role_arn="arn:r", audience="sts", sts_endpoint="http://sts")
    access = StoreAccess("s3://b/n", service_account="builder", web_identity=identity)
    found = pod(access)
    values = environment(found)
    assert found["serviceAccountName"] == "builder"
    assert found["automountServiceAccountToken"] is False
    assert values["GENAI_TELL"] == "1"
    assert values["AWS_ROLE_ARN"] == "arn:r"
    assert values["AWS_ENDPOINT_URL_STS"] == "http://sts"
    (volume,) = [v for v in found["volumes"] if v["name"] == "identity"]
    (source,) = volume["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == "sts"
    folder = next(
        m["mountPath"] for m in found["containers"][0]["volumeMounts"] if m["name"] == "identity"
    )
    assert values["AWS_WEB_IDENTITY_TOKEN_FILE"] == f"{folder}/token"
    assert not [v for v in pod(StoreAccess("s3://b/n", "s"))["volumes"] if v["name"] == "identity"]


def test_only_tasks_that_read_the_source_get_it() -> None:
    volume = StoreAccess("s3://b/n", "s", source="pvc://c/d", source_claim="c")
    found = pod(volume, reads_source=True)
    (claim,) = [v for v in found["volumes"] if v["name"] == "source"]
    assert claim["persistentVolumeClaim"] == {"claimName": "c", "readOnly": True}
    assert [v for v in pod(volume)["volumes"] if v["name"] == "source"] == []
    archive = StoreAccess(
        "s3://b/n", "s", source="https://h/m.zip", source_secret="t", source_hosts=("h", "*.x")
    )
    values = environment(pod(archive, reads_source=True))
    assert values["GENAI_SOURCE_HOSTS"] == "h,*.x"
    assert values["GENAI_SOURCE_TOKEN"] == {"name": "t", "key": "token", "optional": False}
    assert "GENAI_SOURCE_TOKEN" not in environment(pod(archive))


@pytest.mark.parametrize(
    ("source", "uri", "file"),
    [
        (
            "s3://mod/x",
            "s3://mod/x?endpoint=http://e&region=r",
            "s3://mod/x/f?endpoint=http://e&region=r",
        ),
        ("s3://mod/x?endpoint=http://o", "s3://mod/x?endpoint=http://o&region=r", None),
        ("pvc://c/d/", "pvc://c/d", "pvc://c/d/f"),
        ("https://h/m.zip", "https://h/m.zip", None),
    ],
)
def test_sources_say_everything(source: str, uri: str, file: str | None) -> None:
    spec = BuildSpec.model_validate({"model": {"source": source}, "targets": ["cpu"]})
    place = source_place(sources_of(spec)[0], StoreAddress("b", "n", "http://e", "r", None, "path"))
    assert place.uri == uri
    if file is not None:
        assert place.file("f") == file


@pytest.mark.parametrize("source", ["https://u:p@h/m.zip", "pvc://c/../d", "s3://", "ftp://h/m"])
def test_sources_that_cannot_be_read_stall(source: str) -> None:
    spec = BuildSpec.model_validate({"model": {"source": source}, "targets": ["cpu"]})
    with pytest.raises(Stalled, match=r"spec\.model\.source"):
        source_place(sources_of(spec)[0], StoreAddress("b"))


def test_an_adapter_that_cannot_be_read_is_named_by_its_field() -> None:
    adapters = [{"name": "a", "source": "s3://m/a"}, {"name": "b", "source": "ftp://h/b"}]
    spec = BuildSpec.model_validate(
        {"model": {"source": "s3://m/x"}, "targets": ["cpu"], "lora": {"adapters": adapters}}
    )
    with pytest.raises(Stalled, match=r"spec\.lora\.adapters\[1\]\.source"):
        source_place(sources_of(spec)[2], StoreAddress("b"))


def test_a_child_lies_beside_the_store_or_is_named_by_its_field() -> None:
    children = [{"arn": 1, "source": "s3://models/decode"}, {"arn": 8, "source": "./verify"}]
    spec = BuildSpec.model_validate(
        {"model": {"source": "s3://models/x"}, "targets": ["sm8750"], "children": children}
    )
    store = StoreAddress("b", "n", "http://e", "r", None, "path")
    _, first, second = sources_of(spec)
    assert source_place(first, store).uri.startswith("s3://models/decode?endpoint=")
    with pytest.raises(Stalled, match=r"spec\.children\[1\]\.source: \./verify cannot be read"):
        source_place(second, store)


# What pods tell


def record(number: int, *, inputs: tuple[str, ...] = (), files: dict[str, Blob]) -> Record:
    operation = "convert" if number else "ingest"
    toolchain, config = Digest("3" * 64), {"seed": str(number)}
    read = {"in": {str(n): Digest(d) for n, d in enumerate(inputs)}} if inputs else {}
    return Record(
        operation=operation,
        key=task_key(operation, 1, toolchain_id=toolchain, config=config, inputs=read),
        config=config,
        inputs=read,
        outputs={name: Output(sha256=b.sha256, size=b.size) for name, b in files.items()},
        toolchain=ToolchainUsed(id=Digest("3" * 64)),
        created_at="2026-01-01T00:00:00Z",
    )


def refs(*records: Record) -> list[RecordRef]:
    return [RecordRef(r.operation, r.key) for r in records]


@pytest.fixture
def family(tmp_path: Path) -> tuple[DirectoryStore, list[Record]]:
    """Ingest of a source, what was made of it, what was made of that, and a stranger."""
    store = DirectoryStore(tmp_path / "store")
    facts, graph, more, other = (store.put_bytes(t) for t in (b"{}", b"g", b"m", b"o"))
    records = [
        record(0, inputs=("5" * 64,), files={"facts.json": facts, "graph": graph}),
        record(1, inputs=(graph.sha256,), files={"more": more}),
        record(2, inputs=(more.sha256, graph.sha256), files={"most": other}),
        record(3, inputs=("6" * 64,), files={"x": other}),
    ]
    for one in records:
        store.commit(one)
    return store, records


def test_a_look_tells_what_was_made_of_what_was_asked_for(
    family: tuple[DirectoryStore, list[Record]], capsys: pytest.CaptureFixture[str]
) -> None:
    store, records = family
    absent = RecordRef("convert", Key("9" * 64))
    asked = LookFile(refs=(str(refs(records[0])[0]), str(absent)), read=("facts.json",))
    answer_question(asked, store)
    noise = "2026-01-01 INFO something\n" + capsys.readouterr().out + "more\n"
    answer = read_answer(noise)
    assert answer is not None
    assert {r.key for r in answer.records} == {r.key for r in records[:3]}
    told = ToldLookups("s3://b/n")
    with pytest.raises(Unanswered) as caught:
        told.look([*refs(*records), absent])
    assert len(caught.value.refs) == 5
    told.take(answer)
    found = told.look([*refs(*records[:3]), absent])
    assert found[absent] == "no record"
    assert found[refs(records[2])[0]] == stripped(records[2])
    facts = records[0].outputs["facts.json"]
    assert told.read_blob(Blob(sha256=facts.sha256, size=facts.size)) == b"{}"
    with pytest.raises(CorruptBlob):
        told.read_blob(Blob(sha256=Digest("0" * 64), size=1))
    later = RecordRef("compile", Key("8" * 64))
    assert not told.assume_missing(Unanswered([later], ["5" * 64]))
    told.take(answer, ["5" * 64])
    assert not told.assume_missing(Unanswered([later]))
    assert told.assume_missing(Unanswered([later], ["5" * 64])), "all that was made of it is told"
    assert told.look([later]) == {later: "no record"}
    told.doubt(later)
    told.forget()
    with pytest.raises(Unanswered):
        told.look(refs(records[0]))
    assert not told.assume_missing(Unanswered([later], ["5" * 64]))


def test_certificates_are_refused_when_no_pod_could_be_given_them() -> None:
    fine = ReadAccess("s3://t/x", "team", "C" * 65536)
    check_certificates(StoreAccess("s3://b/n", "mine", ca="C" * 65536, read_from=(fine,)))
    with pytest.raises(Stalled, match=r"spec\.readFrom, takes \d+ bytes"):
        check_certificates(StoreAccess("s3://b/n", "mine", read_from=(fine, fine)))
    with pytest.raises(Stalled, match="takes 131072 bytes"):
        check_certificates(StoreAccess("s3://b/n", "mine", ca="\u00fc" * 65536))


def test_an_answer_survives_a_log_and_damage_is_no_answer() -> None:
    ref = f"convert/{'a' * 64}"
    big = HelperAnswer(asked=tuple(f"convert/{n:064x}" for n in range(2000)))
    lines = list(answer_lines(big))
    assert len(lines) > 1
    assert max(map(len, lines)) < 8000
    assert read_answer("\n".join(["noise", *lines, "noise"])) == big
    assert read_answer("\n".join(lines[:-1])) is None
    assert read_answer("\n".join(lines[1:])) is None
    small = list(answer_lines(HelperAnswer(asked=(ref,))))
    again = read_answer("\n".join([*lines[:1], *small]))
    assert again is not None
    assert again.asked == (ref,)
    assert read_answer(small[0][:-8] + "AAAAAAAA") is None
    assert ref_of(ref) == RecordRef("convert", Key("a" * 64))


def test_a_container_of_another_store_is_to_be_copied_and_the_rest_is_not(tmp_path: Path) -> None:
    own, team = DirectoryStore(tmp_path / "own"), DirectoryStore(tmp_path / "team")
    blob = team.put_bytes(b"x")
    step = record(1, files={"x": blob})
    package = step.model_copy(
        update={
            "operation": "package",
            "key": task_key(
                "package", 1, toolchain_id=step.toolchain.id, config=step.config, inputs={}
            ),
        }
    )
    team.commit(step)
    team.commit(package)
    lookups = Lookups(LayeredStore(own, [DirectoryStore(team.root, read_only=True)]))
    found = lookups.look(refs(step, package))
    assert found[refs(step)[0]] == stripped(step)
    assert found[refs(package)[0]] == f"it is copied from {team.location}"
    assert lookups.read_blob(blob) == b"x"
    assert list(own.list_blobs()) == [], "the operator copies nothing"


def test_a_container_that_is_not_its_manifests_is_made_anew_and_never_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = DirectoryStore(tmp_path / "store")
    good, other = store.put_bytes(b"good"), store.put_bytes(b"other")
    manifest = {
        "model": {}, "architecture": "llama", "context_length": 8,
        "target": {"name": "cpu", "backend": "Cpu"},
        "files": {"model.onnx": {"sha256": good.sha256, "size": good.size}},
    }  # fmt: skip
    told = store.put_bytes(json.dumps(manifest).encode())
    step = record(1, files={"model.onnx": other, "manifest.json": told})
    key = task_key("package", 1, toolchain_id=step.toolchain.id, config=step.config, inputs={})
    forged = step.model_copy(update={"operation": "package", "key": key})
    store.commit(forged)
    (ref,) = refs(forged)
    assert "model.onnx is another file" in str(Lookups(store).look([ref])[ref])
    answer_question(LookFile(refs=(str(ref),), known=(), read=()), store)
    answer = read_answer(capsys.readouterr().out)
    assert answer is not None
    assert answer.records == (), "a pod of the tenant does not tell of it either"


def test_certificates_lie_in_a_folder_that_goes_with_the_stores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stores = Stores(FakeApiserver(), Settings())
    assert list(tmp_path.iterdir()) == [], "none before there is a certificate"
    file = stores._certificate("PEM")
    assert file is not None
    assert Path(file).read_text() == "PEM"
    del stores
    gc.collect()
    assert list(tmp_path.iterdir()) == []
