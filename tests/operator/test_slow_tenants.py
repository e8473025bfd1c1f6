"""A tenant whose servers answer slowly, or never, is waited for by nobody but itself."""

from __future__ import annotations

import asyncio
import base64
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
from fake_apiserver import FakeApiserver

from genai_operator import threads
from genai_operator.errors import Waiting
from genai_operator.kube.watch.kinds import Ref
from genai_operator.manager import controller as controller_module
from genai_operator.manager.controller import Controller
from genai_operator.manager.work_queue import WorkQueue
from genai_operator.settings import Settings
from genai_operator.stores import endpoints
from genai_operator.threads import Threads, in_thread

API_VERSION = "genai-operator.dev/v1alpha1"


class Dripping:
    """An S3 server that announces a long answer and sends a byte of it now and then."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._socket.getsockname()[1]
        self.asked = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.asked += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    @staticmethod
    def _serve(connection: socket.socket) -> None:
        with suppress(OSError):
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n<")
            while True:
                time.sleep(0.2)
                connection.sendall(b" ")


def apiserver() -> FakeApiserver:
    """It has the tenant's Secret, and the objects that were applied."""
    api = FakeApiserver()
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    labels = {"genai-operator.dev/use": "true"}
    api.put("secrets", {
        "metadata": {"namespace": "slow", "name": "s3", "labels": labels},
        "data": {key: base64.b64encode(b"test").decode() for key in keys},
    })  # fmt: skip
    return api


def meta(namespace: str, name: str) -> dict[str, Any]:
    made = {"creationTimestamp": "2026-01-01T00:00:00Z", "uid": f"u-{name}"}
    return {
        "name": name,
        "namespace": namespace,
        "generation": 1,
        "resourceVersion": "1",
        **made,
    }


def slow_store(name: str, port: int) -> dict[str, Any]:
    spec = {
        "bucket": "artifacts",
        "endpoint": f"http://127.0.0.1:{port}",
        "secretRef": {"name": "s3"},
    }
    return {
        "apiVersion": API_VERSION,
        "kind": "ArtifactStore",
        "metadata": meta("slow", name),
        "spec": spec,
    }


def build(namespace: str, name: str) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": "GenAIBuild",
        "metadata": meta(namespace, name),
        "spec": {"model": {"source": "s3://models/m"}, "targets": ["nowhere"]},
    }


def test_run_reaches_other_namespaces_soon_when_a_tenants_endpoints_drip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(controller_module, "_SLOW_PASS", 0.5)
    monkeypatch.setattr(endpoints, "why_refused", lambda _address: None)
    server, api = Dripping(), apiserver()

    async def scenario() -> None:
        controller = Controller(api, Settings(collect_hours=0, workers=4))
        running = asyncio.create_task(controller.run(lambda: True))
        await asyncio.sleep(0)
        for number in range(40):
            store = api.put("artifactstores", slow_store(f"s{number}", server.port))
            controller.take("artifactstores", "ADDED", store)
        for _ in range(200):  # until every worker is at one of them
            await asyncio.sleep(0.05 if server.asked < 4 else 0)
        assert server.asked >= 4
        began = time.monotonic()
        for number in range(20):
            value = api.put("genaibuilds", build("victim", f"b{number}"))
            controller.take("genaibuilds", "ADDED", value)
        while not all("status" in value for value in api.of("genaibuilds")):
            assert time.monotonic() - began < 10, "other tenants wait for the slow one"
            await asyncio.sleep(0.05)
        # The slow tenant has no more calls out than it may, for all of its forty stores.
        assert server.asked <= 8
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    asyncio.run(scenario())


def test_in_thread_gives_up_and_asks_no_more_when_a_call_does_not_come_back() -> None:
    free, made = threading.Event(), Counter[str]()

    def hang(name: str) -> str:
        made[name] += 1
        free.wait(30)
        return name

    async def scenario() -> None:
        calls = Threads(seconds=0.1, most=2)
        for name in ("a", "a", "b", "c"):
            with calls.working_on(Ref("artifactstores", "slow", name)):
                began = time.monotonic()
                with pytest.raises(Waiting, match="has not answered"):
                    await in_thread(hang, name)
                assert time.monotonic() - began < 5
        assert made == {"a": 1, "b": 1}, "one call an object, two calls a namespace"
        with calls.working_on(Ref("artifactstores", "other", "a")):
            assert await in_thread(lambda: 7) == 7
        free.set()
        for _ in range(200):
            await asyncio.sleep(0.01 if calls.out("slow") else 0)
        with calls.working_on(Ref("artifactstores", "slow", "a")):
            assert await in_thread(hang, "a") == "a"

    asyncio.run(scenario())


def test_in_thread_hands_on_what_a_call_raised() -> None:
    async def scenario() -> None:
        with (
            Threads().working_on(Ref("artifactstores", "n", "a")),
            pytest.raises(ZeroDivisionError),
        ):
            await in_thread(lambda: 1 // 0)

    asyncio.run(scenario())


def test_in_thread_keeps_a_timeout_of_the_call_itself() -> None:
    def late() -> None:
        raise TimeoutError("the server's own")

    async def scenario() -> None:
        with (
            Threads().working_on(Ref("artifactstores", "n", "a")),
            pytest.raises(TimeoutError, match="the server's own"),
        ):
            await in_thread(late)

    asyncio.run(scenario())


def test_process_ends_when_a_call_is_still_out() -> None:
    """asyncio's own pool would be waited for."""
    began = time.monotonic()

    async def scenario() -> None:
        with (
            Threads(seconds=0.05).working_on(Ref("artifactstores", "n", "a")),
            pytest.raises(Waiting),
        ):
            await in_thread(time.sleep, 20)

    asyncio.run(scenario())
    assert time.monotonic() - began < 10
    assert threads.CALL_SECONDS <= controller_module._LONGEST_PASS


def test_queue_holds_a_slow_group_to_one_more_key_and_another_group_to_none() -> None:
    async def scenario() -> None:
        queue: WorkQueue[str] = WorkQueue(group=lambda key: key[0])
        for key in ("a1", "a2", "a3", "a4", "b1", "b2"):
            queue.add(key)
        assert [await queue.get() for _ in range(3)] == ["a1", "b1", "a2"]
        queue.slow("a1")  # a2 is being worked on beside it, so no further one of this group
        assert await queue.get() == "b2"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.get(), 0.02)
        queue.done("a2")
        assert await queue.get() == "a3"
        queue.slow("a3")  # two: none
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.get(), 0.02)
        queue.done("a1")
        assert await queue.get() == "a4"
        queue.done("a3")
        queue.done("a4")
        assert len(queue) == 0

    asyncio.run(scenario())


def test_queue_forgets_a_key_when_its_group_is_held() -> None:
    async def scenario() -> None:
        queue: WorkQueue[str] = WorkQueue(group=lambda key: key[0])
        for key in ("a1", "a2", "a3"):
            queue.add(key)
        for _ in range(2):
            queue.slow(await queue.get())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.get(), 0.02)
        queue.forget("a3")
        queue.done("a1")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.get(), 0.02)
        queue.add("a3")
        assert await queue.get() == "a3"

    asyncio.run(scenario())
