"""How far a GenAIBuild is, and what it came to."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    StringConstraints,
)

from genai_core.kinds.base import (
    Condition,
    DigestText,
    KindModel,
    ShortText,
    Text,
    Uri,
)


class StageCounts(KindModel):
    """Tasks of one operation by state."""

    operation: ShortText
    """e.g. ingest, convert, compile."""
    waiting: int = 0
    """Their inputs are not there yet, or there is no room."""
    running: int = 0
    """A Job is at them."""
    cached: int = 0
    """Their result was in the store."""
    done: int = 0
    """They ran for this build."""
    failed: int = 0
    """They will not be tried again."""


class TaskFailure(KindModel):
    """One failed task."""

    task: ShortText
    """e.g. compile/sm8750/2."""
    reason: ShortText
    """One word of a small set, e.g. BadEncodings, OOMKilled."""
    message: Annotated[str, StringConstraints(max_length=1024)]
    """What is wrong, where, and what to do."""
    log: Uri | None = None
    """Where the whole log lies; `genai logs` shows it."""


class SourceStatus(KindModel):
    """What a source resolved to."""

    name: ShortText = "model"
    """model, or adapter:NAME."""
    uri: Uri
    """The address that was read."""
    digest: DigestText
    """Of the files' roles and contents: what spec.model.digest pins."""
    record: DigestText | None = None
    """Key of the record in the store that lists the files."""


class FidelityStatus(KindModel):
    """What a build's fidelity task measured of a container: losses in nats a token."""

    nats_per_token: float | None = None
    """Of the container."""
    baseline_nats: float | None = None
    """Of the source with its encodings simulated."""
    float_nats: float | None = None
    """Of the source in floating point."""
    budget: float | None = None
    """How far the container may be above the baseline."""
    within: bool | None = None
    """It is within the budget."""
    tokens: int | None = None
    """So many tokens were scored."""
    text: ShortText | None = None
    """Whose text it was: given, or written by the float model."""
    verified: ShortText | None = None
    """What the container was run on."""
    yardstick: ShortText | None = None
    """What the losses of source and baseline are of: the source itself, else the core graph."""


class ArtifactStatus(KindModel):
    """A target's last good container."""

    target: ShortText
    """Name of the GenAITarget."""
    revision: DigestText
    """Of the container's manifest: equal content, equal revision, on any machine."""
    url: Uri
    """Its record in the store; `genai pull` gets the container."""
    size_bytes: int
    """Of all its files."""
    built_at: ShortText
    """When it was packaged."""
    verified: Literal["Emulator", "Cpu", "Metadata"]
    """What the container was run on before it was handed out; Metadata: nothing here can run it."""
    fidelity: FidelityStatus | None = None
    """What this build measured; absent where nothing here can run the container."""


class BuildStatus(KindModel):
    """How far a build is and what it came to; small and bounded."""

    observed_generation: int = 0
    """The metadata.generation that this status is of; -1: not seen yet."""
    conditions: Annotated[list[Condition], Field(max_length=8)] = Field(default_factory=list)
    """Ready; Reconciling or Stalled; ArtifactAvailable; ToolchainOutdated."""
    phase: ShortText = ""
    """Building, Ready, Failed, Waiting or Suspended; for people, derived from the conditions."""
    progress: ShortText = ""
    """Finished tasks of all, e.g. 14/19."""
    cached: int = 0
    """Tasks of this generation whose result was already in the store."""
    stages: Annotated[list[StageCounts], Field(max_length=16)] = Field(default_factory=list)
    """Tasks by operation, in the order of the work."""
    failures: Annotated[list[TaskFailure], Field(max_length=5)] = Field(default_factory=list)
    """The first that failed for good."""
    plan: Annotated[list[ShortText], Field(max_length=32)] = Field(default_factory=list)
    """What was derived (splits, graphs, precisions), and from what."""
    sources: Annotated[list[SourceStatus], Field(max_length=80)] = Field(default_factory=list)
    """What this generation was built from."""
    toolchain: ShortText = ""
    """A digest of the libraries that every task of this generation computes with."""
    requested_at: ShortText = ""
    """The annotation genai-operator.dev/requestedAt that was last acted on."""
    started_at: ShortText = ""
    """When this generation, or request, was taken up; what was made before counts as cached."""
    artifacts: Annotated[list[ArtifactStatus], Field(max_length=32)] = Field(default_factory=list)
    """The last good container of each target; they stay while a new one is built, or fails."""
    warnings: Annotated[list[Text], Field(max_length=16)] = Field(default_factory=list)
    """What went well but should be known."""
