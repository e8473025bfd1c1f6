"""A namespace for passes over one GenAIDeployment: apiserver, stores and pods as it meets them."""

from __future__ import annotations

import asyncio
import copy
from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from genai_core.canonical import digest_bytes
from genai_core.container.adapters import AdapterEntry, AdapterIndex
from genai_core.container.manifest import Manifest, ManifestFile, ManifestTarget
from genai_core.kinds.artifact_store import ArtifactStoreSpec
from genai_core.names import Backend, Digest, Key
from genai_core.store.address import StoreAddress
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.tasks.record import Blob, Output, Record, ToolchainUsed
from genai_operator.deployments.declared import Declaration, PodReport, ReportedAdapter
from genai_operator.deployments.reconciler import DeploymentReconciler
from genai_operator.deployments.speculation import Counts, read_counts
from genai_operator.errors import Waiting
from genai_operator.jobs.access import StoreAccess
from genai_operator.kube.apiserver.api import ApiError
from genai_operator.kube.apiserver.projection import lean
from genai_operator.kube.build import build_view
from genai_operator.kube.pod import PodView, pod_view, workload_view
from genai_operator.kube.watch.observed import Observed
from genai_operator.policy import Policy
from genai_operator.settings import Settings
from genai_operator.stores.open_stores import OpenStore

IMAGE = f"registry.example/serving@sha256:{'1' * 64}"
NEWER = f"registry.example/serving@sha256:{'2' * 64}"
UID = "uid-chat"


class Room:
    """A namespace with a store and a target; the apiserver takes what it is given."""

    server = "https://10.96.0.1"

    def __init__(self, folder: Path) -> None:
        self.observed = Observed()
        self.store = DirectoryStore(folder)
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.events: list[str] = []
        self.refuses: ApiError | None = None
        self.store_down = False
        self.version = 1
        self.spec: dict[str, Any] = {"from": {"build": "tiny", "target": "cpu"}, "replicas": 2}
        self.generation = 1
        self.annotations: dict[str, str] = {}
        self.status: dict[str, Any] = {}
        self.secret_ref: dict[str, Any] = {"secretRef": {"name": "s3"}}
        self.reconciler = DeploymentReconciler(
            self,  # type: ignore[arg-type]
            self.observed,
            self,  # type: ignore[arg-type]
            ask=self.ask,
            ask_counts=self.ask_counts,
        )
        self.scrape = ""
        self.asked: list[tuple[str, list[str], str]] = []
        self.broken: dict[str, str] = {}
        self.target()

    # As the apiserver

    async def apply(self, plural: str, value: Any, *, namespace: str) -> Any:
        if self.refuses is not None:
            raise self.refuses
        name = value["metadata"]["name"]
        there = self.objects.get((plural, name), {})
        meta = {"uid": f"{plural}-{name}", "generation": 1, **there.get("metadata", {})}
        self.objects[plural, name] = value | {"metadata": meta | value["metadata"]}
        return value

    async def get(self, plural: str, name: str, **_: Any) -> Any:
        return self.objects.get((plural, name))

    async def apply_status(self, _plural: str, value: Any, **_: Any) -> Any:
        self.status = value["status"]
        meta = self._meta("chat", generation=self.generation, annotations=self.annotations)
        return {"metadata": meta, "spec": self.spec, "status": self.status}

    async def create(self, plural: str, value: Any, **_: Any) -> Any:
        if plural == "events":
            self.events.append(value["reason"])
            return
        if self.refuses is not None:
            raise self.refuses
        data = {k: b64encode(v.encode()).decode() for k, v in value["stringData"].items()}
        self.objects[plural, value["metadata"]["name"]] = value | {"data": data}

    # As the pods

    async def ask(self, pod: PodView, declared: Declaration, token: str) -> PodReport:
        """A pod takes in what it is told, but what is broken."""
        self.asked.append((pod.name, sorted(declared.paths), token))
        if pod.ip == "10.9.9.9":
            return PodReport({}, f"pod {pod.name}: its admin port does not answer")
        follows = declared.follows.revision if declared.follows is not None else pod.revision
        return PodReport(
            {
                name: ReportedAdapter(
                    declared.digests.get(name, ""),
                    name not in self.broken,
                    self.broken.get(name, ""),
                )
                for name in declared.paths
            },
            revision=follows,
        )

    async def ask_counts(self, pod: PodView, *, tls: bool) -> Counts:
        del pod, tls
        return read_counts(self.scrape)

    # As the stores

    cluster_name = "cluster"
    policy = Policy(Settings())

    @property
    def secrets(self) -> Any:
        async def get(_namespace: str, name: str) -> Any:
            return self.objects.get(("secrets", name)) or {"metadata": {"name": name}}

        return SimpleNamespace(get=get)

    async def tried(self, _namespace: str, _name: str) -> OpenStore:
        if self.store_down:
            raise Waiting("StoreNotReady", "ArtifactStore default is not ready", after=30.0)
        spec = ArtifactStoreSpec.model_validate({"bucket": "abc", **self.secret_ref})
        return OpenStore(spec, StoreAddress("abc"), None, self.store, StoreAccess("s3://abc", "s3"))

    # What stands

    def _meta(self, name: str, **given: Any) -> dict[str, Any]:
        self.version += 1
        return {
            "name": name, "namespace": "n", "uid": f"uid-{name}", "generation": 1,
            "resourceVersion": str(self.version), "creationTimestamp": "2026-01-01T00:00:00Z",
            **given,
        }  # fmt: skip

    def target(self, image: str = IMAGE) -> None:
        value = {"metadata": self._meta("cpu"), "spec": {"backend": "Cpu", "servingImage": image}}
        del value["metadata"]["namespace"]
        self.observed.targets.put(value, value)

    def build(self, *revisions: str, phase: str = "Ready") -> None:
        made = {f"sha256:{letter * 64}" for letter in "abc"}
        artifacts = [self.artifact(r) if r in made else self.listed(r) for r in revisions]
        value = {
            "metadata": self._meta("tiny"),
            "spec": {"model": {"source": "s3://m/x"}, "targets": ["cpu"]},
            "status": {"phase": phase, "artifacts": artifacts},
        }
        self.observed.builds.put(value, build_view(value))

    def adapted(self, base: str, **adapters: str) -> str:
        """A container with adapters, name -> content, and a true manifest; its revision."""
        blobs = {
            name: self.store.put_bytes(f"{name} {content}".encode())
            for name, content in adapters.items()
        }
        entries = {
            name: AdapterEntry(file=f"adapters/{name}", sha256=blob.sha256, rank=1, linears=1)
            for name, blob in blobs.items()
        }
        files = {
            "model.onnx": self.store.put_bytes(base.encode()),
            "adapters/index.json": self.store.put_bytes(AdapterIndex(adapters=entries).to_bytes()),
            **{entries[name].file: blob for name, blob in blobs.items()},
        }
        listed = {
            name: ManifestFile(sha256=blob.sha256, size=blob.size) for name, blob in files.items()
        }
        manifest = Manifest(
            model={"base": base},
            architecture="llama",
            target=ManifestTarget(name="cpu", backend=Backend.CPU),
            context_length=8,
            files=listed,
        ).with_base()
        files["manifest.json"] = self.store.put_bytes(manifest.to_bytes())
        self._commit(manifest.revision(), files)
        return manifest.revision()

    def _commit(self, revision: str, files: dict[str, Blob]) -> None:
        record = Record(
            operation="package",
            key=Key(digest_bytes(revision.encode())),
            outputs={n: Output(sha256=b.sha256, size=b.size) for n, b in files.items()},
            toolchain=ToolchainUsed(id=Digest("0" * 64)),
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
            facts={"revision": revision},
        )
        self.store.commit(record)

    def artifact(self, revision: str, index: bytes | None = None) -> dict[str, Any]:
        """A package record in the store, and what a build's status says of it."""
        manifest = self.store.put_bytes(revision.encode())
        listed = {} if index is None else {"adapters/index.json": self.store.put_bytes(index)}
        self._commit(revision, dict.fromkeys(("model.onnx", "golden.json"), manifest) | listed)
        return self.listed(revision)

    def listed(self, revision: str) -> dict[str, Any]:
        """What a build's status says of a container that is in the store."""
        url = f"s3://abc/n/records/package/{digest_bytes(revision.encode())}.json"
        return {"target": "cpu", "revision": revision, "url": url, "sizeBytes": 5}

    def observe(self, *, ready: int = 0, replicas: int = 0, **status: Any) -> str:
        """The Deployment as its controller would report it; returns how its pods are rendered."""
        value = copy.deepcopy(self.objects["deployments", "chat"])
        counts = {"readyReplicas": ready, "replicas": replicas, "updatedReplicas": replicas}
        value["status"] = {"observedGeneration": 1, **counts, **status}
        value["metadata"]["resourceVersion"] = str(self.version)
        self.version += 1
        view = workload_view(lean("deployments", value))
        assert view is not None
        self.observed.workloads.put(value, view)
        return view.rendering

    def pods(self, *pods: dict[str, Any]) -> None:
        for pod in list(self.observed.pods):
            self.observed.pods.drop(pod.namespace, pod.name, pod.uid)
        for number, status in enumerate(pods):
            template = self.objects["deployments", "chat"]["spec"]["template"]["metadata"]
            name = f"chat-{self.version}-{number}"
            meta = self._meta(name, labels=template["labels"], ownerReferences=[REPLICA_SET])
            meta |= {"annotations": template["annotations"], **status.get("metadata", {})}
            value = lean("pods", {"metadata": meta, "status": status})
            view = pod_view(value)
            if view is not None:
                self.observed.pods.put(value, view)

    def go(self) -> float | None:
        meta = self._meta("chat", generation=self.generation, annotations=self.annotations)
        value = {"metadata": meta, "spec": self.spec, "status": self.status}
        self.observed.deployments.put(value, value)
        return asyncio.run(self.reconciler.reconcile("n", "chat"))

    def serve(self) -> None:
        """A pass, and its rollout comes to its end."""
        self.go()
        self.observe(ready=2, replicas=2)
        self.pods(READY, READY)
        self.go()

    @property
    def ready(self) -> tuple[str, str]:
        (found,) = [c for c in self.status["conditions"] if c["type"] == "Ready"]
        return found["status"], found["reason"]

    @property
    def message(self) -> str:
        return str(self.status["conditions"][0]["message"])

    @property
    def applied(self) -> str:
        template = self.objects["deployments", "chat"]["spec"]["template"]["metadata"]
        return str(template["annotations"]["genai-operator.dev/revision"])


REPLICA_SET = {
    "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "chat-7f6457586c", "uid": "rs",
    "controller": True, "blockOwnerDeletion": True,
}  # fmt: skip
READY = {
    "podIP": "10.0.0.1",
    "phase": "Running",
    "conditions": [{"type": "Ready", "status": "True"}],
}
WRONG = {
    "phase": "Running",
    "containerStatuses": [
        {
            "restartCount": 1,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {
                "terminated": {
                    "exitCode": 2,
                    "message": '{"error": {"code": "GoldenMismatch", "message": "3 of 32 differ"}}',
                }
            },
        }
    ],
}
A, B, C = (f"sha256:{letter * 64}" for letter in "abc")
