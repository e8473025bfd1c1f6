"""The queue keeps its promises: once in it, one worker at a key, nothing lost."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_operator.manager.work_queue import WorkQueue
from genai_operator.timing import Timing


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def drained(queue: WorkQueue[str]) -> list[str]:
    """Everything that is due now, in order; each key is done at once."""

    async def take() -> list[str]:
        found: list[str] = []
        while True:
            try:
                key = await asyncio.wait_for(queue.get(), 0.01)
            except TimeoutError:
                return found
            found.append(key)
            queue.done(key)

    return asyncio.run(take())


def test_a_key_stands_in_it_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for _ in range(5):
        queue.add("a")
    queue.add("b")
    assert len(queue) == 2
    assert drained(queue) == ["a", "b"]


def test_a_key_added_during_its_work_is_worked_on_again_afterwards_and_not_meanwhile() -> None:
    async def scenario() -> None:
        queue: WorkQueue[str] = WorkQueue()
        queue.add("a")
        assert await queue.get() == "a"
        queue.add("a")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.get(), 0.02)
        queue.done("a")
        assert await asyncio.wait_for(queue.get(), 1) == "a"

    asyncio.run(scenario())


def test_the_earlier_of_two_wishes_wins() -> None:
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(timing=Timing(monotonic=clock))
    queue.add("a", after=50)
    queue.add("a", after=5)
    queue.add("a", after=20)
    clock.now += 6
    assert drained(queue) == ["a"]
    assert len(queue) == 0


def test_pauses_grow_with_failures_and_end_with_success() -> None:
    async def scenario() -> list[float]:
        clock = Clock()
        queue: WorkQueue[str] = WorkQueue(
            first_pause=1, longest_pause=60, timing=Timing(monotonic=clock)
        )
        pauses = []
        queue.add("a")
        for _ in range(9):
            await queue.get()
            pauses.append(queue.failed("a"))
            clock.now += 100
        await queue.get()
        queue.done("a")
        queue.add("a")
        await queue.get()
        pauses.append(queue.failed("a"))
        return pauses

    pauses = asyncio.run(scenario())
    for number, pause in enumerate(pauses[:9]):
        assert 0.74 * min(2**number, 60) <= pause <= 1.26 * min(2**number, 60)
    assert pauses[9] <= 1.26


def test_a_forgotten_key_does_not_come_back() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    queue.add("b")
    queue.forget("a")
    assert drained(queue) == ["b"]


def test_the_rest_of_what_is_gone_is_not_remembered_for_ever() -> None:
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(timing=Timing(monotonic=clock))
    for number in range(100):
        queue.done(str(number), rest=5.0)  # it was forgotten while it was worked on
        clock.now += 1.0
    assert len(queue._rests) <= 5


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=30))
def test_several_workers_never_hold_one_key_and_miss_no_addition(
    additions: list[tuple[str, int]],
) -> None:
    async def scenario() -> None:
        queue: WorkQueue[str] = WorkQueue()
        holding: Counter[str] = Counter()
        seen: dict[str, int] = {}
        added: dict[str, int] = {}

        async def worker() -> None:
            while True:
                key = await queue.get()
                holding[key] += 1
                assert holding[key] == 1
                version = added[key]
                await asyncio.sleep(0)
                seen[key] = max(seen.get(key, 0), version)
                holding[key] -= 1
                queue.done(key)

        workers = [asyncio.create_task(worker()) for _ in range(3)]
        for number, (key, pause) in enumerate(additions, 1):
            added[key] = number
            queue.add(key)
            for _ in range(pause):
                await asyncio.sleep(0)
        while len(queue) or holding.total():  # noqa: ASYNC110 - the workers' turns
            await asyncio.sleep(0)
        for task in workers:
            assert not task.done() or task.exception() is None
            task.cancel()
        assert seen == added

    asyncio.run(scenario())


def test_groups_take_turns_however_many_keys_one_of_them_has() -> None:
    """Three hundred deployments of one tenant kept another's build waiting for 50 s."""
    queue: WorkQueue[str] = WorkQueue(group=lambda key: key[0])
    for number in range(300):
        queue.add(f"a{number}")
    queue.add("b0")
    queue.add("b1")
    queue.add("c0")
    order = drained(queue)
    assert order[:6] == ["a0", "b0", "c0", "a1", "b1", "a2"]
    assert order[5:] == [f"a{number}" for number in range(2, 300)]


def test_a_group_keeps_its_turn_when_its_first_key_is_being_worked_on() -> None:
    async def scenario() -> None:
        queue: WorkQueue[str] = WorkQueue(group=lambda key: key[0])
        for key in ("a0", "b0"):
            queue.add(key)
        assert [await queue.get(), await queue.get()] == ["a0", "b0"]
        for key in ("a0", "a1", "b1"):
            queue.add(key)
        assert [await queue.get(), await queue.get()] == ["a1", "b1"]
        queue.done("a0")
        assert await asyncio.wait_for(queue.get(), 1) == "a0"

    asyncio.run(scenario())
