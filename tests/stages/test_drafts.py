"""A weight of which channels are taken, and of those channels some again."""

from __future__ import annotations

import numpy as np
import pytest

from genai_stages.passes.drafts import Weight
from genai_stages.source_model import Constant

MATRIX = np.arange(24, dtype=np.float32).reshape(8, 3)


@pytest.mark.parametrize("first", [np.arange(2, 7), np.array([1, 3, 4, 6, 7])])
@pytest.mark.parametrize("then", [np.arange(1, 4), np.array([0, 3]), np.array([4, 2])])
def test_a_selection_of_a_selection_counts_from_the_first(
    first: np.ndarray, then: np.ndarray
) -> None:
    whole = Weight(Constant.of("w", MATRIX))
    part = whole.cut(first).cut(then)
    np.testing.assert_array_equal(part.matrix(), MATRIX[first][then])
    assert part.source == "w"
    vector = Weight(Constant.of("b", MATRIX[:, 0]), vector=MATRIX[:, 1]).cut(first).cut(then)
    np.testing.assert_array_equal(vector.values(), MATRIX[first][then][:, 1])
