"""Static uint8 parameters of the linears' inputs, from encodings or from measured ranges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genai_stages.aimet.arithmetic import outwards
from genai_stages.aimet.model import Encoding

_LEVELS = 255


@dataclass(frozen=True)
class ActivationGrid:
    """`real = scale * (q - zero_point)` with q uint8; scale is a float32 value."""

    scale: float
    zero_point: int


def grid_of_range(low: float, high: float) -> ActivationGrid:
    """256 levels over [low, high], widened to hold 0 exactly."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = np.float32(max((high - low) / _LEVELS, float(np.finfo(np.float32).eps)))
    zero_point = int(np.clip(np.rint(-low / float(scale)), 0, _LEVELS))
    return ActivationGrid(float(scale), zero_point)


def grid_of_measured(low: float, high: float) -> ActivationGrid:
    """256 levels over a measured range, whose ends are moved outwards."""
    return grid_of_range(outwards(low), outwards(high))


def grid_of_encoding(encoding: Encoding) -> ActivationGrid:
    """The same grid for 8 bits, 256 levels over the same range for any other width."""
    offset = float(encoding.offset)
    if encoding.bits == 8 and offset == round(offset) and -_LEVELS <= offset <= 0:
        return ActivationGrid(float(np.float32(encoding.scale)), int(-offset))
    return grid_of_range(float(encoding.low), float(encoding.high))
