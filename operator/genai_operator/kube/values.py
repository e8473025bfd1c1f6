"""Objects of the apiserver as JSON values."""

from __future__ import annotations

from typing import Any, TypeAlias

__all__ = ["Json"]

Json: TypeAlias = dict[str, Any]
