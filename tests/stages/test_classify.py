"""Rotations and masks are told from numbers, and what is neither is not guessed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from genai_stages.ingest.folding.classify_mask import classify, reference
from genai_stages.ingest.recognition.classify_rotary import attention_factor, find_rotation

POSITIONS = np.arange(101, 120)


def turned(
    heads: np.ndarray, frequencies: np.ndarray, rotary: int, *, interleaved: bool
) -> np.ndarray:
    """RoFormer's rotation matrix, built entry by entry."""
    width = heads.shape[-1]
    result = np.empty_like(heads)
    for index, position in enumerate(POSITIONS):
        matrix = np.eye(width)
        for pair, frequency in enumerate(frequencies):
            a, b = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + rotary // 2)
            cos, sin = np.cos(position * frequency), np.sin(position * frequency)
            matrix[a, a], matrix[a, b], matrix[b, a], matrix[b, b] = cos, -sin, sin, cos
        result[:, index] = heads[:, index] @ matrix.T
    return result


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary", [4, 8, 16])
@pytest.mark.parametrize("known", [True, False])
def test_rotation_is_found(interleaved: bool, rotary: int, known: bool) -> None:
    random = np.random.default_rng(rotary)
    heads = random.standard_normal((3, len(POSITIONS), 16))
    frequencies = (1.0 / 500.0 ** (np.arange(0, rotary, 2) / rotary)).astype(np.float32)
    scale = 0.3 if rotary == 16 else 1.0
    after = scale * turned(heads, frequencies, rotary, interleaved=interleaved)
    decoy = np.linspace(0.1, 1.0, 8, dtype=np.float32)
    tables = [decoy, frequencies] if known else [decoy]
    found = find_rotation(heads, after, POSITIONS, tables=tables)
    assert found is not None
    assert (found.rotary_dim, found.interleaved) == (rotary, interleaved)
    assert found.scale == pytest.approx(scale, rel=1e-5)
    np.testing.assert_allclose(found.inv_freq, frequencies, rtol=1e-5)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("interleaved", [False, True])
def test_a_part_of_a_head_may_be_turned_and_enlarged(known: bool, interleaved: bool) -> None:
    """Phi-4-mini: LongRoPE's factor is on cosine and sine, so on three quarters of a head."""
    heads = np.random.default_rng(1).standard_normal((3, len(POSITIONS), 16))
    frequencies = (1.0 / 500.0 ** (np.arange(0, 12, 2) / 12)).astype(np.float32)
    after = turned(heads, frequencies, 12, interleaved=interleaved)
    after[..., :12] *= 1.19
    tables = [frequencies] if known else []
    found = find_rotation(heads, 0.25 * after, POSITIONS, tables=tables, factor=1.19)
    assert found is not None
    assert (found.rotary_dim, found.interleaved) == (12, interleaved)
    assert found.scale == pytest.approx(0.25, rel=1e-5)
    np.testing.assert_allclose(found.inv_freq, frequencies, rtol=1e-5)
    assert find_rotation(heads, after, POSITIONS, tables=tables) is None


def test_unturned_heads_have_no_rotation() -> None:
    heads = np.random.default_rng(0).standard_normal((2, len(POSITIONS), 8))
    found = find_rotation(heads, heads * 0.5, POSITIONS, tables=[np.ones(4, np.float32)])
    assert found is not None
    assert found.rotary_dim == 0
    assert found.scale == pytest.approx(0.5)


def test_another_function_of_the_heads_is_no_rotation() -> None:
    random = np.random.default_rng(0)
    heads = random.standard_normal((4, len(POSITIONS), 8))
    mixed = heads @ random.standard_normal((8, 8))
    assert find_rotation(heads, mixed, POSITIONS, tables=[np.ones(4, np.float32)]) is None
    assert find_rotation(heads, np.tanh(heads), POSITIONS, tables=[]) is None


def test_attention_factor_is_the_magnitude_of_a_pair() -> None:
    angle = np.random.default_rng(0).standard_normal((19, 8)).astype(np.float32)
    assert attention_factor([1.25 * np.cos(angle), 1.25 * np.sin(angle)]) == pytest.approx(1.25)
    assert attention_factor([np.cos(angle)]) == 1.0
    assert attention_factor([angle, 2 * angle]) == 1.0


@given(st.integers(1, 12), st.integers(0, 20), st.integers(0, 40))
@settings(max_examples=200, deadline=None)
def test_masks_are_classified_by_what_they_hide(tokens: int, past: int, window: int) -> None:
    visible = np.zeros((tokens, past + tokens), bool)
    for row in range(tokens):
        for key in range(past + tokens):
            distance = past + row - key
            visible[row, key] = distance >= 0 and (window == 0 or distance < window)
    found = classify(visible, past)
    assert found == (window if 0 < window < past + tokens else 0)
    np.testing.assert_array_equal(reference(tokens, past, window), visible)


@given(st.integers(3, 9), st.integers(1, 9), st.data())
@settings(max_examples=100, deadline=None)
def test_a_mask_with_one_entry_flipped_is_neither(
    tokens: int, past: int, draw: st.DataObject
) -> None:
    """But for the oldest key of the last token: without it, a window would fit."""
    visible = reference(tokens, past, 0)
    row = draw.draw(st.integers(0, tokens - 1))
    key = draw.draw(st.integers(0, past + tokens - 1))
    assume((row, key) != (tokens - 1, 0))
    visible[row, key] ^= True
    assert classify(visible, past) is None
