"""ArtifactStore (namespaced): the S3-compatible place where artifacts live."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from genai_core.files.paths import PREFIX
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
    """What is younger stays, whether or not something refers to it."""


class ReadFrom(KindModel):
    """A further store that is looked up and never written."""

    name: Name
    """Of an ArtifactStore of the same namespace."""


class WebIdentity(KindModel):
    """How a pod trades its service account's token for credentials, where no webhook does it."""

    role_arn: Annotated[str, StringConstraints(min_length=1, max_length=2048)]
    """The role to take, e.g. arn:aws:iam::123456789012:role/genai-team-a."""
    audience: Annotated[str, StringConstraints(min_length=1, max_length=256)] = "sts.amazonaws.com"
    """Whom the token is for: what the STS server expects to read in it."""
    sts_endpoint: Uri | None = None
    """URL of the STS server (MinIO, Ceph); left out: AWS."""


class ArtifactStoreSpec(KindModel):
    """Where the store is and who may use it. Ready means: it was written, and read back."""

    bucket: Annotated[
        str,
        StringConstraints(min_length=3, max_length=63, pattern=r"^[a-z0-9][a-z0-9.-]*[a-z0-9]$"),
    ]
    """Name of the bucket; it must be there."""
    prefix: Annotated[str, StringConstraints(max_length=512, pattern=PREFIX)] = ""
    """The namespace is appended, so that tenants are kept apart by bucket policy."""
    endpoint: Uri | None = None
    """URL of the S3 server, e.g. https://s3.example.com:9000; left out: AWS."""
    region: ShortText = "us-east-1"
    """Of the bucket."""
    secret_ref: SecretRef | None = None
    """Holds AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if any, AWS_SESSION_TOKEN. This or
    serviceAccountName."""
    read_secret_ref: SecretRef | None = None
    """The same keys with a right to read alone: what servers' pods hold. Left out: they hold
    secretRef, and a Warning says so. It goes with secretRef."""
    service_account_name: Name | None = None
    """A service account whose pods may reach the bucket (IRSA, workload identity). This or
    secretRef."""
    web_identity: WebIdentity | None = None
    """With serviceAccountName, where the cluster gives its pods no credentials by itself."""
    ca_bundle: Annotated[str, StringConstraints(max_length=65536)] | None = None
    """PEM certificates that the endpoint's certificate is checked with."""
    read_from: Annotated[list[ReadFrom], Field(max_length=8)] = Field(default_factory=list)
    """Stores that are looked up, in this order, before something is built anew."""
    retention: Retention = Field(default_factory=Retention)

    @model_validator(mode="after")
    def _one_identity(self) -> Self:
        if (self.secret_ref is None) == (self.service_account_name is None):
            raise ValueError("give secretRef or serviceAccountName, and not both")
        if self.read_secret_ref is not None and self.secret_ref is None:
            raise ValueError("readSecretRef goes with secretRef")
        if self.web_identity is not None and self.service_account_name is None:
            raise ValueError("webIdentity goes with serviceAccountName")
        return self


class ArtifactStore(KindObject):
    """A store as it stands in a file or in the apiserver."""

    kind: Literal["ArtifactStore"] = "ArtifactStore"
    spec: ArtifactStoreSpec


class StoreCapabilities(KindModel):
    """What the server was seen to do."""

    conditional_writes: bool
    """It refuses a second writer of the same object. Without that the last of two may win."""


class LastCollection(KindModel):
    """What the last cleaning of the store came to."""

    at: datetime
    """When it had ended."""
    records_deleted: int = 0
    """Results that nothing needs any more."""
    records_kept: int = 0
    """Results that stay."""
    uploads_deleted: int = 0
    """Models sent by `genai build --remote` that no build names any more."""
    uploads_kept: int = 0
    """Models sent so that stay."""
    bytes_deleted: int = 0
    """Of the files that nothing needs any more."""
    bytes_kept: int = 0
    """Of the files that stay."""
    bytes_older: int = 0
    """Of those deleted, what the bucket keeps as older versions; a lifecycle rule frees it."""
    refused: int = 0
    """Results, files and uploads that nothing needs, and that the server does not let go."""


class ArtifactStoreStatus(KindModel):
    """Whether the store can be used, and what its server is able to do."""

    observed_generation: int = 0
    """The metadata.generation that this status is of; -1: not seen yet."""
    conditions: Annotated[list[Condition], Field(max_length=8)] = Field(default_factory=list)
    """Ready, and Stalled where the user must act."""
    capabilities: StoreCapabilities | None = None
    """What the server was seen to do; absent until it was tried."""
    collected: LastCollection | None = None
    """The last cleaning, as spec.retention wants it; absent until the first."""
