"""A container's `vision/vision.json`: how a picture becomes embeddings that its model reads."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from genai_core.names import VISION_ROLE

__all__ = [
    "VISION_ENCODER_FILE",
    "VISION_FOLDER",
    "VISION_INFO_FILE",
    "VISION_VERSION",
    "Preprocessing",
    "Resample",
    "VisionInfo",
]

VISION_FOLDER = "vision"
"""Of a container: the encoder of pictures, its data, and how it is driven."""

VISION_INFO_FILE = f"{VISION_FOLDER}/vision.json"
VISION_ENCODER_FILE = f"{VISION_FOLDER}/{VISION_ROLE}"

VISION_VERSION = 1
"""The newest version of vision.json that this program reads; see `versions`."""

_FROZEN = ConfigDict(frozen=True, extra="forbid")

Side = Annotated[int, Field(ge=1, le=16384)]
Channels = tuple[
    Annotated[float, Field(allow_inf_nan=False)],
    Annotated[float, Field(allow_inf_nan=False)],
    Annotated[float, Field(allow_inf_nan=False)],
]
Resample = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]


class Preprocessing(BaseModel):
    """How a picture becomes the encoder's pixels, float [1, 3, height, width]."""

    model_config = _FROZEN

    size: tuple[Side, Side] | None = None
    """Height and width of the pixels; None: `multiple` says."""
    shortest_edge: Side | None = None
    """The shorter side is brought to this length and `size` cut out of the middle; None: the whole
    picture is brought to `size`, whatever its proportions."""
    multiple: Side | None = None
    """Without `size`: each side is brought to the nearest multiple, proportions kept as far as
    that goes."""
    least_pixels: Annotated[int, Field(ge=1)] = 1
    most_pixels: Annotated[int, Field(ge=1)] | None = None
    """Without `size`: bounds of height x width, within which a picture is scaled."""
    resample: Resample
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Each value of 0 to 255 times this, less `mean`, by `std`."""
    mean: Channels
    std: Channels

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if (self.size is None) == (self.multiple is None):
            raise ValueError("either size or multiple")
        if self.size is None and self.most_pixels is None:
            raise ValueError("multiple goes with most_pixels")
        if min(self.std) <= 0:
            raise ValueError("std is above 0")
        return self


class VisionInfo(BaseModel):
    """vision.json."""

    model_config = _FROZEN

    schema_version: Annotated[int, Field(ge=1)] = 1
    image_token: Annotated[str, Field(min_length=1)]
    """Stands in a prompt where a picture is meant."""
    image_token_id: Annotated[int, Field(ge=0)]
    """Stands among token ids in each place of a picture; the model never reads its embedding."""
    in_vocabulary: bool
    """The tokenizer has `image_token` as one token, of that id. Else prompts are cut at it."""
    input: str
    output: str
    tokens: Annotated[int, Field(ge=1)] | None
    """Places of every picture; None: as many as the encoder yields."""
    hidden_size: Annotated[int, Field(ge=1)]
    """Of each embedding: the model's."""
    preprocessing: Preprocessing
