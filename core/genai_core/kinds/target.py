"""GenAITarget (cluster-scoped): a backend and chip that containers are built for."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from genai_core.kinds.base import (
    Condition,
    KindModel,
    KindObject,
    Options,
    ShortText,
    Text,
    either_case,
)
from genai_core.names import Backend


class TargetSpec(KindModel):
    """A backend and chip, and the image whose stages build for them."""

    backend: Annotated[Backend, either_case(Backend)]
    """Htp: Snapdragon's tensor processor. Cpu: ONNX Runtime on a host."""
    chipset: ShortText | None = None
    """The vendor's name, e.g. SM8750; or give dspArch and socModel."""
    dsp_arch: (
        Annotated[
            str,
            StringConstraints(pattern=r"^v[0-9]{2}$"),
            Field(json_schema_extra={"maxLength": 3}),
        ]
        | None
    ) = None
    """Instruction set of the tensor processor, e.g. v79."""
    soc_model: Annotated[int, Field(ge=1, le=10000)] | None = None
    """The vendor's number of the chip, e.g. 69."""
    compilation: Options = Field(default_factory=dict)
    """Defaults of compile options; a build's own win."""
    image: (
        Annotated[str, StringConstraints(max_length=512, pattern=r"^[^\s@]+@sha256:[0-9a-f]{64}$")]
        | None
    ) = None
    """The image of the stages, by digest; without one nothing is built for this target."""
    serving_image: (
        Annotated[str, StringConstraints(max_length=512, pattern=r"^[^\s@]+@sha256:[0-9a-f]{64}$")]
        | None
    ) = None
    """The image of the server, by digest; without one nothing of this target is served here."""
    toolchain: Annotated[dict[ShortText, ShortText], Field(max_length=32)] = Field(
        default_factory=dict
    )
    """Distribution -> version, as `genai-stage toolchain` of that image prints it."""
    node_selector: Annotated[dict[ShortText, ShortText], Field(max_length=32)] = Field(
        default_factory=dict
    )
    """Labels of the nodes that this target's tasks and servers run on; those of a build, or a
    deployment, are added."""
    device_resource: ShortText | None = None
    """An extended resource that a node with this device offers."""
    capabilities: Annotated[list[Text], Field(max_length=32)] = Field(default_factory=list)
    """What this backend cannot do, in words."""

    @model_validator(mode="after")
    def _chip_of_htp(self) -> Self:
        named = self.chipset is not None
        numbered = self.dsp_arch is not None and self.soc_model is not None
        if self.backend is Backend.HTP and named == numbered:
            raise ValueError("an Htp target needs chipset, or dspArch with socModel, and not both")
        if self.backend is Backend.CPU and (named or self.dsp_arch or self.soc_model):
            raise ValueError("a Cpu target has no chipset, dspArch or socModel")
        return self


class GenAITarget(KindObject):
    """A target as it stands in a file or in the apiserver."""

    kind: Literal["GenAITarget"] = "GenAITarget"
    spec: TargetSpec


class TargetStatus(KindModel):
    """Whether anything can be built for the target."""

    observed_generation: int = 0
    """The metadata.generation that this status is of; -1: not seen yet."""
    conditions: Annotated[list[Condition], Field(max_length=8)] = Field(default_factory=list)
    """Ready, and Stalled where the user must act."""
