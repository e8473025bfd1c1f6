"""A model of its own for the graphs of one AR, in the vendor's words: one of spec.children.

    decode = builder.attach_model_for_arn(1, "path/to/decode.onnx", name="decode")
    decode.set_compilation_options({"graphs.vtcm_size_in_mb": 4})

What is not set here is the builder's that it is attached to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from genai_builder import options as vendor
from genai_builder.model_files import ModelFiles
from genai_core.compile_options import merged
from genai_core.errors import InvalidSpec

__all__ = ["AttachedModel"]

_OWN_GRAPHS = "graphs."
_START_POINTS = ("transformation", "additionalStartPoints")
_GAPS = ("quantization", "gaps")


class AttachedModel:
    """Settings of a child; made by `GenAIBuilder.attach_model_for_arn`.

    A name that is no setting is an AttributeError, as it would do nothing.
    """

    __slots__ = ("_arn", "_fields", "_model", "_name")

    def __init__(self, arn: int, model: ModelFiles, *, name: str | None) -> None:
        self._arn = arn
        self._model = model
        self._name = name
        self._fields: dict[str, Any] = {}

    @property
    def arn(self) -> int:
        """The AR whose graphs are made from it."""
        return self._arn

    @property
    def name(self) -> str:
        """What plan and status call it."""
        return self._name or f"attached_ar{self._arn}"

    @property
    def encodings_path(self) -> str | None:
        """AIMET's encodings, below the model's folder; None: the only ones there."""
        found: str | None = self._fields.get("encodings")
        return found

    @encodings_path.setter
    def encodings_path(self, value: str | os.PathLike[str] | None) -> None:
        if value is None:
            self._fields.pop("encodings", None)
        else:
            self._fields["encodings"] = self._model.inside(Path(value), "encodings_path")

    def set_transformation_options(self, options: Mapping[str, Any] | None = None) -> None:
        """Set its own start points, e.g. `{"mha2sha.m2s_additional_start_points": [".*attn.*"]}`.

        Raises:
            InvalidSpec: An option that is unknown, or that is the whole build's.
        """
        fields = vendor.transformation(options)
        points = fields.pop(_START_POINTS, None)
        if fields:
            paths = ", ".join("spec." + ".".join(path) for path in fields)
            raise InvalidSpec(
                f"{paths} is of the whole build, not of the model attached for AR {self._arn}",
                where="set_transformation_options",
                remedy="set it at the builder; here only mha2sha.m2s_additional_start_points",
            )
        if points is not None:
            self._fields["transformation"] = {"additionalStartPoints": points}

    def set_conversion_options(self, options: Mapping[str, Any] | None = None) -> None:
        """Set options of its conversion, e.g. `{"float_fallback": True}`.

        Raises:
            InvalidSpec: An option that is unknown, or asks for another precision.
        """
        fields = vendor.conversion(options)
        if _GAPS in fields:
            self._fields["gaps"] = fields[_GAPS]

    def set_compilation_options(self, options: Mapping[str, Any] | None = None) -> None:
        """Set compile options of its graphs; those of an earlier call stay.

        Raises:
            InvalidSpec: An option that is unknown, or that is not one of `graphs.*`.
        """
        fields = vendor.compilation(options)
        own = fields.pop(("compilation", "options"), {})
        others = [".".join(path) for path in fields]
        others += [name for name in own if not name.startswith(_OWN_GRAPHS)]
        if others:
            raise InvalidSpec(
                f"{', '.join(others)} is of the whole binary, not of the model attached for "
                f"AR {self._arn}",
                where="set_compilation_options",
                remedy=f"set it at the builder; here only {_OWN_GRAPHS}*",
            )
        if own:
            before = self._fields.get("compilation", {}).get("options", {})
            self._fields["compilation"] = {"options": merged(before, own)}

    def to_child(self) -> dict[str, Any]:
        """What spec.children says of it."""
        child: dict[str, Any] = {"arn": self._arn, "source": str(self._model.source)}
        if self._name is not None:
            child["name"] = self._name
        if self._model.onnx is not None:
            child["onnx"] = self._model.onnx
        return child | deepcopy(self._fields)
