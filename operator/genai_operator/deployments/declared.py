"""Which adapters a deployment's pods are to serve, and how those stand that they report. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genai_core.kinds.deployment import DeploymentSpec
from genai_core.kinds.deployment_status import AdapterState, AdapterStatus, ServedContainer
from genai_operator.kube.values import Json

__all__ = [
    "Declaration",
    "PodReport",
    "ReportedAdapter",
    "adapter_statuses",
    "declaration",
    "interchangeable",
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
        follows: The container whose adapters these are; None: that which the pod is started with.
    """

    paths: Mapping[str, str]
    digests: Mapping[str, str]
    missing: Mapping[str, str]
    follows: ServedContainer | None = None

    @property
    def body(self) -> Json:
        """As the server's `/v1/adapters`, and its file at the start, have it."""
        listed = [{"lora_name": name, "lora_path": path} for name, path in self.paths.items()]
        if self.follows is None:
            return {"adapters": listed}
        container = {"record": self.follows.record, "revision": self.follows.revision}
        return {"adapters": listed, "container": container}


def interchangeable(one: ServedContainer, other: ServedContainer) -> bool:
    """Pods that were started with one of them can go over to the other as they run.

    Both carry adapters: where there are none, a server has made no room for any.
    """
    same = one.base is not None and one.base == other.base
    return same and bool(one.adapters) and bool(other.adapters)


def declaration(
    spec: DeploymentSpec, container: ServedContainer, started: str = ""
) -> Declaration | None:
    """What pods are to serve of a container; None: whatever it carries, and that is not known.

    Without `spec.adapters` all of the container's are served.

    Args:
        spec: Of the deployment.
        container: Whose adapters.
        started: Revision that the pods were started with; empty: this container's.
    """
    known = container.adapters
    follows = container if started not in {"", container.revision} else None
    if not spec.adapters:
        if not known:
            return None
        return Declaration({name: name for name in known}, dict(known), {}, follows)
    wanted = [adapter.name for adapter in spec.adapters if not adapter.disabled]
    there = ", ".join(known)
    missing = {
        name: f"container {container.revision[:19]} carries no adapter {name}; it has {there}"
        for name in wanted
        if known and name not in known
    }
    names = [name for name in wanted if name not in missing]
    digests = {name: known[name] for name in names if name in known}
    return Declaration({name: name for name in names}, digests, missing, follows)


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
        problem: Why it could not be asked, or could not do it now; empty: it was, and could.
        revision: Whose adapters and use cases it serves; empty: it does not say.
    """

    adapters: Mapping[str, ReportedAdapter]
    problem: str = ""
    revision: str = ""


def read_report(value: Any) -> PodReport:
    """A server's answer. A pod is a tenant's: whatever it is, it is no fault of ours.

    Raises:
        ValueError: It is none.
    """
    listed = value.get("adapters") if isinstance(value, dict) else None
    if not isinstance(listed, list) or len(listed) > _MOST_ADAPTERS:
        raise ValueError("it does not list its adapters")
    adapters = {}
    for entry in listed:
        if not isinstance(entry, dict):
            raise ValueError("it does not list its adapters")
        name, digest = str(entry.get("name"))[:63], str(entry.get("digest", ""))[:71]
        loaded = entry.get("state") == "Loaded"
        adapters[name] = ReportedAdapter(
            digest, loaded, str(entry.get("reason", ""))[:_MOST_REASON]
        )
    problem = str(value.get("problem", ""))[:_MOST_REASON]
    return PodReport(adapters, problem, str(value.get("revision", ""))[:71])


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
    statuses = []
    for name in wanted.paths:
        said = [report.adapters[name] for report in reports if name in report.adapters]
        digest = wanted.digests.get(name, "")
        holding = [report for report in said if report.loaded and digest in {"", report.digest}]
        reasons = [report.reason for report in said if report.reason]
        problems = [report.problem for report in reports if report.problem]
        state = AdapterState.LOADED if len(holding) >= pods else AdapterState.LOADING
        statuses.append(
            AdapterStatus(
                name=name,
                digest=digest or next((report.digest for report in holding if report.digest), None),
                state=AdapterState.FAILED if reasons else state,
                loaded=f"{len(holding)}/{pods}",
                reason=next(iter([*reasons, *problems]), "") if len(holding) < pods else "",
            )
        )
    for name, reason in wanted.missing.items():
        statuses.append(
            AdapterStatus(
                name=name, state=AdapterState.FAILED, loaded=f"0/{pods}", reason=reason[:500]
            )
        )
    return statuses
