"""What the operator writes into a GenAIDeployment's status."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from genai_core.kinds.base import (
    Condition,
    DigestText,
    KindModel,
    ShortText,
    Uri,
)


class RevisionStatus(KindModel):
    """Which container is served, which is on its way, which was good before."""

    current: DigestText | None = None
    """What serves now."""
    target: DigestText | None = None
    """What a rollout leads to."""
    last_good: DigestText | None = None
    """What a rollback goes back to: the last one whose rollout came to its end."""


class RejectedRevision(KindModel):
    """A revision that failed its rollout; not tried again until spec or source change."""

    revision: DigestText
    """Of the container."""
    reason: Annotated[str, StringConstraints(max_length=1024)]
    """Why it was rejected."""


class AdapterState(StrEnum):
    """How an adapter stands on the pods."""

    LOADING = "Loading"
    LOADED = "Loaded"
    FAILED = "Failed"


class AdapterStatus(KindModel):
    """One adapter on the pods, as they report it."""

    name: ShortText
    """What requests call it."""
    digest: DigestText | None = None
    """Of its content."""
    state: AdapterState = AdapterState.LOADING
    loaded: ShortText
    """Pods that hold it, of all: k/n."""
    reason: Annotated[str, StringConstraints(max_length=512)] = ""
    """Why it failed."""


class SpeculationStatus(KindModel):
    """What speculation brings, over all that the pods have answered; numbers as text."""

    acceptance: ShortText
    """Part of the proposed tokens that were right: "0.83"."""
    tokens_per_pass: ShortText
    """Tokens that a draft and the pass which verifies it yield, on the mean."""
    speedup: ShortText = ""
    """Time of plain passes for the same tokens, by those that were run to compare with, over the
    time that was taken; below 1 it does not pay."""


class ServedContainer(KindModel):
    """A container that is served, or was: what a rollback, or a deleted build, leaves to start."""

    revision: DigestText
    """Of the container."""
    record: ShortText
    """Of its package task, in the store: `package/<key>`."""
    size_bytes: int = 0
    """Of all its files."""
    golden: bool = False
    """It has golden prompts, which a pod answers before it serves."""
    base: DigestText | None = None
    """Of the container without adapters: running pods go over to another with the same one."""
    adapters: Annotated[dict[ShortText, DigestText], Field(max_length=64)] = Field(
        default_factory=dict
    )
    """Name -> digest of the adapters that it carries."""


class DeploymentStatus(KindModel):
    """What serves, and how a rollout stands."""

    observed_generation: int = 0
    """The metadata.generation that this status is of; -1: not seen yet."""
    conditions: Annotated[list[Condition], Field(max_length=8)] = Field(default_factory=list)
    """Ready; Reconciling or Stalled; Available."""
    url: Uri | None = None
    """Of the API, inside the cluster."""
    revision: RevisionStatus = Field(default_factory=RevisionStatus)
    rejected: Annotated[list[RejectedRevision], Field(max_length=8)] = Field(default_factory=list)
    """Revisions that are not tried again until spec or source change."""
    replicas: int = 0
    """Pods that there are."""
    ready_replicas: int = 0
    """Pods that serve."""
    selector: ShortText = ""
    """Labels of the pods, for autoscalers."""
    server: Annotated[str, StringConstraints(max_length=512)] = ""
    """Image of the server. It changes with the spec or requestedAt, never by an upgrade alone."""
    requested_at: ShortText = ""
    """The annotation requestedAt that this status is of."""
    asked: ShortText = ""
    """Digest of the spec without replicas and adapters: server and rejected hold for it."""
    containers: Annotated[list[ServedContainer], Field(max_length=4)] = Field(default_factory=list)
    """Where what status.revision names lies."""
    adapters: Annotated[list[AdapterStatus], Field(max_length=64)] = Field(default_factory=list)
    """What the pods hold."""
    speculation: SpeculationStatus | None = None
