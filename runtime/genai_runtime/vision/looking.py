"""A picture's bytes -> the embeddings that a model reads."""

from __future__ import annotations

from genai_runtime.vision.encoder import VisionEncoder
from genai_runtime.vision.pictures import MOST_PIXELS, read_picture
from genai_runtime.vision.pixels import pixels_of
from genai_runtime.vision.places import Seen

__all__ = ["look"]


def look(
    encoder: VisionEncoder, data: bytes, *, where: str, most_pixels: int = MOST_PIXELS
) -> Seen:
    """Embeddings [tokens, hidden size] of a picture.

    Args:
        encoder: The container's.
        data: The file's bytes.
        where: What an error names.
        most_pixels: Height x width at most.

    Raises:
        BadInput: It is no picture that can be read; see `read_picture` and `pixels_of`.
        BadModel: The encoder fails on it.
    """
    picture = read_picture(data, where=where, most_pixels=most_pixels)
    return encoder.run(pixels_of(picture, encoder.info.preprocessing, where=where))
