"""Guesses in the engine: every answer is the plain one, whatever runs beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pytest
from gated import GatedExecutor
from heard import SECONDS, Heard, ask
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_runtime.executor.rows import AdapterUse, Logits, Row, RowOutput
from genai_runtime.sampling import Sampling, Typical
from genai_runtime.speculation.chained import Chained
from genai_runtime.speculation.control import Counts, Speculation
from genai_runtime.speculation.draft_model import DraftModel
from genai_runtime.speculation.lookahead import Lookahead
from genai_runtime.speculation.method import Foresee, Method
from genai_runtime.speculation.ngram import Ngram
from genai_runtime.speculation.suffix import Suffix
from genai_runtime.testing import ScriptedExecutor
from genai_serving.engine import Engine, ServingLimits
from genai_serving.requests import AnswerRequest, Finish

VOCAB, CONTEXT = 5, 64
LIMITS = ServingLimits(
    sequences=4, tokens=24, waiting=64, cache_bytes=8 * CONTEXT, prefix_bytes=256
)
DRAFTS: list[ScriptedExecutor] = []


def target() -> GatedExecutor:
    return GatedExecutor(
        vocab_size=VOCAB, context_length=CONTEXT, adapters=("c", "upper"), trees=True
    )


def draft() -> ScriptedExecutor:
    DRAFTS.append(ScriptedExecutor(vocab_size=VOCAB, context_length=CONTEXT))
    return DRAFTS[-1]


Asked = tuple[AnswerRequest, int]
"""A request, and after how many tokens its listener has enough; 0 = never."""
Answers = tuple[list[Heard], Counts | None, GatedExecutor]
"""Listeners, what came of guesses, and the target."""

METHODS: dict[str, Callable[[], Method]] = {
    "ngram": lambda: Ngram(least=1, most=3),
    "ngram,suffix": lambda: Chained([Ngram(least=3, most=4), Suffix(min_token_prob=0)]),
    "lookahead": lambda: Lookahead(window=2, ngram=3, gcap=3),
    "draft_model": lambda: DraftModel(draft(), vocab_size=VOCAB),
}


def requests(seed: int, count: int = 20) -> Iterator[Asked]:
    """Requests of many kinds, and listeners that may have enough."""
    random = np.random.default_rng(seed)
    for number in range(count):
        prompt = np.tile(random.integers(0, VOCAB, random.integers(1, 12)), 2)
        uses = [(), (AdapterUse("c", 0.5),), (AdapterUse("c"), AdapterUse("upper", 2.0))]
        stops = [frozenset(), frozenset({int(random.integers(VOCAB))})]
        request = ask(
            prompt,
            int(random.integers(1, 40)),
            sampling=Sampling(
                temperature=[0.0, 0.7, 1.3][number % 3],
                repetition_penalty=[1.0, 1.2][number % 2],
                frequency_penalty=[0.0, 0.4][number % 2],
                seed=number,
            ),
            stop_tokens=stops[number % 5 == 1],
            min_tokens=int(random.integers(0, 6)),
            logprobs=[None, 2][number % 2],
            prompt_logprobs=[None, 1][number % 7 == 3],
            adapters=uses[number % 3],
            speculation=number % 4 != 2,
        )
        yield request, int(random.integers(1, 20)) if number % 6 == 5 else 0


def answers(
    asked: Iterable[Asked],
    speculation: Speculation | None = None,
    *,
    limits: ServingLimits = LIMITS,
) -> Answers:
    executor = target()
    engine = Engine(executor, limits, speculation=speculation)
    heard = []
    executor.go.clear()
    for request, enough in asked:
        heard.append(Heard(enough=enough))
        engine.submit(request, heard[-1])
    executor.go.set()
    for listener in heard:
        listener.wait()
    counts = engine.guessed
    assert engine.close(seconds=SECONDS)
    assert executor.open_slots == frozenset()
    assert all(held.open_slots == frozenset() and held.closed for held in DRAFTS)
    DRAFTS.clear()
    return heard, counts, executor


@pytest.fixture(scope="module")
def plain() -> Answers:
    return answers(requests(0))


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_every_answer_is_the_plain_one(name: str, adaptive: bool, plain: Answers) -> None:
    speculation = Speculation(METHODS[name](), most=4, adaptive=adaptive)
    heard, counts, executor = answers(requests(0), speculation)
    assert counts is not None
    for here, there in zip(heard, plain[0], strict=True):
        assert here.tokens == there.tokens
        assert here.logprobs == there.logprobs
        assert here.prompt == there.prompt
        assert here.ended.reason is there.ended.reason
        assert here.ended.tokens == there.ended.tokens
    assert all(sum(rows.values()) <= LIMITS.tokens for rows in executor.passes)
    told = [guessed for one in heard if (guessed := one.ended.guessed) is not None]
    assert counts.drafts == sum(one.drafts for one in told)
    assert counts.accepted == sum(one.accepted for one in told) == sum(counts.positions)
    for request, one in zip([r for r, _ in requests(0)], told, strict=True):
        assert request.speculation or one.drafts == 0
    if not adaptive:
        assert 0 < counts.accepted <= counts.guessed
        assert len(executor.passes) < len(plain[2].passes), "no pass was spared"


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 10_000), st.sampled_from(sorted(METHODS)), st.integers(4, 30))
def test_any_mix_of_requests_and_budgets_gets_plain_answers(
    seed: int, name: str, tokens: int
) -> None:
    limits = ServingLimits(sequences=3, tokens=tokens, waiting=64, cache_bytes=6 * CONTEXT)
    asked = list(requests(seed, 7))
    expected, _, _ = answers(asked, limits=limits)
    speculation = Speculation(METHODS[name](), most=3, adaptive=False)
    heard, _, _ = answers(asked, speculation, limits=limits)
    assert [h.tokens for h in heard] == [e.tokens for e in expected]
    assert [h.logprobs for h in heard] == [e.logprobs for e in expected]


def test_a_failing_draft_model_ends_no_answer(
    plain: Answers, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(ScriptedExecutor):
        def forward(self, rows: Sequence[Row]) -> list[RowOutput]:
            raise RuntimeError("the draft gave up")

    method = DraftModel(Failing(vocab_size=VOCAB, context_length=CONTEXT), vocab_size=VOCAB)
    heard, _, _ = answers(requests(0), Speculation(method, most=4, adaptive=False))
    assert [h.tokens for h in heard] == [h.tokens for h in plain[0]]
    assert "speculation by draft_model failed and is off" in caplog.text


def test_a_failing_pass_with_guesses_ends_its_requests_and_no_others() -> None:
    executor = target()
    speculation = Speculation(Ngram(least=1, most=3), most=4, adaptive=False)
    engine = Engine(executor, LIMITS, speculation=speculation)
    executor.go.clear()
    bad = Heard(on_first=lambda: setattr(executor, "fail_on", 0))
    engine.submit(ask([1, 0, 1, 0], 40), bad)
    executor.go.set()
    assert bad.wait().ended.reason in {Finish.ERROR, Finish.LENGTH}
    executor.fail_on = None
    good = Heard()
    engine.submit(ask([2, 3], 12), good)
    expected, _, _ = answers([(ask([2, 3], 12), 0)])
    assert good.wait().tokens == expected[0].tokens
    engine.close()
    assert executor.open_slots == frozenset()


def test_a_cached_beginning_behind_guesses_is_that_of_plain_decoding() -> None:
    """The slot of an answer that guessed is begun with by another request."""
    first = ask([1, 2, 3, 1, 2, 3, 1], 20)
    given = Speculation(Ngram(least=1, most=3), most=4, adaptive=False)
    executor = target()
    engine = Engine(executor, LIMITS, speculation=given)
    heard = Heard()
    engine.submit(first, heard)
    heard.wait()
    longer = ask([*first.prompt, *heard.tokens, 4, 0], 12)
    again = Heard()
    engine.submit(longer, again)
    again.wait()
    engine.close()
    assert again.ended.cached_tokens == first.prompt.size + 19
    expected, _, _ = answers([(longer, 0)])
    assert again.tokens == expected[0].tokens


class Watching(DraftModel):
    """A draft model that is told of the model's states, as a head is."""

    def __init__(self) -> None:
        super().__init__(draft(), vocab_size=VOCAB)
        self.known: dict[int, dict[int, float]] = {}
        self.texts: dict[int, list[int]] = {}

    def start(self, key: int, tokens: Sequence[int], foresee: Foresee | None = None) -> None:
        super().start(key, tokens, foresee)
        self.texts[key], self.known[key] = [int(token) for token in tokens], {}

    def observe(self, key: int, start: int, states: Logits) -> None:
        for place, state in enumerate(states[:, 0], start):
            assert place not in self.known[key], "told twice"
            self.known[key][place] = float(state)

    def extend(self, key: int, tokens: Sequence[int], branch: Logits | None = None) -> None:
        super().extend(key, tokens, branch)
        self.texts[key] += [int(token) for token in tokens]


def test_a_method_is_told_the_states_of_all_that_was_read_and_of_nothing_that_was_dropped() -> None:
    method = Watching()
    executor = ScriptedExecutor(vocab_size=VOCAB, context_length=CONTEXT, states=True)
    engine = Engine(executor, LIMITS, speculation=Speculation(method, most=3, adaptive=False))
    prompt = [1, 2, 3, 4] * 7  # more than a pass of this engine reads
    try:
        heard = [Heard() for _ in range(4)]
        engine.submit(ask(prompt, 9), heard[0])
        heard[0].wait()
        engine.submit(ask([*prompt, 1], 8), heard[1])
        engine.submit(ask([2, 2], 6), heard[2])
        engine.submit(ask([3, 1, 3], 5, speculation=False), heard[3])
        for one in heard:
            assert one.wait().ended.error is None
    finally:
        engine.close()
    assert len(method.texts) == 3, "one asked for no guesses"
    alone = ScriptedExecutor(vocab_size=VOCAB, context_length=CONTEXT, states=True)
    for key, text in method.texts.items():
        (output,) = alone.forward([Row(alone.open(), np.asarray(text), states=True)])
        assert output.states is not None
        expected = dict(enumerate(output.states[:, 0].tolist()))
        known = method.known[key]
        # The newest token was not read; a prefix out of the cache has no states.
        assert known == {place: expected[place] for place in known}
        first = min(known)
        assert sorted(known) == list(range(first, len(text) - 1))
        assert first == (heard[1].ended.cached_tokens if text[:29] == [*prompt, 1] else 0)
    assert heard[1].ended.cached_tokens


def test_typical_acceptance_touches_no_greedy_answer_and_none_without_guesses() -> None:
    def answers(speculation: Speculation | None) -> list[list[int]]:
        engine = Engine(target(), LIMITS, speculation=speculation)
        drawn = Sampling(temperature=1.2, seed=5)
        asked = [
            ask([1, 2, 3], 12),
            ask([1, 2, 3], 12, sampling=drawn, speculation=False),
            ask([1, 2, 3], 20, sampling=drawn),
        ]
        try:
            heard = [Heard() for _ in asked]
            for request, one in zip(asked, heard, strict=True):
                engine.submit(request, one)
            return [one.wait().tokens for one in heard]
        finally:
            engine.close()

    plain = answers(None)
    method = Ngram(least=1, most=3)
    typical = answers(Speculation(method, most=3, adaptive=False, typical=Typical(1e-6, 1e-6)))
    assert typical[:2] == plain[:2]
    assert typical[2] != plain[2], "every guess was kept"
