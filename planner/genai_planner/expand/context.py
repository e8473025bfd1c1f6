"""What the tasks of all targets follow from."""

from __future__ import annotations

from dataclasses import dataclass

from genai_core.kinds.build import BuildSpec
from genai_core.names import MODEL, Gaps, SourceName
from genai_core.operations import HeadConfig
from genai_planner.expand.grid import GraphGrid
from genai_planner.shape import ModelShape
from genai_planner.sources import Source

__all__ = ["PlanContext"]


@dataclass(frozen=True)
class PlanContext:
    """A spec with what is known about its model.

    Attributes:
        spec: As written, defaults filled in.
        shape: Of the model.
        model: The model's source.
        grid: The static graphs, and the longest context.
        source: The model's name among the sources.
        head: An EAGLE head that reads the model's hidden states; or, of a draft, what it is.
    """

    spec: BuildSpec
    shape: ModelShape
    model: Source
    grid: GraphGrid
    source: SourceName = MODEL
    head: HeadConfig | None = None

    @property
    def calibrates(self) -> bool:
        """Tensors without an encoding are measured on a calibration text."""
        return self.spec.quantization.gaps is Gaps.CALIBRATE

    @property
    def stays_float(self) -> bool:
        """Nothing says how to quantize the model, and it is to be built all the same."""
        return not self.model.has_encodings and self.spec.quantization.gaps is Gaps.FLOAT
