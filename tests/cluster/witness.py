"""Sees what really ran: every stage's container, when it began, when it ended.

The operator's own view is no proof that no task ran twice at once. This one is taken from outside:
pods and Jobs by watches of kubectl, and the exact times of containers from each node's containerd
where the cluster is the harness's own. A container whose node was killed ended with it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from harness.cluster import Cluster

SELECTOR = "app.kubernetes.io/managed-by=genai-operator"
KEY, TASK, CHAIN = (f"genai-operator.dev/{name}" for name in ("key", "task", "chain"))
_EVENT = re.compile(r"^(\S+ \S+) \+0000 UTC \S+ (/tasks/(?:start|exit)) (\{.*\})$")


@dataclass
class Run:
    """One container of a stage; times in seconds since the epoch, None: not yet."""

    namespace: str
    pod: str
    job: str
    node: str = ""
    container: str = ""
    began: float | None = None
    ended: float | None = None
    exit_code: int | None = None


@dataclass
class Witness:
    """See the module's docstring; one for a whole cluster."""

    cluster: Cluster
    _keys: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    _tasks: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    _runs: dict[str, Run] = field(default_factory=dict)
    _started: dict[str, float] = field(default_factory=dict)
    _exited: dict[str, float] = field(default_factory=dict)
    _node_ends: dict[str, list[float]] = field(default_factory=dict)
    _stopping: bool = False
    _children: list[subprocess.Popen[str]] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Begin to watch."""
        for kind, take in (("jobs", self._take_job), ("pods", self._take_pod)):
            self._begin(self._watch, kind, take)
        for node in self.cluster.nodes:
            self._begin(self._listen, node.name, str(node.socket))

    def _begin(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        thread.start()
        self._threads.append(thread)

    def stop(self) -> None:
        """End it."""
        self._stopping = True
        for child in self._children:
            child.kill()
        for thread in self._threads:
            thread.join(10)

    def runs(self, namespace: str) -> dict[str, list[Run]]:
        """Key (or derivation) of a task -> its containers that ran, in order."""
        found: dict[str, list[Run]] = {}
        for run in sorted(self._exact(namespace), key=lambda run: run.began or 0.0):
            for key in self._keys.get((namespace, run.job), ()):
                found.setdefault(key, []).append(run)
        return found

    def overlaps(self, namespace: str) -> list[str]:
        """Tasks of which two containers ran at the same time, in words."""
        found = []
        for key, runs in self.runs(namespace).items():
            for before, after in itertools.pairwise(runs):
                assert before.began is not None
                assert after.began is not None
                if before.ended is None or before.ended > after.began:
                    found.append(
                        f"{key[:12]} of {self._tasks.get((namespace, before.job))}: {before} "
                        f"and {after}"
                    )
        return found

    def missed(self, pods: Iterable[Mapping[str, Any]]) -> set[str]:
        """Which of these pods ran and were not seen, or seen without the tasks of their Job."""
        return {
            pod["metadata"]["name"]
            for pod in pods
            if pod["status"].get("phase") in {"Running", "Succeeded", "Failed"}
            and (
                (run := self._runs.get(pod["metadata"]["uid"])) is None
                or not self._keys.get((run.namespace, run.job))
            )
        }

    def most_at_once(self, namespace: str) -> int:
        """How many containers of stages ran at the same time, at the most."""
        changes = sorted(
            change
            for run in self._exact(namespace)
            for change in ((run.began or 0.0, 1), (run.ended or float("inf"), -1))
        )
        most = now = 0
        for _, step in changes:
            now += step
            most = max(most, now)
        return most

    def jobs(self, namespace: str) -> set[str]:
        """Names of all Jobs that were ever there."""
        return {name for space, name in self._tasks if space == namespace}

    def operations(self, namespace: str, *, but: Collection[str] = ()) -> set[str]:
        """Of all tasks that Jobs were made for, those of some Jobs left out."""
        return {
            task.partition("/")[0]
            for (space, name), tasks in self._tasks.items()
            if space == namespace and name not in but
            for task in tasks
        }

    def _exact(self, namespace: str) -> Iterator[Run]:
        for run in list(self._runs.values()):
            if run.namespace != namespace or run.began is None:
                continue
            began = self._started.get(run.container, run.began)
            died = [t for t in self._node_ends.get(run.node, ()) if t > began]
            ended = self._exited.get(run.container, died[0] if died else run.ended)
            yield Run(**{**run.__dict__, "began": began, "ended": ended})

    # What is watched

    def _watch(self, kind: str, take: Any) -> None:
        while not self._stopping:
            child = subprocess.Popen(
                [
                    "kubectl", "--kubeconfig", str(self.cluster.admin), "get", kind, "-A", "-l",
                    SELECTOR, "--watch", "--output-watch-events", "-o", "json",
                ],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
            self._children.append(child)
            assert child.stdout is not None
            with child:
                for line in child.stdout:
                    with contextlib.suppress(ValueError):  # cut off with its stream
                        take(**json.loads(line))
            time.sleep(0.2)  # an apiserver that is restarted: the next listing says what is there

    def _take_job(self, *, type: str, object: dict[str, Any]) -> None:  # noqa: A002
        del type
        meta = object["metadata"]
        place = (meta["namespace"], meta["name"])
        notes = meta.get("annotations", {})
        chain = json.loads(notes.get(CHAIN, "[]"))
        self._tasks[place] = [notes.get(TASK, ""), *(link[0] for link in chain)]
        self._keys[place] = [notes.get(KEY, ""), *(link[2] for link in chain)]

    def _take_pod(self, *, type: str, object: dict[str, Any]) -> None:  # noqa: A002
        meta, status = object["metadata"], object.get("status") or {}
        run = self._runs.setdefault(
            meta["uid"],
            Run(meta["namespace"], meta["name"], meta["labels"].get("job-name", "")),
        )
        run.node = object["spec"].get("nodeName", "")
        for entry in status.get("containerStatuses") or ():
            run.container = entry.get("containerID", "").rpartition("/")[2] or run.container
            state = entry.get("state") or {}
            if "running" in state:
                run.began = _time(state["running"]["startedAt"])
            elif ended := state.get("terminated"):
                run.exit_code = ended["exitCode"]
                if ended.get("startedAt") and ended.get("containerID"):
                    run.began = _time(ended["startedAt"])
                    run.ended = _time(ended["finishedAt"])
        if type == "DELETED" and run.began is not None and run.ended is None:
            run.ended = datetime.now(UTC).timestamp()

    def _listen(self, node: str, socket: str) -> None:
        while not self._stopping:
            child = subprocess.Popen(
                ["ctr", "-a", socket, "-n", "k8s.io", "events"],
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
            self._children.append(child)
            assert child.stdout is not None
            with child:
                for line in child.stdout:
                    self._take_event(line.strip())
            # The node's containerd is dead, and with it, by the tests' own hand, what it ran.
            self._node_ends.setdefault(node, []).append(datetime.now(UTC).timestamp())
            time.sleep(1)

    def _take_event(self, line: str) -> None:
        if match := _EVENT.match(line):
            when, topic, body = match.groups()
            event = json.loads(body)
            at = datetime.fromisoformat(f"{when[:26]}+00:00").timestamp()
            container = event["container_id"]
            if topic == "/tasks/start":
                self._started[container] = at
            elif event.get("id", container) == container:
                self._exited[container] = at


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
