"""Cached beginnings of prompts: the answers are those without a cache, and of no other scope."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from heard import Heard, ask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from genai_runtime.executor.rows import AdapterUse, Row, RowOutput
from genai_runtime.generate import generate
from genai_runtime.prefixes.cache import Held, Match, PrefixCache, common
from genai_runtime.sampling import Sampling
from genai_runtime.session import SlotSession
from genai_runtime.testing import ScriptedExecutor
from genai_serving.engine import Engine, ServingLimits
from genai_serving.requests import Finish, Scope

NAMES = ("a", "b")
BUDGET = 80
LIMITS = ServingLimits(sequences=3, tokens=8, waiting=64, cache_bytes=BUDGET, prefix_bytes=BUDGET)


class Watched(ScriptedExecutor):
    """Checks before each pass that running and idle slots are all open ones, and counts memory."""

    engine: Engine
    most = 0

    def forward(self, rows: Sequence[Row]) -> list[RowOutput]:
        # An observer's exception would end the loop; this one is remembered.
        running = [answer for answer in self.engine._answers.values() if answer.slot is not None]
        reserved = sum(answer.need for answer in running)
        self.most = max(self.most, reserved + self.engine._prefixes.bytes)
        idle = set(self.engine._prefixes.slots)
        assert self.engine._prefixes.bytes == sum(map(self.slot_bytes, idle))
        idle |= set(self.engine._prefixes.pinned)
        assert self.open_slots == idle | {answer.slot for answer in running}
        return super().forward(rows)


def engine_of(limits: ServingLimits) -> Engine:
    slots = Watched(adapters=NAMES)
    slots.engine = Engine(slots, limits)
    return slots.engine


def slots_of(engine: Engine) -> Watched:
    assert isinstance(engine._executor, Watched)
    return engine._executor


def alone(
    prompt: ArrayLike, most: int, worn: Sequence[AdapterUse] = (), sampling: Sampling | None = None
) -> list[int]:
    session = SlotSession(ScriptedExecutor(adapters=NAMES), list(worn))
    return list(generate(session, np.asarray(prompt), max_tokens=most, sampling=sampling).tokens)


def answer_of(engine: Engine, prompt: ArrayLike, most: int = 6, **given: Any) -> Heard:
    heard = Heard()
    engine.submit(ask(prompt, most, **given), heard)
    return heard.wait()


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = engine_of(LIMITS)
    yield made
    made.close()
    assert slots_of(made).most <= BUDGET
    assert slots_of(made).open_slots == frozenset()


def test_a_second_request_computes_what_is_new_to_it_alone(engine: Engine) -> None:
    system = list(range(1, 13))
    first = answer_of(engine, [*system, 3, 4])
    assert first.ended.cached_tokens == 0
    second = answer_of(engine, [*system, 5, 6])
    assert second.ended.cached_tokens == len(system)
    assert second.tokens == alone([*system, 5, 6], 6)
    chat = [*system, 5, 6, *second.tokens]
    third = answer_of(engine, [*chat, 9])
    assert third.ended.cached_tokens == len(chat) - 1, "its last token was never read"
    assert third.tokens == alone([*chat, 9], 6)
    again = answer_of(engine, [*system, 3, 4])
    assert again.ended.cached_tokens == len(system) + 1, "the last one's logits are wanted"
    assert again.tokens == first.tokens


@pytest.mark.parametrize(
    "other",
    [
        {"adapters": (AdapterUse("a"),)},
        {"adapters": (AdapterUse("b", 0.5),)},
        {"adapters": (AdapterUse("b"), AdapterUse("a"))},
        {"adapters": (AdapterUse("b"),), "cache_salt": "x"},
        {},
    ],
)
def test_another_adapter_alpha_or_salt_meets_nothing(engine: Engine, other: dict[str, Any]) -> None:
    prompt = [1, 2, 3, 4, 5]
    worn = (AdapterUse("b"),)
    answer_of(engine, prompt, adapters=worn)
    assert answer_of(engine, prompt, **other).ended.cached_tokens == 0
    assert answer_of(engine, prompt, adapters=worn).ended.cached_tokens == 4


def test_a_prompt_whose_places_are_told_is_computed_and_then_kept(engine: Engine) -> None:
    prompt = [1, 2, 3, 4, 5]
    answer_of(engine, prompt)
    scored = answer_of(engine, prompt, prompt_logprobs=1)
    assert scored.ended.cached_tokens is None
    assert len(scored.prompt) == 4
    assert answer_of(engine, prompt).ended.cached_tokens == 4


def test_what_waits_is_never_kept_waiting_by_idle_slots(engine: Engine) -> None:
    for start in range(1, 9):
        answer_of(engine, [start] * 20, 2)
    assert answer_of(engine, [16] * 60, 5).tokens, "64 of 80 bytes: idle ones gave way"
    assert answer_of(engine, [16] * 60, 2).ended.cached_tokens == 59


def test_choices_of_one_prompt_share_it_while_the_first_still_reads(engine: Engine) -> None:
    prompt = list(np.arange(30) % 17)
    heard = [Heard() for _ in range(3)]
    for seed, listener in enumerate(heard):
        sampling = Sampling(temperature=1.0, seed=seed)
        engine.submit(ask(prompt, 3, sampling=sampling), listener)
    cached = [listener.wait().ended.cached_tokens for listener in heard]
    assert cached[0] == 0
    assert all(tokens is not None and tokens >= 24 for tokens in cached[1:])
    for seed, listener in enumerate(heard):
        sampling = Sampling(temperature=1.0, seed=seed)
        assert listener.tokens == alone(prompt, 3, sampling=sampling)


def test_nothing_is_kept_without_memory_for_it() -> None:
    made = engine_of(ServingLimits(sequences=3, tokens=8, waiting=8, cache_bytes=BUDGET))
    for _ in range(2):
        assert answer_of(made, [1, 2, 3]).ended.cached_tokens == 0
        assert slots_of(made).open_slots == frozenset()
    made.close()


def test_a_slot_of_a_pass_that_failed_is_not_kept(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = engine._executor.forward
    monkeypatch.setattr(engine._executor, "forward", lambda rows: 1 / 0)
    assert answer_of(engine, [1, 2, 3]).ended.reason is Finish.ERROR
    monkeypatch.setattr(engine._executor, "forward", forward)
    assert answer_of(engine, [1, 2, 3]).ended.cached_tokens == 0


WORN = st.sampled_from(
    [(), (AdapterUse("a"),), (AdapterUse("b"),), (AdapterUse("a", 0.5), AdapterUse("b"))]
)
# Prompts of few beginnings, which go on in few ways.
PROMPTS = st.lists(st.sampled_from([[1, 2, 3, 4, 5], [1, 2, 6], [7], [8, 9, 1]]), min_size=1).map(
    lambda parts: [token for part in parts for token in part][:40]
)
ASKED = st.tuples(PROMPTS, st.integers(1, 12), WORN, st.sampled_from(["", "x"]), st.integers(0, 3))


Asked = tuple[list[int], int, tuple[AdapterUse, ...], str, int]
"""Prompt, most tokens, adapters, salt, kind: 1 has enough early, 2 is cancelled, 3 samples."""


def check(asked: Sequence[Asked]) -> int:
    """Submit everything at once, cancel some, and compare with each alone."""
    engine = engine_of(LIMITS)
    heard = []
    for prompt, most, worn, salt, kind in asked:
        heard.append(Heard(enough=1 if kind == 1 else 0))
        sampling = Sampling(temperature=float(kind == 3), seed=3)
        key = engine.submit(
            ask(prompt, most, adapters=worn, cache_salt=salt, sampling=sampling), heard[-1]
        )
        if kind == 2:
            engine.cancel(key)
    for listener, (prompt, most, worn, _, kind) in zip(heard, asked, strict=True):
        listener.wait()
        assert listener.ended.reason is not Finish.ERROR, listener.ended.error
        sampling = Sampling(temperature=float(kind == 3), seed=3)
        expected = alone(prompt, most, worn, sampling)
        assert listener.tokens == expected[: len(listener.tokens)]
        if kind in {0, 3}:
            assert len(listener.tokens) == most
    engine.close()
    assert slots_of(engine).open_slots == frozenset()
    assert slots_of(engine).most <= BUDGET
    return sum(listener.ended.cached_tokens or 0 for listener in heard)


CHECKED = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@CHECKED
@given(st.lists(ASKED, min_size=2, max_size=12))
def test_answers_with_a_cache_are_those_without(asked: Sequence[Asked]) -> None:
    check(asked)


@pytest.mark.long
@settings(CHECKED, max_examples=3000)
@given(st.lists(ASKED, min_size=2, max_size=40))
def test_answers_with_a_cache_are_those_without_over_many_runs(asked: Sequence[Asked]) -> None:
    check(asked)


def filled(slots: ScriptedExecutor, *texts: Sequence[int]) -> list[Held]:
    made = []
    for text in texts:
        slot = slots.open()
        slots.forward([Row(slot, np.array(text))])
        made.append(Held(slot, Scope(), np.array(text)))
    return made


def test_find_prefers_the_longest_beginning_idle_or_running() -> None:
    slots = ScriptedExecutor()
    cache = PrefixCache(slots, 50)
    short, long, running = filled(slots, [1, 2], [1, 3, 4, 5], [1, 3, 4, 6, 7])
    cache.keep(short)
    cache.keep(long)
    assert cache.find(Scope(), np.array([1, 2, 9])) == Match(short.slot, 2, whole=True)
    assert cache.find(Scope(), np.array([1, 3, 4, 6, 8]), [running]) == Match(
        running.slot, 4, whole=False
    )
    assert cache.find(Scope(), np.array([1, 3, 4, 5])) == Match(long.slot, 3, whole=False)
    assert cache.find(Scope(), np.array([2, 1])) is None
    assert cache.find(Scope(), np.array([1])) is None


def test_take_goes_on_in_an_idle_slot_or_copies_it() -> None:
    slots = ScriptedExecutor()
    cache = PrefixCache(slots, 50)
    (held,) = filled(slots, [1, 2, 3])
    cache.keep(held)
    whole = Match(held.slot, 3, whole=True)
    for bounds in ({"most_bytes": 2}, {"most_bytes": 9, "wanted": [held.slot]}):
        copied = cache.take(whole, **bounds)
        assert (copied != held.slot, slots.length(copied)) == (True, 3)
    assert slots.length(cache.take(Match(held.slot, 2, whole=False), most_bytes=9)) == 2
    assert list(cache.slots) == [held.slot]
    assert cache.take(whole, most_bytes=9) == held.slot
    assert not cache.slots


def test_keep_holds_the_longer_of_two_and_frees_the_longest_unused_first() -> None:
    slots = ScriptedExecutor()
    cache = PrefixCache(slots, 9)
    short, long, same = filled(slots, [1, 2], [1, 2, 3], [1, 2, 3])
    for held in (short, long, same):
        cache.keep(held)
    assert list(cache.slots) == [long.slot]
    other, third = filled(slots, [5, 6, 7, 8], [9, 9])
    cache.keep(other)
    assert list(cache.slots) == [long.slot, other.slot]
    slots.free(cache.take(Match(long.slot, 1, whole=False), most_bytes=9))  # used just now
    cache.keep(third)
    assert cache.bytes == 9
    (fourth,) = filled(slots, [4])
    cache.keep(fourth)
    assert list(cache.slots) == [long.slot, third.slot, fourth.slot], (
        "the other one was unused longest"
    )
    cache.shrink(3, wanted=[long.slot])
    assert list(cache.slots) == [long.slot]
    cache.shrink(0)
    assert slots.open_slots == frozenset()


def test_keep_holds_the_same_tokens_of_two_scopes() -> None:
    slots = ScriptedExecutor()
    cache = PrefixCache(slots, 50)
    one, other = filled(slots, [1, 2], [1, 2])
    cache.keep(one)
    cache.keep(Held(other.slot, Scope(salt="x"), other.tokens))
    assert cache.slots == (one.slot, other.slot)
    found = cache.find(Scope(salt="x"), np.array([1, 2, 3]))
    assert found == Match(other.slot, 2, whole=True)


def test_common_counts_what_two_texts_share() -> None:
    for one, other, shared in (([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 9, 3], 1)):
        assert common(np.array(one), np.array(other)) == shared


def test_a_pinned_beginning_stays_whatever_comes_and_is_copied(engine: Engine) -> None:
    system = [3, 1, 4, 1, 5, 9]
    pinned = answer_of(engine, system, 1, pin=True, speculation=False)
    assert len(pinned.tokens) == 1
    slots = engine._prefixes.pinned
    for start in range(1, 9):  # more than there is memory for
        answer_of(engine, [start] * 20, 2)
    for end in ([2, 6], [5, 3]):
        found = answer_of(engine, [*system, *end])
        assert found.ended.error is None
        assert found.ended.cached_tokens == len(system)
        assert found.tokens == alone([*system, *end], 6)
    assert answer_of(engine, [*system, 2], adapters=(AdapterUse("a"),)).ended.cached_tokens == 0
    assert answer_of(engine, [*system, 2], cache_salt="x").ended.cached_tokens == 0
    assert engine._prefixes.pinned == slots


def test_pin_holds_what_a_longer_idle_slot_has_too_and_forget_frees_it() -> None:
    slots = ScriptedExecutor()
    cache = PrefixCache(slots, 9)
    long, pinned, same, longer = filled(slots, [1, 2, 3], [1, 2], [1, 2], [1, 2, 4])
    cache.keep(long)
    cache.pin(pinned)
    cache.keep(same)
    cache.keep(longer)
    assert (cache.pinned, cache.slots) == ((pinned.slot,), (long.slot, longer.slot))
    assert cache.bytes == 6, "what is pinned is not counted"
    cache.shrink(0)
    assert slots.open_slots == {pinned.slot}
    assert cache.find(Scope(), np.array([1, 2, 9])) == Match(pinned.slot, 2, whole=False)
    cache.forget(lambda scope: scope == Scope())
    assert slots.open_slots == frozenset()
