"""Generation against a plain loop written here, sampling against its definition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from genai_core.errors import BadInput, BadModel
from genai_runtime.generate import generate, stop_tokens
from genai_runtime.sampling import Sampling, choose, distribution
from genai_runtime.session import Session, in_chunks
from genai_runtime.testing import ScriptedSession


def greedy_by_hand(prompt: list[int], steps: int) -> list[int]:
    """Every token from a fresh session that reads the whole text again."""
    text = list(prompt)
    for _ in range(steps):
        text.append(int(ScriptedSession().forward(np.array(text))[-1].argmax()))
    return text[len(prompt) :]


def test_greedy_generation_equals_reading_the_whole_text_again_for_each_token() -> None:
    answer = generate(ScriptedSession(), np.array([3, 1, 4]), max_tokens=12)
    assert list(answer.tokens) == greedy_by_hand([3, 1, 4], 12)
    assert answer.metrics.prompt_tokens == 3
    assert answer.metrics.generated_tokens == 12
    assert answer.metrics.generation_tokens_per_second > 0
    assert not answer.stopped


def test_generation_ends_with_the_first_end_token_and_includes_it() -> None:
    expected = greedy_by_hand([3, 1, 4], 12)
    end = expected[5]
    answer = generate(ScriptedSession(), np.array([3, 1, 4]), max_tokens=12, stop_tokens={end})
    assert list(answer.tokens) == expected[: expected.index(end) + 1]
    assert answer.stopped


def test_generation_ends_when_the_context_is_full() -> None:
    session = ScriptedSession(context_length=8)
    answer = generate(session, np.array([1, 2, 3]), max_tokens=100)
    # The last token needs no slot: it is chosen from the logits of the one that filled the cache.
    assert len(answer.tokens) == 6
    assert session.length == 8


def test_tokens_are_handed_out_as_they_come() -> None:
    seen: list[int] = []
    answer = generate(ScriptedSession(), np.array([1]), max_tokens=5, on_token=seen.append)
    assert seen == list(answer.tokens)


def test_a_second_generation_does_not_remember_the_first() -> None:
    session = ScriptedSession()
    first = generate(session, np.array([5, 6]), max_tokens=6)
    assert generate(session, np.array([5, 6]), max_tokens=6).tokens == first.tokens


@pytest.mark.parametrize(
    "prompt", [np.array([], dtype=np.int64), np.array([99]), np.array([-1]), np.array([0.5])]
)
def test_prompts_that_no_model_can_read_are_refused(prompt: np.ndarray) -> None:
    with pytest.raises(BadInput):
        generate(ScriptedSession(), prompt, max_tokens=1)


def test_a_prompt_beyond_the_context_is_refused_before_anything_runs() -> None:
    session = ScriptedSession(context_length=4)
    with pytest.raises(BadInput, match="context length of 4"):
        generate(session, np.arange(5), max_tokens=1)
    assert session.passes == []


@pytest.mark.parametrize(
    "values",
    [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0}, {"top_p": 2}],
)
def test_sampling_settings_without_a_meaning_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        Sampling(**values)


def test_temperature_one_is_the_softmax() -> None:
    logits = np.array([0.0, 1.0, 3.0], dtype=np.float32)
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(distribution(logits, Sampling(temperature=1.0)), expected, rtol=1e-6)


def test_top_k_keeps_the_k_most_likely() -> None:
    logits = np.array([0.0, 5.0, 3.0, 4.0], dtype=np.float32)
    kept = distribution(logits, Sampling(temperature=0.7, top_k=2))
    assert np.flatnonzero(kept).tolist() == [1, 3]


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05])).astype(np.float32)
    kept = distribution(logits, Sampling(temperature=1.0, top_p=0.75))
    np.testing.assert_allclose(kept, [0.625, 0.375, 0, 0], atol=1e-6)
    everything = distribution(logits, Sampling(temperature=1.0, top_p=0.81))
    assert np.count_nonzero(everything) == 3


def test_top_p_keeps_the_largest_logit_where_probabilities_round_to_the_same() -> None:
    kept = distribution(np.array([0, 6e-21], np.float32), Sampling(temperature=1.0, top_p=0.5))
    assert kept.tolist() == [0, 1]


@given(
    arrays(np.float32, st.integers(1, 30), elements=st.floats(-40, 40, width=32)),
    st.floats(0.05, 5),
    st.integers(0, 5),
    st.floats(0.05, 1),
)
def test_any_distribution_sums_to_one_and_keeps_the_most_likely(
    logits: NDArray[np.float32], temperature: float, top_k: int, top_p: float
) -> None:
    kept = distribution(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
    assert abs(kept.sum() - 1) < 1e-9
    assert kept[logits.argmax()] > 0
    if top_k:
        assert np.count_nonzero(kept) <= top_k


def test_draws_follow_the_distribution_and_the_seed() -> None:
    logits = np.log(np.array([0.6, 0.3, 0.1])).astype(np.float32)
    sampling = Sampling(temperature=1.0)
    random = np.random.default_rng(0)
    drawn = np.bincount([choose(logits, sampling, random) for _ in range(4000)], minlength=3)
    np.testing.assert_allclose(drawn / 4000, [0.6, 0.3, 0.1], atol=0.03)
    runs = {
        generate(
            ScriptedSession(),
            np.array([2]),
            max_tokens=20,
            sampling=Sampling(temperature=1.5, seed=seed),
        ).tokens
        for seed in (1, 1, 2)
    }
    assert len(runs) == 2


def test_chunks_give_what_one_pass_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genai_runtime.session.LOGITS_PER_CHUNK", 17 * 4)
    session = ScriptedSession()
    whole = ScriptedSession().forward(np.arange(11))
    parts = list(in_chunks(session, np.arange(11)))
    assert session.passes == [4, 4, 3]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_truncation_forgets_exactly_the_tail() -> None:
    session = ScriptedSession()
    session.forward(np.array([1, 2, 3, 4]))
    session.truncate(2)
    expected = ScriptedSession().forward(np.array([1, 2, 9]))[-1]
    np.testing.assert_array_equal(session.forward(np.array([9]))[0], expected)
    with pytest.raises(BadInput):
        session.truncate(9)


def test_the_scripted_session_is_a_session() -> None:
    assert isinstance(ScriptedSession(), Session)


def test_end_tokens_come_from_the_generation_config_first(tmp_path: Path) -> None:
    assert stop_tokens(tmp_path) == frozenset()
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 2}))
    assert stop_tokens(tmp_path) == {2}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 6]}))
    assert stop_tokens(tmp_path) == {2, 6}


@pytest.mark.parametrize("text", ["{", "[]", '{"eos_token_id": "end"}'])
def test_unreadable_end_tokens_name_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(BadModel, match="generation_config"):
        stop_tokens(tmp_path)
