"""Chains in a build: one Job for what only follows, shared and retried task by task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from genai_core.errors import ToolFailed
from genai_core.facts import ModelFacts, WeightsGroup
from genai_core.kinds.build import BuildSpec
from genai_core.names import MODEL, Backend
from genai_core.operations import OPERATIONS
from genai_core.sources.resolved import ResolvedFile, ResolvedSource
from genai_core.store.address import StoreAddress
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.tasks.chain import ChainFile, is_wanted, task_file
from genai_core.tasks.record import Measurements, Record
from genai_core.tasks.task_file import TaskFile
from genai_core.testing import record_of_task
from genai_operator.builds.planning.job_requests import Setting
from genai_operator.builds.planning.question import Question, Survey
from genai_operator.builds.planning.survey import survey
from genai_operator.builds.sources import SourcePlace
from genai_operator.jobs.access import StoreAccess
from genai_operator.jobs.job_manifest import JobRequest, Owner, render
from genai_operator.kube.job import JobState, JobView, job_view
from genai_operator.kube.pod import Ending, PodView
from genai_operator.stores.lookups import Lookups
from genai_operator.targets.build_targets import BuildTarget, toolchains
from genai_planner.targets import Target

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ASKED = NOW - timedelta(seconds=9)
SOURCE = ResolvedSource(
    digest="sha256:" + "1" * 64,
    files={
        name: ResolvedFile(path=name, sha256=f"{n:064x}", size=100)
        for n, name in enumerate(("model.onnx", "model.encodings", "config.json"))
    },
    config={"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 128},
    weight_bits=8,
)
GROUPS = ("embed", "layer_000", "layer_001", "head")
FACTS = ModelFacts(
    architecture="llama", layers=2, hidden_size=64, vocab_size=128, parameters=90_000, rope={},
    attention=[], boundaries=["a", "b", "c"],
    groups={g: WeightsGroup(file=f"weights/{g}.data", size_bytes=4, parameters=1) for g in GROUPS},
)  # fmt: skip
VERSIONS = {name: "1" for row in OPERATIONS for name in row.libraries}
CPU = BuildTarget(Target("cpu", Backend.CPU), "r/stages@sha256:" + "2" * 64, VERSIONS)
FILES = {
    "ingest": [
        "model.onnx", "facts.json", "encodings/e", "assets/config.json", "measured.json",
        *(f"weights/{group}.data" for group in GROUPS),
    ],
}  # fmt: skip


class World:
    """A store, the apiserver's Jobs, and a stage that is played step by step."""

    def __init__(self, folder: Path) -> None:
        self.store = DirectoryStore(folder)
        self.lookups = Lookups(self.store)
        self.jobs: dict[str, JobView] = {}
        self.documents: dict[str, Any] = {}
        self.pods: dict[str, list[PodView]] = {}
        self.now = NOW
        self.chain_tasks = 8
        self.within = True

    def look(self, owner: str = "one", *, since: datetime = ASKED, **spec: Any) -> Survey:
        document = {"model": {"source": "s3://models/tiny"}, "targets": ["cpu"]} | spec
        setting = Setting(
            name="tiny", namespace="ns", spec=BuildSpec.model_validate(document),
            sources={MODEL: SOURCE},
            places={MODEL: SourcePlace("s3://models/tiny", StoreAddress("models", "tiny"))},
            targets=[CPU], toolchains=toolchains([CPU]),
            chain_tasks=self.chain_tasks,
        )  # fmt: skip
        jobs = list(self.jobs.values())
        question = Question(setting, owner, since, jobs, self.pods, now=self.now)
        return survey(question, self.lookups, lost=set())

    def create(self, request: JobRequest, owner: str = "one") -> str:
        manifest = render(
            request, Owner("tiny", owner), run=BuildSpec.model_validate(
                {"model": {"source": "s3://m/t"}, "targets": ["cpu"]}
            ).run, access=StoreAccess("s3://b/p", secret="s"),
        )  # fmt: skip
        name = manifest["metadata"]["name"]
        assert name not in self.jobs, "a task would run twice at once"
        manifest["metadata"] |= {
            "uid": f"uid-{name}", "creationTimestamp": self.now.isoformat(),
        }  # fmt: skip
        view = job_view(manifest)
        assert view is not None
        self.jobs[name] = view
        self.documents[name] = request.document
        return str(name)

    def run(self, name: str, *, until: int = 99) -> int:
        """Play the stage for the first steps of a Job's chain; returns how many were wanted."""
        document = self.documents[name]
        if isinstance(document, TaskFile):
            self.commit(document)
            return 1
        assert isinstance(document, ChainFile)
        records: list[Record] = []
        for number in range(min(until, 1 + len(document.then))):
            task = document.first
            if number:
                step = document.then[number - 1]
                if not is_wanted(step, records):
                    break
                task = task_file(step, document, records)
            records.append(self.commit(task))
        return len(records)

    def commit(self, task: TaskFile) -> Record:
        outputs = {}
        for path in FILES.get(task.operation, ["out.bin", "measured.json"]):
            text = FACTS.model_dump_json() if path == "facts.json" else f"{task.key}{path}"
            blob = self.store.put_bytes(text.encode())
            outputs[path] = blob
        facts = {"within": self.within, "revision": "r"}
        record = record_of_task(task, outputs, created_at=self.now, facts=facts)
        said = Measurements(warnings=(f"of {task.operation}", "of all"))
        record = record.model_copy(update={"measurements": said})
        self.store.commit(record)
        return record

    def end(self, name: str, state: JobState, ending: Ending | None = None) -> None:
        self.jobs[name] = replace(self.jobs[name], state=state, ended_at=self.now)
        pod = PodView("ns", f"pod-{name}", f"p-{name}", name, "node1", "Failed", self.now)
        self.pods[name] = [replace(pod, ending=ending)]
        self.later(60)

    def later(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.lookups = Lookups(self.store)

    def ingested(self) -> None:
        name = self.create(self.look().start[0])
        self.run(name)
        self.end(name, JobState.SUCCEEDED)


@pytest.fixture
def world(tmp_path: Path) -> World:
    found = World(tmp_path / "store")
    found.ingested()
    return found


def operations(requests: Sequence[JobRequest]) -> list[list[str]]:
    return [[r.operation, *(link.operation for link in r.chain)] for r in requests]


WHOLE = ["convert", "compile", "fidelity", "package"]


def test_one_job_does_all_that_only_follows_and_is_sized_for_its_largest(world: World) -> None:
    (request,) = world.look().start
    assert operations([request]) == [WHOLE]
    world.chain_tasks = 1
    (alone,) = world.look().start
    assert operations([alone]) == [["convert"]]
    assert alone.key == request.key
    assert request.memory_bytes >= alone.memory_bytes
    assert request.seconds > alone.seconds


def test_while_it_runs_nothing_starts_and_every_record_counts_as_it_comes(world: World) -> None:
    (request,) = world.look().start
    name = world.create(request)
    for done in range(1, 4):
        world.run(name, until=done)
        world.later(20)
        seen = world.look()
        assert seen.start == ()
        assert [job.name for job in seen.active] == [name]
        assert seen.advice.progress.finished == 1 + done
        assert seen.made == {"ingest": 1} | dict.fromkeys(WHOLE[:done], 1)
    world.run(name)
    world.end(name, JobState.SUCCEEDED)
    seen = world.look()
    assert (seen.advice.ended, set(seen.containers)) == (True, {"cpu"})
    assert sum(seen.made.values()) == 5


def test_what_a_build_made_is_not_cached_though_its_jobs_are_gone(world: World) -> None:
    """A node died after the record stood; a TTL was over; somebody deleted the Job."""
    world.chain_tasks = 1
    for _ in range(4):
        name = world.create(world.look().start[0])
        world.run(name)
        del world.jobs[name]
        world.later(20)
    seen = world.look()
    assert seen.advice.ended
    assert seen.made == dict.fromkeys(("ingest", *WHOLE), 1)


def test_what_stood_before_it_was_asked_for_is_cached_though_jobs_are_there(world: World) -> None:
    name = world.create(world.look().start[0])
    world.run(name)
    world.end(name, JobState.SUCCEEDED)
    assert sum(world.look().made.values()) == 5
    edited = world.now + timedelta(seconds=2)
    assert world.look(since=edited).made == {}
    changed: dict[str, Any] = {"golden": {"prompts": ["x"]}, "since": edited}
    world.later(9)
    name = world.create(world.look(**changed).start[0])
    world.run(name)
    world.end(name, JobState.SUCCEEDED)
    assert world.look(**changed).made == {"package": 1}


def test_a_node_whose_clock_is_slow_makes_nothing_cached(world: World) -> None:
    world.chain_tasks = 1
    name = world.create(world.look().start[0])
    now = world.now
    world.now = ASKED - timedelta(minutes=1)
    world.run(name)
    world.now = now
    world.end(name, JobState.SUCCEEDED)
    assert world.look().made == {"ingest": 1, "convert": 1}


def test_a_pod_that_succeeded_is_enough_to_go_on(world: World) -> None:
    world.chain_tasks = 1
    name = world.create(world.look().start[0])
    world.run(name)
    assert world.look().start == (), "nothing says yet that it is done"
    pod = PodView("ns", f"pod-{name}", "p", name, "node1", "Running", world.now)
    world.pods[name] = [replace(pod, ending=Ending(0, "Completed", {"outcome": "run"}))]
    seen = world.look()
    assert world.jobs[name].state is JobState.ACTIVE
    assert operations(seen.start) == [["compile"]]
    assert seen.made == {"ingest": 1, "convert": 1}
    assert world.jobs[name].uid in seen.needed


def test_the_keys_are_those_of_tasks_run_one_by_one(world: World, tmp_path: Path) -> None:
    world.run(world.create(world.look().start[0]))
    other = World(tmp_path / "other")
    other.chain_tasks = 1
    other.ingested()
    for _ in range(4):
        (request,) = other.look().start
        assert request.chain == ()
        name = other.create(request)
        other.run(name)
        other.end(name, JobState.SUCCEEDED)
    assert other.look().advice.ended
    assert set(world.store.list_records()) == set(other.store.list_records())


def test_a_failure_is_the_tasks_own_and_the_next_attempt_begins_with_it(world: World) -> None:
    name = world.create(world.look().start[0])
    world.run(name, until=1)
    error = ToolFailed("it broke", where="compile/cpu/int8").as_dict()
    world.end(name, JobState.FAILED, Ending(1, "Error", {"step": 1, "error": error}))
    seen = world.look()
    (again,) = seen.start
    assert operations([again]) == [WHOLE[1:]]
    retry = seen.retried[again.task].retry  # type: ignore[index]
    assert retry is not None
    assert retry.why == "compile/cpu/int8: it broke"
    assert again.attempt == 1, "the name is the second task's own"
    for attempt in (1, 2):
        failed = world.create(world.look().start[0])
        assert world.jobs[failed].attempt == attempt
        world.end(failed, JobState.FAILED, Ending(1, "Error", {"step": 0, "error": error}))
    seen = world.look()
    assert [task for task, *_ in seen.failed] == ["compile/cpu/int8"], "two retries and no more"


def test_out_of_memory_is_known_to_be_of_the_step_it_had_come_to(world: World) -> None:
    name = world.create(world.look().start[0])
    world.run(name, until=2)
    world.end(name, JobState.FAILED, Ending(137, "OOMKilled", {"outcome": "failed", "step": 2}))
    (again,) = world.look().start
    assert operations([again]) == [WHOLE[2:]]
    assert again.memory_bytes == 2 * world.jobs[name].memory_bytes


def test_an_early_failure_is_no_attempt_at_what_it_never_came_to(world: World) -> None:
    first = world.create(world.look().start[0])
    world.end(first, JobState.FAILED, Ending(137, "OOMKilled", {"step": 0}))
    (again,) = world.look().start
    assert (operations([again]), again.attempt) == ([WHOLE], 2)
    second = world.create(again)
    world.run(second, until=1)
    world.end(second, JobState.FAILED, Ending(137, "OOMKilled", {"step": 1}))
    seen = world.look()
    assert not seen.failed, "each of the two tasks was out of memory once"
    assert operations(seen.start) == [WHOLE[1:]]


def test_two_builds_share_a_chain_and_part_where_they_differ(world: World) -> None:
    other: dict[str, Any] = {"golden": {"prompts": ["x"]}}  # only its package differs
    name = world.create(world.look().start[0])
    seen = world.look("two", **other)
    assert (seen.start, [job.name for job in seen.active]) == ((), [name])
    world.run(name, until=1)
    world.later(20)
    seen = world.look("two", **other)
    assert (seen.start, [job.name for job in seen.active]) == ((), [name])
    world.run(name, until=3)
    world.later(20)
    seen = world.look("two", **other)
    assert operations(seen.start) == [["package"]], "what it waited for stands already"
    assert name not in seen.needed
    assert world.jobs[name].uid not in seen.needed, "the rest is not its own: the claim goes"
    assert world.jobs[name].uid in world.look().needed


def test_a_chain_ends_where_the_verdict_says_so(world: World) -> None:
    world.within = False
    name = world.create(world.look().start[0])
    assert world.run(name) == 3
    world.end(name, JobState.SUCCEEDED)
    seen = world.look()
    assert operations(seen.start) == [WHOLE]
    assert "int4" in seen.start[0].task


def test_what_a_job_says_of_its_chain_is_read_back(world: World) -> None:
    (request,) = world.look().start
    name = world.create(request)
    assert world.jobs[name].chain == request.chain
    assert len({link.derivation for link in request.chain}) == 3


def test_a_pod_that_has_left_its_last_result_counts_until_it_has_ended(world: World) -> None:
    """Its process takes seconds to end, and its node has those cores and that memory till then."""
    world.chain_tasks = 2
    only: dict[str, Any] = {"run": {"parallelism": 1}}
    (request,) = world.look(**only).start
    assert len(request.chain) == 1
    name = world.create(request)
    assert world.run(name) == 2
    world.later(60)
    assert world.look(**only).start == ()
    assert len(world.look(run={"parallelism": 2}).start) == 1
    pod = PodView("ns", f"pod-{name}", f"p-{name}", name, "node1", "Succeeded", world.now)
    world.pods[name] = [replace(pod, ending=Ending(0, "Completed"))]
    (following,) = world.look(**only).start
    assert following.task != request.task


def test_warnings_of_tasks_are_told_once_each_and_cached_ones_too(world: World) -> None:
    told: list[tuple[str, ...]] = [world.look().warnings]
    while starts := world.look().start:
        for request in starts:
            world.run(world.create(request))
            world.end(request_name(world, request), JobState.SUCCEEDED)
        told.append(world.look().warnings)
    assert told[0] == ("of ingest", "of all")
    assert told[-1][:3] == ("of ingest", "of all", "of convert")
    assert len(set(told[-1])) == len(told[-1]) > 4
    assert world.look("another").warnings == told[-1], "whoever built it"


def request_name(world: World, request: JobRequest) -> str:
    return next(name for name, job in world.jobs.items() if job.key == request.key)
