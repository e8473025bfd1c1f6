"""Rotary tables and masks against their definitions, position by position."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_core.facts import RopeTable
from genai_runtime.masks import EMPTY, HIDDEN, additive_mask
from genai_runtime.rope import cos_sin, for_context, rotate


def table(dim: int, factor: float = 1.0) -> RopeTable:
    return RopeTable(
        rotary_dim=dim,
        inv_freq=[float(np.float32(10000.0 ** (-2 * i / dim))) for i in range(dim // 2)],
        attention_factor=factor,
    )


def test_tables_hold_cosines_and_sines_of_position_times_frequency() -> None:
    cos, sin = cos_sin(np.array([0, 3, 100_000]), table(8, factor=1.5))
    assert cos.dtype == np.float32
    assert cos.shape == (3, 4)
    for row, position in enumerate((0, 3, 100_000)):
        for column, frequency in enumerate(table(8).inv_freq):
            assert cos[row, column] == pytest.approx(1.5 * math.cos(position * frequency), abs=1e-6)
            assert sin[row, column] == pytest.approx(1.5 * math.sin(position * frequency), abs=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [4, 8])
def test_rotation_turns_each_pair_by_its_angle_and_leaves_the_rest(
    interleaved: bool, rotary_dim: int
) -> None:
    heads = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
    cos, sin = cos_sin(np.arange(5), table(rotary_dim))
    rotated = rotate(heads, cos, sin, interleaved=interleaved)
    half = rotary_dim // 2
    for position in range(5):
        for i, frequency in enumerate(table(rotary_dim).inv_freq):
            first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
            turned = (heads[:, position, first] + 1j * heads[:, position, second]) * np.exp(
                1j * position * frequency
            )
            np.testing.assert_allclose(rotated[:, position, first], turned.real, atol=1e-5)
            np.testing.assert_allclose(rotated[:, position, second], turned.imag, atol=1e-5)
    np.testing.assert_array_equal(rotated[..., rotary_dim:], heads[..., rotary_dim:])


def test_factors_for_long_contexts_hold_where_the_context_is_long() -> None:
    """Phi-3's: 1 / (factor * theta ** (2 i / dim)), by the context's length."""
    short, long = [1.0, 1.1, 1.25, 2.0], [1.03, 4.0, 20.5, 64.0]
    plain = 10000.0 ** (-np.arange(4) / 4)
    scaling = {"short_factor": short, "long_factor": long, "original_max_position_embeddings": 64}
    given = table(8, factor=1.19).model_copy(
        update={"inv_freq": (plain / short).astype(np.float32).tolist(), "scaling": scaling}
    )
    assert for_context(given, 64) is given
    stretched = for_context(given, 65)
    np.testing.assert_allclose(stretched.inv_freq, plain / long, rtol=1e-6)
    assert (stretched.attention_factor, stretched.scaling) == (1.19, scaling)
    assert for_context(table(8), 1 << 20) == table(8)
    other = given.model_copy(update={"scaling": scaling | {"long_factor": long[:3]}})
    assert for_context(other, 65) is other


@given(
    st.lists(st.integers(EMPTY, 12), min_size=1, max_size=6),
    st.lists(st.integers(EMPTY, 12), min_size=1, max_size=9),
    st.integers(0, 5),
)
def test_a_key_is_visible_when_it_is_not_later_and_inside_the_window(
    queries: list[int], keys: list[int], window: int
) -> None:
    mask = additive_mask(np.array(queries), np.array(keys), window=window)
    assert mask.shape == (1, 1, len(queries), len(keys))
    assert mask.dtype == np.float32
    for row, query in enumerate(queries):
        for column, key in enumerate(keys):
            visible = key >= 0 and query >= 0 and key <= query
            if window and query - key >= window:
                visible = False
            assert mask[0, 0, row, column] == (0.0 if visible else HIDDEN)
