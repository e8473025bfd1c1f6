"""Adapters that come, are replaced and go while answers are written: each answer is of one."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from heard import SECONDS, Heard, ask
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from genai_core.container.adapters import AdapterEntry, AdapterIndex, UseCaseEntry, WornEntry
from genai_core.errors import BadInput
from genai_runtime.generate import generate
from genai_runtime.session import SlotSession
from genai_runtime.testing import ScriptedExecutor
from genai_serving.adapters.loaded import NotLoaded
from genai_serving.adapters.served import ServedAdapters
from genai_serving.engine import Engine, Limits
from genai_serving.requests import Finish

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama"
PROMPT = "THIS SOFTWARE IS "
NAMES = ("a", "b", "c")
LIMITS = Limits(sequences=3, tokens=8, waiting=200, cache_bytes=120, prefix_bytes=120)


def entry(content: str) -> AdapterEntry:
    return AdapterEntry(file="x", sha256=content * 64, rank=1, linears=1)


def alone(prompt, most, uses):
    executor = ScriptedExecutor(adapters=[use.name for use in uses])
    session = SlotSession(executor, list(uses))
    return list(generate(session, np.asarray(prompt), max_tokens=most).tokens)


class Machine(RuleBasedStateMachine):
    """Each load has a content of its own, so an answer of the wrong one has other tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.executor = ScriptedExecutor(adapters=("a", "b"))
        self.served = ServedAdapters(
            AdapterIndex(
                adapters={"a": entry("a"), "b": entry("b")},
                use_cases={"both": UseCaseEntry(adapters=(WornEntry(name="a", alpha=0.5),))},
            )
        )
        self.engine = Engine(self.executor, LIMITS)
        self.asked: list[Any] = []

    @rule(name=st.sampled_from(NAMES))
    def load(self, name):
        internal = self.served.next_name(name)
        future = self.engine.load_adapter(internal, None)
        try:
            future.result(SECONDS)
        except BadInput:  # no room: those that left are worn still
            return
        before = self.served.put(name, internal, entry(internal[-1]))
        if before is not None:
            self.engine.retire_adapter(before)

    @rule(name=st.sampled_from(NAMES))
    def unload(self, name):
        internal = self.served.take_out(name)
        if internal is not None:
            self.engine.retire_adapter(internal)
            with pytest.raises(NotLoaded):
                self.engine.submit(ask([1], 1, adapters=(use_of(internal),)), Heard())

    @rule(
        name=st.sampled_from([*NAMES, "both"]),
        prompt=st.lists(st.integers(0, 3), min_size=1, max_size=9),
        most=st.integers(1, 20),
    )
    def generate(self, name, prompt, most):
        uses = self.served.worn(name)
        if uses is None:
            assert name not in self.served.names
            return
        heard = Heard()
        key = self.engine.submit(ask(prompt, most, adapters=uses), heard)
        self.asked.append((key, heard, alone(prompt, most, uses)))

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel(self, data):
        self.engine.cancel(data.draw(st.sampled_from(self.asked))[0])

    @precondition(lambda self: self.asked)
    @rule()
    def wait(self):
        self.asked[-1][1].wait()

    def teardown(self):
        for _, heard, expected in self.asked:
            heard.wait()
            assert heard.ended.reason in {Finish.LENGTH, Finish.CANCELLED}, heard.ended.error
            assert heard.tokens == expected[: len(heard.tokens)]
            if heard.ended.reason is Finish.LENGTH:
                assert heard.tokens == expected
        # With nobody left, what was retired is gone, before the next one comes.
        self.engine.load_adapter("last", None).result(SECONDS)
        live = {use.name for name in self.served.entries for use in self.served.worn(name)}
        assert self.executor.adapters == live | {"last"}
        self.engine.close()
        assert self.executor.open_slots == frozenset()


def use_of(internal):
    from genai_runtime.executor import AdapterUse

    return AdapterUse(internal)


def test_no_answer_is_of_another_adapter_whatever_comes_and_goes():
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=25, stateful_step_count=20, deadline=None)
    )


@pytest.mark.long
def test_no_answer_is_of_another_adapter_over_many_runs():
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=400, stateful_step_count=50, deadline=None)
    )


def test_a_use_case_goes_with_the_content_that_it_was_made_of():
    index = AdapterIndex(
        adapters={"a": entry("a")},
        use_cases={"loud": UseCaseEntry(adapters=(WornEntry(name="a", alpha=0.5),))},
    )
    served = ServedAdapters(index)
    assert served.names == ["a", "loud"]
    assert served.put("a", "a@1", entry("b")) == "a"
    assert served.names == ["a"]
    assert served.worn("loud") is None
    served.put("a", "a@2", entry("a"))
    (worn,) = served.worn("loud")
    assert (worn.name, worn.alpha) == ("a@2", 0.5)
    served.take_out("a")
    assert served.names == []


def test_close_tells_who_waits_for_an_adapter():
    class Stuck(ScriptedExecutor):
        go = threading.Event()

        def forward(self, rows):
            assert self.go.wait(SECONDS)
            return super().forward(rows)

    executor = Stuck()
    engine = Engine(executor, LIMITS)
    engine.submit(ask([1], 40), Heard())
    future = engine.load_adapter("late", None)
    closing = threading.Thread(target=engine.close)
    closing.start()
    executor.go.set()
    closing.join(SECONDS)
    assert future.done(), "whoever asked would wait for ever"
