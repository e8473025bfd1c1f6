"""Whole builds without a cluster: a store in a folder, Jobs as values, the operator's own survey.

Workers are played: what a start asks for ends as a test wants it, or is committed as a record.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from genai_core.errors import BadModel, StoreUnreadable
from genai_core.kinds.build import BuildSpec
from genai_core.names import MODEL, Backend, TaskId
from genai_core.operations import OPERATIONS
from genai_core.sources.resolved import ResolvedFile, ResolvedSource
from genai_core.store.address import StoreAddress
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.tasks.task_file import TaskFile
from genai_core.testing import record_of_task
from genai_operator.builds.planning.job_requests import Setting
from genai_operator.builds.planning.plans import Plans
from genai_operator.builds.planning.question import Question, Survey
from genai_operator.builds.planning.survey import survey
from genai_operator.builds.sources import SourcePlace
from genai_operator.jobs.job_manifest import JobRequest
from genai_operator.kube.job import JobState, JobView
from genai_operator.kube.pod import Ending, PodView
from genai_operator.stores.lookups import Lookups
from genai_operator.targets.build_targets import BuildTarget, toolchains
from genai_planner.targets import Target

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CONFIG = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 128,
    "num_attention_heads": 2, "intermediate_size": 96, "max_position_embeddings": 256,
}  # fmt: skip
FILES = ("model.onnx", "model.encodings", "config.json")
SOURCE = ResolvedSource(
    digest="sha256:" + "1" * 64,
    files={
        name: ResolvedFile(path=name, sha256=f"{n:064x}", size=100) for n, name in enumerate(FILES)
    },
    config=CONFIG,
    weight_bits=8,
)
VERSIONS = {name: "1" for row in OPERATIONS for name in row.libraries}
CPU = BuildTarget(Target("cpu", Backend.CPU), "r/stages@sha256:" + "2" * 64, VERSIONS)


class Cluster:
    """A store, and Jobs as the apiserver would have them."""

    def __init__(self, folder: Path, *, chain_tasks: int = 1, **run: Any) -> None:
        self.chain_tasks = chain_tasks
        self.store = DirectoryStore(folder)
        self.lookups = Lookups(self.store)
        self.plans = Plans()
        self.source = SOURCE
        self.lost: set[str] = set()
        self.jobs: dict[str, JobView] = {}
        self.pods: dict[str, list[PodView]] = {}
        self.now = NOW
        self.spec = BuildSpec.model_validate(
            {"model": {"source": "s3://models/tiny"}, "targets": ["cpu"], "run": run}
        )

    def look(self) -> Survey:
        setting = Setting(
            name="tiny", namespace="ns", spec=self.spec, sources={MODEL: self.source},
            places={MODEL: SourcePlace("s3://models/tiny", StoreAddress("models", "tiny"))},
            targets=[CPU], toolchains=toolchains([CPU]),
            chain_tasks=self.chain_tasks,
        )  # fmt: skip
        question = Question(
            setting=setting, owner="b", since=NOW - timedelta(seconds=9),
            jobs=list(self.jobs.values()), pods=self.pods, now=self.now,
        )  # fmt: skip
        anew = survey(question, self.lookups, lost=set(self.lost))
        found = survey(question, self.lookups, lost=self.lost, plans=self.plans)
        for what in ("start", "needed", "refs", "containers", "made", "after", "retried"):
            assert getattr(found, what) == getattr(anew, what), f"another {what} from memory"
        assert (found.plan, found.advice.states) == (anew.plan, anew.advice.states)
        return found

    def start(self, request: JobRequest) -> str:
        name = f"{request.operation}-{request.key[:8]}-{request.attempt}"
        assert name not in self.jobs, "a task would run twice at once"
        self.jobs[name] = JobView(
            namespace="ns", name=name, uid=f"uid-{name}", key=request.key,
            operation=request.operation, task=request.task, scope="s", attempt=request.attempt,
            memory_bytes=request.memory_bytes, owners=frozenset({"b"}), state=JobState.ACTIVE,
            created_at=self.now, chain=request.chain,
        )  # fmt: skip
        return name

    def end(self, name: str, state: JobState, ending: Ending | None = None) -> None:
        self.jobs[name] = replace(self.jobs[name], state=state, ended_at=self.now)
        pod = PodView("ns", f"pod-{name}", f"p-{name}", name, "node1", "Failed", self.now)
        self.pods[name] = [replace(pod, ending=ending)]

    def commit(self, task: TaskFile, files: dict[str, bytes]) -> None:
        outputs = {path: self.store.put_bytes(data) for path, data in files.items()}
        self.store.commit(record_of_task(task, outputs, created_at=NOW))


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path / "store")


def test_ingest_comes_first_and_reads_the_users_files_by_address(cluster: Cluster) -> None:
    found = cluster.look()
    assert [request.operation for request in found.start] == ["ingest"]
    task = found.start[0].document
    assert isinstance(task, TaskFile)
    assert found.start[0].reads_source
    assert {f.path for f in task.inputs["source"].values()} == {
        f"s3://models/tiny/{name}" for name in FILES
    }
    assert found.advice.progress.total > 3, "the forecast counts what will follow"
    assert not found.advice.ended


def test_what_runs_is_not_started_again_and_survives_the_operator(cluster: Cluster) -> None:
    cluster.start(cluster.look().start[0])
    again = cluster.look()
    assert (again.start, len(again.active)) == ((), 1)
    cluster.lookups = Lookups(cluster.store)  # another process
    assert cluster.look().start == ()


def test_the_end_of_a_job_that_somebody_else_deleted_is_looked_for(cluster: Cluster) -> None:
    name = cluster.start(cluster.look().start[0])
    assert cluster.look().after is None
    cluster.jobs[name] = replace(cluster.jobs[name], deleting=True, owners=frozenset({"x"}))
    seen = cluster.look()
    assert seen.start == ()
    assert seen.after is not None
    assert seen.after <= 5


def test_bad_input_ends_the_build_and_keeps_its_words(cluster: Cluster) -> None:
    name = cluster.start(cluster.look().start[0])
    error = BadModel("no layers found", where="model.onnx").as_dict()
    cluster.end(name, JobState.FAILED, Ending(2, "Error", {"error": error, "log": "4" * 64}))
    found = cluster.look()
    assert found.advice.ended
    assert found.start == ()
    task, problem, log = found.failed[0]
    assert (task, str(problem), log) == ("ingest", "model.onnx: no layers found", "4" * 64)


def test_a_crash_is_tried_again_after_a_pause_under_the_next_name(cluster: Cluster) -> None:
    name = cluster.start(cluster.look().start[0])
    cluster.end(name, JobState.FAILED, Ending(137, "Error"))
    paused = cluster.look()
    assert (paused.start, paused.advice.ended) == ((), False)
    assert paused.after is not None
    assert 0 < paused.after <= 1
    cluster.now += timedelta(seconds=paused.after + 0.1)
    again = cluster.look()
    assert [request.attempt for request in again.start] == [2]
    attempt = again.retried[TaskId(again.start[0].task)]
    assert attempt.retry is not None
    assert "killed" in attempt.retry.why
    assert attempt.retry.reason == "ToolFailed"


def test_more_memory_after_running_out_of_it(cluster: Cluster) -> None:
    first = cluster.look().start[0]
    cluster.end(cluster.start(first), JobState.FAILED, Ending(137, "OOMKilled"))
    second = cluster.look().start[0]
    assert second.memory_bytes == 2 * first.memory_bytes
    assert second.key == first.key


def test_a_result_that_stands_needs_no_job_even_if_one_failed(cluster: Cluster) -> None:
    request = cluster.look().start[0]
    cluster.end(cluster.start(request), JobState.FAILED, Ending(1, "Error"))
    assert isinstance(request.document, TaskFile)
    cluster.commit(request.document, {"facts.json": json.dumps({}).encode()})
    cluster.lookups = Lookups(cluster.store)
    cluster.now += timedelta(minutes=2)
    with pytest.raises(StoreUnreadable, match="ModelFacts"):
        cluster.look()  # it went on to what ingest left, which here is nothing


def test_a_record_that_vanished_is_made_anew(cluster: Cluster) -> None:
    request = cluster.look().start[0]
    cluster.end(cluster.start(request), JobState.SUCCEEDED)
    again = cluster.look()
    assert [r.attempt for r in again.start] == [2]


def test_parallelism_is_the_builds(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "store", parallelism=1)
    cluster.start(cluster.look().start[0])
    assert cluster.look().start == ()


def test_an_edit_of_the_spec_or_of_the_source_is_planned_anew(cluster: Cluster) -> None:
    first = cluster.look()
    assert cluster.look().plan is first.plan, "nothing changed"
    cluster.spec = BuildSpec.model_validate(
        {"model": {"source": "s3://models/tiny"}, "targets": ["cpu"],
         "quantization": {"cpuPrecision": "Int8"}}
    )  # fmt: skip
    edited = cluster.look()
    assert edited.plan is not first.plan
    assert edited.plan.tasks != first.plan.tasks
    changed = ResolvedFile(path="model.onnx", sha256="9" * 64, size=100)
    cluster.source = SOURCE.model_copy(update={"files": SOURCE.files | {"model.onnx": changed}})
    assert cluster.look().start[0].key != edited.start[0].key
    last = cluster.look()
    cluster.plans.keep({"another"})
    assert cluster.look().plan is not last.plan, "it was forgotten"
