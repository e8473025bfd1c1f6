"""Without doubled lone tokens: what others may begin with was read by passes over prompts alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest
from heard import Heard, ask

from genai_runtime.executor.rows import Row, RowOutput
from genai_runtime.testing import ScriptedExecutor
from genai_serving.engine import Engine, ServingLimits
from genai_serving.requests import Finish

LIMITS = ServingLimits(sequences=3, tokens=8, waiting=99, cache_bytes=400, prefix_bytes=400)
SYSTEM = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]


class Unsteady(ScriptedExecutor):
    """A lone token leaves something else in its slot than it would among others."""

    engine: Engine

    def forward(self, rows: Sequence[Row]) -> list[RowOutput]:
        outputs = super().forward(rows)
        for row in rows:
            if len(row.tokens) == 1:
                token, _ = self._slots[row.slot][-1]
                self._slots[row.slot][-1] = token, 1
        for held in self.engine._prefixes.all_held:
            self.check(held.slot, held.tokens.size)
        return outputs

    def check(self, slot: int, length: int) -> None:
        assert not any(worn for _, worn in self._slots[slot][:length]), "of a lone token"

    def copy(self, slot: int, length: int) -> int:
        self.check(slot, length)
        return super().copy(slot, length)


@pytest.fixture
def engine() -> Iterator[Engine]:
    executor = Unsteady()
    executor.engine = Engine(executor, LIMITS, exact=False)
    yield executor.engine
    executor.engine.close()
    assert executor.open_slots == frozenset()


def told(engine: Engine, prompt: list[int], most: int = 5, **given: object) -> Heard:
    heard = Heard()
    engine.submit(ask(prompt, most, **given), heard)
    return heard.wait()


def test_what_an_answer_wrote_is_computed_again_and_its_prompt_is_not(engine: Engine) -> None:
    first = told(engine, SYSTEM)
    again = told(engine, [*SYSTEM, *first.tokens, 7])
    assert again.ended.cached_tokens == len(SYSTEM)
    assert again.ended.reason is Finish.LENGTH


def test_a_lone_last_token_of_a_prompt_is_not_kept(engine: Engine) -> None:
    told(engine, SYSTEM[:9])  # a pass holds eight
    assert told(engine, [*SYSTEM, 7]).ended.cached_tokens == 8


def test_a_pinned_prompt_is_kept_as_far_as_it_is_steady(engine: Engine) -> None:
    told(engine, SYSTEM[:9], 1, pin=True, speculation=False)
    for start in range(12):
        told(engine, [start] * 40)
    assert told(engine, [*SYSTEM, 7]).ended.cached_tokens == 8


def test_nothing_of_a_lone_token_is_shared_whoever_runs_beside_whom(engine: Engine) -> None:
    draw = random.Random(0)
    heard = []
    for _ in range(80):
        size = draw.randint(1, len(SYSTEM))
        prompt = SYSTEM[:size] + [draw.randrange(17) for _ in range(draw.randint(1, 12))]
        heard.append(Heard())
        engine.submit(ask(prompt, draw.randint(1, 9)), heard[-1])
    reasons = {one.wait().ended.reason for one in heard}
    assert reasons == {Finish.LENGTH}, "a pass that finds something of a lone token fails"
    assert sum(one.ended.cached_tokens or 0 for one in heard) > 100
