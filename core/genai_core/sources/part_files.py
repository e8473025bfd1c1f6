"""Folders of a build's parts that are no models of their own, each by what it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from genai_core.names import FORECAST, VISION, SourceName
from genai_core.sources.adapter_files import inspect_adapter
from genai_core.sources.forecast_files import inspect_forecast
from genai_core.sources.source_files import Digests, SourceFacts
from genai_core.sources.vision_files import inspect_vision

__all__ = ["PartKind", "inspect_part", "part_kind"]

PartKind = Literal["adapter", "forecast", "vision"]


_INSPECTORS: Mapping[PartKind, Callable[..., SourceFacts]] = {
    "adapter": inspect_adapter,
    "forecast": inspect_forecast,
    "vision": inspect_vision,
}


def part_kind(source: SourceName) -> PartKind:
    """What a source that is no model of its own holds."""
    if source == FORECAST:
        return "forecast"
    return "vision" if source == VISION else "adapter"


def inspect_part(
    kind: PartKind,
    folder: Path,
    cache: Digests,
    *,
    where: str,
    pin: str | None = None,
    **files: str,
) -> SourceFacts:
    """Find a part's files and their digests.

    Args:
        kind: What the folder holds.
        folder: As the user has it.
        cache: Spares hashing a file again that has not changed.
        where: Field that names the folder, for messages.
        pin: `sha256:...` that its content must have; None = any.
        files: What the spec names in it.

    Raises:
        BadInput: See `inspect_adapter`, `inspect_forecast` and `inspect_vision`.
    """
    return _INSPECTORS[kind](folder, cache, where=where, pin=pin, **files)
