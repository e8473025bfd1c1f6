"""What is known about a build -> its status: small, bounded, in kstatus' convention. Pure.

Ready is decided here and nowhere else. Reconciling, Stalled and ToolchainOutdated stand there only
while they are true; phase is for people.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from genai_core.errors import GenAIError
from genai_core.names import SourceName, TaskId
from genai_core.reasons import Reason
from genai_core.redaction import hidden_queries
from genai_core.store.address import StoreAddress
from genai_core.tasks.record import Record
from genai_core.wire import GROUP
from genai_operator.kube.status.conditions import (
    MOST_MESSAGE,
    condition,
    conditions,
    meaningful,
    summary,
)
from genai_operator.kube.status.status_phase import Phase
from genai_operator.kube.times import rfc3339
from genai_operator.steps import Done, Result, Stall, Wait
from genai_planner.execution.progress import BuildProgress

__all__ = ["Outcome", "ResolvedEntry", "build_status"]

_MOST_FAILURES = 5
_MOST_NOTES = 32
_MOST_WARNINGS = 16
_MOST_TEXT = 64
_FIDELITY: dict[str, type | tuple[type, ...]] = {
    "natsPerToken": (int, float),
    "baselineNats": (int, float),
    "floatNats": (int, float),
    "budget": (int, float),
    "within": bool,
    "tokens": int,
    "text": str,
    "verified": str,
    "yardstick": str,
}
"""Members of a fidelity task's facts that go into the status, and their types."""
_LOOKED_AT = ("plan", "warnings")


@dataclass(frozen=True)
class ResolvedEntry:
    """What one of a build's sources resolved to.

    Attributes:
        uri: The address that was read.
        digest: `sha256:...` of its content.
        record: Key of the record that lists its files.
    """

    uri: str
    digest: str
    record: str


@dataclass(frozen=True)
class Outcome:
    """What one pass over a build came to.

    Attributes:
        containers: Target -> package record, of this generation.
        fidelity: Target -> what this build's fidelity task found.
        store: Where artifacts lie.
        ran: Operation -> tasks whose result did not stand when the build asked for it.
        sources: By name: what each resolved to.
        since: When this generation, or request, was taken up; None: as it is known.
        outdated: Why the toolchain is not the current one any more; empty if it is.
    """

    state: Phase
    reason: str
    message: str = ""
    progress: BuildProgress | None = None
    ran: Mapping[str, int] = field(default_factory=dict)
    failed: Sequence[tuple[TaskId, GenAIError, str]] = ()
    containers: Mapping[str, Record] = field(default_factory=dict)
    fidelity: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    targets: Sequence[str] = ()
    store: StoreAddress | None = None
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    sources: Mapping[SourceName, ResolvedEntry] = field(default_factory=dict)
    toolchain: str = ""
    requested_at: str = ""
    since: datetime | None = None
    outdated: str = ""


def build_status(
    outcome: Outcome, previous: Mapping[str, Any], *, generation: int, now: datetime
) -> dict[str, Any]:
    """The whole status; what is not in it is removed."""
    artifacts = _artifacts(outcome, previous)
    status: dict[str, Any] = {
        "observedGeneration": generation,
        "phase": outcome.state.value,
        "requestedAt": outcome.requested_at,
        "conditions": conditions(
            _conditions(outcome, generation, artifacts), previous.get("conditions") or (), now
        ),
        "artifacts": artifacts,
    }
    # What was found out counts for one generation, and until the user asks for it anew.
    same = (previous.get("observedGeneration"), previous.get("requestedAt", "")) == (
        generation,
        outcome.requested_at,
    )
    status |= _counts(outcome, previous if same else {})
    if outcome.sources:
        status["sources"] = [
            {
                "name": name,
                "uri": hidden_queries(entry.uri),
                "digest": entry.digest,
                "record": f"sha256:{entry.record}",
            }
            for name, entry in outcome.sources.items()
        ]
    elif same and "sources" in previous:
        status["sources"] = previous["sources"]
    if outcome.since is not None:
        status["startedAt"] = rfc3339(outcome.since)
    elif same and "startedAt" in previous:
        status["startedAt"] = previous["startedAt"]
    toolchain = outcome.toolchain or (previous.get("toolchain", "") if same else "")
    if toolchain:
        status["toolchain"] = toolchain
    if outcome.notes:
        status["plan"] = [note[:256] for note in outcome.notes[:_MOST_NOTES]]
    if outcome.warnings:
        status["warnings"] = _bounded(outcome.warnings)
    if outcome.progress is None and same:  # nothing was looked at: what is known stays
        status |= {name: previous[name] for name in _LOOKED_AT if name in previous} | status
    if outcome.failed:
        status["failures"] = [
            _failure(outcome, *entry) for entry in outcome.failed[:_MOST_FAILURES]
        ]
    elif outcome.outdated and "failures" in previous:
        status["failures"] = previous["failures"]
    return meaningful(status)


def _bounded(warnings: Sequence[str]) -> list[str]:
    texts = [" ".join(text.split())[:MOST_MESSAGE] for text in warnings]
    if len(texts) > _MOST_WARNINGS:
        left = len(texts) - _MOST_WARNINGS + 1
        texts[_MOST_WARNINGS - 1 :] = [f"and {left} more"]
    return texts


def _conditions(
    outcome: Outcome, generation: int, artifacts: Sequence[object]
) -> list[dict[str, Any]]:
    entries = summary(_result(outcome), generation=generation)
    if outcome.state is Phase.SUSPENDED:  # neither at work nor stuck
        entries = entries[:1]
    if artifacts:
        entries.append(
            condition(
                "ArtifactAvailable",
                "True",
                Reason.BUILT,
                message="status.artifacts holds the last good ones",
                generation=generation,
            )
        )
    if outcome.outdated:
        entries.append(
            condition(
                "ToolchainOutdated",
                "True",
                Reason.NEWER_TOOLCHAIN,
                message=f"{outcome.outdated}; set the annotation {GROUP}/requestedAt to rebuild",
                generation=generation,
            )
        )
    return entries


def _result(outcome: Outcome) -> Result:
    if outcome.state is Phase.READY:
        return Done(outcome.reason, outcome.message)
    if outcome.state is Phase.STALLED:
        return Stall(outcome.reason, outcome.message)
    return Wait(outcome.reason, outcome.message, works=outcome.state is Phase.BUILDING)


def _counts(outcome: Outcome, previous: Mapping[str, Any]) -> dict[str, Any]:
    progress = outcome.progress
    if progress is None:
        return {
            name: previous[name] for name in ("progress", "cached", "stages") if name in previous
        }
    ran = {stage.operation: outcome.ran.get(stage.operation, 0) for stage in progress.stages}
    return {
        "progress": str(progress),
        "cached": max(progress.cached - sum(ran.values()), 0),
        "stages": [
            {
                "operation": stage.operation,
                "waiting": stage.waiting,
                "running": stage.running,
                "cached": max(stage.cached - ran[stage.operation], 0),
                "done": stage.done + ran[stage.operation],
                "failed": stage.failed,
            }
            for stage in progress.stages
        ],
    }


def _failure(outcome: Outcome, task: TaskId, error: GenAIError, log: str) -> dict[str, Any]:
    entry = {"task": task, "reason": error.code, "message": str(error)[:MOST_MESSAGE]}
    if log and outcome.store is not None:
        entry["log"] = _address(outcome.store, f"blobs/{log[:2]}/{log}")
    return entry


def _artifacts(outcome: Outcome, previous: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The last good one of each target that the spec names."""
    known = {entry["target"]: entry for entry in previous.get("artifacts") or ()}
    names = outcome.targets or tuple(known)
    for target, record in outcome.containers.items():
        assert outcome.store is not None
        known[target] = {
            "target": target,
            "revision": str(record.facts.get("revision", "")),
            "url": _address(outcome.store, f"records/package/{record.key}.json"),
            "sizeBytes": record.facts.get("sizeBytes", 0),
            "builtAt": rfc3339(record.created_at),
            "verified": str(record.facts.get("verified", "Metadata")),
        }
        if measured := _fidelity(outcome.fidelity.get(target, {})):
            known[target]["fidelity"] = measured
    return [known[name] for name in names if name in known]


def _fidelity(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The members that the status has a field for; one of another type is left out."""
    measured: dict[str, Any] = {}
    for name, kinds in _FIDELITY.items():
        value = facts.get(name)
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            continue
        if not isinstance(value, float) or math.isfinite(value):
            measured[name] = value[:_MOST_TEXT] if isinstance(value, str) else value
    return measured


def _address(store: StoreAddress, name: str) -> str:
    return str(replace(store, prefix=f"{store.prefix}/{name}".strip("/"), ca=None))
