"""spec.vision: what turns pictures into embeddings that the model reads beside text."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from genai_core.files.paths import FileName
from genai_core.kinds.base import DigestText, KindModel, SecretRef, Uri, either_case

__all__ = ["TokensPerImage", "Vision"]


class TokensPerImage(StrEnum):
    """Whether all pictures take the same number of places in a prompt."""

    FIXED = "Fixed"
    DYNAMIC = "Dynamic"


class Vision(KindModel):
    """An encoder of pictures, which was trained for this model (cpu).

    It is an ONNX file with one input, pixels [1, 3, height, width], and one output, embeddings
    [1, tokens, hidden size of the model]. It stays in floating point. How a picture becomes pixels
    stands in its preprocessor_config.json, or config.json.
    """

    source: Uri
    """s3://bucket/prefix, https:// (an archive), pvc://claim/path; on the command line a folder."""
    secret_ref: SecretRef | None = None
    """Credentials of the source; left out: the store's."""
    digest: DigestText | None = None
    """Pins the content, as status.sources shows it."""
    onnx: FileName | None = None
    """File of the encoder, below the source; left out: the only one."""
    image_token: Annotated[
        str, Field(default="<image>"), StringConstraints(min_length=1, max_length=64)
    ]
    """Stands in a prompt where a picture is meant, once for each picture."""
    tokens_per_image: Annotated[TokensPerImage, either_case(TokensPerImage)] = TokensPerImage.FIXED
    """Fixed: every picture is brought to the one size of the encoder; Dynamic: the encoder takes
    any size, and a picture keeps its proportions."""
