"""The state machine under every order of events, and the stories that matter by name."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_core.errors import BadModel, OverBudget
from genai_core.names import MODEL, Digest, TaskId
from genai_core.operations import OPERATIONS, ArclConfig, GraphConfig
from genai_planner.execution.events import (
    Crashed,
    Failed,
    Finished,
    FoundResult,
    InputLost,
    Look,
    Missed,
    WorkLimits,
)
from genai_planner.execution.invariants import broken
from genai_planner.execution.machine import Machine, TaskState
from genai_planner.plan import Demand, FidelityCondition, FileRef, Plan, Result, Selection, Task
from genai_planner.sources import Source

TOOLCHAINS = {(row.name, row.backend): Digest("0" * 64) for row in OPERATIONS}
MUCH = WorkLimits(parallelism=1000, memory_bytes=1 << 50)


def digest(*parts: object) -> Digest:
    return Digest(hashlib.sha256(repr(parts).encode()).hexdigest())


def task(
    name: str,
    *after: str,
    when: FidelityCondition | None = None,
    rivals: tuple[str, ...] = (),
    memory: int = 1,
    seconds: float = 1.0,
    ar: int = 1,
) -> Task:
    inputs = {f"from_{i}": (Selection(TaskId(a), ("*",)),) for i, a in enumerate(after)}
    if not after:
        inputs["source"] = (Selection(None, ("*",), MODEL),)
    # The length of the name keeps configs, and with them keys, apart.
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6])
    return Task(
        id=TaskId(name),
        operation="arcl",
        backend=None,
        config=ArclConfig(graph=GraphConfig(ar=ar, cl=number + 2)),
        inputs=inputs,
        demand=Demand(memory, seconds),
        when=when,
        rivals=tuple(TaskId(r) for r in rivals),
    )


def machine_of(*tasks: Task, source: Mapping[str, FileRef] | None = None) -> Machine:
    files = source or {"model.onnx": FileRef(digest("model"), 1)}
    return Machine(Plan(tasks), sources={MODEL: Source(files)}, toolchains=TOOLCHAINS)


def result(*parts: object, within: bool | None = None) -> Result:
    facts = {} if within is None else {"within": within, "budget": 0.01}
    return Result({"file": FileRef(digest(*parts), 1)}, facts)


@dataclass
class World:
    """A store, and what running a task leaves: outputs that follow from the key alone."""

    machine: Machine
    store: dict[str, Result] = field(default_factory=dict)
    within: dict[str, bool] = field(default_factory=dict)
    fails: set[str] = field(default_factory=set)
    started: list[str] = field(default_factory=list)
    hits: list[str] = field(default_factory=list)

    def outcome(self, name: str) -> Result:
        return result(self.machine.keys[TaskId(name)], within=self.within.get(name))

    def answer(self, look: Look) -> list[Look]:
        if look.key in self.store:
            self.hits.append(look.task)
            return list(self.machine.handle(FoundResult(look.task, self.store[look.key])))
        return list(self.machine.handle(Missed(look.task, "no record")))

    def finish(self, name: TaskId) -> list[Look]:
        if name in self.fails:
            return list(self.machine.handle(Failed(name, BadModel("no"))))
        self.store[self.machine.keys[name]] = self.outcome(name)
        return list(self.machine.handle(Finished(name, self.outcome(name))))

    def run(self, limits: WorkLimits = MUCH) -> World:
        looks = list(self.machine.begin())
        while not self.machine.ended:
            while looks:
                looks += self.answer(looks.pop())
                assert broken(self.machine) == []
            starts = self.machine.start(limits).start
            self.started += [start.task for start in starts]
            assert self.machine.running or self.machine.ended, "nothing runs and nothing ends"
            for name in self.machine.running:
                looks += self.finish(name)
                assert broken(self.machine) == []
        return self


def run(*tasks: Task, store: dict[str, Result] | None = None, **more: object) -> World:
    world = World(machine_of(*tasks), **more)  # type: ignore[arg-type]
    world.store.update(store or {})
    return world.run()


def test_second_run_finds_everything_and_starts_nothing() -> None:
    tasks = (task("a"), task("b", "a"), task("c", "a"), task("d", "b", "c"))
    first = run(*tasks)
    assert sorted(first.started) == ["a", "b", "c", "d"]
    again = run(*tasks, store=first.store)
    assert again.started == []
    assert sorted(again.hits) == ["a", "b", "c", "d"]
    assert set(again.machine.states.values()) == {TaskState.CACHED}


def test_unchanged_output_under_a_changed_key_stops_the_rebuild_there() -> None:
    first = run(task("a"), task("b", "a"), task("c", "b"))
    changed = (task("a"), task("b", "a", ar=2), task("c", "b"))
    world = World(machine_of(*changed), store=dict(first.store))
    same = first.outcome("b")
    looks = list(world.machine.begin())
    while not world.machine.ended:
        while looks:
            looks += world.answer(looks.pop())
        for start in world.machine.start(MUCH).start:
            world.started.append(start.task)
            looks += world.machine.handle(Finished(start.task, same))
    assert world.started == ["b"]
    assert world.machine.states[TaskId("c")] is TaskState.CACHED


def test_semantic_digest_stands_for_the_bytes_in_keys() -> None:
    def key_of_b(file: FileRef) -> str:
        machine = machine_of(task("a"), task("b", "a"))
        (look,) = machine.begin()
        (following,) = machine.handle(FoundResult(look.task, Result({"x.dlc": file})))
        return following.key

    meaning = digest("meaning")
    assert key_of_b(FileRef(digest(1), 1, meaning)) == key_of_b(FileRef(digest(2), 1, meaning))
    assert key_of_b(FileRef(digest(1), 1)) != key_of_b(FileRef(digest(2), 1))


def test_failure_stops_only_what_depends_on_it() -> None:
    splits = [task(f"compile{k}", f"convert{k}") for k in (1, 2, 3)]
    tasks = (task("ingest"), *(task(f"convert{k}", "ingest") for k in (1, 2, 3)), *splits)
    package = task("package", "compile1", "compile2", "compile3")
    broken_build = run(*tasks, package, fails={"compile2"})
    states = broken_build.machine.states
    assert states[TaskId("compile1")] is TaskState.DONE
    assert states[TaskId("compile3")] is TaskState.DONE
    assert states[TaskId("compile2")] is TaskState.FAILED
    assert states[TaskId("package")] is TaskState.STOPPED
    cured = run(*tasks, package, store=broken_build.store)
    assert sorted(cured.started) == ["compile2", "package"]


def alternatives(*within: bool) -> World:
    """As the cpu target's: convert, fidelity and package for each precision in turn."""
    tasks: list[Task] = [task("ingest")]
    verdicts: dict[str, bool] = {}
    tried: list[str] = []
    for number, good in enumerate(within):
        when = FidelityCondition(TaskId(tried[-1]), within=False) if tried else None
        tasks += [
            task(f"compile{number}", "ingest", when=when),
            task(f"fidelity{number}", f"compile{number}"),
        ]
        tried.append(f"fidelity{number}")
        verdicts[tried[-1]] = good
        tasks.append(
            task(
                f"package{number}",
                f"compile{number}",
                when=FidelityCondition(TaskId(tried[-1]), within=True),
                rivals=tuple(tried) if number == len(within) - 1 else (),
            )
        )
    return World(machine_of(*tasks), within=verdicts).run()


@pytest.mark.parametrize("good", [0, 1, 2])
def test_first_alternative_within_the_budget_is_packaged_and_later_ones_never_run(
    good: int,
) -> None:
    world = alternatives(*(n >= good for n in range(3)))
    packages = [s for s in world.started if s.startswith("package")]
    assert packages == [f"package{good}"]
    assert [s for s in world.started if s.startswith("compile")] == [
        f"compile{n}" for n in range(good + 1)
    ]
    assert all(
        world.machine.states[TaskId(f"compile{n}")] is TaskState.SKIPPED for n in range(good + 1, 3)
    )
    needed = {t.id for t in world.machine.needed()}
    assert "package0" in needed or good > 0
    assert not any(f"compile{n}" in needed for n in range(good + 1, 3))


def test_no_alternative_within_the_budget_fails_with_every_loss() -> None:
    world = alternatives(False, False)
    error = world.machine.errors[TaskId("package1")]
    assert isinstance(error, OverBudget)
    assert error.exit_code == 2
    assert "fidelity0" in error.message
    assert "fidelity1" in error.message
    assert world.machine.ended


def test_losses_are_named_in_nats() -> None:
    tasks = (
        task("ingest"),
        task("fidelity/cpu/int8", "ingest"),
        task(
            "package/cpu/int8",
            "ingest",
            when=FidelityCondition(TaskId("fidelity/cpu/int8"), within=True),
            rivals=("fidelity/cpu/int8",),
        ),
    )
    machine = machine_of(*tasks)
    looks = list(machine.begin())
    facts = {"within": False, "budget": 0.01, "natsPerToken": 3.5, "baselineNats": 3.25}
    while looks:
        look = looks.pop()
        found = Result({"f": FileRef(digest(look.task), 1)}, facts)
        looks += machine.handle(FoundResult(look.task, found))
    message = str(machine.errors[TaskId("package/cpu/int8")])
    assert "int8 by 0.2500" in message
    assert "0.01 nats" in message


def test_longest_chain_starts_first() -> None:
    tasks = (task("short"), task("long"), task("behind", "long", seconds=100.0))
    machine = machine_of(*tasks)
    for look in machine.begin():
        machine.handle(Missed(look.task))
    choice = machine.start(WorkLimits(1, 1 << 50))
    assert [start.task for start in choice.start] == ["long"]


def test_no_more_starts_than_memory_bears_and_the_reason_is_told() -> None:
    machine = machine_of(task("a", memory=6 * 10**9), task("b", memory=5 * 10**9))
    for look in machine.begin():
        machine.handle(Missed(look.task))
    choice = machine.start(WorkLimits(8, 10 * 10**9))
    assert [start.task for start in choice.start] == ["a"]
    assert [wait.why for wait in choice.wait] == ["waits for memory: needs 5.0 GB, 4.0 GB are left"]
    machine.handle(Finished(TaskId("a"), result("a")))
    assert [start.task for start in machine.start(WorkLimits(8, 10 * 10**9)).start] == ["b"]


def test_task_larger_than_the_memory_runs_alone_rather_than_never() -> None:
    machine = machine_of(task("a", memory=100))
    (look,) = machine.begin()
    machine.handle(Missed(look.task))
    (start,) = machine.start(WorkLimits(8, 10)).start
    assert start.tight


def test_crashed_task_runs_again_alone() -> None:
    machine = machine_of(task("a"), task("b"), task("c"))
    for look in machine.begin():
        machine.handle(Missed(look.task))
    assert len(machine.start(WorkLimits(2, 100)).start) == 2
    first, second = machine.running
    machine.handle(Crashed(first))
    choice = machine.start(WorkLimits(2, 100))
    assert first not in [start.task for start in choice.start]
    for name in machine.running:
        machine.handle(Finished(name, result(name)))
    order = []
    while not machine.ended:
        starts = machine.start(WorkLimits(2, 100)).start
        order.append([s.task for s in starts])
        for start in starts:
            machine.handle(Finished(start.task, result(start.task)))
    assert [first] in order
    assert all(second not in names for names in order)


def test_lost_input_makes_its_maker_run_again_and_nothing_else() -> None:
    tasks = (task("a"), task("b", "a"), task("c", "b"))
    world = run(*tasks)
    machine = machine_of(*tasks)
    again = World(machine, store={k: v for k, v in world.store.items() if v != world.outcome("c")})
    looks = list(machine.begin())
    while looks:
        looks += again.answer(looks.pop())
    assert [s.task for s in machine.start(MUCH).start] == ["c"]
    del again.store[machine.keys[TaskId("b")]]  # the wrong blob was taken out of the store
    looks = list(machine.handle(InputLost(TaskId("c"))))
    assert [look.task for look in looks] == ["b"]
    assert broken(machine) == []
    while looks:
        looks += again.answer(looks.pop())
    assert [s.task for s in machine.start(MUCH).start] == ["b"]
    looks = again.finish(TaskId("b"))
    assert [look.task for look in looks] == ["c"]


def test_missing_file_of_an_input_fails_the_task_by_name() -> None:
    wants = replace(
        task("b", "a"), inputs={"model": (Selection(TaskId("a"), ("weights/head.data",)),)}
    )
    machine = machine_of(task("a"), wants)
    (look,) = machine.begin()
    machine.handle(FoundResult(look.task, result("a")))
    assert "a has no weights/head.data" in str(machine.errors[TaskId("b")])


def test_two_files_for_one_path_are_refused() -> None:
    both = replace(
        task("c", "a"),
        inputs={"model": (Selection(TaskId("a"), ("*",)), Selection(TaskId("b"), ("*",)))},
    )
    machine = machine_of(task("a"), task("b"), both)
    for look in machine.begin():
        machine.handle(FoundResult(look.task, result(look.task)))
    assert "would hold two files file" in str(machine.errors[TaskId("c")])


def test_event_that_does_not_fit_is_refused() -> None:
    machine = machine_of(task("a"))
    (look,) = machine.begin()
    with pytest.raises(ValueError, match="a is looking, not running"):
        machine.handle(Finished(look.task, result("a")))


def test_plan_in_a_wrong_order_is_refused() -> None:
    with pytest.raises(ValueError, match="before what it depends on"):
        machine_of(task("b", "a"), task("a"))


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[Task], dict[str, bool], set[str]]:
    count = draw(st.integers(1, 12))
    tasks: list[Task] = []
    for number in range(count):
        names = [t.id for t in tasks]
        after = draw(st.lists(st.sampled_from(names), unique=True, max_size=3)) if names else []
        when = None
        if names and draw(st.integers(0, 3)) == 0:
            when = FidelityCondition(draw(st.sampled_from(names)), within=draw(st.booleans()))
        tasks.append(
            task(
                f"t{number}",
                *after,
                when=when,
                memory=draw(st.integers(1, 8)),
                seconds=draw(st.floats(0.1, 9)),
            )
        )
    names = [t.id for t in tasks]
    within = {str(name): draw(st.booleans()) for name in names}
    fails = set(map(str, draw(st.lists(st.sampled_from(names), max_size=2))))
    return tasks, within, fails


@settings(max_examples=150, deadline=None)
@given(plans(), st.integers(1, 4), st.integers(4, 16), st.integers(0, 1 << 30))
def test_any_plan_in_any_order_ends_right(
    drawn: tuple[list[Task], dict[str, bool], set[str]],
    parallelism: int,
    memory: int,
    seed: int,
) -> None:
    tasks, within, fails = drawn
    dice = random.Random(seed)
    machine = machine_of(*tasks)
    world = World(machine, within=within, fails=fails)
    limits = WorkLimits(parallelism, memory)
    runs: dict[str, int] = {}
    excused: dict[str, int] = {}
    looks = list(machine.begin())
    for _ in range(2000):
        assert broken(machine) == []
        if machine.ended:
            break
        step = dice.choice(["look", "start", "end"])
        if step == "look" and looks:
            looks += world.answer(looks.pop(dice.randrange(len(looks))))
        elif step == "start":
            choice = machine.start(limits)
            for start in choice.start:
                runs[start.task] = runs.get(start.task, 0) + 1
                assert all(other in machine.results for other in machine.after[start.task])
            need = sum(machine.tasks[name].demand.memory_bytes for name in machine.running)
            assert len(machine.running) <= parallelism
            assert need <= memory or len(machine.running) == 1
        elif step == "end" and machine.running:
            name = dice.choice(machine.running)
            ending = dice.random()
            if ending < 0.1 and excused.get(name, 0) < 3:
                excused[name] = excused.get(name, 0) + 1
                looks += machine.handle(Crashed(name, alone=dice.random() < 0.5))
            elif ending < 0.2 and excused.get(name, 0) < 3 and machine.after[name]:
                for other in machine.after[name]:
                    excused[other] = excused.get(other, 0) + 1
                    world.store.pop(machine.keys[other], None)
                excused[name] = excused.get(name, 0) + 1
                looks += machine.handle(InputLost(name))
            else:
                looks += world.finish(name)
    assert machine.ended, machine.states
    for ran, count in runs.items():
        assert count <= 1 + excused.get(ran, 0), f"{ran} ran {count} times"
    good = {TaskState.DONE, TaskState.CACHED}
    for one in tasks:
        state = machine.states[one.id]
        before = {machine.states[other] for other in machine.after[one.id]}
        if before <= good:
            held = one.when is None or within[one.when.task] is one.when.within
            if held and one.id not in fails:
                assert state in good
            elif held:
                assert state is TaskState.FAILED
            else:
                assert state is TaskState.SKIPPED
        else:
            assert state in {TaskState.STOPPED, TaskState.SKIPPED} | (good if excused else set())


@settings(max_examples=40, deadline=None)
@given(plans(), st.integers(0, 1 << 30))
def test_keys_do_not_depend_on_the_order_of_events(
    drawn: tuple[list[Task], dict[str, bool], set[str]], seed: int
) -> None:
    tasks, within, _ = drawn
    dice = random.Random(seed)
    straight = World(machine_of(*tasks), within=within).run()
    machine = machine_of(*tasks)
    world = World(machine, within=within)
    looks = list(machine.begin())
    while not machine.ended:
        if looks and (dice.random() < 0.5 or not machine.running):
            looks += world.answer(looks.pop(dice.randrange(len(looks))))
        else:
            machine.start(WorkLimits(dice.randint(1, 3), 1 << 50))
            if machine.running:
                looks += world.finish(dice.choice(machine.running))
    assert machine.keys == straight.machine.keys


def test_alternatives_that_may_not_be_needed_do_not_make_a_chain_urgent() -> None:
    tasks = (
        task("cpu", seconds=1.0),
        task("fidelity", "cpu", seconds=1.0),
        task(
            "second", "cpu", seconds=100.0, when=FidelityCondition(TaskId("fidelity"), within=False)
        ),
        task("htp", seconds=1.0),
        task("compile", "htp", seconds=9.0),
    )
    # "second" reads from "cpu" too, and is in the chain behind it only through the verdict.
    machine = machine_of(*(replace(t, inputs={}) if t.id == "second" else t for t in tasks))
    looks = machine.begin()
    for look in looks:
        machine.handle(Missed(look.task))
    assert [s.task for s in machine.start(WorkLimits(1, 1 << 50)).start] == ["htp"]
