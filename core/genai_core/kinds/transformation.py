"""spec.transformation: how graphs are rewritten."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from genai_core.kinds.base import KindModel

__all__ = ["StartPointSpec", "Transformation"]


class StartPointSpec(KindModel):
    """A further place from which heads are split."""

    tensor: Annotated[str, StringConstraints(min_length=1, max_length=512)]
    """Regular expression, matched against whole names of tensors."""


class Transformation(KindModel):
    """Rewrites of the graph."""

    mha2sha: Annotated[bool, Field(alias="mha2sha")] = True
    """Write every attention head as a graph of its own, as the vendor's tools want it."""
    additional_start_points: Annotated[list[StartPointSpec], Field(max_length=64)] = Field(
        default_factory=list
    )
    """Further places from which heads are split, beside those that are found."""
