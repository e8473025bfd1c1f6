"""Sampling against its definitions, written out here the slow way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from genai_core.errors import BadInput, BadModel
from genai_runtime.sampling import Sampler, Sampling, distribution, logprobs


def by_definition(logits: NDArray[np.float32], sampling: Sampling) -> NDArray[np.float64]:
    """One token after another, from a sorted list."""
    scaled = logits.astype(np.float64) / sampling.temperature
    weights = np.exp(scaled - scaled.max())
    order = sorted(range(logits.size), key=lambda i: (-scaled[i], i))
    kept = [i for i in order if weights[i] >= sampling.min_p * weights.max()]
    kept = kept[: sampling.top_k or None]
    total = sum(weights[i] for i in kept)
    nucleus, reached = [], 0.0
    for i in kept:
        if reached >= sampling.top_p:
            break
        nucleus.append(i)
        reached += weights[i] / total
    result = np.zeros(logits.size)
    result[nucleus] = weights[nucleus] / weights[nucleus].sum()
    return result


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.int16, st.integers(1, 200), elements=st.integers(-30, 30)),
    st.floats(0.2, 3),
    st.integers(0, 90),
    st.floats(0.05, 1),
    st.sampled_from([0.0, 0.03, 0.4, 1.0]),
)
def test_distribution_is_the_definition_s(
    numbers: NDArray[np.int16], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    # Many equal logits: the lower id comes first, whatever kernel sorts.
    logits = (numbers / 4).astype(np.float32)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    expected, got = by_definition(logits, sampling), distribution(logits, sampling)
    # At a boundary the two sums may round differently: one token more or less.
    if np.count_nonzero(expected) == np.count_nonzero(got):
        np.testing.assert_allclose(got, expected, atol=1e-9)
    else:
        exact = distribution(logits, Sampling(temperature=temperature, top_k=top_k, min_p=min_p))
        sums = np.cumsum(np.sort(exact)[::-1])
        assert np.abs(sums - top_p).min() < 1e-9


def test_top_p_is_exact_when_the_set_is_larger_than_the_first_candidates() -> None:
    logits = np.linspace(0, 1, 5000, dtype=np.float32)
    sampling = Sampling(temperature=1.0, top_p=0.9)
    np.testing.assert_allclose(distribution(logits, sampling), by_definition(logits, sampling))


def sampler(prompt: Sequence[int] = (), **settings: Any) -> Sampler:
    return Sampler(Sampling(**settings), vocab_size=6, prompt=np.asarray(prompt, np.int64))


LOGITS = np.array([2.0, 1.0, 0.5, -1.0, -2.0, 0.0], dtype=np.float32)


def test_shaped_is_the_array_itself_when_nothing_is_asked() -> None:
    assert sampler().shaped(LOGITS) is LOGITS


def test_repetition_penalty_counts_prompt_and_answer() -> None:
    made = sampler(prompt=[3], repetition_penalty=2.0)
    assert made.next(LOGITS) == 0
    np.testing.assert_allclose(made.shaped(LOGITS), [1.0, 1.0, 0.5, -2.0, -2.0, 0.0])


def test_presence_and_frequency_penalties_count_the_answer_alone() -> None:
    made = sampler(prompt=[1, 1], presence_penalty=0.5, frequency_penalty=0.25)
    tokens = [made.next(LOGITS) for _ in range(3)]
    # 2.0, then 2.0 - 0.75, then 2.0 - 1.0 against 1.0: of equals the lowest id.
    assert tokens == [0, 0, 0]
    np.testing.assert_allclose(made.shaped(LOGITS), [0.75, 1.0, 0.5, -1.0, -2.0, 0.0])
    assert made.next(LOGITS) == 1


def test_logit_bias_forces_and_forbids() -> None:
    assert sampler(logit_bias={4: 100.0}).next(LOGITS) == 4
    assert sampler(logit_bias={0: -100.0}).next(LOGITS) == 1


def test_next_never_takes_a_banned_token() -> None:
    made = sampler(temperature=5.0)
    assert all(made.next(LOGITS, banned={0, 2}) not in {0, 2} for _ in range(50))
    assert LOGITS[0] == 2.0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_next_takes_no_token_when_logits_are_no_numbers(temperature: float, value: float) -> None:
    """NaN was the most likely token of a greedy answer."""
    logits = np.array([1.0, value, 0.5], np.float32)
    with pytest.raises(BadModel, match="no finite logits"):
        Sampler(Sampling(temperature=temperature), vocab_size=3).next(logits)


def test_draws_repeat_when_the_seed_does() -> None:
    def draws(seed: int) -> list[int]:
        made = sampler(temperature=2.0, seed=seed)
        return [made.next(LOGITS) for _ in range(12)]

    assert draws(7) == draws(7)
    assert draws(7) != draws(8)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", float("nan")),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1: 101.0}),
        ("seed", -1),
        ("temperature", float("inf")),
    ],
)
def test_sampling_names_the_field_when_a_value_has_no_meaning(
    field: str, value: dict[int, float] | float
) -> None:
    settings: dict[str, Any] = {field: value}
    with pytest.raises(BadInput) as caught:
        Sampling(**settings)
    assert caught.value.where.split()[0].replace("-", "_") == field


def test_sampler_refuses_a_biased_token_when_it_is_outside_the_vocabulary() -> None:
    with pytest.raises(BadInput, match="token 6"):
        sampler(logit_bias={6: 1.0})


def test_logprobs_give_the_token_first_and_the_most_likely_in_order() -> None:
    expected = np.log(np.exp(LOGITS.astype(np.float64)) / np.exp(LOGITS.astype(np.float64)).sum())
    told = logprobs(LOGITS, 5, 3)
    assert [item.token for item in told] == [5, 0, 1, 2]
    np.testing.assert_allclose([item.logprob for item in told], expected[[5, 0, 1, 2]])
    assert [item.token for item in logprobs(LOGITS, 2, 0)] == [2]
    assert len(logprobs(LOGITS, 2, 99)) == 7
