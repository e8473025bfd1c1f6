"""What the command line asks a worker that adds an adapter to a container, and its answer."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from genai_core.kinds.lora import AdapterName

__all__ = ["AdditionAnswer", "AdditionRequest"]

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class AdditionRequest(BaseModel):
    """The question."""

    model_config = _FROZEN

    container: str
    """Folder of a copy of the container, which is changed in place."""
    adapter: str
    """Folder of the adapter as its user has it."""
    name: AdapterName
    """What it is called in the container."""
    core: str | None = None
    """Folder with the `model.onnx` and `facts.json` of the core graph that the container was made
    of; None: its linears are looked for by the names in the container's own model."""


class AdditionAnswer(BaseModel):
    """The answer."""

    model_config = _FROZEN

    error: dict[str, str] | None = None
    """As `GenAIError.as_dict`; None: the folder is a container with the adapter."""
    nameless: bool = False
    """Names alone do not tell where the adapter belongs: the core graph might."""
    facts: dict[str, Any] = Field(default_factory=dict)
    """revision, base, rank, linears, the base model that the adapter's file names, warnings."""
