"""Conditions in kstatus' convention, and what of two statuses is the same. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from genai_core.redaction import hidden_queries, plain
from genai_operator.kube.times import rfc3339
from genai_operator.steps import Done, Result, Stall, Wait

__all__ = ["condition", "condition_of", "conditions", "ready_of", "same_status", "summary"]

MOST_MESSAGE = 1000
"""Characters of a message."""


def condition(
    kind: str, status: str, reason: str, *, message: str = "", generation: int = 0
) -> dict[str, Any]:
    """A condition without its time, which `conditions` fills in."""
    return {
        "type": kind,
        "status": status,
        "reason": str(reason),
        "message": plain(" ".join(hidden_queries(message).split()))[:MOST_MESSAGE],
        "observedGeneration": generation,
    }


def summary(result: Result, *, generation: int, waits: str = "Unknown") -> list[dict[str, Any]]:
    """Ready; and Reconciling or Stalled, which stand there only while they are true.

    Args:
        result: What a pass came to.
        generation: Of the object.
        waits: Ready of an object that waits and is not worked on: False where it is known that it
            cannot be used until then.
    """
    ready = {Done: "True", Stall: "False"}.get(type(result), "Unknown")
    if isinstance(result, Wait) and not result.works:
        ready = waits
    why = {Wait: "Reconciling", Stall: "Stalled"}.get(type(result))
    return [
        condition(kind, status, result.reason, message=result.message, generation=generation)
        for kind, status in (("Ready", ready), (why, "True"))
        if kind is not None
    ]


def conditions(
    wanted: Sequence[dict[str, Any]], previous: Sequence[Mapping[str, Any]], now: datetime
) -> list[dict[str, Any]]:
    """Fill in times: a condition keeps the time at which its status changed last."""
    known = {entry["type"]: entry for entry in previous}
    entries = []
    for entry in wanted:
        before = known.get(entry["type"])
        same = before is not None and before["status"] == entry["status"]
        time = before["lastTransitionTime"] if before is not None and same else rfc3339(now)
        entries.append({**entry, "lastTransitionTime": time})
    return entries


def condition_of(status: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    """A condition by its type."""
    for entry in status.get("conditions") or ():
        if entry["type"] == kind:
            found: Mapping[str, Any] = entry
            return found
    return None


def ready_of(status: Mapping[str, Any]) -> tuple[str, str]:
    """Status and reason of Ready."""
    ready = condition_of(status, "Ready")
    return (ready["status"], ready["reason"]) if ready else ("", "")


def meaningful(status: Mapping[str, Any]) -> dict[str, Any]:
    """What a status says beyond the defaults that the apiserver fills in."""
    return {name: value for name, value in status.items() if value not in ("", [], 0, None)}


def same_status(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two statuses say the same."""
    return meaningful(one) == meaningful(other)
