"""A build that stalled stays so: what failed is kept, what runs is ended."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from fake_apiserver import FakeApiserver

from genai_core.kinds.build import BuildSpec
from genai_core.names import Key
from genai_core.sources.resolved import RESOLVE
from genai_operator.builds.build_pass import BuildPass
from genai_operator.builds.reconciler import BuildReconciler
from genai_operator.errors import Stalled
from genai_operator.jobs.job_manifest import Owner
from genai_operator.kube.job import JobState, JobView
from genai_operator.kube.status.status_phase import Phase
from genai_operator.kube.watch.observed import Observed
from genai_operator.settings import Settings
from genai_operator.stores.open_stores import Stores

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def job(name: str, state: JobState, operation: str = "convert") -> JobView:
    return JobView(
        namespace="n", name=name, uid=f"uid-{name}", key=Key("a" * 64), operation=operation,
        task=operation, scope="s", attempt=1, memory_bytes=1, owners=frozenset({"build"}),
        state=state, created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip


def test_the_next_pass_over_a_stalled_build_finds_what_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    observed, api = Observed(), FakeApiserver()
    builds = BuildReconciler(api, observed, Stores(api, Settings()))
    released: list[str] = []

    async def release(ended: JobView, _uid: str) -> None:
        released.append(ended.name)

    async def progress(_: BuildPass) -> Any:
        raise Stalled("BadModel", "there is nothing")

    monkeypatch.setattr(builds._applier, "release", release)
    monkeypatch.setattr(builds._steps, "load", progress)
    jobs = {
        "failed": job("failed", JobState.FAILED, RESOLVE),
        "running": job("running", JobState.ACTIVE),
        "done": job("done", JobState.SUCCEEDED),
    }
    for name, view in jobs.items():
        meta = {"namespace": "n", "name": name, "uid": view.uid, "resourceVersion": "1"}
        observed.jobs.put({"metadata": meta}, view)
    spec = BuildSpec.model_validate({"model": {"source": "s3://models/x"}, "targets": ["cpu"]})
    one = BuildPass({}, spec, Owner("b", "build"), "n", 1, "", {"observedGeneration": 1}, BEGAN)
    outcome = asyncio.run(builds._outcome(one))
    assert (outcome.state, outcome.reason) == (Phase.STALLED, "BadModel")
    assert released == ["running"]
