"""A container's metadata.json: what a program needs to drive its graphs."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from genai_core.facts import AdapterInputs, AdapterRanges, RopeTable
from genai_core.names import Backend

METADATA_VERSION = 4
"""The newest version of metadata.json that this program reads. 2 has `head`, 3 `adapter_inputs`,
4 `forecast`."""

ADAPTER_INPUTS_VERSION = 3
"""The version that has `adapter_inputs`."""

FORECAST_VERSION = 4
"""The version that has `forecast`."""

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class TensorInfo(BaseModel):
    """One input or output: `value = (integer + offset) * scale`."""

    model_config = _FROZEN

    shape: list[int | str]
    """A word stands for a dimension that is free."""
    dtype: str
    scale: float | None = None
    offset: int | None = None


class GraphInfo(BaseModel):
    """One graph of a file."""

    model_config = _FROZEN

    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]


class HeadInfo(BaseModel):
    """How an EAGLE head is driven; see `genai_core.facts.HeadFacts`."""

    model_config = _FROZEN

    version: Literal[1, 3]
    hidden_states: list[str]
    """The model's outputs that it reads, beside one another."""
    features: str
    features_size: int
    hidden: str
    feedback: str
    tokens: int
    """Of the model. `vocab_size` is that of the head's logits."""


class ForecastInfo(BaseModel):
    """With what the model forecasts its own next tokens (SSD)."""

    model_config = _FROZEN

    tokens: int = Field(ge=1)
    """Ids behind the vocabulary."""
    prefix: int = Field(ge=0)
    """Places of keys and values that they alone see; in `manifest.FORECAST_FILE`."""


class Metadata(BaseModel):
    """metadata.json: what a program needs to drive the graphs."""

    model_config = _FROZEN

    schema_version: int = Field(default=1, ge=1)
    type: Literal["LLMContainer"] = "LLMContainer"
    backend: Backend
    architecture: str
    context_length: int
    vocab_size: int
    rope: dict[str, RopeTable] = Field(default_factory=dict)
    model_files: dict[str, dict[str, GraphInfo]]
    """File -> graph -> inputs and outputs, files in split order."""
    head: HeadInfo | None = None
    """The container is that of an EAGLE head; from version 2 on."""
    adapter_inputs: AdapterInputs | None = None
    """With which the graphs take adapters (htp). Since version 3, as the next one."""
    adapter_ranges: AdapterRanges | None = None
    """What these inputs can hold; None where they are floating point."""
    forecast: ForecastInfo | None = None
    """Since version 4."""
