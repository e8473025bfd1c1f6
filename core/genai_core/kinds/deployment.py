"""GenAIDeployment: inference pods that serve a build's container."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from genai_core.kinds.affinity import Affinity
from genai_core.kinds.base import (
    LIST_KEYS,
    DigestText,
    KindModel,
    KindObject,
    Name,
    Resources,
    SecretRef,
    ShortText,
    Text,
    Toleration,
    Uri,
    either_case,
)
from genai_core.kinds.build import StoreRef
from genai_core.kinds.lora import AdapterName


class From(KindModel):
    """The container that is served."""

    build: Name
    """A GenAIBuild of the same namespace."""
    target: ShortText
    """Which of the build's targets."""
    revision: DigestText | None = None
    """Pins a container; otherwise the target's last good one is followed."""


class Server(KindModel):
    """The inference server of each pod."""

    model_name: ShortText = ""
    """What requests call the base; empty: the deployment's name."""
    exact: bool = True
    """A row's numbers never depend on its neighbours, to the bit. Without, passes take less time,
    and there is no speculation."""
    max_concurrency: Annotated[int, Field(ge=1, le=1024)] = 8
    """Requests that a pod works on at once; further ones wait."""
    context_length: Annotated[int, Field(ge=2, le=1048576)] | None = None
    """Longest prompt and answer together, in tokens; left out: the container's longest."""
    kv_cache_mi_b: Annotated[
        Annotated[int, Field(ge=1, le=1048576)] | None, Field(alias="kvCacheMiB")
    ] = None
    """Keys and values of all running requests, in MiB; left out: what the pod's memory leaves."""
    prefix_cache_mi_b: Annotated[int, Field(ge=0, le=1048576, alias="prefixCacheMiB")] = 256
    """Memory in which beginnings of prompts are kept; 0: none are."""
    max_adapter_rank: Annotated[int, Field(ge=0, le=4096)] | None = None
    """Ranks that a pass holds, of all its adapters together, in steps of 16; 0: no adapters. Left
    out: those of the adapters, at most 64, or what the largest needs."""
    adapter_cache_mi_b: Annotated[
        Annotated[int, Field(ge=1, le=1048576)] | None, Field(alias="adapterCacheMiB")
    ] = None
    """All memory of adapters, in MiB, the ranks of a pass included; left out: what they need."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """That compute; left out: as many as the pod has cores."""
    system_prompts: Annotated[
        list[Annotated[Text, StringConstraints(min_length=1)]], Field(max_length=32)
    ] = Field(default_factory=list)
    """Read before the first request and kept, with the base and with each adapter and use case, in
    `prefixCacheMiB`."""
    admin_token_secret_ref: SecretRef | None = None
    """Its key `token` is what the operator shows pods at their admin port; left out: the operator
    makes Secret `<name>-admin`."""
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
    """Tokens that are proposed at a time, at most."""
    adaptive: bool = True
    """Propose fewer, or none, where proposals are rejected too often to pay."""


class AdapterRef(KindModel):
    """A LoRA adapter: of the build, or added from a source without a restart."""

    name: AdapterName
    """What requests call it."""
    source: Uri | None = None
    """Left out: the adapter of that name in the build."""
    secret_ref: SecretRef | None = None
    """Credentials of the source."""
    disabled: bool = False
    """Not served, until that is taken back."""


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
    """Pods beyond replicas during a rollout."""
    max_unavailable: Annotated[int, Field(ge=0, le=100)] = 0
    """Pods that may be missing during a rollout."""
    progress_deadline_seconds: Annotated[int, Field(ge=1, le=86400)] = 600
    """A rollout without progress for so long has failed."""
    golden_tokens: Annotated[GoldenTokens, either_case(GoldenTokens)] = GoldenTokens.REQUIRED
    auto_rollback: bool = True
    """Go back to the last good revision when a rollout fails."""

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
    """Of the Service."""
    api_key_secret_ref: SecretRef | None = None
    """Its values are the keys that clients may present; left out: no key is asked for."""
    tls_secret_ref: SecretRef | None = None
    """Its tls.crt and tls.key are what the pods present; left out: they speak plain HTTP."""
    network_policy: bool = True
    """Let the operator alone reach the pods' admin port, where the cluster enforces policies."""


class DisruptionBudget(KindModel):
    """What a drained node may take away."""

    max_unavailable: Annotated[int, Field(ge=0, le=1000)] = 1
    """Pods that may be missing because nodes are drained."""


class Pods(KindModel):
    """Where the servers' pods run, and how they leave."""

    node_selector: Annotated[dict[ShortText, ShortText], Field(max_length=32)] = Field(
        default_factory=dict
    )
    """Labels of the nodes that the pods run on, beside the target's."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = Field(default_factory=list)
    """Taints that the pods bear."""
    affinity: Affinity = Field(default_factory=Affinity)
    """Affinity, as in a pod."""
    topology_spread: bool = True
    """Spread the pods over the nodes."""
    priority_class_name: ShortText = ""
    """PriorityClass of the pods."""
    service_account_name: ShortText = ""
    """Service account of the pods; empty: the store's, else the namespace's default."""
    image_pull_secrets: Annotated[list[SecretRef], Field(max_length=16)] = Field(
        default_factory=list
    )
    """Secrets that the server's image is pulled with."""
    disruption_budget: DisruptionBudget = Field(default_factory=DisruptionBudget)
    drain_seconds: Annotated[int, Field(ge=1, le=86400)] = 600
    """What a pod gets to finish its answers: its termination grace period."""


class DeploymentSpec(KindModel):
    """Which container is served, by how many pods, and how they are replaced."""

    from_: Annotated[From, Field(alias="from")]
    replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    """Pods, or what an autoscaler sets."""
    server: Server = Field(default_factory=Server)
    speculation: SpeculationRef | None = None
    adapters: Annotated[
        list[AdapterRef], Field(max_length=64, json_schema_extra={LIST_KEYS: ["name"]})
    ] = Field(default_factory=list)
    """LoRA adapters that every pod holds ready; empty: all of the container's. A change reaches
    pods that run."""
    rollout: Rollout = Field(default_factory=Rollout)
    expose: Expose = Field(default_factory=Expose)
    store: StoreRef = Field(default_factory=StoreRef)
    """Where the container lies: the build's store."""
    pods: Pods = Field(default_factory=Pods)
    resources: Resources = Field(default_factory=Resources)
    """Of the server; left out: sized from the container."""

    @model_validator(mode="after")
    def _one_adapter_a_name(self) -> Self:
        names = [adapter.name for adapter in self.adapters]
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
        if twice is not None:
            raise ValueError(f"two adapters are called {twice}: rename one of them")
        return self


class GenAIDeployment(KindObject):
    """A deployment as it stands in a file or in the apiserver."""

    kind: Literal["GenAIDeployment"] = "GenAIDeployment"
    spec: DeploymentSpec
