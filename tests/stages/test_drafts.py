"""A weight of which channels are taken, and of those channels some again."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from genai_stages.graph.core_graph import CoreWriter
from genai_stages.ingest.recognition.drafts import DraftWeight
from genai_stages.ingest.source.source_model import Constant

MATRIX = np.arange(24, dtype=np.float32).reshape(8, 3)


@pytest.mark.parametrize("first", [np.arange(2, 7), np.array([1, 3, 4, 6, 7])])
@pytest.mark.parametrize("then", [np.arange(1, 4), np.array([0, 3]), np.array([4, 2])])
def test_a_selection_of_a_selection_counts_from_the_first(
    first: np.ndarray, then: np.ndarray
) -> None:
    whole = DraftWeight(Constant.of("w", MATRIX))
    part = whole.cut(first).cut(then)
    np.testing.assert_array_equal(part.matrix(), MATRIX[first][then])
    assert part.source == "w"
    vector = DraftWeight(Constant.of("b", MATRIX[:, 0]), vector=MATRIX[:, 1]).cut(first).cut(then)
    np.testing.assert_array_equal(vector.values(), MATRIX[first][then][:, 1])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("turned", [False, True])
def test_a_table_of_another_float_type_is_widened_in_blocks(
    dtype: type, turned: bool, tmp_path: Path
) -> None:
    """A vocabulary's table is gigabytes as float32; for a tied head there would be two."""
    rows, columns = 1 << 18, 96
    shape = (columns, rows) if turned else (rows, columns)
    stored = np.memmap(tmp_path / "stored", np.dtype(dtype), "w+", shape=shape)
    stored[:2] = np.arange(2 * stored.shape[1]).reshape(2, -1) % 97
    constant = Constant("w", stored.shape, np.dtype(np.float32), lambda: stored, "w")
    with CoreWriter(tmp_path) as writer:
        tracemalloc.start()
        writer.weight("w", DraftWeight(constant, turned=turned).matrix(), group="embed")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    written = np.fromfile(tmp_path / "weights" / "embed.data", "<f4").reshape(rows, columns)
    wanted = stored.T if turned else stored
    np.testing.assert_array_equal(written[:300], wanted[:300].astype(np.float32))
    assert peak < 0.8 * written.nbytes
