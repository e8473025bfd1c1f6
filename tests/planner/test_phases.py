"""A plan in its phases: what stands decides which of them one holds; and builds of two sources."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from genai_core.errors import BadEncodings, CorruptBlob
from genai_core.facts import AttentionFacts, ModelFacts, RopeTable, WeightsGroup
from genai_core.kinds.build import BuildSpec
from genai_core.names import MODEL, Digest, Key, SourceName, TaskId
from genai_core.operations import OPERATIONS
from genai_core.tasks.task_file import Toolchain
from genai_planner.execution.events import TaskStart
from genai_planner.execution.machine import TaskState
from genai_planner.phases import BuildPlanner, BuildRequest, Exact, Forecast, Ingesting, plan_build
from genai_planner.plan import FileRef, Result, Selection
from genai_planner.sources import Source, Sources
from genai_planner.targets import parse_targets
from genai_planner.task_files import TaskFiles, slug_of

CONFIG = json.loads(
    (Path(__file__).parents[2] / "examples" / "tiny-llama" / "model" / "config.json").read_text()
)
CHILD = SourceName("child:decode")
FACTS = ModelFacts(
    architecture="llama",
    layers=2,
    hidden_size=8,
    vocab_size=16,
    parameters=100,
    rope={"default": RopeTable(rotary_dim=2, inv_freq=[1.0])},
    attention=[AttentionFacts(layer=i, num_heads=2, kv_heads=1, head_dim=4) for i in range(2)],
    boundaries=["b0", "b1", "b2"],
    groups={
        name: WeightsGroup(file=f"weights/{name}.data", size_bytes=4, parameters=1)
        for name in ("embed", "layer_000", "layer_001", "head")
    },
)


def file(*parts: str) -> FileRef:
    return FileRef(Digest(hashlib.sha256("/".join(parts).encode()).hexdigest()), 1)


def source(name: str, *, encoded: bool = True, config: Mapping[str, Any] = CONFIG) -> Source:
    roles = ["model.onnx", "config.json", *(["model.encodings"] if encoded else [])]
    return Source({role: file(name, role) for role in roles}, config, 8)


def planner(sources: Sources | None = None, **spec: Any) -> BuildPlanner:
    wanted = BuildSpec.model_validate({"model": {"source": "m"}, "targets": ["cpu"]} | spec)
    return BuildPlanner(
        BuildRequest(
            spec=wanted,
            targets=parse_targets(wanted.targets),
            sources=sources or {MODEL: source("model")},
            toolchains={
                (row.name, row.backend): Toolchain(id="0" * 64, versions={}) for row in OPERATIONS
            },
        )
    )


class Known:
    """A shell: which ingest tasks stand, and how often what they found cannot be read."""

    def __init__(self, *tasks: str, lost: int = 0) -> None:
        self.tasks = {TaskId(task) for task in tasks}
        self.lost = lost
        self.forgotten = 0

    def look(self, phase: Ingesting) -> Mapping[TaskId, Result]:
        return {task.id: Result({}) for task in phase.plan.tasks if task.id in self.tasks}

    def read_facts(self, ingested: Result) -> ModelFacts:
        if self.lost > self.forgotten:
            raise CorruptBlob("gone", where="here")
        return FACTS

    def forget(self) -> None:
        self.forgotten += 1


def test_plan_build_returns_a_forecast_when_ingest_does_not_stand() -> None:
    found = plan_build(planner(), Known())
    assert isinstance(found, Forecast)
    assert len(found.plan.tasks) > 4


def test_plan_build_returns_the_exact_plan_when_ingest_stands() -> None:
    found = plan_build(planner(), Known("ingest"))
    assert isinstance(found, Exact)
    weights = {
        p for task in found.plan.tasks for s in task.inputs.get("model", ()) for p in s.patterns
    }
    assert "weights/layer_001.data" in weights
    assert "weights/layer_002.data" not in weights, "that was config.json's number of layers"


def test_plan_build_looks_again_when_what_ingest_found_is_lost() -> None:
    known = Known("ingest", lost=2)
    assert isinstance(plan_build(planner(), known), Exact)
    assert known.forgotten == 2
    with pytest.raises(CorruptBlob):
        plan_build(planner(), Known("ingest", lost=99))


def test_forecast_is_ingest_alone_when_config_says_nothing() -> None:
    found = planner({MODEL: source("model", config={})}).forecast
    assert [task.id for task in found.plan.tasks] == ["ingest"]


def test_every_phase_refuses_when_the_spec_cannot_work() -> None:
    bad = planner({MODEL: source("model", encoded=False)})
    for make in (lambda: bad.ingesting, lambda: bad.forecast, lambda: plan_build(bad, Known())):
        with pytest.raises(BadEncodings):
            make()


def test_phases_are_made_once_when_nothing_changed() -> None:
    one = planner()
    assert one.forecast is one.forecast
    assert plan_build(one, Known("ingest")) is plan_build(one, Known("ingest"))


def two() -> dict[SourceName, Source]:
    return {MODEL: source("model"), CHILD: source("decode")}


def test_two_sources_are_ingested_apart() -> None:
    found = planner(two()).ingesting
    assert [task.id for task in found.plan.tasks] == ["ingest", "ingest/child:decode"]
    machine = found.machine()
    looks = machine.begin()
    keys = {look.task: look.key for look in looks}
    assert len(set(keys.values())) == 2, "they hold other bytes"
    assert machine.inputs(TaskId("ingest/child:decode"))["source"]["model.onnx"] == file(
        "decode", "model.onnx"
    )
    alone = planner().ingesting.machine()
    assert {look.task: look.key for look in alone.begin()} == {"ingest": keys[TaskId("ingest")]}, (
        "a second source must not change the first one's keys"
    )


def test_a_second_source_that_does_not_stand_keeps_the_plan_a_forecast() -> None:
    assert isinstance(plan_build(planner(two()), Known("ingest")), Forecast)
    both = plan_build(planner(two()), Known("ingest", "ingest/child:decode"))
    assert isinstance(both, Exact)
    assert {"ingest", "ingest/child:decode"} <= {task.id for task in both.plan.tasks}


def test_derivations_name_the_source_whose_files_are_read() -> None:
    made = planner(two()).ingesting.derivations
    assert made[TaskId("ingest")] != made[TaskId("ingest/child:decode")]
    swapped = planner({MODEL: source("decode"), CHILD: source("model")}).ingesting.derivations
    assert made[TaskId("ingest")] == swapped[TaskId("ingest/child:decode")], (
        "what it is called is not what it is"
    )


def test_task_file_locates_files_in_the_source_that_the_task_reads() -> None:
    phase = planner(two()).ingesting
    machine = phase.machine()
    looks = {look.task: look.key for look in machine.begin()}
    files = TaskFiles(
        toolchains=phase.request.toolchains,
        locate=lambda source, role: f"/{source}/{role}",
        slug="tiny",
        address="m",
    )
    task = TaskId("ingest/child:decode")
    written = files.task_file(
        machine.tasks[task], TaskStart(task, Key(looks[task]), machine.inputs(task))
    )
    assert {i.path for i in written.inputs["source"].values()} == {
        f"/child:decode/{role}" for role in ("model.onnx", "config.json", "model.encodings")
    }


def test_a_selection_names_a_task_or_a_source() -> None:
    with pytest.raises(ValueError, match="a task or a source"):
        Selection(None, ("*",))
    with pytest.raises(ValueError, match="a task or a source"):
        Selection(TaskId("a"), ("*",), MODEL)


@pytest.mark.parametrize("folder", ["", "model", "onnx", "BASE"])
def test_slug_of_takes_the_build_when_the_folder_says_nothing(folder: str) -> None:
    assert slug_of("tiny", folder) == "tiny"
    assert slug_of("tiny", "llama") == "llama"


def test_states_of_a_machine_are_its_own() -> None:
    phase = planner().forecast
    one, other = phase.machine(), phase.machine()
    one.begin()
    assert other.states[TaskId("ingest")] is TaskState.BLOCKED
