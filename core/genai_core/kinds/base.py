"""What all kinds share: field names, limits, conditions, and how YAML becomes a model.

Rules of the schema, so that one model serves the command line and a structural CRD: closed string
enums instead of "bool or auto", flat objects with a discriminator instead of unions, a limit on
every list and string, no nulls in what is written or shown, defaults in the schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

API_VERSION: Literal["genai-operator.dev/v1alpha1"] = "genai-operator.dev/v1alpha1"


class KindModel(BaseModel):
    """Base of every object in a spec: camelCase in YAML, frozen, unknown fields are errors."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="forbid",
    )

    def canonical(self) -> dict[str, Any]:
        """The defaulted object as it is written and keyed: camelCase, without nulls."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def choice(kind: type[StrEnum], text: object) -> object:
    """Read an enum's value without regard to case; anything else is left to pydantic."""
    if isinstance(text, str):
        for member in kind:
            if member.value.lower() == text.lower():
                return member
    return text


LIST_KEYS = "x-kubernetes-list-map-keys"
"""In a list's schema: fields by which its entries are told apart."""


def either_case(kind: type[StrEnum]) -> BeforeValidator:
    """Annotation for a field whose enum value may come in any case."""
    return BeforeValidator(lambda text: choice(kind, text))


Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"),
]
"""The name of a Kubernetes object (RFC 1123 subdomain)."""

Text = Annotated[str, StringConstraints(max_length=4096)]
ShortText = Annotated[str, StringConstraints(max_length=256)]
Uri = Annotated[
    str, StringConstraints(min_length=1, max_length=2048, pattern=r"^[^\x00-\x1f\x7f]+$")
]
Quantity = Annotated[
    str, StringConstraints(max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?(m|k|Ki|[EPTGM]i?)?$")
]
"""A Kubernetes quantity such as 20Gi."""
DigestText = Annotated[
    str,
    StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$"),
    Field(json_schema_extra={"maxLength": 71}),  # said here alone: the pattern says it better
]
Options = Annotated[dict[ShortText, ShortText], Field(max_length=64)]
"""A vendor's option -> its value, both strings, e.g. `graphs.vtcm_size_in_mb: "8"`."""


class SecretRef(KindModel):
    """A Secret of the same namespace."""

    name: Name
    """Of the Secret."""


class ObjectMeta(BaseModel):
    """The part of metadata that is read; the rest is the apiserver's."""

    model_config = ConfigDict(populate_by_name=True, alias_generator=to_camel, extra="ignore")

    name: Name
    namespace: str = ""
    generation: int = 0
    uid: str = ""
    annotations: dict[str, str] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)


class ConditionStatus(StrEnum):
    """True, False, or Unknown: not decided yet."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(KindModel):
    """A condition in the form of kstatus and metav1.Condition."""

    type: ShortText
    """Ready says it all; Reconciling and Stalled stand there only while they are True."""
    status: ConditionStatus
    reason: ShortText
    """One word of a small set, for programs."""
    message: Annotated[str, StringConstraints(max_length=1024)] = ""
    """For people: what happened, where, and what to do."""
    observed_generation: int = 0
    """The metadata.generation that this was said of."""
    last_transition_time: datetime
    """When the status of this condition changed last."""


class KindObject(BaseModel):
    """Base of the four kinds as they stand in a file or in the apiserver."""

    model_config = ConfigDict(populate_by_name=True, alias_generator=to_camel, extra="forbid")

    api_version: Literal["genai-operator.dev/v1alpha1"] = API_VERSION
    metadata: ObjectMeta
    status: Mapping[str, Any] = Field(default_factory=dict)


class Toleration(KindModel):
    """As in a pod."""

    key: ShortText | None = None
    """Of the taint; left out, with operator Exists: every taint."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """Equal compares the value, Exists does not."""
    value: ShortText | None = None
    """Of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Of the taint; left out: every effect."""
    toleration_seconds: int | None = None
    """How long a NoExecute taint is borne; left out: for ever."""


class Resources(KindModel):
    """Requests and limits as in a container; empty = sized from the model."""

    requests: Annotated[dict[ShortText, Quantity], Field(max_length=16)] = Field(
        default_factory=dict
    )
    """What the scheduler sets aside, e.g. `memory: 8Gi`."""
    limits: Annotated[dict[ShortText, Quantity], Field(max_length=16)] = Field(default_factory=dict)
    """What the container may use at most, e.g. `memory: 8Gi`."""
