"""What is counted: by whom, under which labels, and that no series can grow without bound."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from fake_apiserver import FakeApiserver
from prometheus_client import REGISTRY, generate_latest

from genai_core.names import Digest
from genai_core.store.address import StoreAddress, StoreCredentials
from genai_core.store.s3.client import shared_session
from genai_core.store.s3.s3_store import S3Store
from genai_operator import metrics
from genai_operator.builds.reconciler import BuildReconciler
from genai_operator.builds.status import Outcome
from genai_operator.kube.build import build_view
from genai_operator.kube.status.status_phase import Phase
from genai_operator.kube.watch.observed import Observed
from genai_operator.manager.controller import Controller
from genai_operator.settings import Settings
from genai_operator.stores import s3_metrics
from genai_operator.stores.open_stores import Stores
from genai_operator.stores.s3_metrics import count_requests
from genai_planner.execution.progress import BuildProgress, StageProgress

NOTES = {"genai-operator.dev/key": "k" * 64, "genai-operator.dev/task": "convert/1"}
LABELS = {"genai-operator.dev/operation": "convert"}


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def job(ended: str = "") -> dict[str, Any]:
    conditions = [{"type": ended, "status": "True", "lastTransitionTime": "2026-01-01T00:01:30Z"}]
    return {
        "metadata": {
            "namespace": "n", "name": "j", "uid": "u", "annotations": NOTES, "labels": LABELS,
            "creationTimestamp": "2026-01-01T00:00:00Z", "resourceVersion": "2" if ended else "1",
        },
        "status": {"conditions": conditions} if ended else {},
    }  # fmt: skip


@pytest.mark.parametrize("leads", [True, False])
def test_only_the_replica_that_works_counts_what_jobs_came_to(leads: bool) -> None:
    async def scenario() -> None:
        controller = Controller(FakeApiserver(), Settings())
        controller._leading = lambda: leads
        controller.take("jobs", "ADDED", job())
        controller.take("jobs", "MODIFIED", job("Failed"))

    labels = {"operation": "convert", "result": "failed"}
    before = value("genai_build_tasks_total", **labels)
    seconds = value("genai_build_task_seconds_sum", **labels)
    asyncio.run(scenario())
    assert value("genai_build_tasks_total", **labels) - before == (1 if leads else 0)
    assert value("genai_build_task_seconds_sum", **labels) - seconds == (90 if leads else 0)


def test_a_chain_counts_each_task_that_it_did_and_its_time_once() -> None:
    async def scenario() -> None:
        controller = Controller(FakeApiserver(), Settings())
        controller._leading = lambda: True
        for end in ("", "Complete"):
            chain = job(end)
            chain["metadata"]["annotations"] = NOTES | {
                "genai-operator.dev/chain": json.dumps([["compile/1", "compile", "d" * 64]])
            }
            controller.take("jobs", "MODIFIED", chain)

    names = ("convert", "compile", "chain")
    before = [value("genai_build_tasks_total", operation=n, result="succeeded") for n in names]
    seconds = value("genai_build_task_seconds_sum", operation="chain", result="succeeded")
    asyncio.run(scenario())
    after = [value("genai_build_tasks_total", operation=n, result="succeeded") for n in names]
    assert [a - b for a, b in zip(after, before, strict=True)] == [1, 1, 0]
    assert value("genai_build_task_seconds_sum", operation="chain", result="succeeded") == (
        seconds + 90
    )


def test_no_new_series_comes_from_names_that_others_write_on_jobs() -> None:
    async def scenario() -> None:
        controller = Controller(FakeApiserver(), Settings())
        controller._leading = lambda: True
        for number in range(50):
            for end in ("", "Complete"):
                odd = job(end)
                odd["metadata"] |= {"name": f"j{number}", "uid": f"u{number}"}
                odd["metadata"]["labels"] = {"genai-operator.dev/operation": f"odd-{number}"}
                odd["metadata"]["annotations"] = NOTES | {
                    "genai-operator.dev/chain": json.dumps([["t", f"odder-{number}", "d" * 64]])
                }
                controller.take("jobs", "MODIFIED", odd)

    labels = {"operation": "other", "result": "succeeded"}
    lines, before = len(generate_latest().splitlines()), value("genai_build_tasks_total", **labels)
    asyncio.run(scenario())
    assert value("genai_build_tasks_total", **labels) - before == 100
    assert "odd" not in generate_latest().decode()
    assert len(generate_latest().splitlines()) - lines <= 40


@pytest.mark.parametrize(("code", "label"), [(503, "503"), (200, "200"), (799, "other")])
def test_s3_answers_are_counted_by_known_codes(code: int, label: str) -> None:
    operation = SimpleNamespace(name="GetObject")
    labels = {"operation": "GetObject", "code": label}
    before = value("genai_s3_requests_total", **labels)
    s3_metrics._count(operation, (SimpleNamespace(status_code=code), {}))
    assert value("genai_s3_requests_total", **labels) == before + 1


def test_states_without_a_build_stand_at_zero_and_others_are_counted() -> None:
    async def scenario() -> None:
        controller = Controller(FakeApiserver(), Settings())
        for number, phase in enumerate(["Building", "Building", "Failed", ""]):
            meta = {"namespace": "n", "name": str(number), "uid": str(number)}
            build = {"metadata": meta, "spec": {}, "status": {"phase": phase}}
            controller.observed.builds.put(build, build_view(build))
        meta = {"namespace": "n", "name": "s", "uid": "s"}
        ready = [{"type": "Ready", "status": "False", "reason": "SecretNotFound"}]
        store = {"metadata": meta, "spec": {}, "status": {"conditions": ready}}
        controller.observed.stores.put(store, store)
        controller.upkeep.count(controller.due)

    asyncio.run(scenario())
    states = {state: value("genai_builds", state=state) for state in Phase}
    assert states == {
        "New": 1, "Building": 2, "Failed": 1, "Ready": 0, "Waiting": 0, "Suspended": 0,
    }  # fmt: skip
    assert [value("genai_stores", ready=r) for r in ("True", "False", "Unknown")] == [0, 1, 0]
    assert value("genai_targets", ready="True") == 0


def test_what_waits_for_its_time_or_for_another_replica_is_not_in_the_queues_depth() -> None:
    async def scenario() -> None:
        controller = Controller(FakeApiserver(), Settings())
        leads = False
        controller._leading = lambda: leads
        controller.take("genaitargets", "ADDED", {"metadata": {"name": "t", "uid": "t"}})
        controller.queue.add("later", after=300.0)  # type: ignore[arg-type]
        controller.upkeep.count(controller.due)
        assert value("genai_queue_depth") == 0
        leads = True
        controller.upkeep.count(controller.due)
        assert value("genai_queue_depth") == 1
        before = value("genai_queue_wait_seconds_count", kind="genaitargets")
        await controller.queue.get()
        assert value("genai_queue_wait_seconds_count", kind="genaitargets") == before + 1
        controller.upkeep.count(controller.due)
        assert value("genai_queue_depth") == 0

    asyncio.run(scenario())


def test_what_a_build_came_to_is_counted_and_told_once() -> None:
    """A retry of the same state is no event; a generation that was built already is one."""
    begun = datetime.now(UTC) - timedelta(seconds=50)
    meta: dict[str, Any] = {
        "namespace": "n", "name": "b", "uid": "u", "generation": 1,
        "creationTimestamp": begun.isoformat(),
    }  # fmt: skip
    api = FakeApiserver()
    api.put("genaibuilds", {"metadata": meta, "spec": {}})
    builds = BuildReconciler(api, Observed(), Stores(api, Settings()))
    done = BuildProgress((StageProgress("ingest", cached=1), StageProgress("convert", cached=4)))
    steps = [
        (1, Outcome(Phase.BUILDING, "Progressing")),
        (1, Outcome(Phase.BUILDING, "Progressing", "1/5")),
        (1, Outcome(Phase.WAITING, "StoreNotReady")),
        (1, Outcome(Phase.STALLED, "BadModel", "no")),
        (2, Outcome(Phase.READY, "Built", progress=done, ran={"convert": 3})),
        (3, Outcome(Phase.READY, "Built", progress=done)),
        (3, Outcome(Phase.READY, "Built", progress=done, outdated="newer numpy")),
    ]

    async def scenario() -> None:
        for generation, outcome in steps:
            (there,) = api.of("genaibuilds")
            there["metadata"]["generation"] = generation
            await builds._reporter.report(api.put("genaibuilds", there), outcome)

    def counted() -> dict[str, float]:
        return {
            "built": value("genai_builds_ended_total", reason="Built"),
            "bad": value("genai_builds_ended_total", reason="BadModel"),
            "ingest": value("genai_build_tasks_total", operation="ingest", result="cached"),
            "convert": value("genai_build_tasks_total", operation="convert", result="cached"),
            "times": value("genai_build_seconds_count"),
        }

    before = counted()
    asyncio.run(scenario())
    found = {name: after - before[name] for name, after in counted().items()}
    assert found == {"built": 2, "bad": 1, "ingest": 2, "convert": 5, "times": 1}
    assert [(event["type"], event["reason"]) for event in api.events] == [
        ("Normal", "Progressing"), ("Warning", "StoreNotReady"), ("Warning", "BadModel"),
        ("Normal", "Built"), ("Normal", "Built"), ("Normal", "NewerToolchain"),
    ]  # fmt: skip


class Shaky(BaseHTTPRequestHandler):
    """An S3 server that is busy the first time."""

    answers: ClassVar[list[int]] = []

    def do_HEAD(self) -> None:
        self.send_response(self.answers.pop(0))
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_: Any) -> None:
        return


@contextmanager
def shaky(*answers: int) -> Iterator[S3Store]:
    Shaky.answers[:] = answers
    server = ThreadingHTTPServer(("127.0.0.1", 0), Shaky)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    count_requests(shared_session())
    count_requests(shared_session())  # each store that is opened says so again
    where = StoreAddress("bucket", "", f"http://127.0.0.1:{server.server_port}", addressing="path")
    try:
        yield S3Store(where, credentials=StoreCredentials("a", "s", None))
    finally:
        server.shutdown()
        server.server_close()


def test_every_attempt_at_a_store_is_counted() -> None:
    def counted() -> list[float]:
        codes = ("503", "404", "none")
        return [value("genai_s3_requests_total", operation="HeadObject", code=c) for c in codes]

    before = counted()
    with shaky(503, 404, 404) as store:
        assert store.head_blob(Digest("a" * 64)) is None
    assert [after - was for after, was in zip(counted(), before, strict=True)] == [1, 1, 0]


def test_no_label_can_hold_the_name_of_an_object() -> None:
    known = {"state", "reason", "operation", "result", "kind", "ready", "verb", "code"}
    ours = [getattr(metrics, name) for name in metrics.__all__]
    assert {label for metric in ours for label in metric._labelnames} <= known
    assert len({metric._name for metric in ours}) == len(metrics.__all__)
