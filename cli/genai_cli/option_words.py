"""What an error says of a spec's fields, in the options of who wrote no file.

The planner and the stages speak of fields, as a YAML has them. Who typed `genai build MODEL_DIR
--precision Int8` has never seen one.
"""

from __future__ import annotations

import re

from genai_core.errors import GenAIError

__all__ = ["in_options"]

_OPTIONS = {
    "graphs.autoRegression": "--ar",
    "graphs.contextLengths": "--cl",
    "splits.count": "--splits",
    "quantization.gaps": "--gaps",
    "quantization.cpuPrecision": "--precision",
}
_WORDS = {
    "autoRegression": "--ar",
    "contextLengths": "--cl",
    "cpuPrecision": "--precision",
    "gaps": "--gaps",
}
_SPEC_ONLY = {
    "spec.targets": "--target",
    "spec.model.onnx": "--onnx",
    "spec.model.encodings": "--encodings",
    "spec.model.source": "MODEL_DIR",
}
"""Without `spec.` these are words, or files' names."""

_RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    *((re.compile(rf"\b{re.escape(field)}\b"), option) for field, option in _SPEC_ONLY.items()),
    *(
        (re.compile(rf"(?<![\w.])(?:spec\.)?{re.escape(field)}\b"), option)
        for field, option in _OPTIONS.items()
    ),
    *((re.compile(rf"(?<![\w.-]){word}:\s+(?=[A-Z])"), f"{option} ") for word, option in
      _WORDS.items()),
    *((re.compile(rf"(?<![\w.-]){word}\b"), option) for word, option in _WORDS.items()
      if word != "gaps"),
    (
        re.compile(
            r"(?<![\w./-])(?:spec\.)?((?:compilation|golden|graphs|quantization|splits|"
            r"transformation|run)\.[a-z][A-Za-z]*(?:\.[a-zA-Z]+)*)"
        ),
        r"--set \1",
    ),
    (re.compile(r"(?<![\w./-])spec\.(model\.[a-z][A-Za-z]*(?:\.[a-zA-Z]+)*)"), r"--set \1"),
)  # fmt: skip
_GRAPHS = "graphs"


def in_options(error: GenAIError) -> GenAIError:
    """The same error, its fields as options."""
    where = "--ar, --cl" if error.where == _GRAPHS else _said(error.where)
    found = type(error)(_said(error.message), where=where, remedy=_said(error.remedy))
    for note in getattr(error, "__notes__", ()):
        found.add_note(_said(note))
    return found


def _said(text: str) -> str:
    if text.startswith("--"):
        return text  # it names an option already, with the field behind it
    for pattern, option in _RULES:
        text = pattern.sub(option, text)
    return text
