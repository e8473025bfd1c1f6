"""spec.speculation: what a container carries for guessing tokens ahead."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import model_validator

from genai_core.files.paths import FileName
from genai_core.kinds.base import DigestText, KindModel, SecretRef, Uri, either_case

__all__ = ["SpeculationPart", "SpeculationPartMethod"]


class SpeculationPartMethod(StrEnum):
    """What guesses. Methods that need no part of their own are chosen by the server alone."""

    DRAFT_MODEL = "DraftModel"
    EAGLE = "Eagle"


class SpeculationPart(KindModel):
    """What guesses tokens that the model verifies: a smaller model, or an EAGLE head.

    It is built like a model of its own and lies in the container's folder `draft`. Without
    encodings it is float. An EAGLE head reads the model's hidden states, which the container's
    model then gives out.
    """

    method: Annotated[SpeculationPartMethod, either_case(SpeculationPartMethod)]
    """DraftModel, a smaller model of the same tokenizer; Eagle, a head made for this model."""
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
    version: Literal[1, 3] | None = None
    """Of EAGLE; left out: as the head's config.json says."""
    draft_token_map: FileName | None = None
    """Of an EAGLE head with a smaller vocabulary: a .json array of the model's token ids, or a
    .safetensors file with d2t, below the source."""

    @model_validator(mode="after")
    def _of_eagle(self) -> SpeculationPart:
        if self.method is not SpeculationPartMethod.EAGLE:
            for name, value in (
                ("version", self.version), ("draftTokenMap", self.draft_token_map),
            ):  # fmt: skip
                if value is not None:
                    raise ValueError(f"{name} is of an EAGLE head, and the method is {self.method}")
        return self
