"""A layout follows movements exactly: NumPy moving real numbers is the reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_stages.ingest.recognition.layouts import LayoutError, TensorLayout, token_major

TOKENS, WIDTH = 7, 24
CANONICAL = np.arange(TOKENS * WIDTH).reshape(TOKENS, WIDTH)


def moved(
    layout: TensorLayout, array: np.ndarray, draw: st.DataObject
) -> tuple[TensorLayout, np.ndarray]:
    """One random movement of both; a movement that a layout refuses is left out."""
    rank = array.ndim
    kind = draw.draw(st.sampled_from(["transpose", "split", "merge", "flat", "slice", "unsqueeze",
                                      "squeeze", "expand"]))  # fmt: skip
    axis = draw.draw(st.integers(0, rank - 1)) if rank else 0
    if kind == "transpose":
        perm = draw.draw(st.permutations(range(rank)))
        return layout.transposed(perm), array.transpose(perm)
    if kind == "unsqueeze" and rank < 6:
        return layout.unsqueezed([axis]), np.expand_dims(array, axis)
    if kind == "squeeze" and array.shape[axis] == 1:
        return layout.squeezed([axis]), array.squeeze(axis)
    shape = list(array.shape)
    if kind == "split":
        part = draw.draw(st.sampled_from([2, 3, 4]))
        if shape[axis] % part or shape[axis] == part:
            return layout, array
        shape[axis : axis + 1] = [part, shape[axis] // part]
    elif kind == "merge" and axis + 1 < rank:
        shape[axis : axis + 2] = [shape[axis] * shape[axis + 1]]
    elif kind == "slice":
        start = draw.draw(st.integers(0, shape[axis] - 1))
        step = draw.draw(st.sampled_from([1, 2]))
        index = [slice(None)] * rank
        index[axis] = slice(start, shape[axis], step)
        try:
            return layout.sliced(axis, start, shape[axis], step=step), array[tuple(index)]
        except LayoutError:
            return layout, array
    elif kind == "expand" and shape[axis] == 1:
        shape[axis] = 3
        return layout.expanded(shape), np.broadcast_to(array, shape)
    try:
        return layout.reshaped(shape), array.reshape(shape)
    except LayoutError:
        return layout, array


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_movements_are_followed(draw: st.DataObject) -> None:
    layout, array = token_major(TOKENS, WIDTH), CANONICAL[None]
    for _ in range(draw.draw(st.integers(1, 7))):
        layout, array = moved(layout, array, draw)
        assert layout.shape == array.shape
    np.testing.assert_array_equal(layout.gather(CANONICAL), array)
    held = {int(value) % WIDTH for value in array.reshape(-1)}
    assert set(layout.channels().tolist()) == held


def test_heads_and_back_are_whole() -> None:
    layout = token_major(TOKENS, WIDTH).reshaped((1, TOKENS, 4, 6)).transposed((0, 2, 1, 3))
    assert layout.is_whole(WIDTH)
    half = layout.sliced(3, 0, 3)
    assert half.channels().tolist() == [0, 1, 2, 6, 7, 8, 12, 13, 14, 18, 19, 20]
    assert not half.is_whole(WIDTH)
    swapped = layout.transposed((0, 3, 2, 1))
    assert not swapped.is_whole(WIDTH)


@pytest.mark.parametrize("shape", [(1, 7 * 24), (1, 3, 56), (7, 24, 2)])
def test_reshapes_that_mix_tokens_and_channels_are_followed_or_refused(
    shape: tuple[int, ...],
) -> None:
    layout = token_major(TOKENS, WIDTH)
    if shape == (1, 7 * 24):
        assert layout.reshaped(shape).shape == shape
    else:
        with pytest.raises(LayoutError):
            layout.reshaped(shape)


def test_a_part_of_the_tokens_is_refused() -> None:
    with pytest.raises(LayoutError, match="part of the tokens"):
        token_major(TOKENS, WIDTH).sliced(1, 0, 3)


def test_constants_are_brought_into_channel_order() -> None:
    layout = token_major(TOKENS, WIDTH).reshaped((1, TOKENS, 4, 6)).transposed((0, 2, 1, 3))
    heads = np.arange(4.0).reshape(1, 4, 1, 1)
    np.testing.assert_array_equal(layout.vector(heads, WIDTH), np.repeat(np.arange(4.0), 6))
    waves = np.arange(TOKENS * 6.0).reshape(TOKENS, 6)
    with pytest.raises(LayoutError, match="differs from token to token"):
        layout.vector(waves, WIDTH)
