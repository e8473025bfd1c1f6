"""Custom resource definitions, made from the kinds' models.

pydantic's JSON schema becomes a structural schema as the apiserver wants it: references inlined,
nulls dropped, `const` as an enum, the one int-or-string marked, descriptions from the source,
defaults of nested objects `{}` so that the apiserver fills in their fields. What two fields say
together is CEL, and so are a map's limit for its keys and a pattern's words. Source: Kubernetes
"Extend the Kubernetes API with CustomResourceDefinitions",
apiextensions.k8s.io/v1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from genai_core.kinds.artifact_store import ArtifactStoreSpec, ArtifactStoreStatus
from genai_core.kinds.base import LIST_KEYS
from genai_core.kinds.build import BuildSpec, BuildStatus
from genai_core.kinds.deployment import DeploymentSpec, DeploymentStatus
from genai_core.kinds.describe import describe_fields, describe_kind
from genai_core.kinds.target import TargetSpec, TargetStatus
from genai_core.kinds.wording import key_rule, pattern_rule
from genai_core.wire import GROUP, VERSION

Schema = dict[str, Any]

_LONGEST_TIME = 64


@dataclass(frozen=True)
class Column:
    """A column of `kubectl get`; priority 1 = only with `-o wide`."""

    name: str
    path: str
    type: str = "string"
    priority: int = 0

    def as_json(self) -> Schema:
        """In the form of additionalPrinterColumns."""
        column: Schema = {"name": self.name, "type": self.type, "jsonPath": self.path}
        return column | ({"priority": self.priority} if self.priority else {})


@dataclass(frozen=True)
class Rule:
    """A CEL rule on the object at `path` (dotted, below the root)."""

    path: str
    rule: str
    message: str


@dataclass(frozen=True)
class DefinedKind:
    """What a CRD says beside its schema."""

    kind: str
    plural: str
    singular: str
    short: tuple[str, ...]
    scope: str
    spec: type[BaseModel]
    status: type[BaseModel]
    columns: tuple[Column, ...]
    rules: tuple[Rule, ...] = ()
    scale: bool = False


def _condition(kind: str, member: str) -> str:
    return f'.status.conditions[?(@.type=="{kind}")].{member}'


_READY = Column("Ready", _condition("Ready", "status"))
_REASON = Column("Reason", _condition("Ready", "reason"))
_AGE = Column("Age", ".metadata.creationTimestamp", "date")

KINDS: tuple[DefinedKind, ...] = (
    DefinedKind(
        "GenAIBuild",
        "genaibuilds",
        "genaibuild",
        ("gb", "gbs"),
        "Namespaced",
        BuildSpec,
        BuildStatus,
        (
            _READY,
            _REASON,
            Column("Progress", ".status.progress"),
            Column("Cached", ".status.cached", "integer"),
            _AGE,
            Column("Targets", ".spec.targets", priority=1),
            Column("Revision", ".status.artifacts[*].revision", priority=1),
        ),
        (
            Rule(
                "spec.graphs",
                "!(self.multiContext && size(self.contextLengths) > 0)",
                "multiContext and contextLengths exclude each other: keep one",
            ),
            *(
                Rule(
                    path,
                    "self.all(one, self.exists_one(other, other == one))",
                    "it holds an entry twice: keep one of them",
                )
                for path in (
                    "spec.targets",
                    "spec.graphs.autoRegression",
                    "spec.graphs.contextLengths",
                )
            ),
            Rule(
                "spec.splits",
                "type(self.count) == int ? self.count >= 1 : self.count == 'auto'",
                "splits.count is a number from 1 on, or auto",
            ),
            Rule(
                "spec.model",
                "self.source.startsWith('s3://') || self.source.startsWith('https://') "
                "|| self.source.startsWith('pvc://')",
                "a cluster reads models from s3://, https:// or pvc://; genai build --remote "
                "uploads a folder and applies the build",
            ),
            Rule(
                "spec.lora.adapters",
                "self.all(one, one.source.startsWith('s3://') "
                "|| one.source.startsWith('https://') || one.source.startsWith('pvc://'))",
                "a cluster reads adapters from s3://, https:// or pvc://; genai build --remote "
                "uploads folders and applies the build",
            ),
            Rule(
                "spec.speculation",
                "self.all(one, one.source.startsWith('s3://') "
                "|| one.source.startsWith('https://') || one.source.startsWith('pvc://'))",
                "a cluster reads draft models from s3://, https:// or pvc://; genai build --remote "
                "uploads folders and applies the build",
            ),
            Rule(
                "spec.speculation",
                "self.all(one, one.method == 'Eagle' "
                "|| (!has(one.version) && !has(one.draftTokenMap)))",
                "version and draftTokenMap are of an EAGLE head",
            ),
            Rule(
                "spec.lora",
                "self.adapters.all(one, self.adapters.exists_one(other, other.name == one.name) "
                "&& one.name != 'base' && (!has(self.useCases) "
                "|| self.useCases.all(useCase, useCase.name != one.name)))",
                "adapters and use cases are called by names of their own, none of them base",
            ),
            Rule(
                "spec.quantization",
                "(self.gaps == 'Calibrate') == has(self.calibration)",
                "gaps: Calibrate goes with calibration: a .npy or text file of the source",
            ),
        ),
    ),
    DefinedKind(
        "GenAIDeployment",
        "genaideployments",
        "genaideployment",
        ("gd", "gds"),
        "Namespaced",
        DeploymentSpec,
        DeploymentStatus,
        (
            _READY,
            _REASON,
            Column("Replicas", ".status.readyReplicas", "integer"),
            Column("URL", ".status.url"),
            _AGE,
            Column("Build", ".spec.from.build", priority=1),
            Column("Target", ".spec.from.target", priority=1),
            Column("Revision", ".status.revision.current", priority=1),
        ),
        (
            Rule(
                "spec.rollout",
                "self.strategy != 'RollingUpdate' || self.maxSurge > 0 || self.maxUnavailable > 0",
                "maxSurge and maxUnavailable cannot both be 0",
            ),
        ),
        scale=True,
    ),
    DefinedKind(
        "GenAITarget",
        "genaitargets",
        "genaitarget",
        ("gt",),
        "Cluster",
        TargetSpec,
        TargetStatus,
        (
            _READY,
            _REASON,
            Column("Backend", ".spec.backend"),
            Column("Chip", ".spec.chipset"),
            _AGE,
        ),
        (
            Rule(
                "spec",
                "self.backend != 'Htp' || (has(self.chipset) != "
                "(has(self.dspArch) && has(self.socModel)))",
                "an Htp target needs chipset, or dspArch with socModel, and not both",
            ),
            Rule(
                "spec",
                "self.backend != 'Cpu' || !(has(self.chipset) || has(self.dspArch) "
                "|| has(self.socModel))",
                "a Cpu target has no chipset, dspArch or socModel",
            ),
        ),
    ),
    DefinedKind(
        "ArtifactStore",
        "artifactstores",
        "artifactstore",
        ("gas",),
        "Namespaced",
        ArtifactStoreSpec,
        ArtifactStoreStatus,
        (_READY, _REASON, Column("Bucket", ".spec.bucket"), _AGE),
        (
            Rule(
                "spec",
                "has(self.secretRef) != has(self.serviceAccountName)",
                "give secretRef or serviceAccountName, and not both",
            ),
            Rule(
                "spec",
                "!has(self.webIdentity) || has(self.serviceAccountName)",
                "webIdentity goes with serviceAccountName",
            ),
            Rule(
                "spec",
                "!has(self.readSecretRef) || has(self.secretRef)",
                "readSecretRef goes with secretRef",
            ),
        ),
    ),
)


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
            "spec": _worded(_object(kind.spec)),
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
    found = _object(model)
    for member in found["properties"].values():
        if member.get("default") in ("", []):
            del member["default"]
    return found | {"default": {"observedGeneration": -1}}


def _object(model: type[BaseModel]) -> Schema:
    """The structural schema of a model, with its own descriptions."""
    raw = model.model_json_schema(by_alias=True)
    definitions = raw.pop("$defs", {})
    _fill_defaults(model, raw, definitions)
    return _structural(raw, definitions, _descriptions(model))


def _fill_defaults(model: type[BaseModel], raw: Schema, definitions: Schema) -> None:
    """Put in the defaults that come from factories: pydantic leaves them out of its schema."""
    for name, field in model.model_fields.items():
        if field.default_factory is not None:
            value = field.get_default(call_default_factory=True, validated_data={})
            if isinstance(value, BaseModel):
                # Whole, not {}: rules are tried on a default before its own defaults are filled in.
                value = value.model_dump(mode="json", by_alias=True, exclude_none=True)
            raw["properties"][field.alias or name]["default"] = value
        for inner in _models_in(field.annotation):
            _fill_defaults(inner, definitions[inner.__name__], definitions)


def _descriptions(model: type[BaseModel]) -> dict[str, dict[str, str]]:
    """Title of a schema -> {alias of a field: description}, for a model and all below it."""
    found: dict[str, dict[str, str]] = {}

    def visit(kind: type[BaseModel]) -> None:
        if kind.__name__ in found:
            return
        texts = describe_fields(kind)
        found[kind.__name__] = {
            (field.alias or name): texts[name]
            for name, field in kind.model_fields.items()
            if name in texts
        }
        for field in kind.model_fields.values():
            for inner in _models_in(field.annotation):
                visit(inner)

    visit(model)
    return found


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _models_in(part)]


def _structural(node: Schema, definitions: Schema, described: dict[str, dict[str, str]]) -> Schema:
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[1]]
        return _structural(
            {**target, **{k: v for k, v in node.items() if k != "$ref"}}, definitions, described
        )
    if "anyOf" in node:
        return _any_of(node, definitions, described)
    found: Schema = {
        name: node[name]
        for name in (
            "type", "description", "enum", "pattern", "format", "minLength", "maxLength",
            "minItems", "maxItems", "minimum", "maximum", "required", "maxProperties",
            "x-kubernetes-validations",
        )
        if name in node
    }  # fmt: skip
    if node.get("format") == "date-time":
        found["maxLength"] = _LONGEST_TIME
    if "const" in node:
        found["enum"] = [node["const"]]
    if node.get("default") is not None:
        found["default"] = node["default"]
    if node.get("type") == "array":
        found["items"] = _structural(node["items"], definitions, described)
        keys = node.get(LIST_KEYS)
        found["x-kubernetes-list-type"] = "map" if keys else "atomic"
        if keys:  # entries of one key are one entry: managers of fields share such a list
            found[LIST_KEYS] = keys
    if node.get("type") == "object":
        found |= _members(node, definitions, described)
    return found


def _worded(node: Schema) -> Schema:
    """A schema whose patterns say in words what they allow."""
    if "pattern" in node:
        node.setdefault("x-kubernetes-validations", []).append(pattern_rule(node["pattern"]))
    for inner in (*node.get("properties", {}).values(), node.get("items"),
                  node.get("additionalProperties")):  # fmt: skip
        if inner is not None:
            _worded(inner)
    return node


def _any_of(node: Schema, definitions: Schema, described: dict[str, dict[str, str]]) -> Schema:
    options = [option for option in node["anyOf"] if option.get("type") != "null"]
    outer = {k: v for k, v in node.items() if k in {"description", "default"} and v is not None}
    if len(options) == 1:
        return _structural({**options[0], **outer}, definitions, described)
    return {"x-kubernetes-int-or-string": True, **outer}


def _members(node: Schema, definitions: Schema, described: dict[str, dict[str, str]]) -> Schema:
    if "properties" not in node:
        inner = node.get("additionalProperties")
        longest = node.get("propertyNames", {}).get("maxLength")
        if isinstance(inner, dict) and inner and longest is not None:
            return {
                "additionalProperties": _structural(inner, definitions, described),
                "x-kubernetes-validations": [key_rule(longest)],
            }
        raise TypeError(f"a field without a schema has no limit either: {node}")
    texts = described.get(node.get("title", ""), {})
    properties: Schema = {}
    for name, value in node["properties"].items():
        member = _structural(value, definitions, described)
        if name in texts:
            member["description"] = texts[name]
        properties[name] = member
    return {"properties": properties}
