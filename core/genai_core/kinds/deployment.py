"""GenAIDeployment: inference pods that serve a build's container."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from genai_core.kinds.base import (
    Condition,
    DigestText,
    KindModel,
    KindObject,
    Name,
    Resources,
    SecretRef,
    ShortText,
    Text,
    Uri,
    either_case,
)


class From(KindModel):
    """The container that is served."""

    build: Name
    """A GenAIBuild of the same namespace."""
    target: ShortText
    revision: DigestText | None = None
    """Pins a container; otherwise the target's last good one is followed."""


class Server(KindModel):
    """The inference server of each pod."""

    max_concurrency: Annotated[int, Field(ge=1, le=1024)] = 8
    context_length: Annotated[int, Field(ge=2, le=1048576)] | None = None
    """None: the container's longest."""
    prefix_cache_mi_b: Annotated[int, Field(ge=0, le=1048576, alias="prefixCacheMiB")] = 256
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    system_prompts: Annotated[list[Text], Field(max_length=32)] = Field(default_factory=list)
    emulate: bool = False
    """Serve an htp container with the x86 emulator."""


class SpeculationMethod(StrEnum):
    """How tokens are proposed."""

    DRAFT_MODEL = "DraftModel"
    NGRAM = "Ngram"
    LOOKAHEAD = "Lookahead"
    SSD = "Ssd"
    EAGLE = "Eagle"


class SpeculationRef(KindModel):
    """One of the container's speculation parts, switched on."""

    method: Annotated[SpeculationMethod, either_case(SpeculationMethod)]
    num_speculative_tokens: Annotated[int, Field(ge=1, le=64)] = 3
    adaptive: bool = True


class AdapterRef(KindModel):
    """A LoRA adapter: of the build, or added from a source without a restart."""

    name: ShortText
    source: Uri | None = None
    secret_ref: SecretRef | None = None


class RolloutStrategy(StrEnum):
    """How pods are replaced."""

    ROLLING_UPDATE = "RollingUpdate"
    RECREATE = "Recreate"


class GoldenTokens(StrEnum):
    """Whether a new revision must answer the recorded prompts before it serves."""

    REQUIRED = "Required"
    SKIP = "Skip"


class Rollout(KindModel):
    """How a new revision replaces the old one."""

    strategy: Annotated[RolloutStrategy, either_case(RolloutStrategy)] = (
        RolloutStrategy.ROLLING_UPDATE
    )
    max_surge: Annotated[int, Field(ge=0, le=100)] = 1
    max_unavailable: Annotated[int, Field(ge=0, le=100)] = 0
    progress_deadline_seconds: Annotated[int, Field(ge=1, le=86400)] = 600
    golden_tokens: Annotated[GoldenTokens, either_case(GoldenTokens)] = GoldenTokens.REQUIRED
    auto_rollback: bool = True

    @model_validator(mode="after")
    def _can_move(self) -> Self:
        if (
            self.strategy is RolloutStrategy.ROLLING_UPDATE
            and self.max_surge == 0
            and self.max_unavailable == 0
        ):
            raise ValueError("maxSurge and maxUnavailable cannot both be 0")
        return self


class Expose(KindModel):
    """The Service in front of the pods."""

    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    api_key_secret_ref: SecretRef | None = None


class DeploymentSpec(KindModel):
    """The spec of a GenAIDeployment."""

    from_: Annotated[From, Field(alias="from")]
    replicas: Annotated[int, Field(ge=0, le=1000)] | None = None
    """None: 1, or what an autoscaler sets."""
    server: Server = Field(default_factory=Server)
    speculation: SpeculationRef | None = None
    adapters: Annotated[list[AdapterRef], Field(max_length=64)] = Field(default_factory=list)
    rollout: Rollout = Field(default_factory=Rollout)
    expose: Expose = Field(default_factory=Expose)
    resources: Resources = Field(default_factory=Resources)


class GenAIDeployment(KindObject):
    """A deployment as it stands in a file or in the apiserver."""

    kind: Literal["GenAIDeployment"] = "GenAIDeployment"
    spec: DeploymentSpec


class RevisionStatus(KindModel):
    """Which container is served, which is on its way, which was good before."""

    current: DigestText | None = None
    target: DigestText | None = None
    last_good: DigestText | None = None


class RejectedRevision(KindModel):
    """A revision that failed its rollout; not tried again until spec or source change."""

    revision: DigestText
    reason: Annotated[str, StringConstraints(max_length=1024)]


class AdapterStatus(KindModel):
    """One adapter on the pods."""

    name: ShortText
    digest: DigestText
    loaded: ShortText
    """k/n pods."""


class SpeculationStatus(KindModel):
    """What speculation brought lately."""

    acceptance: float
    speedup: float


class DeploymentStatus(KindModel):
    """The status of a GenAIDeployment."""

    observed_generation: int = 0
    conditions: Annotated[list[Condition], Field(max_length=8)] = Field(default_factory=list)
    url: Uri | None = None
    revision: RevisionStatus = Field(default_factory=RevisionStatus)
    rejected: Annotated[list[RejectedRevision], Field(max_length=8)] = Field(default_factory=list)
    replicas: int = 0
    ready_replicas: int = 0
    selector: ShortText = ""
    adapters: Annotated[list[AdapterStatus], Field(max_length=64)] = Field(default_factory=list)
    speculation: SpeculationStatus | None = None
