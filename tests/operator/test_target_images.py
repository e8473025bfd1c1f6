"""A target whose image is nowhere says so itself, and no fault of a tenant's own makes it so."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_apiserver import FakeApiserver

from genai_core.names import Backend
from genai_core.wire import JOB_NAME
from genai_operator.kube.status.conditions import condition_of
from genai_operator.kube.watch.kinds import Ref
from genai_operator.manager.controller import Controller
from genai_operator.settings import Settings
from genai_operator.targets.build_targets import needed_libraries

IMAGE = "registry.example/genai-stages@sha256:" + "40" + "0" * 60 + "13"
CONTAINERD = (
    f'Back-off pulling image "{IMAGE}": ErrImagePull: rpc error: code = NotFound desc = failed to '
    f'pull and unpack image "{IMAGE}": failed to resolve reference "{IMAGE}": {IMAGE}: not found'
)
CRIO = (
    f"initializing source docker://{IMAGE}: reading manifest sha256:{IMAGE[-64:]} in "
    "registry.example/genai-stages: manifest unknown"
)
NO_SECRET = (
    f'failed to pull and unpack image "{IMAGE}": failed to resolve reference "{IMAGE}": failed to '
    "authorize: failed to fetch anonymous token: unexpected status: 401 Unauthorized"
)
DOCKER_HUB = (
    f'failed to resolve reference "{IMAGE}": pull access denied, repository does not exist or may '
    "require authorization: server message: insufficient_scope: authorization failed: not found"
)
OTHER_CHIP = (
    f'rpc error: code = NotFound desc = failed to pull and unpack image "{IMAGE}": no match for '
    "platform in manifest: not found"
)
ELSEWHERE = 'failed to resolve reference "other/image:1": other/image:1: not found'
NO_SERVER = f'failed to do request: Head "https://x/{IMAGE}": dial tcp: connection refused'


class Room:
    def __init__(self) -> None:
        self.api = FakeApiserver()
        self.controller = Controller(self.api, Settings())
        self.version = 0
        self.value: dict[str, Any] = {}
        self.api.watchers.append(self._hear)
        self.edit(IMAGE)

    def edit(self, image: str) -> None:
        libraries = dict.fromkeys(needed_libraries(Backend.CPU), "1")
        spec = {"backend": "Cpu", "image": image, "toolchain": libraries}
        self.version += 1
        meta = {"name": "cpu", "uid": "t", "generation": self.version}
        self.api.put("genaitargets", {**self.value, "metadata": meta, "spec": spec})

    def _hear(self, plural: str, kind: str, value: dict[str, Any]) -> None:
        if plural == "genaitargets":
            self.value = value
            self.controller.take(plural, kind, value)

    def pod(self, name: str, words: str = "", *, image: str = IMAGE, namespace: str = "n") -> None:
        """A pod that waits for its image, or runs."""
        state = {"waiting": {"reason": "ErrImagePull", "message": words}} if words else {}
        self.version += 1
        self.controller.take("pods", "MODIFIED", {
            "metadata": {
                "namespace": namespace, "name": name, "uid": f"{namespace}-{name}",
                "resourceVersion": str(self.version), "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {JOB_NAME: "j"},
            },
            "spec": {"containers": [{"name": "stage", "image": image}], "nodeName": "node"},
            "status": {"phase": "Pending" if words else "Running",
                       "containerStatuses": [{"state": state}]},
        })  # fmt: skip

    def gone(self, name: str) -> None:
        self.controller.vanished("pods", "n", name, uid=f"n-{name}")

    def ready(self) -> tuple[str, str]:
        """Of the target, after everything that is due was worked on."""
        queue = self.controller.queue
        while len(queue):
            ref = asyncio.run(queue.get())
            if ref == Ref("genaitargets", "", "cpu"):
                reconciler = self.controller.kinds[ref.plural].reconciler
                asyncio.run(reconciler.reconcile("", "cpu"))
            queue.done(ref)
        found = condition_of(self.value["status"], "Ready")
        assert found is not None
        return found["status"], found["reason"]

    @property
    def message(self) -> str:
        found = condition_of(self.value["status"], "Ready")
        assert found is not None
        return str(found["message"])


GOOD, ABSENT = ("True", "Ready"), ("False", "ImagePullFailed")


@pytest.mark.parametrize("words", [CONTAINERD, CRIO])
def test_reconcile_says_image_pull_failed_when_the_registry_has_no_such_image(words: str) -> None:
    room = Room()
    assert room.ready() == GOOD
    room.pod("a", words)
    assert room.ready() == ABSENT
    assert IMAGE[-64:] in room.message
    assert "correct spec.image" in room.message
    assert "Back-off" not in room.message
    assert condition_of(room.value["status"], "Stalled") is not None
    assert room.api.reasons == ["Ready", "ImagePullFailed"]


@pytest.mark.parametrize(
    "words", [NO_SECRET, DOCKER_HUB, OTHER_CHIP, ELSEWHERE, NO_SERVER, "InvalidImageName"]
)
def test_reconcile_leaves_a_target_ready_when_the_fault_may_be_the_pods_own(words: str) -> None:
    room = Room()
    room.pod("a", words)
    assert room.ready() == GOOD


def test_reconcile_leaves_a_target_ready_when_a_pod_of_another_image_fails() -> None:
    room = Room()
    room.pod("a", CONTAINERD.replace(IMAGE, IMAGE + "0"), image=IMAGE + "0")
    assert room.ready() == GOOD


def test_reconcile_leaves_a_target_ready_while_any_pod_runs_its_image() -> None:
    room = Room()
    room.pod("runs", namespace="other")
    room.pod("a", CONTAINERD)
    assert room.ready() == GOOD


def test_reconcile_keeps_what_pods_showed_until_one_runs() -> None:
    room = Room()
    room.pod("a", CONTAINERD)
    assert room.ready() == ABSENT
    room.gone("a")
    room.controller.queue.add(Ref("genaitargets", "", "cpu"))
    assert room.ready() == ABSENT, "nobody has shown otherwise"
    anew = Room()  # another process, which reads the status
    meta = {name: room.value["metadata"][name] for name in ("name", "uid", "generation")}
    anew.api.put("genaitargets", {**room.value, "metadata": meta})
    anew.controller.queue.add(Ref("genaitargets", "", "cpu"))
    assert anew.ready() == ABSENT
    anew.version = 60
    anew.pod("b")
    assert anew.ready() == GOOD


def test_reconcile_forgets_what_pods_showed_when_the_spec_changes() -> None:
    room = Room()
    room.pod("a", CONTAINERD)
    assert room.ready() == ABSENT
    room.edit(IMAGE.replace("registry.", "mirror."))
    assert room.ready() == GOOD
