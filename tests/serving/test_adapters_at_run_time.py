"""Adapters that come, are replaced and go while answers are written: each answer is of one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from heard import SECONDS, Heard, ask
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from genai_core.container.adapters import AdapterEntry, AdapterIndex, UseCaseEntry, WornEntry
from genai_core.errors import CorruptBlob
from genai_runtime.executor.adapter_weights import AdapterShape, NoRoom
from genai_runtime.executor.rows import AdapterUse, Row, RowOutput
from genai_runtime.generate import generate
from genai_runtime.session import SlotSession
from genai_runtime.speculation.control import Speculation
from genai_runtime.speculation.ngram import Ngram
from genai_runtime.testing import ScriptedExecutor
from genai_serving.adapters.cache import AdapterCache, AdapterLoader
from genai_serving.adapters.loaded import NoColumns, NotLoaded, Unreadable
from genai_serving.adapters.served import ServedAdapters
from genai_serving.engine import Engine, ServingLimits
from genai_serving.requests import Finish

NAMES = ("a", "b", "c", "d")
LIMITS = ServingLimits(sequences=3, tokens=24, waiting=200, cache_bytes=120, prefix_bytes=120)
VOCAB = 5


def entry(content: str) -> AdapterEntry:
    return AdapterEntry(file="x", sha256=content * 64, rank=1, linears=1)


def source(content: str, size: int = 1, read: Callable[[], Any] | None = None) -> AdapterLoader:
    """Of a content that stands for matrices: the scripted executor takes a text as well."""
    made: Callable[[], Any] = read or (lambda: content)
    return AdapterLoader(AdapterShape(1, {"y": (1, 1)}, size), made)


def alone(
    prompt: Sequence[int],
    most: int,
    uses: Sequence[AdapterUse],
    content: Callable[[str], str] = lambda name: name,
) -> list[int]:
    """Of one session that wears contents, without anything beside it."""
    worn = [AdapterUse(content(use.name), use.alpha) for use in uses]
    executor = ScriptedExecutor(vocab_size=VOCAB, adapters=[use.name for use in worn])
    session = SlotSession(executor, worn)
    return list(generate(session, np.asarray(prompt), max_tokens=most).tokens)


class Machine(RuleBasedStateMachine):
    """Each load has a content of its own, so an answer of the wrong one has other tokens.

    A pass holds two adapters and memory three, so all of them come and go all the time; two are
    the server's own, and some cannot be read again. Prefix cache and speculation are on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.executor = ScriptedExecutor(vocab_size=VOCAB)
        self.executor.most_adapters = 2
        worn = (WornEntry(name="a", alpha=0.5), WornEntry(name="b"))
        self.served = ServedAdapters(
            AdapterIndex(
                adapters={"a": entry("a"), "b": entry("b")},
                use_cases={"both": UseCaseEntry(adapters=worn)},
            )
        )
        self.cache = AdapterCache(3)
        for name in ("a", "b"):
            self.cache.add(name, source(f"content of {name}"), pinned=True)
        guessing = Speculation(Ngram(least=1, most=3), most=3, adaptive=False)
        self.engine = Engine(
            self.executor, LIMITS, adapters=self.cache, pinned=("a", "b"), speculation=guessing
        )
        self.asked: list[Any] = []
        self.broken: set[str] = set()

    @rule(name=st.sampled_from(NAMES))
    def load(self, name: str) -> None:
        internal = self.served.next_name(name)

        def read() -> str:
            if internal in self.broken:
                raise CorruptBlob("it has other bytes")
            return f"content of {internal}"

        self.engine.load_adapter(internal, source("", read=read)).result(SECONDS)
        before = self.served.put(name, internal, entry(internal[-1]))
        if before is not None:
            self.engine.retire_adapter(before)

    @rule(name=st.sampled_from(NAMES))
    def break_its_file(self, name: str) -> None:
        if name in self.served.entries:
            (use,) = self.served.worn(name) or ()
            self.broken.add(use.name)

    @rule(name=st.sampled_from(NAMES))
    def unload(self, name: str) -> None:
        internal = self.served.take_out(name)
        if internal is not None:
            self.engine.retire_adapter(internal)
            with pytest.raises(NotLoaded):
                self.engine.submit(ask([1], 1, adapters=(AdapterUse(internal),)), Heard())

    @rule(
        name=st.sampled_from([*NAMES, "both", "base"]),
        prompt=st.lists(st.integers(0, 3), min_size=1, max_size=9),
        most=st.integers(1, 20),
    )
    def generate(self, name: str, prompt: list[int], most: int) -> None:
        uses = () if name == "base" else self.served.worn(name)
        if uses is None:
            assert name not in self.served.names
            return
        heard = Heard()
        key = self.engine.submit(ask(prompt, most, adapters=uses), heard)
        self.asked.append((key, heard, uses, alone(prompt, most, uses, "content of {}".format)))

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.engine.cancel(data.draw(st.sampled_from(self.asked))[0])

    @precondition(lambda self: self.asked)
    @rule()
    def wait(self) -> None:
        self.asked[-1][1].wait()

    def teardown(self) -> None:
        for _, heard, uses, expected in self.asked:
            heard.wait()
            if heard.ended.reason is Finish.ERROR:  # never an answer of something else instead
                assert isinstance(heard.ended.error, Unreadable), heard.ended.error
                assert self.broken & {use.name for use in uses}
                assert heard.tokens == []
                continue
            assert heard.ended.reason in {Finish.LENGTH, Finish.CANCELLED}, heard.ended.error
            assert heard.tokens == expected[: len(heard.tokens)]
            if heard.ended.reason is Finish.LENGTH:
                assert heard.tokens == expected
        live = {use.name for name in self.served.entries for use in self.served.worn(name) or ()}
        ask_base = Heard()
        self.engine.submit(ask([1], 1), ask_base)  # a pass: what was retired is gone behind it
        ask_base.wait()
        assert set(self.engine.adapter_states) == live
        assert self.executor.adapters <= live
        assert self.cache.bytes <= 3
        self.engine.close()
        assert self.executor.open_slots == frozenset()


def test_no_answer_is_of_another_adapter_whatever_comes_and_goes() -> None:
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=25, stateful_step_count=20, deadline=None)
    )


@pytest.mark.long
def test_no_answer_is_of_another_adapter_over_many_runs() -> None:
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=400, stateful_step_count=50, deadline=None)
    )


def test_a_use_case_goes_with_the_content_that_it_was_made_of() -> None:
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
    (worn,) = served.worn("loud") or ()
    assert (worn.name, worn.alpha) == ("a@2", 0.5)
    served.take_out("a")
    assert served.names == []


class Gated(ScriptedExecutor):
    """Waits before each pass, and before it lays an adapter in, until it may go on."""

    def __init__(self, **given: Any) -> None:
        super().__init__(vocab_size=VOCAB, **given)
        self.may_pass, self.may_fill = threading.Event(), threading.Event()
        self.may_pass.set()
        self.may_fill.set()
        self.filling = threading.Event()
        self.threads: set[str] = set()

    def forward(self, rows: Sequence[Row]) -> list[RowOutput]:
        assert self.may_pass.wait(SECONDS)
        return super().forward(rows)

    def fill_adapter(self, name: str, weights: object) -> None:
        self.threads.add(threading.current_thread().name)
        self.filling.set()
        assert self.may_fill.wait(SECONDS)
        super().fill_adapter(name, weights)


def engine_of(executor: ScriptedExecutor, names: Sequence[str], room: int, **given: Any) -> Engine:
    executor.most_adapters = room
    cache = AdapterCache()
    for name in names:
        cache.add(name, source(f"content of {name}"), pinned=True)
    return Engine(executor, LIMITS, adapters=cache, pinned=names, **given)


def wear(engine: Engine, name: str, most: int = 8, **given: Any) -> tuple[Heard, list[int]]:
    uses = (AdapterUse(name),) if name else ()
    heard = Heard(**given)
    engine.submit(ask([1, 2], most, adapters=uses), heard)
    return heard, alone([1, 2], most, uses, "content of {}".format)


def stopped(
    engine: Engine, executor: Gated, name: str, order: list[str] | tuple[()] = ()
) -> tuple[Heard, list[int]]:
    """An answer that has its first token; the pass of the second stands."""
    there = threading.Event()

    def on_first() -> None:
        executor.may_pass.clear()
        if isinstance(order, list):
            order.append(name)
        there.set()

    heard, expected = wear(engine, name, on_first=on_first)
    assert there.wait(SECONDS)
    return heard, expected


def test_passes_go_on_while_an_adapter_is_read_and_laid_in() -> None:
    """By events alone: the base's answer ends while the adapter's thread still stands."""
    executor = Gated()
    engine = engine_of(executor, ("slow",), 1)
    reading, may_read = threading.Event(), threading.Event()

    def read() -> str:
        reading.set()
        assert may_read.wait(SECONDS)
        return "content of late"

    late = engine.load_adapter("late", source("", read=read))
    assert reading.wait(SECONDS)
    heard, expected = wear(engine, "")
    assert heard.wait().tokens == expected
    assert not late.done()
    may_read.set()
    late.result(SECONDS)
    executor.may_fill.clear()
    slow, slow_expected = wear(engine, "slow")
    assert executor.filling.wait(SECONDS)
    heard, expected = wear(engine, "", 20)
    assert heard.wait().tokens == expected
    assert slow.tokens == []
    assert engine.adapter_states == {"slow": "coming", "late": "in memory"}
    executor.may_fill.set()
    assert slow.wait().tokens == slow_expected
    assert engine.adapter_states["slow"] == "laid in"
    engine.close()
    assert all(name.startswith("adapters") for name in executor.threads)


def test_who_wears_what_is_laid_in_passes_nobody_who_waits_for_columns() -> None:
    """Else an adapter that many ask for would keep another out for ever."""
    executor = Gated()
    engine = engine_of(executor, ("a", "b"), 1)
    order: list[str] = []
    first, expected = stopped(engine, executor, "a", order)
    second, _ = wear(engine, "b", on_first=lambda: order.append("b"))
    third, _ = wear(engine, "a", on_first=lambda: order.append("a again"))
    executor.may_pass.set()
    for heard in (first, second, third):
        heard.wait()
    assert order == ["a", "b", "a again"]
    assert first.tokens == third.tokens == expected
    engine.close()


def test_a_request_whose_adapter_finds_no_room_fails_with_the_numbers_and_others_go_on() -> None:
    executor, now = Gated(), [0.0]
    engine = engine_of(executor, ("a", "b"), 1, adapter_seconds=5.0, clock=lambda: now[0])
    first, expected = stopped(engine, executor, "a")
    second, _ = wear(engine, "b")
    now[0] = 6.0
    executor.may_pass.set()
    second.wait()
    assert isinstance(second.ended.error, NoColumns)
    told = str(second.ended.error)
    assert "adapter b of rank 1 found no room in 5 s: 0 of 1 columns" in told
    assert "running requests wear a" in told
    assert first.wait().tokens == expected
    third, expected = wear(engine, "b")
    assert third.wait().tokens == expected
    engine.close()


def test_check_refuses_adapters_that_no_pass_holds_together() -> None:
    engine = engine_of(Gated(), ("a", "b"), 1)
    with pytest.raises(NoRoom, match="a and b have rank 2 together, and a pass holds 1"):
        engine.submit(ask([1], 1, adapters=(AdapterUse("a"), AdapterUse("b"))), Heard())
    engine.close()


def test_cache_refuses_what_would_never_fit_and_reads_again_what_gave_way() -> None:
    read: list[str] = []
    cache = AdapterCache(3 << 20)

    def made(name: str, size: int) -> AdapterLoader:
        def content() -> str:
            read.append(name)
            return name

        return source("", size << 20, content)

    cache.add("own", made("own", 1), pinned=True)
    for name in ("x@1", "y@1", "z@1"):
        cache.add(name, made(name, 1))
    with pytest.raises(NoRoom, match=r"adapter big: it takes 3.0 MiB; of 3.0 MiB .*, 2.0 MiB are"):
        cache.add("big@1", made("big@1", 3))
    for name in ("own", "x@1", "y@1", "z@1", "own", "z@1", "x@1"):
        assert str(cache.weights(name)) == name
        assert cache.bytes <= 3 << 20
    assert read == ["own", "x@1", "y@1", "z@1", "x@1"]
    assert cache.held == {"own", "z@1", "x@1"}
    cache.forget("z@1")
    assert cache.bytes == 2 << 20


def test_close_tells_who_waits_for_an_adapter() -> None:
    reading, may_read = threading.Event(), threading.Event()

    def read() -> str:
        reading.set()
        assert may_read.wait(SECONDS)
        return "content"

    engine = Engine(ScriptedExecutor(), LIMITS)
    first = engine.load_adapter("first", source("", read=read))
    assert reading.wait(SECONDS)
    second = engine.load_adapter("second", source("x"))
    closing = threading.Thread(target=engine.close)
    closing.start()
    may_read.set()
    closing.join(SECONDS)
    assert first.done(), "whoever asked would wait for ever"
    assert second.done()
