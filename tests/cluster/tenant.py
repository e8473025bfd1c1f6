"""A namespace with everything that a build needs, and what tests do in it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import account
import boto3
from botocore.config import Config
from harness.cluster import Cluster
from laptop import SMALL, SMALL_MODEL, TINY, TINY_MODEL
from witness import Witness

from genai_core.store.address import StoreAddress, StoreCredentials
from genai_core.store.s3.s3_store import S3Store
from genai_core.store.verify import verify

ROOT = Path(__file__).parents[2]
BUCKET, MODELS = "genai", "models"
GROUP = "genai-operator.dev/v1alpha1"


def s3_client(cluster: Cluster) -> Any:
    """The S3 server's administrator."""
    access, secret = cluster.s3_keys
    return boto3.client(
        "s3",
        endpoint_url=cluster.s3_endpoint,
        region_name="us-east-1",
        aws_access_key_id=access,
        aws_secret_access_key=secret,
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 3}),
    )


def install(cluster: Cluster, image: str, toolchain: dict[str, str]) -> None:
    """CRDs, targets, buckets and the model: what the cluster's tests share."""
    for path in sorted((ROOT / "crds").glob("*.yaml")):
        cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(path))
    for name in ("genaibuilds", "genaitargets", "artifactstores", "genaideployments"):
        cluster.kubectl(
            "wait", "--for=condition=Established", f"crd/{name}.genai-operator.dev", "--timeout=30s"
        )
    account.install(cluster)
    target = {"apiVersion": GROUP, "kind": "GenAITarget"}
    common = {"image": image, "toolchain": toolchain}
    cluster.apply(
        target | {"metadata": {"name": "cpu"}, "spec": {"backend": "Cpu", **common}},
        target
        | {
            "metadata": {"name": "sm8750"},
            "spec": {"backend": "Htp", "chipset": "SM8750", **common},
        },
    )
    client = s3_client(cluster)
    for bucket in (BUCKET, MODELS):
        if bucket not in {b["Name"] for b in client.list_buckets()["Buckets"]}:
            client.create_bucket(Bucket=bucket)
    upload(cluster, TINY_MODEL, name="tiny-llama")
    upload(cluster, SMALL_MODEL, name="small-llama")


def upload(cluster: Cluster, folder: Path, *, name: str) -> None:
    """Put a model into the bucket of models."""
    client = s3_client(cluster)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            key = f"{name}/{path.relative_to(folder).as_posix()}"
            client.put_object(
                Bucket=MODELS, Key=key, Body=path.read_bytes(), ChecksumAlgorithm="SHA256"
            )


class Tenant:
    """One namespace."""

    def __init__(self, cluster: Cluster, namespace: str, *, witness: Witness) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.witness = witness

    def create(self, *, secret: str = "", endpoint: str = "") -> None:
        """Namespace (Pod Security restricted), Secret and ArtifactStore `default`."""
        self.cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {
                    "name": self.namespace,
                    "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
                },
            },
            account.enabled(self.namespace),
        )
        self.credentials(secret)
        self.cluster.apply(
            {
                "apiVersion": GROUP,
                "kind": "ArtifactStore",
                "metadata": {"name": "default", "namespace": self.namespace},
                "spec": {
                    "bucket": BUCKET,
                    "endpoint": endpoint or self.cluster.s3_endpoint,
                    "secretRef": {"name": "s3"},
                },
            }
        )

    def credentials(self, secret: str = "") -> None:
        """Write the Secret; with the right key unless another is given."""
        access, right = self.cluster.s3_keys
        self.cluster.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {
                    "name": "s3",
                    "namespace": self.namespace,
                    "labels": {"genai-operator.dev/use": "true"},
                },
                "stringData": {
                    "AWS_ACCESS_KEY_ID": access,
                    "AWS_SECRET_ACCESS_KEY": secret or right,
                },
            }
        )

    def delete(self) -> None:
        """Remove the namespace and what it stored."""
        self.cluster.kubectl("delete", "namespace", self.namespace, "--wait=false", check=False)
        self.empty_store()

    def empty_store(self) -> None:
        """Remove every object of this tenant."""
        client = s3_client(self.cluster)
        for key in self.objects():
            client.delete_object(Bucket=BUCKET, Key=key)

    def objects(self, prefix: str = "") -> list[str]:
        """Keys in this tenant's store."""
        pages = s3_client(self.cluster).get_paginator("list_objects_v2")
        return [
            item["Key"]
            for page in pages.paginate(Bucket=BUCKET, Prefix=f"{self.namespace}/{prefix}")
            for item in page.get("Contents", ())
        ]

    def keys_at(self, prefix: str) -> list[str]:
        """Keys of results in a store of another prefix; leases come and go."""
        pages = s3_client(self.cluster).get_paginator("list_objects_v2")
        found = [
            item["Key"].removeprefix(f"{prefix}/")
            for page in pages.paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
            for item in page.get("Contents", ())
        ]
        return [key for key in found if key.startswith(("blobs/", "records/"))]

    def build(self, name: str, **spec: Any) -> None:
        """Apply a GenAIBuild of tiny-llama; `spec` replaces members of the spec."""
        self.cluster.apply(self.manifest(name, TINY | spec))

    def small(self, name: str, **spec: Any) -> None:
        """Apply a GenAIBuild of a model of two narrow layers, which takes a third of the time."""
        self.cluster.apply(self.manifest(name, SMALL | spec))

    def manifest(self, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        """A GenAIBuild."""
        return {
            "apiVersion": GROUP,
            "kind": "GenAIBuild",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": spec,
        }

    def get(self, plural: str, name: str = "", *, labels: str = "") -> Any:
        """An object, or the list of all."""
        extra = ["-l", labels] if labels else []
        names = [name] if name else []
        text = self.cluster.kubectl(
            "-n", self.namespace, "get", plural, *names, *extra, "-o", "json", check=False
        )
        found = json.loads(text) if text else {"items": []}
        return found if name else found["items"]

    def status(self, name: str) -> dict[str, Any]:
        """A build's status."""
        found: dict[str, Any] = self.get("genaibuilds", name).get("status") or {}
        return found

    def condition(self, name: str, kind: str = "Ready") -> tuple[str, str]:
        """Status and reason of a condition of a build."""
        for entry in self.status(name).get("conditions", ()):
            if entry["type"] == kind:
                return entry["status"], entry["reason"]
        return "", ""

    def jobs(self) -> list[dict[str, Any]]:
        """Our Jobs."""
        found: list[dict[str, Any]] = self.get(
            "jobs", labels="app.kubernetes.io/managed-by=genai-operator"
        )
        return found

    def pods(self) -> list[dict[str, Any]]:
        """Pods of our Jobs."""
        found: list[dict[str, Any]] = self.get(
            "pods",
            labels="app.kubernetes.io/managed-by=genai-operator,app.kubernetes.io/name=genai-stage",
        )
        return found

    def wait_ready(self, name: str, seconds: float = 420) -> dict[str, Any]:
        """Wait until a build is Ready, as its spec stands now; fails at once where it stalls."""

        def done() -> bool:
            build = self.get("genaibuilds", name)
            seen = (build.get("status") or {}).get("observedGeneration")
            if seen != build.get("metadata", {}).get("generation"):
                return False  # what is said is of the spec before
            ready, reason = self.condition(name)
            assert ready != "False", f"{reason}: {json.dumps(self.status(name), indent=1)}"
            return ready == "True"

        wait(done, seconds, lambda: json.dumps(self.status(name), indent=1))
        return self.status(name)

    def sound(self, name: str, expected: dict[str, str], *, seconds: float = 420) -> dict[str, Any]:
        """What must hold after every fault; returns the status.

        Ready with the laptop's revision, no task ran twice at once, every record's bytes are there
        and right.
        """
        status = self.wait_ready(name, seconds)
        assert revisions(status) == expected
        assert not status.get("failures")
        self.ran_apart()
        self.whole()
        return status

    def ran_apart(self) -> None:
        """No task ran twice at once, as seen from outside."""
        wait(lambda: not self.witness.missed(self.pods()), 15, lambda: "the witness is blind")
        overlaps = self.witness.overlaps(self.namespace)
        assert not overlaps, overlaps

    def whole(self) -> None:
        """Every record of the store can be read, and what it names is there as it says."""
        where = StoreAddress(BUCKET, self.namespace, self.cluster.s3_endpoint, addressing="path")
        store = S3Store(where, credentials=StoreCredentials(*self.cluster.s3_keys))
        found = verify(store)
        assert found.records, "nothing was stored"
        assert not found.faults, found.faults
        assert not found.unreadable, found.unreadable

    def wait_condition(
        self, name: str, wanted: tuple[str, str], *, kind: str = "Ready", seconds: float = 60
    ) -> dict[str, Any]:
        """Wait until a condition has a status and a reason."""
        wait(
            lambda: self.condition(name, kind) == wanted,
            seconds,
            lambda: json.dumps(self.status(name), indent=1),
        )
        return self.status(name)


def wait(probe: Callable[[], bool], seconds: float, say: Callable[[], str] = str) -> float:
    """Call until true; returns the seconds it took."""
    began = time.monotonic()
    while not probe():
        if time.monotonic() - began > seconds:
            raise AssertionError(f"not within {seconds:.0f} s: {say()}")
        time.sleep(0.15)
    return time.monotonic() - began


def revisions(status: dict[str, Any]) -> dict[str, str]:
    """Target -> revision."""
    return {entry["target"]: entry["revision"] for entry in status.get("artifacts", ())}
