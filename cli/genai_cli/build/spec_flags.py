"""Options that stand for fields of a spec."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SpecFlags:
    """The options that stand for fields of a spec; None and empty: not given."""

    file: str | None
    model: Path | None
    name: str | None = None
    target: list[str] | None = None
    ar: list[str] | None = None
    cl: list[str] | None = None
    splits: str | None = None
    gaps: str | None = None
    precision: str | None = None
    onnx: str | None = None
    encodings: str | None = None
    fields: list[str] | None = None

    def changes(self) -> dict[str, Any]:
        """Dotted path below spec -> text as given, for the options that were given."""
        listed = {
            "targets": self.target,
            "graphs.autoRegression": self.ar,
            "graphs.contextLengths": self.cl,
        }
        single = {
            "splits.count": self.splits,
            "quantization.gaps": self.gaps,
            "quantization.cpuPrecision": self.precision,
            "model.onnx": self.onnx,
            "model.encodings": self.encodings,
        }
        return {
            **{path: value for path, value in listed.items() if value},
            **{path: value for path, value in single.items() if value is not None},
        }
