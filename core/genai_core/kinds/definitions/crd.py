"""The CustomResourceDefinition of a kind: its models as schemas, its rules, columns and names."""

from __future__ import annotations

from pydantic import BaseModel

from genai_core.kinds.definitions.defined_kinds import DefinedKind
from genai_core.kinds.definitions.structural_schema import Schema, structural_schema, worded
from genai_core.kinds.describe import describe_kind
from genai_core.wire import GROUP, VERSION


def crd(kind: DefinedKind) -> Schema:
    """The CustomResourceDefinition of a kind, as JSON values."""
    schema: Schema = {
        "type": "object",
        "description": describe_kind(kind.spec),
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": worded(structural_schema(kind.spec)),
            "status": _status(kind.status),
        },
    }
    for rule in kind.rules:
        _at(schema, rule.path).setdefault("x-kubernetes-validations", []).append(
            {"rule": rule.rule, "message": rule.message}
        )
    subresources: Schema = {"status": {}}
    if kind.scale:
        subresources["scale"] = {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": kind.scope,
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.singular,
                "shortNames": list(kind.short),
                "categories": ["genai"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": subresources,
                    "additionalPrinterColumns": [column.as_json() for column in kind.columns],
                }
            ],
        },
    }


def _at(schema: Schema, path: str) -> Schema:
    found = schema
    for part in path.split("."):
        found = found["properties"][part]
    return found


def _status(model: type[BaseModel]) -> Schema:
    """The schema of a status.

    An object that nobody has looked at yet says so: without that kstatus, and with it Flux and
    Helm, would take one without conditions for finished. What is empty is not filled in, so that
    `kubectl describe` shows what there is to see.
    """
    found = structural_schema(model)
    for member in found["properties"].values():
        if member.get("default") in ("", []):
            del member["default"]
    return found | {"default": {"observedGeneration": -1}}
