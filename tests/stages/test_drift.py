"""What the emulator may depart by, and that nothing else passes for a small departure."""

from __future__ import annotations

import numpy as np
import pytest

from genai_core.errors import DriftError
from genai_stages.backends.htp.drift import decibels, require_small


def test_values_that_are_no_numbers_are_no_small_departure() -> None:
    """A float16 that overflowed yields NaN: comparisons with NaN are false, whichever way."""
    good = np.ones((2, 3), np.float32)
    bad = np.where(np.eye(2, 3) > 0, np.float32(np.nan), good)
    with pytest.raises(DriftError, match="logits is nan dB"):
        require_small({"g": {"logits": decibels(good, bad)}})
    with pytest.raises(DriftError, match="past_key_0_out is nan dB"):
        require_small({"g": {"logits": 50.0, "past_key_0_out": decibels(good, bad)}})


def test_the_worst_is_told_without_the_caches() -> None:
    found = {"a": {"logits": 61.0, "past_key_0_out": 26.0}, "b": {"logits": float("inf")}}
    assert require_small(found) == 61.0
    with pytest.raises(DriftError, match=r"is 24.0 dB from the quantized graph.s, 25 dB") as caught:
        require_small({"a": {"past_value_1_out": 24.0, "logits": 61.0}})
    assert caught.value.where == "a"
