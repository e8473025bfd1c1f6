"""The sources of a build as planning sees them: which files there are, not where they lie.

Every build has `model`. A source that is a model of its own (a child, a draft) is ingested like it,
under a task of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from genai_core.names import SourceName
from genai_core.sources.build_sources import is_built
from genai_planner.plan import FileRef

__all__ = ["ENCODINGS_ROLE", "MODEL_ROLE", "Source", "Sources", "is_model"]

MODEL_ROLE = "model.onnx"
ENCODINGS_ROLE = "model.encodings"
_TOKENS_ROLES = ("tokens.npy", "tokens.txt")
_CONFIG_ROLE = "config.json"


@dataclass(frozen=True)
class Source:
    """One source.

    Attributes:
        files: Role -> file.
        config: config.json as it stands; empty where there is none.
        weight_bits: Most common width of quantized weights; None without encodings.
    """

    files: Mapping[str, FileRef]
    config: Mapping[str, Any] = field(default_factory=dict)
    weight_bits: int | None = None

    @property
    def has_encodings(self) -> bool:
        """There is an encodings file."""
        return ENCODINGS_ROLE in self.files

    @property
    def has_tokens(self) -> bool:
        """There are tokens that fidelity scores."""
        return self.tokens is not None

    @property
    def tokens(self) -> str | None:
        """The role of what fidelity scores: token ids or text."""
        return next((role for role in _TOKENS_ROLES if role in self.files), None)

    @property
    def has_config(self) -> bool:
        """There is a config.json, which goes along."""
        return _CONFIG_ROLE in self.files

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())


def is_model(name: SourceName, source: Source) -> bool:
    """Whether a source is read by an ingest task of its own; a missing model fails there."""
    return is_built(name) or MODEL_ROLE in source.files


Sources: TypeAlias = Mapping[SourceName, Source]
"""By name; `model` is always there."""
