"""A control plane and a kubelet in one process, as unreliable as one likes: for whole builds.

Answers are lost, watches lag and lose events, stages crash, pods take their time to end. Stages are
played: they commit records with the real keys. Whoever begins a task that another pod is at, breaks
the promise, and that is noted at once.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, cast

from fake_apiserver import FakeApiserver
from test_chained_tasks import FACTS, FILES, SOURCE

from genai_core.kinds.artifact_store import ArtifactStoreSpec
from genai_core.names import Digest, Key
from genai_core.operations import OPERATIONS
from genai_core.sources.resolved import RESOLVE
from genai_core.store.address import StoreAddress
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.tasks.chain import ChainFile, is_wanted, task_file
from genai_core.tasks.record import Record, ToolchainUsed
from genai_core.tasks.task_file import TaskFile, unpack
from genai_core.testing import record_of_task
from genai_core.wire import OPERATION
from genai_operator.jobs.access import StoreAccess
from genai_operator.kube.apiserver.api import Api
from genai_operator.kube.apiserver.projection import OURS
from genai_operator.manager.controller import Controller
from genai_operator.settings import Settings
from genai_operator.stores.open_stores import OpenStore, Stores

NAMESPACE = "n"
JOB_LABEL = "batch.kubernetes.io/job-name"
Value = dict[str, Any]


def rfc(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Weather:
    """How bad it is: probabilities, and the longest delay in seconds."""

    lost: float = 0.0
    crashes: float = 0.0
    missed: float = 0.0
    delay: float = 0.005


@dataclass
class World:
    """An apiserver in memory, and pods that run what Jobs ask for."""

    folder: Path
    rng: Random
    weather: Weather = field(default_factory=Weather)
    api: FakeApiserver = field(default_factory=FakeApiserver)
    faults: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    """Of the one node."""
    anywhere: frozenset[str] = frozenset()
    """Operations whose pods run whatever they ask for."""
    no_pods: bool = False
    """A quota leaves none."""

    def __post_init__(self) -> None:
        self.store = DirectoryStore(self.folder)
        self._running: dict[str, str] = {}
        self._stopping: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        # As if all had been there for a while: none of what comes is in its first second.
        self.api.clock = lambda: datetime.now(UTC) - timedelta(seconds=5)
        self.api.watchers.append(self._follow)

    # Objects

    def of(self, plural: str) -> list[Value]:
        return self.api.of(plural)

    def find(self, plural: str, name: str) -> Value | None:
        there = [value for value in self.of(plural) if value["metadata"]["name"] == name]
        return there[0] if there else None

    def put(self, plural: str, value: Value, *, spec_changed: bool = False) -> None:
        """Create or change an object."""
        meta = {**value["metadata"]}
        if plural != "genaitargets":
            meta["namespace"] = NAMESPACE
        if spec_changed:
            meta["generation"] += 1
        meta.pop("resourceVersion", None)
        self.api.put(plural, {**value, "metadata": meta})

    def remove(self, plural: str, name: str) -> None:
        self.api.remove(plural, name, namespace=NAMESPACE)

    @property
    def events(self) -> list[tuple[str, str]]:
        """Object and reason of each Event."""
        return [(event["involvedObject"]["name"], event["reason"]) for event in self.api.events]

    def _follow(self, plural: str, kind: str, value: Value) -> None:
        """What other controllers of a cluster do about a change: run Jobs, collect garbage."""
        if (plural, kind) == ("jobs", "ADDED"):
            self._start(value)
        elif (plural, kind) == ("jobs", "DELETED"):
            for pod in self.of("pods"):
                if pod["metadata"]["labels"][JOB_LABEL] == value["metadata"]["name"]:
                    self._end_pod(pod)
        elif (plural, kind) == ("genaibuilds", "DELETED"):
            for job in self.of("jobs"):
                self._disown(job, value["metadata"]["uid"])

    def _disown(self, job: Value, uid: str) -> None:
        owners = job["metadata"].get("ownerReferences", [])
        left = [owner for owner in owners if owner["uid"] != uid]
        if not left and owners:
            self.remove("jobs", job["metadata"]["name"])
        elif left != owners:
            job["metadata"]["ownerReferences"] = left
            self.put("jobs", job)

    async def pause(self, factor: float = 1.0) -> None:
        await asyncio.sleep(self.rng.random() * self.weather.delay * factor)

    # Pods

    def _end_pod(self, pod: Value) -> None:
        """It is asked to stop; one that runs takes a moment."""
        name = pod["metadata"]["name"]
        if pod["status"]["phase"] != "Running":
            self.remove("pods", name)
            return
        self._stopping.add(name)
        pod["metadata"]["deletionTimestamp"] = rfc(datetime.now(UTC))
        self.put("pods", pod)

    def _start(self, job: Value) -> None:
        task = asyncio.ensure_future(self._run(job["metadata"]["name"], job["metadata"]["uid"]))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _job(self, name: str, uid: str) -> Value | None:
        job = self.find("jobs", name)
        return job if job is not None and job["metadata"]["uid"] == uid else None

    async def _run(self, name: str, uid: str) -> None:
        await self.pause()
        job = self._job(name, uid)
        while job is not None and self.no_pods:
            await asyncio.sleep(0.01)
            job = self._job(name, uid)
        if job is None:
            return
        pod_name = f"{name}-{uid}"
        labels = {JOB_LABEL: name, "app.kubernetes.io/managed-by": "genai-operator"}
        pod: Value = {
            "metadata": {"name": pod_name, "labels": labels, "ownerReferences": [{"uid": uid}]},
            "spec": {"nodeName": ""},
            "status": {"phase": "Pending"},
        }
        self.put("pods", pod)
        if not await self._scheduled(pod_name, job):
            return
        container = job["spec"]["template"]["spec"]["containers"][0]
        text = next(e["value"] for e in container["env"] if e["name"] == "GENAI_TASK")
        code, message = await self._stage(pod_name, unpack(text), job["metadata"]["annotations"])
        if pod_name in self._stopping:
            await self.pause(3)  # what is left of its grace
            self.remove("pods", pod_name)
            return
        pod = self._pod(pod_name)
        pod["status"] = {
            "phase": "Failed" if code else "Succeeded",
            "containerStatuses": [
                {"state": {"terminated": {"exitCode": code, "message": json.dumps(message)}}}
            ],
        }
        self.put("pods", pod)
        await self.pause(3)
        job = self._job(name, uid)
        if job is not None:
            # A failure long ago: what is waited for after one is over.
            ended = rfc(datetime.now(UTC) - timedelta(minutes=2 if code else 0))
            kind = "Failed" if code else "Complete"
            job["status"] = {
                "conditions": [{"type": kind, "status": "True", "lastTransitionTime": ended}]
            }
            self.put("jobs", job)

    def _pod(self, name: str) -> Value:
        pod = self.find("pods", name)
        assert pod is not None, "nobody else ends a pod that runs"
        return pod

    async def _scheduled(self, name: str, job: Value) -> bool:
        """Wait for a node that the pod may run on; False where it is deleted before."""
        wanted = job["spec"]["template"]["spec"].get("nodeSelector", {})
        operation = job["metadata"]["labels"][OPERATION]
        while (pod := self.find("pods", name)) is not None:
            if operation in self.anywhere or wanted.items() <= self.labels.items():
                self.put(
                    "pods", pod | {"spec": {"nodeName": "node"}, "status": {"phase": "Running"}}
                )
                return True
            if "conditions" not in pod["status"]:
                unscheduled = {"type": "PodScheduled", "status": "False", "message": "no node"}
                pod["status"]["conditions"] = [unscheduled]
                self.put("pods", pod)
            await asyncio.sleep(0.01)
        return False

    async def _stage(
        self, pod: str, document: bytes, notes: dict[str, str]
    ) -> tuple[int, dict[str, Any]]:
        value = json.loads(document)
        if value.get("kind") == RESOLVE:
            key = Key(notes["genai-operator.dev/key"])
            facts = SOURCE.model_dump(mode="json", exclude_none=True)
            question = Record(
                operation=RESOLVE, key=key, facts=facts, created_at=datetime.now(UTC),
                toolchain=ToolchainUsed(id=Digest("3" * 64)),
            )  # fmt: skip
            if not await self._task(pod, RESOLVE, key, lambda: question):
                return 137, {}
            return 0, {"record": key}
        chain = ChainFile.model_validate_json(document) if value.get("kind") == "chain" else None
        first = chain.first if chain else TaskFile.model_validate_json(document)
        records: list[Record] = []
        for number in range(1 + len(chain.then if chain else ())):
            task = first
            if number:
                assert chain is not None
                if not is_wanted(chain.then[number - 1], records):
                    break
                task = task_file(chain.then[number - 1], chain, records)
            record = await self._task(
                pod, task.operation, Key(task.key), partial(self._record, task)
            )
            if record is None:
                return 137, {"step": number}
            records.append(record)
        return 0, {"step": len(records) - 1}

    async def _task(
        self, pod: str, operation: str, key: Key, made: Callable[[], Record]
    ) -> Record | None:
        standing = self.store.get_record(operation, key)
        if standing is not None:
            return standing.record
        if key in self._running:
            self.faults.append(f"{operation} {key[:8]} runs in {self._running[key]} and in {pod}")
        self._running[key] = pod
        try:
            await self.pause(4)
            if pod in self._stopping or self.rng.random() < self.weather.crashes:
                await self.pause(2)
                return None
            record = made()
            self.store.commit(record)
            self.done.append(f"{operation}/{key}")
            return record
        finally:
            self._running.pop(key, None)

    def _record(self, task: TaskFile) -> Record:
        outputs = {}
        for path in FILES.get(task.operation, ["out.bin", "measured.json"]):
            text = FACTS.model_dump_json() if path == "facts.json" else f"{task.key}{path}"
            outputs[path] = self.store.put_bytes(text.encode())
        facts = {"within": True, "revision": f"sha256:{task.key}"}
        return record_of_task(task, outputs, facts=facts)


class LossyApi:
    """An operator's way to the apiserver; answers may be lost, before or after the deed."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.alive = True

    def __getattr__(self, name: str) -> Any:
        """A method of `Api`; the address of the server is no request."""
        method = getattr(self._world.api, name)
        if not callable(method):
            return method

        async def sent(*arguments: Any, **named: Any) -> Any:
            await self._world.pause()
            self._maybe_lost()
            answer = await method(*arguments, **named)
            self._maybe_lost()
            return answer

        return sent

    def _maybe_lost(self) -> None:
        if not self.alive or self._world.rng.random() < self._world.weather.lost:
            raise TimeoutError("no answer")


class Replica:
    """An operator: its watches, its controller, and whether it leads."""

    def __init__(self, world: World, *, chain_tasks: int) -> None:
        self._world = world
        self.client = LossyApi(world)
        self.leads = True
        settings = Settings(chain_tasks=chain_tasks, compare_seconds=0.2, collect_hours=0)
        self._controller = Controller(cast("Api", self.client), settings)
        self._told: dict[str, asyncio.Queue[tuple[str, Value]]] = {
            plural: asyncio.Queue() for plural in (*OURS, "jobs", "pods")
        }
        world.api.watchers.append(self._hear)
        self._tasks = [asyncio.ensure_future(self._watch(plural)) for plural in self._told]
        self._tasks.append(asyncio.ensure_future(self._live()))

    def _hear(self, plural: str, kind: str, value: Value) -> None:
        if plural in self._told:  # Events, say, are written and not watched
            self._told[plural].put_nowait((kind, value))

    async def _watch(self, plural: str) -> None:
        while True:
            kind, value = await self._told[plural].get()
            await self._world.pause(4)
            if self._world.rng.random() >= self._world.weather.missed:
                self._controller.take(plural, kind, value)

    async def _live(self) -> None:
        while True:  # a process that cannot begin is started again
            try:
                await self._controller.run(lambda: self.leads)
            except TimeoutError:
                await asyncio.sleep(0.01)

    def kill(self) -> None:
        """At once, in the middle of whatever it is at."""
        self._world.api.watchers.remove(self._hear)
        self.client.alive = False
        for task in self._tasks:
            task.cancel()


def build(name: str, **spec: Any) -> Value:
    known = {
        "model": {"source": "s3://models/tiny"},
        "targets": ["cpu"],
        "run": {"retries": 10, "ttlSecondsAfterFinished": 3600},
    }
    return {"metadata": {"name": name}, "spec": known | spec, "status": {"observedGeneration": -1}}


def furnished(world: World) -> None:
    """A target and a store, as a user applies them."""
    unseen = {"observedGeneration": -1}
    versions = {name: "1" for row in OPERATIONS for name in row.libraries}
    image = "r/stages@sha256:" + "2" * 64
    spec: Value = {"backend": "Cpu", "image": image, "toolchain": versions}
    world.put("genaitargets", {"metadata": {"name": "cpu"}, "spec": spec, "status": dict(unseen)})
    spec = {"bucket": "genai", "secretRef": {"name": "s3"}}
    world.put(
        "artifactstores", {"metadata": {"name": "default"}, "spec": spec, "status": dict(unseen)}
    )


def opener(world: World) -> Any:
    """`Stores.open`, with a folder for a bucket."""

    async def open_store(stores: Stores, value: Value) -> OpenStore:
        known: OpenStore | None = getattr(stores, "played", None)
        if known is None:
            spec = ArtifactStoreSpec.model_validate(value["spec"])
            where = StoreAddress("genai", NAMESPACE)
            access = StoreAccess(address=str(where), secret="s3")
            known = OpenStore(spec, where, None, world.store, access)
            stores.played = known  # type: ignore[attr-defined]
        return known

    return open_store
