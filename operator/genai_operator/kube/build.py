"""A build as the watch cache holds it: what events ask about it, the rest as compressed text."""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from genai_operator.kube.apiserver.projection import lean
from genai_operator.kube.status.conditions import ready_of
from genai_operator.kube.values import asked_of

__all__ = ["BuildView", "build_view"]


@dataclass(frozen=True, slots=True)
class BuildView:
    """A build: what events ask about it, and the rest as text until it is worked on.

    Attributes:
        asked: See `asked_of`.
        targets: Names of the GenAITargets that it is built for.
        store: Of the ArtifactStore.
        phase: As its status says.
        reason: Of its condition Ready.
    """

    namespace: str
    name: str
    uid: str
    asked: tuple[object, ...]
    targets: tuple[str, ...]
    store: str
    phase: str
    reason: str
    text: bytes

    @property
    def value(self) -> dict[str, Any]:
        """The object, as much of it as is kept."""
        found: dict[str, Any] = json.loads(zlib.decompress(self.text))
        return found


def build_view(value: Mapping[str, Any]) -> BuildView:
    """Of a build as the apiserver sends it."""
    kept = lean("genaibuilds", value)
    meta, spec, status = kept["metadata"], kept.get("spec") or {}, kept.get("status") or {}
    return BuildView(
        namespace=sys.intern(meta["namespace"]),
        name=meta["name"],
        uid=meta["uid"],
        asked=asked_of(kept),
        targets=tuple(sys.intern(name) for name in spec.get("targets", ())),
        store=sys.intern((spec.get("store") or {}).get("name", "default")),
        phase=sys.intern(status.get("phase") or ""),
        reason=sys.intern(ready_of(status)[1]),
        text=zlib.compress(json.dumps(kept).encode(), 1),
    )
