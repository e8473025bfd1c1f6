"""The engine on an executor without a model: what each request gets alone, under any company."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator

import numpy as np
import pytest
from gated import GatedExecutor
from heard import SECONDS, Heard, ask
from numpy.typing import ArrayLike

from genai_core.errors import BadInput
from genai_runtime.executor.rows import AdapterUse
from genai_runtime.generate import Generation, generate
from genai_runtime.sampling import Sampling
from genai_runtime.session import SlotSession
from genai_runtime.testing import ScriptedExecutor
from genai_serving.engine import Engine, ServingLimits
from genai_serving.requests import Closed, Ended, Finish
from genai_serving.scheduler import QueueFull, TooLarge

LIMITS = ServingLimits(sequences=4, tokens=16, waiting=64, cache_bytes=4 * 64)


@pytest.fixture
def executor() -> GatedExecutor:
    return GatedExecutor()


@pytest.fixture
def engine(executor: GatedExecutor) -> Iterator[Engine]:
    made = Engine(executor, LIMITS)
    yield made
    executor.go.set()
    made.close()
    assert executor.open_slots == frozenset()
    assert executor.closed


def alone(
    prompt: ArrayLike, most: int, sampling: Sampling | None = None, stops: Collection[int] = ()
) -> Generation:
    session = SlotSession(ScriptedExecutor())
    return generate(
        session, np.asarray(prompt), max_tokens=most, sampling=sampling, stop_tokens=stops
    )


def test_every_request_gets_what_it_gets_alone(engine: Engine) -> None:
    random = np.random.default_rng(0)
    asked = []
    for seed in range(24):
        prompt = random.integers(0, 17, random.integers(1, 40))
        sampling = Sampling(temperature=float(seed % 3), top_k=seed % 5, seed=seed)
        heard = Heard()
        engine.submit(ask(prompt, int(random.integers(1, 24)), sampling=sampling), heard)
        asked.append((prompt, sampling, heard))
    for prompt, sampling, heard in asked:
        heard.wait()
        expected = alone(prompt, len(heard.tokens), sampling)
        assert tuple(heard.tokens) == expected.tokens
        assert heard.ended.reason is Finish.LENGTH
        assert heard.ended.prompt_tokens == prompt.size
        assert heard.ended.tokens == len(heard.tokens)
        times = heard.ended.times
        assert times.admitted is not None
        assert times.first is not None
        assert times.arrived <= times.admitted <= times.first <= times.ended


def test_passes_are_shared(engine: Engine, executor: GatedExecutor) -> None:
    executor.go.clear()
    heard = [Heard() for _ in range(4)]
    for index, listener in enumerate(heard):
        engine.submit(ask([index + 1], 6), listener)
    executor.go.set()
    for listener in heard:
        listener.wait()
    assert max(len(rows) for rows in executor.passes) == 4
    assert all(sum(rows.values()) <= LIMITS.tokens for rows in executor.passes)


def test_an_answer_ends_with_an_end_token_and_a_full_context(engine: Engine) -> None:
    tokens = alone([3, 1], 10).tokens
    heard = Heard()
    engine.submit(ask([3, 1], 10, stop_tokens=frozenset({tokens[4]})), heard)
    heard.wait()
    first = tokens.index(tokens[4])
    assert tuple(heard.tokens) == tokens[: first + 1]
    assert heard.ended.reason is Finish.STOP
    full = Heard()
    engine.submit(ask(np.ones(60), 100), full)
    full.wait()
    assert len(full.tokens) == 5
    assert full.ended.reason is Finish.LENGTH


def test_min_tokens_keep_the_end_away(engine: Engine) -> None:
    end = alone([3, 1], 1).tokens[0]
    heard = Heard()
    engine.submit(ask([3, 1], 10, stop_tokens=frozenset({end}), min_tokens=4), heard)
    heard.wait()
    assert len(heard.tokens) >= 4
    assert end not in heard.tokens[:4]


def test_a_listener_that_has_enough_ends_its_answer(engine: Engine) -> None:
    heard = Heard(enough=3)
    engine.submit(ask([1, 2], 20), heard)
    assert heard.wait().tokens == list(alone([1, 2], 3).tokens)
    assert heard.ended.reason is Finish.STOP


def test_logprobs_of_prompt_and_answer_are_those_of_one_pass(engine: Engine) -> None:
    prompt = np.arange(1, 12)
    heard = Heard()
    engine.submit(ask(prompt, 3, logprobs=2, prompt_logprobs=1), heard)
    heard.wait()
    session = SlotSession(ScriptedExecutor())
    logits = session.forward(np.concatenate([prompt, heard.tokens[:-1]])).astype(np.float64)
    rows = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for place, told in enumerate(heard.prompt):
        assert told[0].token == prompt[place + 1]
        assert told[0].logprob == pytest.approx(rows[place, prompt[place + 1]], abs=1e-6)
        assert told[1].token == rows[place].argmax()
    assert len(heard.prompt) == prompt.size - 1
    for place, (token, chosen) in enumerate(zip(heard.tokens, heard.logprobs, strict=True)):
        assert chosen is not None
        assert chosen[0].token == token
        assert chosen[0].logprob == pytest.approx(rows[prompt.size - 1 + place, token], abs=1e-6)
        assert len(chosen) == 3


def test_cancel_ends_a_waiting_and_a_running_request(executor: GatedExecutor) -> None:
    engine = Engine(executor, ServingLimits(sequences=1, tokens=4, waiting=4, cache_bytes=64))
    started = threading.Event()
    running, waiting = Heard(on_first=started.set), Heard()
    executor.go.clear()
    first = engine.submit(ask([1], 50), running)
    second = engine.submit(ask([2], 3), waiting)
    executor.go.set()
    assert started.wait(SECONDS)
    engine.cancel(first)
    engine.cancel(second)
    engine.cancel(12345)
    assert running.wait().ended.reason in {Finish.CANCELLED, Finish.LENGTH}
    assert waiting.wait().ended.reason in {Finish.CANCELLED, Finish.LENGTH}
    after = Heard()
    engine.submit(ask([3], 2), after)
    assert after.wait().tokens == list(alone([3], 2).tokens)
    engine.close()
    assert executor.open_slots == frozenset()


def test_a_cancelled_request_frees_its_slot_when_a_pass_is_under_way(
    executor: GatedExecutor,
) -> None:
    engine = Engine(executor, LIMITS)
    executor.go.clear()
    heard = Heard()
    key = engine.submit(ask([1], 50), heard)
    engine.cancel(key)
    executor.go.set()
    assert heard.wait().ended.reason is Finish.CANCELLED
    assert heard.ended.tokens <= 2
    assert engine.load.running == 0
    engine.close()


def test_a_request_past_its_deadline_ends(executor: GatedExecutor) -> None:
    now = [0.0]
    engine = Engine(executor, LIMITS, clock=lambda: now[0])
    heard = Heard(on_first=lambda: now.__setitem__(0, 9.0))
    engine.submit(ask([1], 50, deadline=5.0), heard)
    assert heard.wait().ended.reason is Finish.DEADLINE
    assert heard.ended.tokens == 1
    engine.close()


def test_a_failing_pass_ends_its_requests_and_no_others(
    engine: Engine, executor: GatedExecutor
) -> None:
    executor.fail_on = 16
    bad, good = Heard(), Heard()
    engine.submit(ask([16, 1], 4), bad)
    assert bad.wait().ended.reason is Finish.ERROR
    assert "the kernel gave up" in str(bad.ended.error)
    executor.fail_on = None
    engine.submit(ask([2, 3], 4), good)
    assert good.wait().tokens == list(alone([2, 3], 4).tokens)
    assert engine.alive


def test_a_failing_listener_ends_its_own_request_alone(engine: Engine) -> None:
    def explode() -> None:
        raise ValueError("no such stream")

    bad, good = Heard(on_first=explode), Heard()
    engine.submit(ask([1], 4), bad)
    engine.submit(ask([2, 3], 4), good)
    assert bad.wait().ended.reason is Finish.ERROR
    assert good.wait().tokens == list(alone([2, 3], 4).tokens)


def test_the_engine_lives_on_when_a_listener_fails_at_its_end(engine: Engine) -> None:
    class Deaf(Heard):
        def on_end(self, ended: Ended) -> None:
            super().on_end(ended)
            raise ValueError("its tokens are no text")

    deaf, good = Deaf(), Heard()
    engine.submit(ask([1], 4), deaf)
    deaf.wait()
    engine.submit(ask([2, 3], 4), good)
    assert good.wait().tokens == list(alone([2, 3], 4).tokens)
    assert engine.alive


@pytest.mark.parametrize("prompt", [[], [17], [-1], list(range(1, 17)) * 5])
def test_submit_refuses_prompts_that_no_pass_can_read(engine: Engine, prompt: list[int]) -> None:
    with pytest.raises(BadInput):
        engine.submit(ask(prompt), Heard())
    assert engine.load.waiting == 0


def test_submit_refuses_an_adapter_that_is_not_loaded_before_it_joins_a_pass(
    engine: Engine,
) -> None:
    good = Heard()
    engine.submit(ask([2, 3], 4), good)
    with pytest.raises(BadInput, match="adapter nobody: is not loaded"):
        engine.submit(ask([1], adapters=(AdapterUse("nobody"),)), Heard())
    assert good.wait().tokens == list(alone([2, 3], 4).tokens)


def test_submit_refuses_what_the_cache_cannot_hold(executor: GatedExecutor) -> None:
    engine = Engine(executor, ServingLimits(sequences=2, tokens=4, waiting=4, cache_bytes=20))
    with pytest.raises(TooLarge):
        engine.submit(ask([1] * 10, 30), Heard())
    engine.close()


def test_submit_refuses_when_the_queue_is_full(executor: GatedExecutor) -> None:
    engine = Engine(executor, ServingLimits(sequences=1, tokens=4, waiting=1, cache_bytes=64))
    executor.go.clear()
    first = Heard()
    engine.submit(ask([1], 60), first)
    until = time.monotonic() + SECONDS
    while not executor.open_slots and time.monotonic() < until:
        time.sleep(0.005)
    engine.submit(ask([1], 60), Heard())
    with pytest.raises(QueueFull, match="no more may"):
        engine.submit(ask([1], 60), Heard())
    executor.go.set()
    engine.close()


def test_close_finishes_what_runs_and_takes_nothing_new(executor: GatedExecutor) -> None:
    engine = Engine(executor, LIMITS)
    heard = [Heard() for _ in range(6)]
    for index, listener in enumerate(heard):
        engine.submit(ask([index], 30), listener)
    assert engine.close(seconds=SECONDS)
    assert [h.ended.reason for h in heard] == [Finish.LENGTH] * 6
    assert not engine.alive
    with pytest.raises(Closed):
        engine.submit(ask([1]), Heard())


def test_close_cancels_what_is_not_finished_in_time(executor: GatedExecutor) -> None:
    engine = Engine(executor, LIMITS)
    executor.go.clear()
    heard = Heard()
    engine.submit(ask([1], 60), heard)
    threading.Timer(0.3, executor.go.set).start()
    assert not engine.close(seconds=0.05)
    assert heard.wait().ended.reason is Finish.CANCELLED
    assert executor.closed
