"""Additive attention masks of the static graphs: 0 where a key is visible, -100 where it is not.

-100 instead of -inf, because the mask is quantized with the rest: an infinite end would take the
whole range of its encoding. A mask follows from positions alone, so an executor is free to lay out
its cache as it likes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HIDDEN = -100.0
"""Added to the scores of keys that a query must not see."""

EMPTY = -1
"""The position of a cache slot without a token, or of padding."""


def additive_mask(
    queries: NDArray[np.integer], keys: NDArray[np.integer], *, window: int = 0
) -> NDArray[np.float32]:
    """The mask of one pass.

    Args:
        queries: [AR] positions of the new tokens; EMPTY for padding, whose row is all hidden.
        keys: [CL] positions of what the slots hold; EMPTY for a slot without a token.
        window: 0 = every earlier token; W = the token itself and the W - 1 before it.

    Returns:
        float32 [1, 1, AR, CL].
    """
    query = np.asarray(queries, dtype=np.int64)[:, None]
    key = np.asarray(keys, dtype=np.int64)[None, :]
    visible = (key >= 0) & (query >= 0) & (key <= query)
    if window:
        visible &= query - key < window
    return np.where(visible, np.float32(0), np.float32(HIDDEN))[None, None]
