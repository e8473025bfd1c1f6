"""spec.transformation: how graphs are rewritten."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from genai_core.kinds.base import KindModel, Options

__all__ = ["Conversion", "Rewrites", "StartPointSpec", "Transformation"]


class StartPointSpec(KindModel):
    """A further place from which heads are split."""

    tensor: Annotated[str, StringConstraints(min_length=1, max_length=512)]
    """Regular expression, matched against whole names of tensors."""


class Rewrites(KindModel):
    """Rewrites of a graph."""

    mha2sha: Annotated[bool, Field(alias="mha2sha")] = True
    """Write every attention head as a graph of its own, as the vendor's tools want it."""
    additional_start_points: Annotated[list[StartPointSpec], Field(max_length=64)] = Field(
        default_factory=list
    )
    """Further places from which heads are split, beside those that are found."""


class Transformation(Rewrites):
    """Rewrites of the graph."""

    options: Options = Field(default_factory=dict)
    """The vendor's transformation options, which stand for fields of this spec, e.g.
    `split_model.num_splits: "3"`; values are text."""


class Conversion(KindModel):
    """What the vendor's conversion options say."""

    options: Options = Field(default_factory=dict)
    """They stand for fields of this spec, e.g. `float_fallback: "true"`; values are text."""
