"""Objects of the apiserver as JSON values. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from genai_core.wire import REQUESTED_AT

__all__ = ["Json", "asked_of"]

Json: TypeAlias = dict[str, Any]


def asked_of(value: Mapping[str, Any]) -> tuple[object, ...]:
    """What a user can change about an object."""
    meta = value["metadata"]
    return (
        meta["uid"],
        meta.get("generation", 0),
        (meta.get("annotations") or {}).get(REQUESTED_AT, ""),
        "deletionTimestamp" in meta,
    )
