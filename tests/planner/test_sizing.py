"""Estimates: on the large side of what was measured, and in proportion."""

from __future__ import annotations

import pytest

from genai_core.names import Gaps
from genai_planner.shape import shape_from_config
from genai_planner.sizing import binary_sizes, bytes_text, demand

CONFIG = {
    "num_hidden_layers": 1,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "vocab_size": 128256,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
}


def layer(bits: int | None, gaps: Gaps = Gaps.ERROR, copies: int = 1) -> int:
    shape = shape_from_config(CONFIG)
    assert shape is not None
    return binary_sizes(shape, bits, gaps=gaps, copies=copies).layers[0]


def test_layer_of_a_3b_model_is_as_large_as_was_measured() -> None:
    # 51.7 MB: one such layer, w4, two graphs with shared weights, compiled for SM8750.
    assert layer(4) == pytest.approx(51.7e6, rel=0.02)


def test_sizes_follow_bits_and_copies() -> None:
    assert layer(8) == pytest.approx(2 * layer(4), rel=1e-6)
    assert layer(None, Gaps.FLOAT) == pytest.approx(4 * layer(4), rel=1e-6)
    assert layer(None, Gaps.CALIBRATE) == layer(8)
    assert layer(4, copies=3) == pytest.approx(3 * layer(4), rel=1e-6)


def test_lm_head_never_has_less_than_a_byte_a_weight() -> None:
    shape = shape_from_config(CONFIG)
    assert shape is not None
    sizes = binary_sizes(shape, 4, gaps=Gaps.ERROR)
    assert sizes.head > 128256 * 3072
    assert "8 in lm_head" in sizes.assumed


def test_compiling_a_layer_of_a_3b_model_needs_what_was_measured() -> None:
    shape = shape_from_config(CONFIG)
    assert shape is not None
    need = demand("compile-htp", 3 * shape.layers[0]).memory_bytes
    assert 2.3e9 < need < 7e9  # 2.3 GB were measured for three layers


def test_streaming_holds_the_largest_group_only() -> None:
    whole, streamed = demand("ingest", 10**9), demand("ingest", 10**9, largest=10**7)
    assert streamed.memory_bytes < whole.memory_bytes / 10
    assert streamed.seconds == whole.seconds


@pytest.mark.parametrize(
    ("sizes", "text"), [([1.05e9, 87e7], "1.05, 0.87 GB"), ([81e4], "0.81 MB")]
)
def test_sizes_are_readable(sizes: list[float], text: str) -> None:
    assert bytes_text(map(int, sizes)) == text
