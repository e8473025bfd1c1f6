"""What a pass costs: its own steps and its threads, and not what others compute meanwhile."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from fake_apiserver import FakeApiserver

from genai_operator.kube.watch.kinds import Ref
from genai_operator.manager.controller import Controller, _rest
from genai_operator.settings import Settings
from genai_operator.threads import Threads, in_thread
from genai_operator.timing import Cost, Metered, Timing


class Processor:
    """A thread's clock that goes on only where something is computed."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def compute(self, seconds: float) -> None:
        self.seconds += seconds

    @property
    def timing(self) -> Timing:
        return Timing(computed=lambda: self.seconds)


def metered(work: Any, processor: Processor) -> float:
    cost = Cost()

    async def run() -> None:
        await Metered(work, cost, processor.timing)

    asyncio.run(run())
    return cost.seconds


def test_metered_adds_up_what_its_own_steps_compute() -> None:
    processor = Processor()

    async def work() -> None:
        processor.compute(1)
        await asyncio.sleep(0)
        processor.compute(2)
        await asyncio.sleep(0)

    assert metered(work(), processor) == 3


def test_metered_leaves_out_what_others_compute_while_it_waits() -> None:
    processor, order = Processor(), asyncio.Event()
    mine, others = Cost(), Cost()

    async def waits() -> None:
        processor.compute(1)
        await order.wait()
        processor.compute(2)

    async def works() -> None:
        for _ in range(5):
            processor.compute(100)
            await asyncio.sleep(0)
        order.set()

    async def run() -> None:
        await asyncio.gather(
            asyncio.ensure_future(_awaited(Metered(waits(), mine, processor.timing))),
            asyncio.ensure_future(_awaited(Metered(works(), others, processor.timing))),
        )

    asyncio.run(run())
    assert (mine.seconds, others.seconds) == (3, 500)


async def _awaited(work: Metered[Any]) -> Any:
    return await work


def test_metered_hands_on_results_errors_and_cancellation() -> None:
    async def returns() -> int:
        await asyncio.sleep(0)
        return 7

    async def fails() -> None:
        await asyncio.sleep(0)
        raise KeyError("mine")

    ended: list[str] = []

    async def hangs() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("cleaned up")

    async def run() -> None:
        assert await Metered(returns(), Cost()) == 7
        with pytest.raises(KeyError, match="mine"):
            await Metered(fails(), Cost())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await Metered(hangs(), Cost())

    asyncio.run(run())
    assert ended == ["cleaned up"]


def test_metered_counts_what_is_computed_in_a_thread_of_its_own() -> None:
    cost = Cost()

    def compute() -> int:
        return sum(i * i for i in range(300_000))

    async def work() -> int:
        with Threads().working_on(Ref("things", "n", "a")):
            return await in_thread(compute)

    async def run() -> int:
        return await Metered(work(), cost)

    assert asyncio.run(run()) == compute()
    assert cost.seconds > 0.001, "a third of a million products take longer"


def test_controller_lets_a_pass_rest_by_its_own_work(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = Processor()
    controller = Controller(FakeApiserver(), Settings(), timing=processor.timing)
    rests: dict[str, float] = {}
    done = controller.queue.done

    def noted(ref: Ref, rest: float = 0.0) -> None:
        rests[ref.name] = rest
        done(ref, rest=rest)

    monkeypatch.setattr(controller.queue, "done", noted)

    class Reconciler:
        async def reconcile(self, _namespace: str, name: str) -> None:
            for _ in range(3):
                processor.compute(0.5 if name == "large" else 0.01)
                await asyncio.sleep(0)

        def tidy(self) -> None:
            pass

    controller.kinds = {"things": SimpleNamespace(reconciler=Reconciler())}  # type: ignore[dict-item]

    async def run() -> None:
        for name in ("large", "small"):
            controller.queue.add(Ref("things", "n", name))
        refs = [await controller.queue.get() for _ in "ab"]
        await asyncio.gather(*(controller._work(ref) for ref in refs))

    asyncio.run(run())
    assert rests == {"large": pytest.approx(_rest(1.5)), "small": 0.0}
    assert rests["large"] == 3.0
