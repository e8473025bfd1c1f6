"""One look at the world at a time, as a controller takes it; and the counts of a build."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_core.errors import BadModel, GenAIError
from genai_core.kinds.build import BuildSpec
from genai_core.names import MODEL, Digest, Key, TaskId
from genai_core.operations import OPERATIONS
from genai_planner.execution import task_inputs
from genai_planner.execution.advance import Advice, advance
from genai_planner.execution.events import (
    Event,
    Failed,
    FoundResult,
    Look,
    Missed,
    Taken,
    WorkLimits,
)
from genai_planner.execution.machine import KnownKeys, Machine, TaskState
from genai_planner.execution.progress import progress
from genai_planner.expand.build import expand
from genai_planner.plan import FileRef, Plan, Result
from genai_planner.shape import ModelShape, shape_from_config
from genai_planner.sources import Source
from genai_planner.targets import parse_targets

TOOLCHAINS = {(row.name, row.backend): Digest("0" * 64) for row in OPERATIONS}
ENCODED = FileRef(Digest("2" * 64), 1)
SOURCES = {
    MODEL: Source({"model.onnx": FileRef(Digest("1" * 64), 1), "model.encodings": ENCODED}, {}, 8)
}
CONFIG = {
    "num_hidden_layers": 6,
    "hidden_size": 192,
    "vocab_size": 2048,
    "max_position_embeddings": 256,
}


def known_shape(config: dict[str, Any]) -> ModelShape:
    shape = shape_from_config(config)
    assert shape is not None
    return shape


SHAPE = known_shape(CONFIG)
assert SHAPE is not None


def make_plan() -> Plan:
    spec = BuildSpec.model_validate(
        {
            "model": {"source": "m"},
            "targets": ["sm8750"],
            "graphs": {"autoRegression": [1, 32]},
            "splits": {"count": 3},
        }
    )
    return expand(
        spec,
        targets=parse_targets(spec.targets),
        sources=SOURCES,
        shapes={MODEL: SHAPE},
    )


def files(operation: str, key: str) -> Result:
    names = {
        "ingest": ["model.onnx", "facts.json", "encodings/e", "measured.json", "weights/embed.data"]
        + [f"weights/layer_{i:03d}.data" for i in range(6)]
        + ["weights/head.data"],
        "package": ["manifest.json"],
    }.get(operation, ["file"])
    made = {n: FileRef(Digest(hashlib.sha256((key + n).encode()).hexdigest()), 1) for n in names}
    return Result(made, {"within": True})


@dataclass
class Known:
    """A world: what is in none of these was never made."""

    results: Mapping[Key, Result] = field(default_factory=dict)
    running: Collection[Key] = ()
    failed: Mapping[Key, GenAIError] = field(default_factory=dict)
    asked: list[list[str]] = field(default_factory=list)

    def answer(self, looks: Sequence[Look]) -> list[Event]:
        self.asked.append([item.task for item in looks])
        return [self._one(item) for item in looks]

    def _one(self, item: Look) -> Event:
        if item.key in self.results:
            return FoundResult(item.task, self.results[item.key])
        if item.key in self.failed:
            return Failed(item.task, self.failed[item.key])
        if item.key in self.running:
            return Taken(item.task)
        return Missed(item.task, "no record")


def look(
    plan: Plan, known: Known, parallelism: int = 4, *, keys: KnownKeys | None = None
) -> Advice:
    limits = WorkLimits(parallelism, 1 << 50)
    return advance(
        plan, known.answer, lambda: limits, sources=SOURCES, toolchains=TOOLCHAINS, known=keys
    )


def test_build_advances_from_nothing_to_its_container() -> None:
    plan = make_plan()
    results: dict[Key, Result] = {}
    running: dict[Key, str] = {}
    started: list[str] = []
    for _ in range(200):
        advice = look(plan, Known(results, running))
        assert advice == look(plan, Known(results, running)), "the same world, another advice"
        if advice.ended:
            break
        for start in advice.start:
            started.append(start.task)
            running[start.key] = plan.task(start.task).operation
        assert len(running) <= 4
        if running:
            key, operation = running.popitem()
            results[key] = files(operation, key)
    assert advice.ended
    assert sorted(started) == sorted(task.id for task in plan.tasks)
    assert "manifest.json" in advice.containers["sm8750"].outputs


@settings(deadline=None)
@given(st.data())
def test_remembered_keys_are_those_of_the_results_that_are_there_now(data: st.DataObject) -> None:
    """Results are made anew with other bytes, vanish, and come back; keys follow all of it."""
    plan = make_plan()
    keys: KnownKeys = {}
    results: dict[Key, Result] = {}
    for number in range(data.draw(st.integers(1, 12))):
        fresh = look(plan, Known(results), 1000)
        assert look(plan, Known(results), 1000, keys=keys) == fresh
        for start in fresh.start:
            salt = data.draw(st.sampled_from(["", f"{number}"]))
            results[start.key] = files(plan.task(start.task).operation, start.key + salt)
        for key in data.draw(st.lists(st.sampled_from(sorted(results)), max_size=2, unique=True)):
            operation = next(
                (plan.task(t).operation for t, k in fresh.keys.items() if k == key), "arcl"
            )
            again = files(operation, f"{key}{number}")
            if data.draw(st.booleans()):
                results[key] = again
            else:
                del results[key]


def test_nothing_is_keyed_twice_for_the_same_results(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan()
    keys: KnownKeys = {}
    (first,) = look(plan, Known()).start
    known = Known({first.key: files("ingest", first.key)})
    look(plan, known, keys=keys)
    monkeypatch.setattr(task_inputs, "task_key", lambda *_, **__: pytest.fail("keyed anew"))
    assert look(plan, known, keys=keys).results
    known = Known({first.key: files("ingest", first.key + "other")})
    with pytest.raises(pytest.fail.Exception, match="keyed anew"):
        look(plan, known, keys=keys)


def test_failure_is_final_until_its_key_changes() -> None:
    plan = make_plan()
    (first,) = look(plan, Known()).start
    advice = look(plan, Known(failed={first.key: BadModel("broken")}))
    assert advice.ended
    assert set(advice.failed) == {"ingest"}
    assert advice.containers == {}
    assert advice.states[TaskId("package/sm8750")] is TaskState.STOPPED


def test_what_can_be_asked_at_a_time_is_asked_together() -> None:
    plan = make_plan()
    (ingest,) = look(plan, Known()).start
    known = Known({ingest.key: files("ingest", ingest.key)})
    look(plan, known)
    assert known.asked == [["ingest"], ["arcl/ar1_cl256", "arcl/ar32_cl256"]]


def test_counts_follow_what_happens() -> None:
    plan = make_plan()
    machine = Machine(plan, sources=SOURCES, toolchains=TOOLCHAINS)
    (first,) = machine.begin()
    assert str(progress(machine)) == f"0/{len(plan.tasks)}"
    looks = machine.handle(FoundResult(first.task, files("ingest", first.key)))
    for item in looks:
        machine.handle(Missed(item.task))
    machine.start(WorkLimits(1, 1 << 50))
    found = progress(machine)
    assert (found.finished, found.cached) == (1, 1)
    arcl = next(stage for stage in found.stages if stage.operation == "arcl")
    assert (arcl.running, arcl.waiting, arcl.total) == (1, 1, 2)
