"""One pass over a GenAIDeployment: what it starts from, and what it has found out. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from genai_core.canonical import digest_json
from genai_core.kinds.deployment import DeploymentSpec
from genai_core.kinds.deployment_status import ServedContainer
from genai_core.kinds.documents.reading import read_served
from genai_core.wire import REQUESTED_AT
from genai_operator.deployments.declared import PodReport
from genai_operator.jobs.access import StoreAccess
from genai_operator.jobs.job_manifest import Owner
from genai_operator.kube.values import Json

__all__ = ["DeploymentPass", "begin"]


@dataclass
class DeploymentPass:
    """One pass.

    Attributes:
        asked: Digest of the spec without replicas and adapters.
        fresh: That or requestedAt changed since the status was written: nothing is rejected any
            more, and the server's image is the current one.
        known: Containers that the status names.
        wanted: Revision that this pass applied, or would have.
        rendering: Of the pods that it applied.
        following: Revision that spec and build ask for.
        offer: Its container, as build or status name it.
        access: How its pods reach the store.
        reports: What the pods that answer said of theirs.
        serving: UID of a pod that answers -> revision whose adapters and use cases it serves.
        starts: Revisions that pods are started with now, and were that stand still.
        started: Revision that pods are started with, where it is not the wanted one: that has the
            same base, and pods go over to it as they run.
        counts: What the pods that answer have counted of speculation.
        namesakes: Deployments of the namespace that serve a model of the same name.
        notes: What is to be said beside a good state.
    """

    value: Json
    spec: DeploymentSpec
    namespace: str
    owner: Owner
    status: Mapping[str, Any]
    requested: str
    asked: str
    fresh: bool
    known: list[ServedContainer]
    rejected: list[dict[str, str]]
    server: str = ""
    outdated: bool = False
    wanted: str = ""
    rendering: str = ""
    following: str = ""
    offer: ServedContainer | None = None
    access: StoreAccess | None = None
    reports: list[PodReport] = field(default_factory=list)
    serving: dict[str, str] = field(default_factory=dict)
    starts: list[str] = field(default_factory=list)
    started: str = ""
    counts: list[Mapping[str, float]] = field(default_factory=list)
    namesakes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def good(self) -> str:
        """The revision whose rollout came to its end last."""
        return str((self.status.get("revision") or {}).get("lastGood") or "")

    @property
    def target(self) -> str:
        """The revision that the pass before applied."""
        return str((self.status.get("revision") or {}).get("target") or "")


def begin(value: Json) -> DeploymentPass:
    """What a pass works on.

    Raises:
        GenAIError: The spec cannot be read.
    """
    meta, status = value["metadata"], value.get("status") or {}
    spec = read_served(DeploymentSpec, value["spec"], where="spec")
    requested = (meta.get("annotations") or {}).get(REQUESTED_AT, "")[:256]
    # An autoscaler changes the spec, too, and asks for nothing new; adapters reach running pods.
    apart = {"replicas", "adapters"}
    said = {name: part for name, part in spec.canonical().items() if name not in apart}
    asked = digest_json(said)[:16]
    same = (status.get("asked"), status.get("requestedAt", "")) == (asked, requested)
    known = []
    for entry in status.get("containers") or ():
        try:
            known.append(ServedContainer.model_validate(entry))
        except ValueError:  # another version's
            continue
    return DeploymentPass(
        value=value,
        spec=spec,
        namespace=meta["namespace"],
        owner=Owner(meta["name"], meta["uid"], "GenAIDeployment"),
        status=status,
        requested=requested,
        asked=asked,
        fresh=not same,
        known=known,
        rejected=[dict(entry) for entry in status.get("rejected") or ()] if same else [],
    )
