"""Which tasks one worker goes on with, and how they are recognized before they have a key."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from genai_core.kinds.build import BuildSpec
from genai_core.names import MODEL, Backend, Digest, TaskId
from genai_core.operations import OPERATIONS
from genai_planner.execution.machine import TaskState
from genai_planner.expand.build import expand
from genai_planner.plan import Demand, FileRef, Plan, Task
from genai_planner.shape import ModelShape, shape_from_config
from genai_planner.sources import Source
from genai_planner.targets import parse_targets
from genai_planner.task_chains import chain_behind, derivations, is_cheaper_joined

CONFIG = {
    "num_hidden_layers": 6, "hidden_size": 192, "vocab_size": 2048, "max_position_embeddings": 256,
}  # fmt: skip
CHAINS = {(row.name, row.backend): Digest("0" * 64) for row in OPERATIONS}
SOURCE = {
    name: FileRef(Digest(f"{n:064x}"), 1)
    for n, name in enumerate(("model.onnx", "config.json", "model.encodings"), 1)
}
SOURCES = {MODEL: Source(SOURCE, CONFIG, 8)}


def known_shape(config: dict[str, Any]) -> ModelShape:
    shape = shape_from_config(config)
    assert shape is not None
    return shape


SHAPE = known_shape(CONFIG)
assert SHAPE is not None


def plan(*targets: str, **more: Any) -> Plan:
    document = {
        "model": {"source": "m"}, "targets": list(targets),
        "graphs": {"autoRegression": [1, 32]}, "splits": {"count": 3},
    }  # fmt: skip
    spec = BuildSpec.model_validate(document | more)
    return expand(spec, targets=parse_targets(spec.targets), sources=SOURCES, shapes={MODEL: SHAPE})


def behind(made: Plan, head: str, *ended: str, **more: Any) -> tuple[str, ...]:
    states = dict.fromkeys((task.id for task in made.tasks), TaskState.BLOCKED)
    states |= dict.fromkeys(map(TaskId, ended), TaskState.CACHED)
    states[TaskId(head)] = TaskState.RUNNING
    return chain_behind(
        made, TaskId(head), states, most=more.get("most", 8), fits=more.get("fits", lambda _: True)
    )


def test_a_split_goes_on_to_its_conversion_and_not_to_what_waits_for_others() -> None:
    made = plan("sm8750")
    ready = ("ingest", "arcl/ar1_cl256", "arcl/ar32_cl256")
    one = "transform/ar1_cl256_1_of_3"
    assert behind(made, one, *ready) == ("convert/htp/ar1_cl256_1_of_3",)
    other = ("transform/ar32_cl256_1_of_3", "convert/htp/ar32_cl256_1_of_3")
    assert behind(made, one, *ready, *other) == (
        "convert/htp/ar1_cl256_1_of_3",
        "compile/sm8750/1_of_3",
    ), "the other graph's part is there already"
    parts = tuple(f"compile/sm8750/{n}_of_3" for n in (1, 2, 3))
    assert behind(made, "fidelity/sm8750", *ready, *parts) == ("package/sm8750",)


def test_what_fans_out_is_spread() -> None:
    made = plan("sm8750")
    assert behind(made, "ingest") == ()
    assert behind(made, "arcl/ar1_cl256", "ingest") == ()


def test_a_cpu_build_is_one_chain_that_ends_where_a_verdict_decides() -> None:
    made = plan("cpu")
    chain = ("compile/cpu/int8", "fidelity/cpu/int8", "package/cpu/int8")
    assert behind(made, "convert/cpu/int8_1_of_1", "ingest") == chain
    assert behind(made, "convert/cpu/int8_1_of_1", "ingest", most=3) == chain[:2]
    assert behind(made, "convert/cpu/int8_1_of_1", "ingest", most=1) == ()


def test_nothing_is_joined_that_cannot_run_there() -> None:
    made = plan("cpu")

    def fits(task: Task) -> bool:
        return task.operation != "fidelity"

    assert behind(made, "convert/cpu/int8_1_of_1", "ingest", fits=fits) == ("compile/cpu/int8",)


@given(st.integers(1, 64), st.floats(0, 3600), st.integers(1, 64), st.floats(0, 3600))
def test_joining_never_holds_more_memory_for_longer(
    one: int, seconds: float, other: int, others_seconds: float
) -> None:
    first, second = Demand(one, seconds), Demand(other, others_seconds)
    joined = max(one, other) * (4 + seconds + others_seconds)
    apart = one * (4 + seconds) + other * (4 + others_seconds)
    if abs(joined - apart) > 1e-9 * apart:
        assert is_cheaper_joined([first], second) == (joined < apart)


def test_equal_work_has_an_equal_derivation_whatever_it_is_called() -> None:
    one = derivations(plan("sm8750"), sources=SOURCES, toolchains=CHAINS)
    both = derivations(plan("sm8750", "cpu"), sources=SOURCES, toolchains=CHAINS)
    assert one.items() <= both.items()
    assert len(set(both.values())) == len(both)

    # What is made from other content, or with other libraries, is something else all the way down.
    other = {MODEL: Source(SOURCE | {"model.onnx": FileRef(Digest("f" * 64), 1)})}
    assert not set(one.values()) & set(
        derivations(plan("sm8750"), sources=other, toolchains=CHAINS).values()
    )
    newer = CHAINS | {("convert", Backend.HTP): Digest("1" * 64)}
    changed = derivations(plan("sm8750"), sources=SOURCES, toolchains=newer)
    differs = {task.split("/")[0] for task in one if one[task] != changed[task]}
    assert differs == {"convert", "compile", "fidelity", "package"}


@settings(deadline=None)
@given(st.data())
def test_only_dependents_of_members_are_looked_at_and_none_is_missed(data: st.DataObject) -> None:
    """Against the definition, applied to every task of the plan."""
    made = plan("sm8750", "cpu")
    ids = [task.id for task in made.tasks]
    states = {
        task: data.draw(
            st.sampled_from([TaskState.BLOCKED, TaskState.CACHED, TaskState.DONE, TaskState.FAILED])
        )
        for task in ids
    }
    head = data.draw(st.sampled_from(ids))
    states[head] = TaskState.RUNNING
    most = data.draw(st.integers(1, 6))
    members, demands = [head], [made.task(head).demand]
    while len(members) < most:
        good = {t for t, s in states.items() if s in {TaskState.CACHED, TaskState.DONE}} | set(
            members
        )
        possible = [
            task
            for task in made.tasks
            if states[task.id] is TaskState.BLOCKED
            and task.id not in members
            and set(task.after()) & set(members)
            and set(task.after()) <= good
            and (task.when is None or task.when.within or task.when.task not in members)
        ]
        if len(possible) != 1 or not is_cheaper_joined(demands, possible[0].demand):
            break
        members.append(possible[0].id)
        demands.append(possible[0].demand)
    found = chain_behind(made, head, states, most=most, fits=lambda _: True)
    assert found == tuple(members[1:])
