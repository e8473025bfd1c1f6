"""Which adapters a deployment's pods are to serve, and how those stand that they report. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genai_core.kinds.deployment import (
    AdapterState,
    AdapterStatus,
    DeploymentSpec,
    ServedContainer,
)
from genai_operator.kube.values import Json

__all__ = [
    "Declaration",
    "PodReport",
    "ReportedAdapter",
    "adapter_statuses",
    "declaration",
    "read_report",
]

_MOST_ADAPTERS = 128
_MOST_REASON = 500


@dataclass(frozen=True)
class Declaration:
    """What pods of one container are to serve.

    Attributes:
        paths: Name -> what the server finds it by: an adapter of its container.
        digests: Name -> what it must be, where that is known.
        missing: Name -> why no pod is asked for it.
    """

    paths: Mapping[str, str]
    digests: Mapping[str, str]
    missing: Mapping[str, str]

    @property
    def body(self) -> Json:
        """As the server's `/v1/adapters`, and its file at the start, have it."""
        return {
            "adapters": [
                {"lora_name": name, "lora_path": path} for name, path in self.paths.items()
            ]
        }


def declaration(spec: DeploymentSpec, container: ServedContainer) -> Declaration | None:
    """What pods of a container are to serve; None: whatever it carries, and that is not known.

    Without `spec.adapters` all of the container's are served.
    """
    known = container.adapters
    if not spec.adapters:
        return Declaration({name: name for name in known}, dict(known), {}) if known else None
    wanted = [adapter.name for adapter in spec.adapters if not adapter.disabled]
    there = ", ".join(known)
    missing = {
        name: f"container {container.revision[:19]} carries no adapter {name}; it has {there}"
        for name in wanted
        if known and name not in known
    }
    names = [name for name in wanted if name not in missing]
    digests = {name: known[name] for name in names if name in known}
    return Declaration({name: name for name in names}, digests, missing)


@dataclass(frozen=True)
class ReportedAdapter:
    """What a pod says of an adapter."""

    digest: str
    loaded: bool
    reason: str = ""


@dataclass(frozen=True)
class PodReport:
    """What a pod says of its adapters.

    Attributes:
        adapters: By name.
        problem: Why it could not be asked; empty: it was.
    """

    adapters: Mapping[str, ReportedAdapter]
    problem: str = ""


def read_report(value: Any) -> PodReport:
    """A server's answer. A pod is a tenant's: whatever it is, it is no fault of ours.

    Raises:
        ValueError: It is none.
    """
    listed = value.get("adapters") if isinstance(value, dict) else None
    if not isinstance(listed, list) or len(listed) > _MOST_ADAPTERS:
        raise ValueError("it does not list its adapters")
    found = {}
    for entry in listed:
        if not isinstance(entry, dict):
            raise ValueError("it does not list its adapters")
        name, digest = str(entry.get("name"))[:63], str(entry.get("digest", ""))[:71]
        loaded = entry.get("state") == "Loaded"
        found[name] = ReportedAdapter(digest, loaded, str(entry.get("reason", ""))[:_MOST_REASON])
    return PodReport(found)


def adapter_statuses(
    wanted: Declaration | None, reports: Sequence[PodReport], pods: int
) -> list[AdapterStatus]:
    """How each declared adapter stands.

    Args:
        wanted: What is declared to pods of the container that is served.
        reports: Of the pods that answer.
        pods: That there are to be.
    """
    if wanted is None:
        return []
    found = []
    for name in wanted.paths:
        said = [report.adapters[name] for report in reports if name in report.adapters]
        digest = wanted.digests.get(name, "")
        holding = [one for one in said if one.loaded and digest in {"", one.digest}]
        reasons = [one.reason for one in said if one.reason]
        problems = [report.problem for report in reports if report.problem]
        state = AdapterState.LOADED if len(holding) >= pods else AdapterState.LOADING
        found.append(
            AdapterStatus(
                name=name,
                digest=digest or next((one.digest for one in holding if one.digest), None),
                state=AdapterState.FAILED if reasons else state,
                loaded=f"{len(holding)}/{pods}",
                reason=next(iter([*reasons, *problems]), "") if len(holding) < pods else "",
            )
        )
    for name, reason in wanted.missing.items():
        found.append(
            AdapterStatus(
                name=name, state=AdapterState.FAILED, loaded=f"0/{pods}", reason=reason[:500]
            )
        )
    return found
