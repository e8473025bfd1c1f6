"""Questions that Jobs answer: asked again they are no failed attempts, and refusals are named."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from fake_apiserver import FakeApiserver

from genai_core.helper_jobs import HelperAnswer, LookFile, answer_lines
from genai_core.kinds.build import BuildSpec
from genai_core.names import Backend, Key
from genai_operator.builds.build_pass import BuildPass
from genai_operator.builds.helper_jobs import BuildHelperJobs
from genai_operator.builds.job_changes import JobWriter
from genai_operator.builds.starter import Starter
from genai_operator.errors import Waiting
from genai_operator.jobs.access import StoreAccess
from genai_operator.jobs.applier import Applier
from genai_operator.jobs.helper_jobs import HelperJobs
from genai_operator.jobs.holds import Standing
from genai_operator.jobs.job_manifest import Owner
from genai_operator.kube.apiserver.api import ApiError
from genai_operator.kube.job import JobState
from genai_operator.kube.pod import Ending, PodView
from genai_operator.kube.watch.observed import Observed
from genai_operator.targets.build_targets import BuildTarget
from genai_planner.targets import Target

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
KEY = Key("e" * 64)
CPU = BuildTarget(Target("cpu", Backend.CPU), "r/stages@sha256:" + "2" * 64, {})
ACCESS = StoreAccess("s3://b/p", service_account="builder")
SPEC = BuildSpec.model_validate({"model": {"source": "s3://models/x"}, "targets": ["cpu"]})
ANSWER = HelperAnswer(asked=(f"convert/{'9' * 64}",))


class Room:
    def __init__(self) -> None:
        self.api, self.observed = FakeApiserver(), Observed()
        self.api.logs = "\n".join(answer_lines(ANSWER))
        applier = Applier(self.api, self.observed)
        jobs = HelperJobs(self.api, self.observed, applier)
        self.helpers = BuildHelperJobs(
            jobs, self.observed, JobWriter(self.observed, applier, Starter(applier))
        )

    def ask(self) -> HelperAnswer | Standing:
        value = {"metadata": {"namespace": "n", "name": "b", "uid": "build"}}
        one = BuildPass(value, SPEC, Owner("b", "build"), "n", 1, "", {}, BEGAN)
        document = LookFile(refs=ANSWER.asked)
        return asyncio.run(
            self.helpers.ask(one, document, KEY, access=ACCESS, target=CPU)
        )  # fmt: skip

    def end(self) -> None:
        """The newest Job's pod ends well; the Job says so later."""
        name = self.api.of("jobs")[-1]["metadata"]["name"]
        job = self.observed.jobs.get("n", name)
        assert job is not None
        assert job.state is JobState.ACTIVE
        pod = PodView(
            "n", f"{name}-pod", f"{name}-pod", name, "node", "Succeeded", job.created_at,
            ending=Ending(0, "Completed"),
        )  # fmt: skip
        meta = {"namespace": "n", "name": pod.name, "uid": pod.uid}
        self.observed.pods.put({"metadata": meta}, pod)


def succeeded(room: Room) -> None:
    for job in room.observed.jobs:
        done = replace(job, state=JobState.SUCCEEDED, ended_at=datetime.now(UTC))
        room.observed.jobs.amend("n", job.name, done)


def test_a_question_may_be_asked_any_number_of_times() -> None:
    room = Room()
    for times in range(1, 8):
        assert isinstance(room.ask(), Standing)
        assert len(room.api.of("jobs")) == times
        room.end()
        assert room.ask() == ANSWER
        succeeded(room)
    assert room.api.reasons == []


def test_an_answer_that_cannot_be_read_is_asked_for_again() -> None:
    room = Room()
    room.api.logs = "nothing"
    room.ask()
    room.end()
    succeeded(room)
    room.ask()
    assert len(room.api.of("jobs")) == 2
    assert room.api.reasons == ["TaskRetried"]


def test_a_log_that_may_not_be_read_is_said_to_be_so() -> None:
    room = Room()
    room.ask()
    room.end()
    room.api.refuse(ApiError(403, "Forbidden", "cannot get resource pods/log"), verb="read")
    for _ in range(2):
        with pytest.raises(Waiting) as raised:
            room.ask()
        assert raised.value.reason == "NamespaceNotEnabled"
        assert "read logs of pods" in raised.value.message
    room.api.allow()
    assert room.ask() == ANSWER, "once it may, what was said is still there"
    assert len(room.api.of("jobs")) == 1


def test_what_was_heard_is_not_read_twice() -> None:
    room = Room()
    room.ask()
    room.end()
    (job,) = room.observed.jobs
    assert room.helpers.jobs.unheard([job]) == [job]
    room.ask()
    assert room.helpers.jobs.unheard([job]) == []
