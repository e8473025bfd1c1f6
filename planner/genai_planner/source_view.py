"""The source as planning sees it: which files there are, not where they lie."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

__all__ = ["SourceView"]


@dataclass(frozen=True)
class SourceView:
    """What planning needs to know about the source.

    Attributes:
        roles: Which files there are, by role.
        size: Bytes of all of them.
        weight_bits: Most common width of quantized weights; None without encodings.
    """

    roles: AbstractSet[str]
    size: int = 0
    weight_bits: int | None = None

    @property
    def has_encodings(self) -> bool:
        """There is an encodings file."""
        return "model.encodings" in self.roles
