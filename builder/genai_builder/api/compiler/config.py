"""The compile stage's settings in the vendor's words."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from genai_core.chips import Chip
from genai_core.chips import parse as parse_chip

__all__ = ["BackendType", "CompileConfig"]


class BackendType(StrEnum):
    """What a binary is compiled for."""

    HTP = "HTP"


def _backend(value: Any) -> Any:
    """`HTP`, `BackendType.HTP` as a sidecar shows it, or the enum."""
    return str(getattr(value, "value", value)).rpartition(".")[2].upper()


class CompileConfig(BaseModel):
    """Settings of one compilation.

    Unknown settings are an error until `CompileConfig.model_config["extra"] = "allow"`: a sidecar's
    `config` holds every setting of the stage.
    """

    # Pydantic reads model_config once, when the class is made; the vendor's documents change it
    # later. So everything is taken in, and refused below.
    model_config = ConfigDict(extra="allow")

    backend: Annotated[BackendType, BeforeValidator(_backend)] = BackendType.HTP
    soc_details: str
    """`chipset:SM8750`, or `dsp_arch:v79;soc_model:69`."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        if type(self).model_config.get("extra") != "allow" and self.model_extra:
            raise ValueError(
                f"unknown settings: {', '.join(sorted(self.model_extra))}; to take a sidecar's, "
                'set CompileConfig.model_config["extra"] = "allow"'
            )
        self.chip()
        return self

    def chip(self) -> Chip:
        """The chip of `soc_details`.

        Raises:
            UnknownTarget: There is none.
        """
        return parse_chip(self.soc_details)


CompileConfig.model_config["extra"] = "forbid"
