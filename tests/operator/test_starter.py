"""Further attempts are told of, each by itself, and never by the thousand."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from fake_apiserver import FakeApiserver
from prometheus_client import REGISTRY

from genai_core.kinds.artifact_store import ArtifactStoreSpec
from genai_core.kinds.build import BuildSpec
from genai_core.names import Digest, Key
from genai_operator.builds.build_pass import BuildPass
from genai_operator.builds.starter import Starter
from genai_operator.jobs.access import StoreAccess
from genai_operator.jobs.applier import Applier
from genai_operator.jobs.job_manifest import JobRequest, Owner
from genai_operator.jobs.verdicts import NextAttempt, Retry
from genai_operator.kube.apiserver.api import ApiError
from genai_operator.kube.job import JobState, JobView, Link, job_view
from genai_operator.kube.watch.observed import Observed
from genai_operator.timing import Timing

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
REQUEST = JobRequest(
    namespace="n", key=Key("ab" * 32), operation="convert", task="convert/1",
    document=ArtifactStoreSpec.model_validate({"bucket": "abc", "secretRef": {"name": "s"}}),
    image="i@sha256:" + "0" * 64, memory_bytes=1 << 20, attempt=2,
)  # fmt: skip
ACCESS = StoreAccess(address="s3://b/p", secret="s3")
AGAIN = NextAttempt(2, retry=Retry("convert/1: it broke", "ToolFailed", tries=1))


def one() -> BuildPass:
    value = {"metadata": {"namespace": "n", "name": "b", "uid": "build"}}
    spec = BuildSpec.model_validate({"model": {"source": "s3://models/x"}, "targets": ["cpu"]})
    return BuildPass(value, spec, Owner("b", "build"), "n", 1, "", {}, BEGAN)


class Room:
    def __init__(self) -> None:
        self.api = FakeApiserver()
        self.now = 0.0
        self.observed = Observed()
        applier = Applier(self.api, self.observed)
        self.starter = Starter(applier, timing=Timing(monotonic=lambda: self.now))

    async def start(self, attempt: NextAttempt) -> None:
        await self.starter.start(one(), REQUEST, attempt, access=ACCESS)

    @property
    def told(self) -> list[str]:
        return [event["message"] for event in self.api.events]


def retries() -> float:
    labels = {"operation": "convert", "reason": "ToolFailed"}
    return REGISTRY.get_sample_value("genai_build_task_retries_total", labels) or 0.0


def test_a_first_attempt_is_no_news_and_a_second_names_task_number_and_reason() -> None:
    room, before = Room(), retries()
    asyncio.run(room.start(NextAttempt()))
    assert (room.told, len(room.api.of("jobs")), retries()) == ([], 1, before)
    asyncio.run(room.start(AGAIN))
    (event,) = room.api.events
    assert (event["type"], event["reason"]) == ("Warning", "TaskRetried")
    assert event["message"] == "attempt 2 at convert/1: it broke"
    assert event["involvedObject"]["uid"] == "build"
    assert retries() == before + 1


def test_a_thousand_retries_are_some_events_and_all_are_counted() -> None:
    room, before = Room(), retries()

    async def storm() -> None:
        for _ in range(1000):
            await room.start(AGAIN)

    asyncio.run(storm())
    assert len(room.told) == 10
    assert retries() == before + 1000
    room.now += 61
    asyncio.run(room.start(AGAIN))
    assert room.told[-1].endswith("it broke (990 more since the last)")
    asyncio.run(room.start(AGAIN))
    assert len(room.told) == 11, "one a minute"
    room.starter.keep([])
    asyncio.run(room.start(AGAIN))
    assert len(room.told) == 12, "of a build that is gone nothing is remembered"


CHAINED = replace(
    REQUEST,
    key=Key("cd" * 32),
    operation="ingest",
    task="ingest",
    chain=(Link("convert/1", "convert", Digest("12" * 32)),),
)
OWN = replace(REQUEST, derivation=Digest("12" * 32))


def test_a_task_that_another_jobs_chain_has_come_to_meanwhile_is_not_started() -> None:
    room = Room()

    async def story() -> None:
        await room.starter.start(one(), CHAINED, NextAttempt(), access=ACCESS)
        (job,) = room.observed.jobs
        build = one()
        await room.starter.start(build, OWN, NextAttempt(), access=ACCESS, newer=[job])
        assert (len(room.api.of("jobs")), build.started, build.after) == (1, False, 1.0)
        done = replace(job, state=JobState.FAILED)
        await room.starter.start(build, OWN, NextAttempt(), access=ACCESS, newer=[done])
        assert (len(room.api.of("jobs")), build.started) == (2, True)

    asyncio.run(story())


def test_of_two_builds_that_start_one_task_in_the_same_moment_one_starts_it() -> None:
    room = Room()

    async def story() -> None:
        answer = room.api.hold("create", "jobs")
        first = asyncio.create_task(
            room.starter.start(one(), CHAINED, NextAttempt(), access=ACCESS)
        )
        await asyncio.sleep(0)
        await room.starter.start(one(), OWN, NextAttempt(), access=ACCESS)
        other = StoreAccess(address="s3://elsewhere/p", secret="s3")
        second = asyncio.create_task(room.starter.start(one(), OWN, NextAttempt(), access=other))
        await asyncio.sleep(0)
        answer.set()
        await asyncio.gather(first, second)
        await room.starter.start(one(), OWN, NextAttempt(), access=ACCESS)

    asyncio.run(story())
    assert len(room.api.of("jobs")) == 3, "of another store too, and again when the first is known"


@pytest.mark.parametrize("problem", [ApiError(403, "Forbidden", "no"), TimeoutError()])
def test_an_event_that_cannot_be_posted_stops_nothing(problem: Exception) -> None:
    room = Room()
    room.api.refuse(problem, verb="create", plural="events")
    asyncio.run(room.start(AGAIN))
    assert len(room.api.of("jobs")) == 1


def test_attempts_that_nobody_needs_to_know_of_go_when_the_next_begins() -> None:
    room = Room()
    asyncio.run(room.start(NextAttempt()))
    (made,) = room.api.of("jobs")
    meta = {"uid": "old", "name": "old", "creationTimestamp": "2026-01-01T00:00:00Z"}
    value = {**made, "metadata": made["metadata"] | meta}
    old: JobView | None = job_view(value)
    assert old is not None
    room.observed.jobs.put(value, old)
    room.api.put("jobs", value)
    asyncio.run(
        room.start(
            NextAttempt(6, retry=Retry("it is away", "StoreUnavailable", tries=5, spent=(old,)))
        )
    )
    assert room.api.deleted == ["old"]
