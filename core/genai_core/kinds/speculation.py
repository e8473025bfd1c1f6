"""spec.speculation: what a container carries for guessing tokens ahead."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, model_validator

from genai_core.files.paths import FileName
from genai_core.kinds.base import DigestText, KindModel, SecretRef, Uri, either_case

__all__ = ["SpeculationPart", "SpeculationPartMethod"]


class SpeculationPartMethod(StrEnum):
    """What guesses. Methods that need no part of their own are chosen by the server alone."""

    DRAFT_MODEL = "DraftModel"
    EAGLE = "Eagle"
    SSD = "Ssd"


class SpeculationPart(KindModel):
    """What guesses tokens that the model verifies: a smaller model, an EAGLE head, or itself.

    A smaller model or head is built like a model of its own and lies in the container's folder
    `draft`. Without encodings it is float. An EAGLE head reads the model's hidden states, which the
    container's model then gives out. With SSD the model itself forecasts, by tokens behind its
    vocabulary that it was trained to read: its embedding table has their rows.
    """

    method: Annotated[SpeculationPartMethod, either_case(SpeculationPartMethod)]
    """DraftModel, a smaller model of the same tokenizer; Eagle, a head made for this model; Ssd,
    the tensors that this model was trained to forecast with."""
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
    tensor_file: FileName | None = None
    """Of SSD: a .safetensors file with forecast_embedding [tokens, hidden size] and forecast_prefix
    [layers, 2, 1, KV heads, places, head size], below the source; left out: the only one."""
    forecast_token_count: Annotated[int, Field(ge=1, le=64)] | None = None
    """Of SSD: the tokens of forecast_embedding; left out: as many as it has."""
    forecast_prefix: Annotated[int, Field(ge=0, le=1024)] | None = None
    """Of SSD: the places of forecast_prefix; left out: as many as it has, 0: it has none."""

    @model_validator(mode="after")
    def _of_eagle(self) -> SpeculationPart:
        if self.method is not SpeculationPartMethod.EAGLE:
            for name, value in (
                ("version", self.version), ("draftTokenMap", self.draft_token_map),
            ):  # fmt: skip
                if value is not None:
                    raise ValueError(f"{name} is of an EAGLE head, and the method is {self.method}")
        return self

    @model_validator(mode="after")
    def _of_ssd(self) -> SpeculationPart:
        forecasts = self.method is SpeculationPartMethod.SSD
        for name, value, with_ssd in (
            ("tensorFile", self.tensor_file, True),
            ("forecastTokenCount", self.forecast_token_count, True),
            ("forecastPrefix", self.forecast_prefix, True),
            ("onnx", self.onnx, False),
            ("encodings", self.encodings, False),
        ):
            if value is not None and with_ssd is not forecasts:
                told = "is of SSD" if with_ssd else "is of a model of its own"
                raise ValueError(f"{name} {told}, and the method is {self.method}")
        return self
