"""ArtifactStore (namespaced): the S3-compatible place where artifacts live."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from genai_core.kinds.base import (
    Condition,
    KindModel,
    KindObject,
    Name,
    SecretRef,
    ShortText,
    Uri,
)


class Retention(KindModel):
    """What garbage collection keeps beside what is in use."""

    keep: Annotated[int, Field(ge=0, le=1000)] = 3
    """Containers of each build."""
    grace_days: Annotated[int, Field(ge=0, le=3650)] = 7


class ReadFrom(KindModel):
    """A further store that is looked up and never written."""

    name: Name


class ArtifactStoreSpec(KindModel):
    """The spec of an ArtifactStore."""

    bucket: Annotated[
        str,
        StringConstraints(min_length=3, max_length=63, pattern=r"^[a-z0-9][a-z0-9.-]*[a-z0-9]$"),
    ]
    prefix: Annotated[str, StringConstraints(max_length=512)] = ""
    """The namespace is appended, so that tenants are kept apart by bucket policy."""
    endpoint: Uri | None = None
    """None: AWS."""
    region: ShortText = "us-east-1"
    secret_ref: SecretRef | None = None
    service_account_name: Name | None = None
    ca_bundle: Annotated[str, StringConstraints(max_length=65536)] | None = None
    """PEM certificates that the endpoint's certificate is checked with."""
    read_from: Annotated[list[ReadFrom], Field(max_length=8)] = Field(default_factory=list)
    retention: Retention = Field(default_factory=Retention)

    @model_validator(mode="after")
    def _one_identity(self) -> Self:
        if (self.secret_ref is None) == (self.service_account_name is None):
            raise ValueError("give secretRef or serviceAccountName, and not both")
        return self


class ArtifactStore(KindObject):
    """A store as it stands in a file or in the apiserver."""

    kind: Literal["ArtifactStore"] = "ArtifactStore"
    spec: ArtifactStoreSpec


class StoreCapabilities(KindModel):
    """What the server was seen to do."""

    conditional_writes: bool


class ArtifactStoreStatus(KindModel):
    """The status of an ArtifactStore."""

    observed_generation: int = 0
    conditions: Annotated[list[Condition], Field(max_length=8)] = Field(default_factory=list)
    capabilities: StoreCapabilities | None = None
