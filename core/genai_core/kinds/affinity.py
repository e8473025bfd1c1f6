"""Affinity of pods, as in a pod, each list and text with a limit.

The same names and meanings as in Kubernetes' core/v1; what is left out is not written, so that a
pod gets what its user wrote. Typed here, a misspelt field is refused where it stands: a free-form
field would be taken as it is, and the pod's own schema drops what it does not know.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from genai_core.kinds.base import KindModel, ShortText

__all__ = ["Affinity"]

_MOST_TERMS = 8
_MOST_EXPRESSIONS = 16
_MOST_VALUES = 32

LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=317)]
"""A prefix of 253 characters, a slash, a name of 63."""
LabelValue = Annotated[str, StringConstraints(max_length=253)]
Weight = Annotated[int, Field(ge=1, le=100)]

_NEEDS = "In and NotIn need values, Exists and DoesNotExist have none, Gt and Lt one"


class _Expression(KindModel):
    """What several kinds of expressions have in common."""

    key: LabelKey
    """Of the label."""
    operator: ShortText
    values: Annotated[list[LabelValue], Field(max_length=_MOST_VALUES)] | None = None
    """What In and NotIn compare with; Gt and Lt: one whole number."""

    @model_validator(mode="after")
    def _values_fit(self) -> Self:
        count = len(self.values or ())
        fits = {"In": count > 0, "NotIn": count > 0, "Gt": count == 1, "Lt": count == 1}
        if not fits.get(self.operator, count == 0):
            raise ValueError(_NEEDS)
        return self


def _rules(*rules: tuple[str, str]) -> ConfigDict:
    """The same checks for an apiserver."""
    found: list[Any] = [{"rule": rule, "message": message} for rule, message in rules]
    return ConfigDict(json_schema_extra={"x-kubernetes-validations": found})


_COUNT = "(has(self.values) ? size(self.values) : 0)"
_FITS = (
    f"self.operator in ['In', 'NotIn'] ? {_COUNT} > 0 : "
    f"self.operator in ['Gt', 'Lt'] ? {_COUNT} == 1 : {_COUNT} == 0"
)


class NodeExpression(_Expression):
    """What a node's label, or its name, must be like."""

    model_config = _rules((_FITS, _NEEDS))

    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    """How it is compared."""


class LabelExpression(_Expression):
    """What a pod's label, or a namespace's, must be like."""

    model_config = _rules((_FITS, _NEEDS))

    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How it is compared."""


class NodeTerm(KindModel):
    """All of its expressions hold for the node."""

    match_expressions: (
        Annotated[list[NodeExpression], Field(max_length=_MOST_EXPRESSIONS)] | None
    ) = None
    """Of the node's labels."""
    match_fields: Annotated[list[NodeExpression], Field(max_length=_MOST_EXPRESSIONS)] | None = None
    """Of its fields, i.e. metadata.name."""


class NodeTerms(KindModel):
    """One of its terms holds for the node."""

    node_selector_terms: Annotated[list[NodeTerm], Field(min_length=1, max_length=_MOST_TERMS)]
    """Of which one is enough."""


class PreferredNode(KindModel):
    """Nodes that are better than others."""

    weight: Weight
    """Added to the rank of nodes that fit."""
    preference: NodeTerm
    """What fits."""


class NodeAffinity(KindModel):
    """Which nodes."""

    required_during_scheduling_ignored_during_execution: NodeTerms | None = None
    """No other node is taken."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[list[PreferredNode], Field(max_length=_MOST_TERMS)] | None
    ) = None
    """Rather these than others."""


class LabelSelector(KindModel):
    """Objects with such labels; an empty one means all."""

    match_labels: (
        Annotated[dict[ShortText, LabelValue], Field(max_length=_MOST_EXPRESSIONS)] | None
    ) = None
    """Labels that they have."""
    match_expressions: (
        Annotated[list[LabelExpression], Field(max_length=_MOST_EXPRESSIONS)] | None
    ) = None
    """What must hold for their labels."""


class PodTerm(KindModel):
    """Pods, and what counts as one place."""

    topology_key: LabelKey
    """Nodes with the same value of this label are one place."""
    label_selector: LabelSelector | None = None
    """Which pods."""
    namespaces: Annotated[list[ShortText], Field(max_length=_MOST_VALUES)] | None = None
    """Where they are; left out, with namespaceSelector left out too: in this namespace."""
    namespace_selector: LabelSelector | None = None
    """Namespaces by their labels, beside those of `namespaces`."""
    match_label_keys: Annotated[list[LabelKey], Field(max_length=_MOST_EXPRESSIONS)] | None = None
    """Labels that must be like this pod's own."""
    mismatch_label_keys: Annotated[list[LabelKey], Field(max_length=_MOST_EXPRESSIONS)] | None = (
        None
    )
    """Labels that must differ from this pod's own."""


class PreferredPods(KindModel):
    """Places that are better than others."""

    weight: Weight
    """Added to the rank of nodes that fit."""
    pod_affinity_term: PodTerm
    """What fits."""


class PodAffinity(KindModel):
    """Near which pods, or away from which."""

    required_during_scheduling_ignored_during_execution: (
        Annotated[list[PodTerm], Field(max_length=_MOST_TERMS)] | None
    ) = None
    """All of them must hold."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[list[PreferredPods], Field(max_length=_MOST_TERMS)] | None
    ) = None
    """Rather there than elsewhere."""


class Affinity(KindModel):
    """Where pods may be placed, as in a pod."""

    node_affinity: NodeAffinity | None = None
    """Which nodes."""
    pod_affinity: PodAffinity | None = None
    """Near which pods."""
    pod_anti_affinity: PodAffinity | None = None
    """Away from which pods."""
