"""spec.speculation: what a container carries for guessing tokens ahead."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from genai_core.files.paths import FileName
from genai_core.kinds.base import DigestText, KindModel, SecretRef, Uri, either_case

__all__ = ["SpeculationMethod", "SpeculationPart"]


class SpeculationMethod(StrEnum):
    """What guesses. Methods that need no part of their own are chosen by the server alone."""

    DRAFT_MODEL = "DraftModel"


class SpeculationPart(KindModel):
    """A draft model: a smaller one with the same tokenizer, whose guesses the model verifies.

    It is built like a model of its own and lies in the container's folder `draft`. Without
    encodings it is float.
    """

    method: Annotated[SpeculationMethod, either_case(SpeculationMethod)]
    """DraftModel, a smaller model of the same tokenizer."""
    source: Uri
    """s3://bucket/prefix, https:// (an archive), pvc://claim/path; on the command line a folder."""
    secret_ref: SecretRef | None = None
    """Credentials of the source; left out: the store's."""
    digest: DigestText | None = None
    """Pins the content, as status.sources shows it."""
    onnx: FileName | None = None
    """File of the model, below the source; left out: the only one."""
    encodings: FileName | None = None
    """File of AIMET's encodings, below the source; left out: the only one, if any."""
