"""Stores and sources as tenants have them: accounts, TLS, further stores, archives, volumes."""

from __future__ import annotations

import contextlib
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, SSLError
from botocore.exceptions import ConnectionError as BotoConnectionError
from harness.cluster import Cluster
from laptop import SMALL, SMALL_MODEL, Laptop
from operator_process import Operator
from proxies import S3Proxy
from servers import ROOT_KEYS, Served, Sts, TlsS3, without_conditions
from tenant import BUCKET, GROUP, Tenant, revisions, wait

from genai_core.canonical import digest_file
from genai_core.store.address import StoreAddress, StoreCredentials
from genai_core.store.s3.s3_store import S3Store

POLICY = Path(__file__).parents[2] / "deploy" / "stores" / "bucket-policy.json"
AUDIENCE = "genai-test-sts"

pytestmark = pytest.mark.usefixtures("operator")


def store_of(tenant: Tenant, name: str = "default", **spec: Any) -> dict[str, Any]:
    """An ArtifactStore."""
    default = {"bucket": BUCKET, "endpoint": tenant.cluster.s3_endpoint}
    return {
        "apiVersion": GROUP,
        "kind": "ArtifactStore",
        "metadata": {"name": name, "namespace": tenant.namespace},
        "spec": default | spec,
    }


def secret_of(tenant: Tenant, name: str, **data: str) -> dict[str, Any]:
    """A Secret."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": tenant.namespace,
            "labels": {"genai-operator.dev/use": "true"},
        },
        "stringData": data,
    }


def keys_of(access: str, secret: str) -> dict[str, str]:
    """As a Secret holds them."""
    return {"AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret}


def ready(tenant: Tenant, name: str = "default") -> tuple[str, str, str]:
    """Status, reason and message of a store."""
    status = tenant.get("artifactstores", name).get("status") or {}
    for entry in status.get("conditions", ()):
        if entry["type"] == "Ready":
            return entry["status"], entry["reason"], entry["message"]
    return "", "", ""


def not_allowed(tenant: Tenant, name: str) -> bool:
    return ready(tenant, name)[1] == "EndpointNotAllowed"


def told(tenant: Tenant, name: str) -> str:
    return str(ready(tenant, name))


def wait_store(tenant: Tenant, name: str = "default", seconds: float = 60) -> dict[str, Any]:
    """Wait until a store is Ready; returns its status."""
    wait(lambda: ready(tenant, name)[0] == "True", seconds, lambda: str(ready(tenant, name)))
    found: dict[str, Any] = tenant.get("artifactstores", name)["status"]
    return found


def opened(tenant: Tenant, prefix: str = "") -> S3Store:
    """A namespace's store, with the administrator's keys."""
    cluster = tenant.cluster
    where = StoreAddress(
        BUCKET, prefix or tenant.namespace, cluster.s3_endpoint, "us-east-1", None, "path"
    )
    return S3Store(where, credentials=StoreCredentials(*cluster.s3_keys))


def operations(tenant: Tenant) -> list[str]:
    """Operations of all Jobs of a namespace."""
    return sorted(j["metadata"]["labels"]["genai-operator.dev/operation"] for j in tenant.jobs())


@pytest.fixture(scope="module")
def tls(own: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsS3]:
    """An S3 server over TLS with accounts and the shipped policy's bucket."""
    found = TlsS3(tmp_path_factory.mktemp("tls"), own.network.gateway)
    found.client().create_bucket(Bucket=BUCKET)
    yield found
    found.close()


@pytest.fixture(scope="module")
def own(cluster: Cluster) -> Cluster:
    """Whose pods reach servers of this machine."""
    if not cluster.nodes:
        pytest.skip("NEEDS A CLUSTER OF ITS OWN: its pods must reach servers of the tests")
    return cluster


def policy_for(*teams: str) -> str:
    """The shipped policy with other names."""
    text = POLICY.read_text()
    for shipped, team in zip(("team-a", "team-b"), teams, strict=True):
        text = text.replace(shipped, team)
    return text


def refusal(call: Callable[[], object]) -> int:
    """The status that a request is refused with; tried again where the server hung up on it.

    It may, on an upload that it has refused before it was read: then TLS ends without an answer.
    """
    for _ in range(5):
        with contextlib.suppress(SSLError, BotoConnectionError):
            with pytest.raises(ClientError) as caught:
                call()
            return int(caught.value.response["ResponseMetadata"]["HTTPStatusCode"])
    raise AssertionError("it hangs up each time")


def test_tenants_of_one_bucket_are_kept_apart_and_build_over_their_own_ca(
    tls: TlsS3, tenants_of: Callable[..., Tenant], laptop: Laptop
) -> None:
    one, other = tenants_of(), tenants_of()
    for tenant in (one, other):
        keys = tls.add_user(tenant.namespace)
        tenant.cluster.apply(secret_of(tenant, "own", **keys_of(*keys)))
    tls.client().put_bucket_policy(Bucket=BUCKET, Policy=policy_for(one.namespace, other.namespace))
    spec = {"endpoint": tls.endpoint, "secretRef": {"name": "own"}}
    one.cluster.apply(store_of(one, "tls", **spec))
    wait(lambda: ready(one, "tls")[0] == "False", 60, lambda: str(ready(one, "tls")))
    assert "certificate is not accepted" in ready(one, "tls")[2]
    spec["caBundle"] = tls.ca.read_text()
    for tenant in (one, other):
        tenant.cluster.apply(store_of(tenant, "tls", **spec))
        assert wait_store(tenant, "tls")["capabilities"] == {"conditionalWrites": True}
    source = {"source": f"s3://models/small-llama?endpoint={one.cluster.s3_endpoint}"}
    model = source | {"secretRef": {"name": "s3"}}
    one.small("b", model=model, store={"name": "tls"})
    assert revisions(one.wait_ready("b")) == laptop.revisions(SMALL)
    # The other tenant, with its own good credentials, against what the first one stored.
    client = tls.client(other.namespace, f"secret-of-{other.namespace}")
    listed = tls.client().list_objects_v2(Bucket=BUCKET, Prefix=f"{one.namespace}/")["Contents"]
    theirs = {"Bucket": BUCKET, "Key": listed[0]["Key"]}
    for what, call in {
        "get": lambda: client.get_object(**theirs),
        "put": lambda: client.put_object(**theirs, Body=b"x"),
        "delete": lambda: client.delete_object(**theirs),
        "list": lambda: client.list_objects_v2(Bucket=BUCKET, Prefix=f"{one.namespace}/"),
    }.items():
        assert refusal(call) == 403, what
    # And through the operator: a store with the first one's credentials in the other's namespace.
    first = keys_of(one.namespace, f"secret-of-{one.namespace}")
    other.cluster.apply(secret_of(other, "stolen", **first))
    other.cluster.apply(store_of(other, "wrong", **(spec | {"secretRef": {"name": "stolen"}})))
    wait(lambda: ready(other, "wrong")[0] == "False", 60, lambda: str(ready(other, "wrong")))
    assert "access is denied" in ready(other, "wrong")[2]


def test_a_store_of_a_service_account_is_never_the_operators_to_read(
    own: Cluster, tls: TlsS3, tenants_of: Callable[..., Tenant], laptop: Laptop, operator: Operator
) -> None:
    tenant, other = tenants_of(), tenants_of()
    sts = Sts(own, own.network.gateway, AUDIENCE)
    try:
        keys = tls.add_user(tenant.namespace)
        tls.add_user(other.namespace)
        tls.client().put_bucket_policy(
            Bucket=BUCKET, Policy=policy_for(tenant.namespace, other.namespace)
        )
        account = f"system:serviceaccount:{tenant.namespace}:builder"
        meta = {"name": "builder", "namespace": tenant.namespace}
        own.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta})
        identity = {
            "roleArn": "arn:aws:iam::1:role/builder",
            "audience": AUDIENCE,
            "stsEndpoint": sts.url,
        }
        spec = {
            "endpoint": tls.endpoint,
            "caBundle": tls.ca.read_text(),
            "serviceAccountName": "builder",
            "webIdentity": identity,
        }
        own.apply(store_of(tenant, "identity", **spec))
        wait(
            lambda: ready(tenant, "identity")[0] == "False", 90,
            lambda: str(ready(tenant, "identity")),
        )  # fmt: skip
        assert "not yours" in ready(tenant, "identity")[2], "the STS has not heard of it"
        sts.accounts[account] = keys
        status = wait_store(tenant, "identity", 90)
        assert status["capabilities"] == {"conditionalWrites": True}
        model = {
            "source": f"s3://models/small-llama?endpoint={own.s3_endpoint}",
            "secretRef": {"name": "s3"},
        }
        tenant.small("b", model=model, store={"name": "identity"})
        expected = laptop.revisions(SMALL)
        assert revisions(tenant.wait_ready("b", 400)) == expected
        assert set(sts.seen) == {account}, "only that account's pods ever asked"
        wait(lambda: "lease" in operations(tenant), 30, lambda: str(operations(tenant)))
        for pod in tenant.pods():
            assert pod["spec"]["automountServiceAccountToken"] is False
        # All of it again, after a restart, under another name: looked up by Jobs, nothing run.
        before = operations(tenant)
        operator.stop()
        operator.start()
        tenant.small("again", model=model, store={"name": "identity"})
        assert revisions(tenant.wait_ready("again", 120)) == expected
        new = list(operations(tenant))
        for operation in before:
            new.remove(operation)
        assert set(new) <= {"look", "resolve", "lease", "probe"}, new
    finally:
        sts.close()


def test_another_store_is_read_and_never_written_and_the_container_is_ones_own(
    tenants_of: Callable[..., Tenant], laptop: Laptop
) -> None:
    tenant = tenants_of()
    expected = laptop.revisions(SMALL)
    tenant.cluster.apply(
        store_of(tenant, "team", prefix="team", secretRef={"name": "s3"}),
        store_of(
            tenant, "mine", prefix="mine", secretRef={"name": "s3"}, readFrom=[{"name": "team"}]
        ),
    )
    wait_store(tenant, "team")
    tenant.small("theirs", store={"name": "team"})
    assert revisions(tenant.wait_ready("theirs")) == expected
    before = sorted(tenant.keys_at(f"team/{tenant.namespace}"))
    wait_store(tenant, "mine")
    jobs = len(tenant.jobs())
    tenant.small("ours", store={"name": "mine"})
    assert revisions(tenant.wait_ready("ours")) == expected
    assert len(tenant.jobs()) == jobs + 1, "one Job copies the container"
    assert sorted(tenant.keys_at(f"team/{tenant.namespace}")) == before
    mine = opened(tenant, f"mine/{tenant.namespace}")
    (package,) = mine.list_records("package")
    assert [ref.operation for ref in mine.list_records()] == ["package"]
    stored = mine.get_record("package", package.key)
    assert stored is not None
    assert all(mine.head_blob(digest) is not None for digest in stored.record.blobs())
    lost = store_of(
        tenant, "lost", prefix="l", secretRef={"name": "s3"}, readFrom=[{"name": "gone"}]
    )
    tenant.cluster.apply(lost)
    wait(lambda: ready(tenant, "lost")[1] == "ReadFromNotFound", 30, lambda: str(ready(tenant)))


def test_a_server_without_conditional_writes_builds_the_same_with_a_warning(
    own: Cluster, tenants_of: Callable[..., Tenant], laptop: Laptop
) -> None:
    proxy = S3Proxy(own.network.gateway, own.s3_endpoint)
    proxy.rewrite = without_conditions(own.s3_endpoint, own.s3_keys)
    try:
        tenant = tenants_of(endpoint=proxy.endpoint)
        status = wait_store(tenant)
        assert status["capabilities"] == {"conditionalWrites": False}
        assert "of two writers the last may win" in ready(tenant)[2]
        warnings = [
            event for event in tenant.get("events")
            if event["involvedObject"]["kind"] == "ArtifactStore" and event["type"] == "Warning"
        ]  # fmt: skip
        assert any("conditional" in event["message"] for event in warnings)
        model = {
            "source": f"s3://models/small-llama?endpoint={own.s3_endpoint}",
            "secretRef": {"name": "s3"},  # another server than the store's is not sent its keys
        }
        tenant.small("b", model=model)
        tenant.sound("b", laptop.revisions(SMALL))
    finally:
        proxy.close()


def test_endpoints_that_lead_to_the_cluster_itself_are_refused(
    own: Cluster, tenants_of: Callable[..., Tenant]
) -> None:
    tenant = tenants_of()
    server = json.loads(own.kubectl("config", "view", "-o", "json", "--raw"))["clusters"][0]
    for number, endpoint in enumerate(
        (
            "http://169.254.169.254",
            "http://[::ffff:169.254.169.254]",
            "http://127.0.0.1:7070",
            "http://localhost:7070",
            "http://2130706433:7070",
            server["cluster"]["server"],
        )
    ):
        name = f"bad-{number}"
        spec = {"endpoint": endpoint, "secretRef": {"name": "s3"}}
        tenant.cluster.apply(store_of(tenant, name, **spec))
        wait(partial(not_allowed, tenant, name), 30, partial(told, tenant, name))


def test_a_volume_is_resolved_and_read_by_pods_and_its_changes_are_refused(
    own: Cluster, tenants_of: Callable[..., Tenant], laptop: Laptop, tmp_path: Path
) -> None:
    tenant = tenants_of()
    disk = own.folder / f"disk-{tenant.namespace}"
    folder = disk / "models" / "small"
    shutil.copytree(SMALL_MODEL, folder)
    disk.chmod(0o755)
    own.apply(*volume(tenant, disk))
    try:
        tenant.small("b", model={"source": "pvc://models/models/small"})
        status = tenant.sound("b", laptop.revisions(SMALL))
        (source,) = status["sources"]
        assert source["uri"] == "pvc://models/models/small"
        pods = [p for p in tenant.pods() if any("persistentVolumeClaim" in v for v in p["spec"]["volumes"])]  # fmt: skip  # noqa: E501
        assert {p["metadata"]["labels"]["genai-operator.dev/operation"] for p in pods} <= {
            "resolve", "ingest",
        }  # fmt: skip
        config = folder / "config.json"
        config.write_text(config.read_text() + " ")
        pinned = {"source": "pvc://models/models/small", "digest": source["digest"]}
        tenant.small("pinned", model=pinned)
        tenant.wait_condition("pinned", ("False", "BadModel"), seconds=120)
        assert f"not the {source['digest']}" in json.dumps(tenant.status("pinned")["conditions"])
        missing = {"source": "pvc://models/models/none"}
        tenant.small("missing", model=missing)
        tenant.wait_condition("missing", ("Unknown", "SourceNotFound"), seconds=120)
    finally:
        own.kubectl("delete", "pv", f"models-{tenant.namespace}", "--wait=false", check=False)


def volume(tenant: Tenant, disk: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A volume that is a folder of the machine, and the claim to it."""
    name = f"models-{tenant.namespace}"
    shared = {
        "accessModes": ["ReadOnlyMany"],
        "storageClassName": "",
    }
    return (
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": shared
            | {"capacity": {"storage": "1Gi"}, "hostPath": {"path": str(disk)},
               "claimRef": {"name": "models", "namespace": tenant.namespace}},
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "models", "namespace": tenant.namespace},
            "spec": shared
            | {"volumeName": name, "resources": {"requests": {"storage": "1Gi"}}},
        },
    )  # fmt: skip


def test_an_archive_is_fetched_once_by_a_pod_and_never_from_the_node_itself(
    own: Cluster, tls: TlsS3, tenants_of: Callable[..., Tenant], laptop: Laptop, tmp_path: Path
) -> None:
    tenant = tenants_of()
    tenant.cluster.apply(
        secret_of(tenant, "own", **keys_of(*ROOT_KEYS)),
        store_of(
            tenant, "tls", endpoint=tls.endpoint, caBundle=tls.ca.read_text(),
            secretRef={"name": "own"},
        ),
    )  # fmt: skip
    wait_store(tenant, "tls")
    archive = tmp_path / "small.tar"
    with tarfile.open(archive, "w") as packed:
        packed.add(SMALL_MODEL, "small")
    asked: list[str] = []

    def answer(request: BaseHTTPRequestHandler, _: bytes) -> tuple[int, bytes]:
        asked.append(str(request.client_address[0]))
        return 200, archive.read_bytes()

    site = Served(own.network.gateway, answer, tls=(tls.ca, tls.ca.parent / "key.pem"))
    source = f"{site.url}/small.tar#sha256={digest_file(archive)}"
    try:
        tenant.small("b", model={"source": source}, store={"name": "tls"})
        expected = laptop.revisions(SMALL)
        assert revisions(tenant.wait_ready("b")) == expected
        assert len(asked) == 1
        jobs = len(tenant.jobs())
        tenant.small("again", model={"source": source}, store={"name": "tls"})
        assert revisions(tenant.wait_ready("again", 30)) == expected
        assert (len(asked), len(tenant.jobs())) == (1, jobs), "what is pinned is not asked again"
        archive.write_bytes(archive.read_bytes()[:-1024] + b"\1" * 1024)
        other = source[:-1] + ("0" if source[-1] != "0" else "1")
        tenant.small("changed", model={"source": other}, store={"name": "tls"})
        tenant.wait_condition("changed", ("False", "BadModel"), seconds=120)
        assert "that the address pins" in json.dumps(tenant.status("changed")["conditions"])
        link = {"source": "https://169.254.169.254/small.tar"}
        tenant.small("link", model=link, store={"name": "tls"})
        wait(lambda: tenant.condition("link")[0] != "", 120)
        assert tenant.condition("link") != ("True", "Built")
    finally:
        site.close()


def test_leases_of_the_cluster_and_of_a_laptop_keep_what_they_name(
    tenants_of: Callable[..., Tenant], laptop: Laptop, operator: Operator
) -> None:
    tenant = tenants_of()
    tenant.small("b")
    tenant.sound("b", laptop.revisions(SMALL))
    uid = tenant.get("genaibuilds", "b")["metadata"]["uid"]
    store = opened(tenant)
    lease = store.get_lease(f"build-{uid}")
    assert lease is not None
    assert lease.holder == f"cluster {tenant.namespace}/b"
    assert lease.expires_at > datetime.now(UTC) + timedelta(days=29)
    assert {ref.operation for ref in lease.claimed} >= {"resolve", "ingest", "package"}
    assert [kept.target for kept in lease.containers] == ["cpu"]
    (first,) = lease.containers
    tenant.small("b", golden={"prompts": [], "maxTokens": 4})
    wait(
        lambda: len((store.get_lease(f"build-{uid}") or lease).containers) == 2, 200,
        lambda: json.dumps(tenant.status("b"), indent=1),
    )  # fmt: skip
    again = store.get_lease(f"build-{uid}")
    assert again is not None
    assert again.containers[1].ref == first.ref, "the last revision stays"
    # The operator has the store cleaned by a Job; nothing here is old enough to go.
    operator.stop()
    operator.start(GENAI_COLLECT_HOURS="0.002")
    try:
        wait(
            lambda: "collected" in tenant.get("artifactstores", "default")["status"], 120,
            lambda: json.dumps(tenant.get("artifactstores", "default")["status"]),
        )  # fmt: skip
        collected = tenant.get("artifactstores", "default")["status"]["collected"]
        assert collected["recordsDeleted"] == 0
        assert collected["recordsKept"] == len(list(store.list_records()))
        assert list(store.list_sweeps()) == []
    finally:
        operator.stop()
        operator.start()
