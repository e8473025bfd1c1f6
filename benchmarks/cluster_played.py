"""A stage that is played: writes the records that real pods would write, without computing.

For benchmarks of the operator alone. It sees every Job as it is created, unpacks the task or chain
that the Job carries, and commits records with small files of the names that later tasks ask for.
Keys are the real ones. A real pod that comes later finds its record standing and has nothing to do;
a simulated pod does nothing anyway, and is marked when its record stands: then it ends.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from cluster_nodes import PLAYED
from cluster_room import JOBS, PODS, Watch
from harness.cluster import Cluster
from kubernetes.client import CoreV1Api
from kubernetes.config import new_client_from_config
from tenant import BUCKET

from genai_core.chain import ChainFile, is_wanted, task_file
from genai_core.facts import ModelFacts, WeightsGroup
from genai_core.names import Digest, Key
from genai_core.record import Output, Record, ToolchainUsed
from genai_core.resolved import RESOLVE, ResolvedFile, ResolvedSource
from genai_core.store.lookup import publish
from genai_core.store.s3 import S3Store
from genai_core.store.s3_location import S3Credentials, S3Location
from genai_core.task import TaskFile, unpack

__all__ = ["LAYERS", "Player"]

LAYERS = 32
_GROUPS = ("embed", *(f"layer_{n:03d}" for n in range(LAYERS)), "head")
_PARAMETERS = 1_000_000
_CONFIG = {
    "model_type": "llama", "num_hidden_layers": LAYERS, "hidden_size": 1024, "vocab_size": 4096,
    "num_attention_heads": 8, "intermediate_size": 4096, "max_position_embeddings": 131072,
}  # fmt: skip
_FACTS = ModelFacts(
    architecture="llama", layers=LAYERS, hidden_size=1024, vocab_size=4096,
    parameters=LAYERS * _PARAMETERS, rope={}, attention=[], boundaries=["x"] * (LAYERS + 1),
    groups={
        g: WeightsGroup(
            file=f"weights/{g}.data", size_bytes=4 * _PARAMETERS, parameters=_PARAMETERS
        )
        for g in _GROUPS
    },
)  # fmt: skip
_SOURCE = ResolvedSource(
    digest="sha256:" + "1" * 64,
    files={
        name: ResolvedFile(path=name, sha256=f"{n:064x}", size=100)
        for n, name in enumerate(("model.onnx", "model.encodings", "config.json"))
    },
    config=_CONFIG,
    weight_bits=8,
)
_FILES = {
    "ingest": [
        "model.onnx", "facts.json", "encodings/model.encodings", "assets/config.json",
        *(f"weights/{group}.data" for group in _GROUPS),
    ],
    "arcl": ["graph.onnx", "provenance.json"],
    "transform": ["graph.onnx", "provenance.json"],
    "convert": ["graph.onnx", "graph.data", "graph.dlc", "quantization.json"],
    "compile": ["part.bin", "metadata.json"],
    "fidelity": ["fidelity.json"],
    "package": ["manifest.json", "report.json"],
}  # fmt: skip


class Player:
    """Plays the stage for every Job of a namespace.

    Args:
        cluster: Where the Jobs are.
        namespace: Of the Jobs and of the store.
        within: Precision -> the verdict of its fidelity task; True where it is not named.
    """

    def __init__(
        self, cluster: Cluster, namespace: str, *, within: Mapping[str, bool] | None = None
    ) -> None:
        self._namespace = namespace
        self._within = within or {}
        where = S3Location(BUCKET, namespace, cluster.s3_endpoint, addressing="path")
        self._store = S3Store(where, credentials=S3Credentials(*cluster.s3_keys))
        self._shared = self._store.put_bytes(b"played")
        self._facts = self._store.put_bytes(_FACTS.model_dump_json().encode())
        self._pool = ThreadPoolExecutor(4)
        self._lock = threading.Lock()
        self.played = 0
        self._seen: set[str] = set()
        self._ended: set[str] = set()
        self._pods: dict[str, str] = {}
        self._api = CoreV1Api(new_client_from_config(str(cluster.admin)))
        self._watches = [Watch(cluster, JOBS, self._take), Watch(cluster, PODS, self._take_pod)]

    def stop(self) -> None:
        """Play no more."""
        for watch in self._watches:
            watch.stop()
        self._pool.shutdown()

    def _take_pod(self, kind: str, pod: dict[str, Any], _at: float) -> None:
        meta = pod["metadata"]
        if kind != "ADDED" or meta["namespace"] != self._namespace:
            return
        uid = meta["labels"]["batch.kubernetes.io/controller-uid"]
        with self._lock:
            if uid in self._pods:
                return
            self._pods[uid] = meta["name"]
        self._pool.submit(self._mark, uid).add_done_callback(lambda future: future.result())

    def _mark(self, uid: str, *, ended: bool = False) -> None:
        """Let a simulated pod end, once it is there and its record stands."""
        with self._lock:
            if ended:
                self._ended.add(uid)
            name = self._pods.get(uid, "") if uid in self._ended else ""
        if name:
            note = {"metadata": {"annotations": {PLAYED: "true"}}}
            self._api.patch_namespaced_pod(name, self._namespace, note)

    def _take(self, kind: str, job: dict[str, Any], _at: float) -> None:
        meta = job["metadata"]
        if kind != "ADDED" or meta["namespace"] != self._namespace or meta["uid"] in self._seen:
            return
        self._seen.add(meta["uid"])
        container = job["spec"]["template"]["spec"]["containers"][0]
        text = next(e["value"] for e in container["env"] if e["name"] == "GENAI_TASK")
        self._pool.submit(
            self._play, unpack(text), meta["annotations"], meta["uid"]
        ).add_done_callback(lambda future: future.result())

    def _play(self, document: bytes, notes: dict[str, str], uid: str) -> None:
        kind = json.loads(document).get("kind", "")
        if kind == "resolve":
            facts = _SOURCE.model_dump(mode="json", exclude_none=True)
            self._commit(RESOLVE, notes["genai-operator.dev/key"], {}, facts)
        elif kind == "chain":
            chain = ChainFile.model_validate_json(document)
            records = [self._task(chain.first)]
            for step in chain.then:
                if not is_wanted(step, records):
                    break
                records.append(self._task(task_file(step, chain, records)))
        else:
            self._task(TaskFile.model_validate_json(document))
        self._mark(uid, ended=True)

    def _task(self, task: TaskFile) -> Record:
        own = self._store.put_bytes(task.key.encode())
        outputs = {}
        for number, path in enumerate((*_FILES[task.operation], "measured.json")):
            blob = own if number == 0 else self._shared
            if path == "facts.json":
                blob = self._facts
            outputs[path] = Output(sha256=blob.sha256, size=blob.size)
        precision = task.id.rpartition("/")[2]
        facts = {"within": self._within.get(precision, True), "revision": f"sha256:{task.key}"}
        return self._commit(task.operation, task.key, outputs, facts)

    def _commit(
        self, operation: str, key: str, outputs: dict[str, Output], facts: dict[str, Any]
    ) -> Record:
        record = Record(
            operation=operation, key=Key(key), outputs=outputs, facts=facts,
            toolchain=ToolchainUsed(id=Digest("3" * 64)), created_at=datetime.now(UTC),
        )  # fmt: skip
        publish(self._store, record)
        with self._lock:
            self.played += 1
        return record
