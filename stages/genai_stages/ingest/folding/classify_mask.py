"""Which keys a token sees, read off the mask's values.

A mask is classified by what it hides, never by how it was built. A window that is wider than the
sizes at which the graph was folded looks like full causal attention there, so the mask is computed
once more behind a past that is longer than any number in its arithmetic.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
HIDDEN = -20.0
"""Scores lowered by more than this count as hidden; a visible key's score is not lowered at all."""


def reference(tokens: int, past: int, window: int) -> BoolArray:
    """Visible keys, [T, P + T]; window 0 = full causal."""
    new = np.arange(past, past + tokens)[:, None]
    every = np.arange(past + tokens)[None]
    visible = every <= new
    if window:
        visible &= every > new - window
    return visible


def classify(visible: BoolArray, past: int) -> int | None:
    """The window of a mask [T, P + T]: 0 = full causal as far as it shows, None = neither."""
    tokens = visible.shape[0]
    window = int(visible[-1].sum())
    if window == past + tokens:
        window = 0
    return window if np.array_equal(visible, reference(tokens, past, window)) else None
