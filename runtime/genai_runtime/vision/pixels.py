"""A picture -> an encoder's pixels, as the encoder's preprocessing says."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from genai_core.container.vision_info import Preprocessing, Resample
from genai_core.errors import BadInput

__all__ = ["pixels_of"]

_MOST_RATIO = 200
"""Of a picture's sides, where it keeps its proportions."""

_FILTERS: dict[Resample, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


def pixels_of(picture: Image.Image, how: Preprocessing, *, where: str) -> NDArray[np.float32]:
    """Pixels float32 [1, 3, height, width] of an RGB picture.

    Args:
        picture: As `read_picture` gives it.
        how: The encoder's.
        where: What an error names.

    Raises:
        BadInput: One side is more than 200 times the other, and proportions are kept.
    """
    height, width = _resized(picture, how, where)
    resized = picture.resize((width, height), _FILTERS[how.resample])
    if how.shortest_edge is not None:
        assert how.size is not None
        top, left = (height - how.size[0]) // 2, (width - how.size[1]) // 2
        resized = resized.crop((left, top, left + how.size[1], top + how.size[0]))
    mean, std = np.asarray(how.mean, np.float32), np.asarray(how.std, np.float32)
    values = np.asarray(resized, np.float32) * np.float32(how.scale)
    return np.ascontiguousarray(((values - mean) / std).transpose(2, 0, 1)[None], np.float32)


def _resized(picture: Image.Image, how: Preprocessing, where: str) -> tuple[int, int]:
    """Height and width that the whole picture is brought to."""
    width, height = picture.size
    if how.multiple is not None and how.most_pixels is not None:
        if max(width, height) > _MOST_RATIO * min(width, height):
            raise BadInput(
                f"it has {width} x {height} pixels: one side is more than {_MOST_RATIO} times the "
                "other",
                where=where,
                remedy="send the part of it that is meant",
            )
        return _within(height, width, how.multiple, (how.least_pixels, how.most_pixels))
    assert how.size is not None
    if how.shortest_edge is None:
        return how.size
    if height <= width:
        return how.shortest_edge, max(1, int(how.shortest_edge * width / height))
    return max(1, int(how.shortest_edge * height / width)), how.shortest_edge


def _within(height: int, width: int, multiple: int, bounds: tuple[int, int]) -> tuple[int, int]:
    """Multiples near a picture's sides whose product lies within bounds, proportions kept."""
    least, most = bounds
    sides = [max(multiple, round(side / multiple) * multiple) for side in (height, width)]
    if sides[0] * sides[1] > most:
        factor = math.sqrt(height * width / most)
        sides = [
            max(multiple, math.floor(side / factor / multiple) * multiple)
            for side in (height, width)
        ]
    elif sides[0] * sides[1] < least:
        factor = math.sqrt(least / (height * width))
        sides = [math.ceil(side * factor / multiple) * multiple for side in (height, width)]
    return sides[0], sides[1]
