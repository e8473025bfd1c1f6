"""Speculation without a model: every method against plain decoding."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import speculation_checks as checks
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from genai_runtime.generate import generate
from genai_runtime.sampling import Sampler, Sampling, Typical, distribution
from genai_runtime.session import SlotSession
from genai_runtime.speculation.chained import Chained
from genai_runtime.speculation.control import Speculation
from genai_runtime.speculation.draft_model import DraftModel
from genai_runtime.speculation.history import History, longest_match
from genai_runtime.speculation.lookahead import Lookahead
from genai_runtime.speculation.method import NOTHING, Draft, Method, accept
from genai_runtime.speculation.ngram import Ngram
from genai_runtime.speculation.suffix import Suffix
from genai_runtime.testing import ScriptedExecutor

VOCAB = 5
"""Few tokens, so that guesses come true."""


def executor_of(**given: Any) -> ScriptedExecutor:
    return ScriptedExecutor(vocab_size=VOCAB, context_length=80, trees=True, **given)


METHODS: dict[str, checks.MakeMethod] = {
    "ngram": lambda: Ngram(least=1, most=3),
    "suffix": lambda: Suffix(min_token_prob=0.0),
    "ngram,suffix": lambda: Chained([Ngram(least=3, most=4), Suffix()]),
    "lookahead": lambda: Lookahead(window=4, ngram=3, gcap=4),
    "lookahead of pairs": lambda: Lookahead(window=4, ngram=2, gcap=4),
    "draft_model": lambda: DraftModel(executor_of(), vocab_size=VOCAB),
    "another draft_model": lambda: DraftModel(executor_of(seed=1), vocab_size=VOCAB),
    "a short draft_model": lambda: DraftModel(
        ScriptedExecutor(vocab_size=VOCAB - 1, context_length=30), vocab_size=VOCAB
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_changes_no_answer(name: str) -> None:
    accepted = checks.conforms(executor_of, METHODS[name])
    if name != "a short draft_model":
        assert accepted > 0, "nothing was tried"


def test_a_draft_of_the_model_itself_is_always_right() -> None:
    prompt = checks.text(executor_of(), 9, 0)
    method = DraftModel(executor_of(), vocab_size=VOCAB)
    result, session = checks.ran(executor_of(), prompt, method, most=4, max_tokens=31)
    spent = checks.spent(result)
    assert (spent.drafts, spent.guessed, spent.accepted) == (6, 24, 24)
    assert spent.positions == [6, 6, 6, 6]
    assert session.passes == 7


@pytest.mark.parametrize("wrong", range(5))
def test_a_guess_that_is_wrong_ends_acceptance_at_each_place(wrong: int) -> None:
    prompt = checks.text(executor_of(), 9, 0)
    plain, alone = checks.ran(executor_of(), prompt, None, max_tokens=6)
    method = checks.Forced(plain.tokens, [1 + wrong], vocab_size=VOCAB)
    result, session = checks.ran(executor_of(), prompt, method, most=4, max_tokens=6)
    assert result.tokens == plain.tokens
    spent = checks.spent(result)
    # Four guesses up to the wrong one, then as many as the answer has room for, all right.
    assert spent.positions == [int(wrong > place) + int(3 - wrong > place) for place in range(4)]
    assert session.length == alone.length
    for here, there in zip(session.logits, alone.logits, strict=True):
        np.testing.assert_array_equal(here, there)


@given(st.data())
def test_accept_yields_the_right_guesses_and_one_token_more(data: st.DataObject) -> None:
    taken = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=6))
    guesses = data.draw(st.lists(st.integers(0, 3), max_size=len(taken) - 1))
    end = data.draw(st.integers(0, 9))
    logits = np.eye(4, dtype=np.float32)[taken]
    asked: list[int] = []

    def take(row: NDArray[np.float32], guess: int | None) -> tuple[int, bool]:
        assert guess == (guesses[len(asked)] if len(asked) < len(guesses) else None)
        asked.append(int(row.argmax()))
        return asked[-1], len(asked) - 1 == end

    written = accept(logits, guesses, take)
    assert written == asked == taken[: len(written)]
    right = next((i for i, g in enumerate(guesses) if g != taken[i]), len(guesses))
    assert len(written) == min(right + 1, end + 1)


def test_a_listener_that_ends_an_answer_within_a_draft_leaves_no_guess_in_the_cache() -> None:
    prompt = checks.text(executor_of(), 9, 0)
    plain, _ = checks.ran(executor_of(), prompt, None, max_tokens=12)
    for enough in range(2, 8):
        session = checks.Recorded(executor_of())
        method = checks.Forced(plain.tokens, [3, 5], vocab_size=VOCAB)
        heard: list[int] = []

        def listen(token: int, heard: list[int] = heard, enough: int = enough) -> None:
            heard.append(token)
            if len(heard) == enough:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            generate(
                session,
                prompt,
                max_tokens=12,
                on_token=listen,
                speculation=Speculation(method, most=4, adaptive=False),
            )
        known = [*prompt.tolist(), *heard][: session.length]
        assert prompt.size <= session.length == len(known)
        fresh = checks.Recorded(executor_of())
        fresh.forward(np.array(known))
        behind = np.array([1, 2])
        np.testing.assert_array_equal(session.forward(behind), fresh.forward(behind))


def test_sampled_answers_have_the_targets_distribution() -> None:
    """Chi-square of three tokens behind a prompt; the guesses are sometimes right."""
    prompt = np.array([0, 1, 2, 3, 4, 0, 2, 1, 3])
    sampling = Sampling(temperature=0.8)
    seeds = 1500
    for name in ("ngram", "another draft_model"):
        seen: Counter[tuple[int, ...]] = Counter()
        accepted = 0
        for seed in range(seeds):
            result, _ = checks.ran(
                executor_of(),
                prompt,
                METHODS[name](),
                most=2,
                max_tokens=3,
                sampling=replace(sampling, seed=seed),
            )
            seen[result.tokens] += 1
            accepted += checks.spent(result).accepted
        assert accepted > seeds / 20
        expected = {}
        for first in range(VOCAB):
            for second in range(VOCAB):
                for third in range(VOCAB):
                    text = [*prompt, first, second]
                    session = checks.Recorded(executor_of())
                    logits = session.forward(np.array(text))[-3:]
                    chances = [distribution(row, sampling) for row in logits]
                    expected[first, second, third] = seeds * float(
                        chances[0][first] * chances[1][second] * chances[2][third]
                    )
        common = {key: count for key, count in expected.items() if count >= 5}
        rest = seeds - sum(common.values())
        statistic = sum((seen[key] - count) ** 2 / count for key, count in common.items())
        statistic += (seeds - sum(seen[key] for key in common) - rest) ** 2 / max(rest, 1)
        # The 99.9th percentile of chi-square, by Wilson and Hilferty; seeds are fixed.
        free = len(common)
        bound = free * (1 - 2 / (9 * free) + 3.09 * np.sqrt(2 / (9 * free))) ** 3
        assert statistic < bound, name


def by_hand(text: list[int], tail: list[int], most: int) -> tuple[int, list[int]]:
    """The longest piece and what follows it, place by place."""
    for length in range(min(most, len(tail)), 0, -1):
        piece = tail[-length:]
        places = [p for p in range(length, len(text)) if text[p - length : p] == piece]
        if places:
            return length, places
    return 0, []


@settings(max_examples=300)
@given(st.lists(st.integers(0, 2), max_size=24), st.integers(1, 6), st.booleans(), st.data())
def test_longest_match_equals_a_search_by_hand(
    text: list[int], most: int, itself: bool, data: st.DataObject
) -> None:
    tail = text if itself else data.draw(st.lists(st.integers(0, 2), max_size=8))
    length, places = longest_match(np.array(text, np.int32), np.array(tail, np.int32), most)
    assert (length, places.tolist()) == by_hand(text, tail, most)


def test_history_grows_and_forgets() -> None:
    history = History(range(10))
    history.extend(range(10, 2000))
    history.forget(5)
    np.testing.assert_array_equal(history.tokens, np.arange(5, 2000))


def proposal(method: Method, text: list[int], count: int) -> tuple[int, ...]:
    method.start(0, text)
    return method.propose({0: count}).get(0, NOTHING).tokens


def test_ngram_takes_the_latest_place_that_has_enough_behind_it() -> None:
    method = Ngram(least=2, most=3)
    assert proposal(method, [1, 2, 3, 4, 9, 1, 2, 3, 5, 6, 1, 2, 3], 2) == (5, 6)
    assert proposal(method, [1, 2, 3, 4, 9, 8, 1, 2, 3, 5, 1, 2, 3], 4) == (5, 1, 2, 3)
    assert proposal(method, [7, 7, 7, 7, 7], 3) == (7, 7)
    assert proposal(method, [1, 2, 3, 9, 3], 3) == (), "one token is not two"


def test_suffix_takes_what_came_most_often_and_stops_where_it_is_unsure() -> None:
    text = [1, 2, 5, 8, 1, 2, 5, 9, 1, 2, 6, 7, 1, 2]
    assert proposal(Suffix(max_spec_factor=4), text, 8)[:1] == (5,)
    assert proposal(Suffix(max_spec_factor=4, min_token_prob=0.6), text, 8) == (5,)
    assert proposal(Suffix(max_spec_factor=4, min_token_prob=0.7), text, 8) == ()
    assert len(proposal(Suffix(max_spec_factor=0.5, min_token_prob=0), text, 8)) == 1


def test_suffix_remembers_earlier_answers_within_a_bound_and_not_their_prompts() -> None:
    method = Suffix(max_cached_requests=2)
    for key, answer in enumerate(([1, 2, 3, 4], [5, 6, 7, 8], [9, 6, 7, 4])):
        method.start(key, [40, 41, 42, 43])
        method.extend(key, answer)
        method.finish(key)
    method.start(7, [5, 6, 7])
    assert method.propose({7: 4})[7].tokens == (8,), "an answer's end ends the guess"
    method.start(8, [1, 2, 3])
    assert method.propose({8: 4}) == {}, "the oldest was dropped"
    method.start(9, [40, 41, 42])
    assert method.propose({9: 4}) == {}, "prompts are others' own"
    alone = Suffix(max_cached_requests=0)
    alone.start(0, [1])
    alone.extend(0, [5, 6, 7, 8])
    alone.finish(0)
    alone.start(1, [5, 6, 7])
    assert alone.propose({1: 4}) == {}


def test_a_draft_model_reads_a_long_prompt_in_chunks() -> None:
    draft = ScriptedExecutor(vocab_size=VOCAB, context_length=900)
    method = DraftModel(draft, vocab_size=VOCAB)
    method.start(0, [1] * 300)
    assert method.propose({0: 2}) == {}
    method.extend(0, [1])
    assert method.propose({0: 2}) == {}
    method.extend(0, [1])
    assert len(method.propose({0: 2})[0].tokens) == 2
    assert [list(rows.values()) for rows in draft.passes] == [[128], [128], [46], [1]]
    method.finish(0)
    assert draft.open_slots == frozenset()


def test_the_row_of_a_branch_has_its_chain_first_and_hides_it_from_the_branch() -> None:
    method = Lookahead(window=3, ngram=3, gcap=2)
    method.start(0, [1, 2, 3])
    method.extend(0, [4])
    branch = method.propose({0: 2})[0].branch
    draft = Draft((5, 6), branch)
    tree = draft.tree(10)
    assert tree is not None
    assert draft.row(4)[:3].tolist() == [4, 5, 6]
    assert tree.positions.tolist() == [10, 11, 12, 11, 12, 11, 12, 13]
    expected = [
        "10000000",
        "11000000",
        "11100000",
        "10010000",  # level 0, column 1
        "10011000",
        "10000100",  # level 1 sees level 0 up to its column, and its own column
        "10010010",
        "10011001",
    ]
    got = ["".join(str(int(bit)) for bit in row) for row in tree.sees]
    assert got == expected


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.5])
def test_what_is_foreseen_is_what_comes_and_changes_nothing(temperature: float) -> None:
    sampling = Sampling(temperature=temperature, top_p=0.95, frequency_penalty=0.0, seed=5)
    logits = np.random.default_rng(0).normal(size=(12, 40)).astype(np.float32)
    plain = Sampler(sampling, vocab_size=40)
    expected = [plain.next(row) for row in logits]
    asked = Sampler(sampling, vocab_size=40)
    for place in range(12):
        ahead = min(3, 11 - place)
        assert asked.foreseen(logits[place + ahead], ahead) == expected[place + ahead]
        assert asked.foreseen(logits[place], 0) == expected[place]
        assert asked.next(logits[place]) == expected[place]


def test_a_draft_of_the_model_itself_is_right_at_any_temperature() -> None:
    prompt = checks.text(executor_of(), 9, 0)
    method = DraftModel(executor_of(), vocab_size=VOCAB)
    sampling = Sampling(temperature=1.2, top_p=0.9, seed=4)
    result, _ = checks.ran(executor_of(), prompt, method, most=4, max_tokens=31, sampling=sampling)
    assert checks.spent(result).accepted == checks.spent(result).guessed == 24


def test_typical_keeps_what_is_likely_enough_for_its_distribution() -> None:
    rule = Typical(threshold=0.09, alpha=0.3)
    sharp = np.array([0.9, 0.08, 0.02])
    assert [rule.keeps(guess, sharp) for guess in range(3)] == [True, False, False]
    flat = np.full(100, 0.01)  # its entropy allows 0.3 / 100
    assert rule.keeps(7, flat)
    assert not rule.keeps(2, np.array([0.5, 0.5, 0.0]))


def test_typical_acceptance_keeps_more_guesses_and_only_where_it_is_asked_for() -> None:
    def answers(typical: Typical | None, sampling: Sampling) -> tuple[int, list[tuple[int, ...]]]:
        executor, accepted, tokens = executor_of(), 0, []
        for seed in range(12):
            prompt = checks.text(executor, 9, seed)
            speculation = Speculation(
                checks.Forced([3] * 40, vocab_size=executor.vocab_size),
                most=3,
                adaptive=False,
                typical=typical,
            )
            result = generate(
                SlotSession(executor_of()),
                prompt,
                max_tokens=30,
                sampling=replace(sampling, seed=seed),
                speculation=speculation,
            )
            accepted += checks.spent(result).accepted
            tokens.append(result.tokens)
        return accepted, tokens

    drawn = Sampling(temperature=1.5)
    plain, plain_tokens = answers(None, drawn)
    kept, kept_tokens = answers(Typical(), drawn)
    assert kept > 2 * plain
    assert kept_tokens != plain_tokens
    assert answers(Typical(), Sampling()) == answers(None, Sampling()), "greedy stays greedy"


def test_typical_acceptance_never_takes_what_a_form_or_a_ban_forbids() -> None:
    sampler = Sampler(Sampling(temperature=1.0), vocab_size=4, typical=Typical())
    logits = np.array([0.0, 0.0, 0.0, 9.0], np.float32)
    assert sampler.next(logits, guess=3) == 3
    for _ in range(8):
        assert sampler.next(logits, banned=[3], guess=3) != 3
