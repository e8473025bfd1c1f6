"""spec.children: a model of its own for one AR (the vendor's attach_model_for_arn)."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from genai_core.files.paths import FileName
from genai_core.kinds.base import DigestText, KindModel, Options, SecretRef, Uri, either_case
from genai_core.kinds.transformation import Rewrites
from genai_core.names import Gaps, SourceName, child_source

__all__ = ["Child", "ChildCompilation"]

ChildName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9._]*[a-z0-9])?$"),
]
"""Plans and status call it by this name, so it is one word."""


class ChildCompilation(KindModel):
    """What may differ in compiling a child's graphs: the rest is of the whole binary."""

    options: Options = Field(default_factory=dict)
    """Compile options `graphs.*` alone; those that are left out are the build's."""


class Child(KindModel):
    """A model of its own for the graphs of one AR (htp).

    Its graphs lie in the same binaries as the model's and go on with the same cache, so it must
    have the model's vocabulary, layers, hidden size, caches and rotary tables. What it leaves out
    is the model's.
    """

    arn: Annotated[int, Field(ge=1, le=65536)]
    """The AR whose graphs are made from it; one of graphs.autoRegression."""
    source: Uri
    """s3://bucket/prefix, https:// (an archive), pvc://claim/path; on the command line a folder."""
    name: ChildName | None = None
    """Plan and status call it by it; left out: attached_ar<arn>."""
    secret_ref: SecretRef | None = None
    """Credentials of the source; left out: the store's."""
    digest: DigestText | None = None
    """Pins the content, as status.sources shows it."""
    onnx: FileName | None = None
    """File of the model, below the source; left out: the only one."""
    encodings: FileName | None = None
    """File of AIMET's encodings, below the source; left out: the only one, if any."""
    gaps: Annotated[Gaps, either_case(Gaps)] | None = None
    """Tensors without an encoding; left out: as quantization.gaps says."""
    calibration: FileName | None = None
    """With gaps: Calibrate, a .npy of tokens or a text file of its own source; left out: the
    model's."""
    transformation: Rewrites | None = None
    """Rewrites of its graphs; left out: the build's."""
    compilation: ChildCompilation = Field(default_factory=ChildCompilation)

    @property
    def label(self) -> str:
        """Its name, given or not."""
        return self.name or f"attached_ar{self.arn}"

    @property
    def source_name(self) -> SourceName:
        """Of its source among the build's."""
        return child_source(self.label)

    @model_validator(mode="after")
    def _calibration_is_used(self) -> Self:
        if self.calibration and self.gaps not in {None, Gaps.CALIBRATE}:
            raise ValueError("calibration is read only with gaps: Calibrate")
        return self
