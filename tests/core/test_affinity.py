"""Affinity is what a pod takes, word for word, and nothing that a pod would drop."""

from __future__ import annotations

from typing import Any

import pytest

from genai_core.errors import InvalidSpec
from genai_core.kinds.build import BuildSpec
from genai_core.kinds.documents.reading import read_model

NODES = {
    "nodeSelectorTerms": [
        {
            "matchExpressions": [
                {"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64", "arm64"]},
                {"key": "gpu", "operator": "DoesNotExist"},
                {"key": "cores", "operator": "Gt", "values": ["7"]},
            ],
            "matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["old-1"]}],
        }
    ]
}
PODS = {
    "topologyKey": "topology.kubernetes.io/zone",
    "labelSelector": {
        "matchLabels": {"app": "db"},
        "matchExpressions": [{"key": "tier", "operator": "Exists"}],
    },
    "namespaces": ["other"],
    "namespaceSelector": {},
    "matchLabelKeys": ["pod-template-hash"],
    "mismatchLabelKeys": ["tenant"],
}
REQUIRED, PREFERRED = (
    f"{kind}DuringSchedulingIgnoredDuringExecution" for kind in ("required", "preferred")
)
WHOLE = {
    "nodeAffinity": {
        REQUIRED: NODES,
        PREFERRED: [{"weight": 50, "preference": NODES["nodeSelectorTerms"][0]}],
    },
    "podAffinity": {REQUIRED: [PODS], PREFERRED: [{"weight": 1, "podAffinityTerm": PODS}]},
    "podAntiAffinity": {REQUIRED: [PODS], PREFERRED: [{"weight": 100, "podAffinityTerm": PODS}]},
}


def read(affinity: Any) -> BuildSpec:
    spec = {"model": {"source": "s3://b/m"}, "targets": ["cpu"], "run": {"affinity": affinity}}
    return read_model(BuildSpec, spec, where="spec")


@pytest.mark.parametrize(
    "affinity",
    [{}, {"nodeAffinity": {}}, WHOLE, {"podAffinity": {REQUIRED: []}}],
    ids=["empty", "empty part", "whole", "empty list"],
)
def test_affinity_is_written_as_it_was_read(affinity: dict[str, Any]) -> None:
    assert read(affinity).run.affinity.canonical() == affinity
    assert read(affinity).canonical()["run"]["affinity"] == affinity


def node(expression: dict[str, Any]) -> dict[str, Any]:
    terms = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    return {"nodeAffinity": {REQUIRED: terms}}


@pytest.mark.parametrize(
    ("affinity", "said"),
    [
        ({"nodeAfinity": {}}, "spec.run.affinity.nodeAfinity: unknown field; did you mean nodeAff"),
        (
            {"nodeAffinity": {"requiredDuringScheduling": NODES}},
            "requiredDuringScheduling: unknown field",
        ),
        (
            {"nodeAffinity": {REQUIRED: {"nodeSelectorTerm": []}}},
            "nodeSelectorTerm: unknown field; did you mean nodeSelectorTerms?",
        ),
        (node({"key": "a", "operator": "in", "values": ["b"]}), "did you mean In?"),
        (node({"key": "a", "operator": "In"}), "In and NotIn need values"),
        (node({"key": "a", "operator": "Exists", "values": ["b"]}), "Exists and DoesNotExist have"),
        (node({"key": "a", "operator": "Lt", "values": ["1", "2"]}), "Gt and Lt one"),
        (
            {"podAffinity": {REQUIRED: [{"topologyKey": "z", "labelSelector": {"app": "db"}}]}},
            "labelSelector.app: unknown field",
        ),
        ({"podAffinity": {REQUIRED: [PODS] * 9}}, "a list of at most 8"),
        (node({"key": "a", "operator": "In", "values": ["b"] * 33}), "a list of at most 32"),
        ({"podAffinity": {PREFERRED: [{"weight": 0, "podAffinityTerm": PODS}]}}, "at least 1"),
        ({"x": [[]] * 480_000}, "unknown field"),
    ],
)
def test_affinity_is_refused_by_name_when_a_pod_would_not_take_it(
    affinity: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidSpec) as error:
        read(affinity)
    assert said in "\n".join([str(error.value), *getattr(error.value, "__notes__", [])])
