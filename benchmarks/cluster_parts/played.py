"""A stage that is played: writes the records that real pods would write, without computing.

For benchmarks of the operator alone. It sees every Job, unpacks the task or chain that the Job
carries, and commits records with small files of the names that later tasks ask for. Keys are the
real ones. Of real pods, as soon as the Job is there: its pod finds the record standing and has
nothing to do. Of simulated pods, which do nothing by themselves, when they have run for as long as
was asked for: then they are marked, and end.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from cluster_parts.nodes import PLAYED
from cluster_parts.room import JOBS, PODS, Watch
from harness.cluster import Cluster
from kubernetes.client import CoreV1Api
from kubernetes.config import new_client_from_config
from tenant import BUCKET

from genai_core.facts import ModelFacts, WeightsGroup
from genai_core.names import Digest, Key
from genai_core.sources.resolved import RESOLVE, ResolvedFile, ResolvedSource
from genai_core.store.address import StoreAddress, StoreCredentials
from genai_core.store.lookup import publish
from genai_core.store.s3.s3_store import S3Store
from genai_core.tasks.chain import ChainFile, is_wanted, task_file
from genai_core.tasks.record import Record, ToolchainUsed
from genai_core.tasks.task_file import TaskFile, unpack
from genai_core.testing import record_of_task

__all__ = ["FACTS", "LAYERS", "SOURCE", "Player"]

LAYERS = 32
_GROUPS = ("embed", *(f"layer_{n:03d}" for n in range(LAYERS)), "head")
_PARAMETERS = 1_000_000
_CONFIG = {
    "model_type": "llama", "num_hidden_layers": LAYERS, "hidden_size": 1024, "vocab_size": 4096,
    "num_attention_heads": 8, "intermediate_size": 4096, "max_position_embeddings": 131072,
}  # fmt: skip
FACTS = ModelFacts(
    architecture="llama", layers=LAYERS, hidden_size=1024, vocab_size=4096,
    parameters=LAYERS * _PARAMETERS, rope={}, attention=[], boundaries=["x"] * (LAYERS + 1),
    groups={
        g: WeightsGroup(
            file=f"weights/{g}.data", size_bytes=4 * _PARAMETERS, parameters=_PARAMETERS
        )
        for g in _GROUPS
    },
)  # fmt: skip
SOURCE = ResolvedSource(
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


class _Job:
    """One as it is played."""

    def __init__(self, uid: str, document: bytes, notes: Mapping[str, str]) -> None:
        self.uid = uid
        self.document = document
        self.notes = notes
        self.kind = json.loads(document).get("kind", "")
        self.tasks = 1 + len(json.loads(notes.get("genai-operator.dev/chain", "[]")))


class Player:
    """Plays the stage for every Job of a namespace.

    Args:
        cluster: Where the Jobs are.
        namespace: Of the Jobs and of the store.
        within: Precision -> the verdict of its fidelity task; True where it is not named.
        seconds: That each task of a simulated pod takes; None: the pods are real.

    Attributes:
        jobs: UID -> each Job as it was first seen.
        played: Tasks so far.
        ended: When the last pod so far was seen to have ended, by `time.monotonic`.
        succeeded: Pods that have ended.
    """

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        *,
        within: Mapping[str, bool] | None = None,
        seconds: float | None = None,
    ) -> None:
        self._namespace = namespace
        self._within = within or {}
        self._seconds = seconds
        where = StoreAddress(BUCKET, namespace, cluster.s3_endpoint, addressing="path")
        self._store = S3Store(where, credentials=StoreCredentials(*cluster.s3_keys))
        self._shared = self._store.put_bytes(b"played")
        self._facts = self._store.put_bytes(FACTS.model_dump_json().encode())
        self._pool = ThreadPoolExecutor(4)
        self._lock = threading.Lock()
        self.played = 0
        self.ended = 0.0
        self.succeeded = 0
        self.jobs: dict[str, dict[str, Any]] = {}
        self._known: dict[str, _Job] = {}
        self._pods: dict[str, str] = {}
        self._over: set[str] = set()
        self._clock = asyncio.new_event_loop()
        threading.Thread(target=self._clock.run_forever, daemon=True).start()
        self._api = CoreV1Api(new_client_from_config(str(cluster.admin)))  # type: ignore[no-untyped-call]
        self._watches = [Watch(cluster, JOBS, self._take)]
        if seconds is not None:
            self._watches.append(Watch(cluster, PODS, self._take_pod))

    def stop(self) -> None:
        """Play no more."""
        for watch in self._watches:
            watch.stop()
        self._clock.call_soon_threadsafe(self._clock.stop)
        self._pool.shutdown()

    def _take(self, kind: str, job: dict[str, Any], _at: float) -> None:
        meta = job["metadata"]
        if kind != "ADDED" or meta["namespace"] != self._namespace or meta["uid"] in self.jobs:
            return
        self.jobs[meta["uid"]] = job
        container = job["spec"]["template"]["spec"]["containers"][0]
        text = next(e["value"] for e in container["env"] if e["name"] == "GENAI_TASK")
        seen = _Job(meta["uid"], unpack(text), meta["annotations"])
        with self._lock:
            self._known[seen.uid] = seen
            runs = self._seconds is None or seen.uid in self._pods
        if runs:
            self._begin(seen)

    def _take_pod(self, _kind: str, pod: dict[str, Any], at: float) -> None:
        meta, phase = pod["metadata"], pod["status"].get("phase")
        if meta["namespace"] != self._namespace or phase not in {"Running", "Succeeded"}:
            return
        uid = meta["labels"]["batch.kubernetes.io/controller-uid"]
        with self._lock:
            if phase == "Succeeded" and uid not in self._over:
                self._over.add(uid)
                self.ended = at
                self.succeeded += 1
            if uid in self._pods:
                return
            self._pods[uid] = meta["name"]
            job = self._known.get(uid)
        if job is not None:
            self._begin(job)

    def _begin(self, job: _Job) -> None:
        """Play it when the time is over that it takes."""

        def play() -> None:
            self._pool.submit(self._play, job).add_done_callback(lambda future: future.result())

        after = (self._seconds or 0.0) * job.tasks
        self._clock.call_soon_threadsafe(self._clock.call_later, after, play)

    def _play(self, job: _Job) -> None:
        if job.kind == "resolve":
            facts = SOURCE.model_dump(mode="json", exclude_none=True)
            self._commit(
                Record(
                    operation=RESOLVE, key=Key(job.notes["genai-operator.dev/key"]), facts=facts,
                    toolchain=ToolchainUsed(id=Digest("3" * 64)), created_at=datetime.now(UTC),
                )
            )  # fmt: skip
        elif job.kind == "chain":
            chain = ChainFile.model_validate_json(job.document)
            records = [self._task(chain.first)]
            for step in chain.then:
                if not is_wanted(step, records):
                    break
                records.append(self._task(task_file(step, chain, records)))
        else:
            self._task(TaskFile.model_validate_json(job.document))
        if self._seconds is not None:
            note = {"metadata": {"annotations": {PLAYED: "true"}}}
            self._api.patch_namespaced_pod(self._pods[job.uid], self._namespace, note)

    def _task(self, task: TaskFile) -> Record:
        own = self._store.put_bytes(task.key.encode())
        outputs = {}
        for number, path in enumerate((*_FILES[task.operation], "measured.json")):
            blob = own if number == 0 else self._shared
            if path == "facts.json":
                blob = self._facts
            outputs[path] = blob
        precision = task.id.rpartition("/")[2]
        facts = {"within": self._within.get(precision, True), "revision": f"sha256:{task.key}"}
        return self._commit(record_of_task(task, outputs, facts=facts))

    def _commit(self, record: Record) -> Record:
        publish(self._store, record)
        with self._lock:
            self.played += 1
        return record
