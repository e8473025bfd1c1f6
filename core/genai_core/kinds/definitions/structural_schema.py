"""A pydantic model as a structural schema of the apiserver.

References are inlined, nulls dropped, `const` is an enum, the one int-or-string is marked,
descriptions come from the source, defaults of nested objects stand in full, so that the apiserver
fills in their fields. A map's limit for its keys and a pattern's words are CEL. Source: Kubernetes
"Extend the Kubernetes API with CustomResourceDefinitions", "Specifying a structural schema".
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from genai_core.kinds.base import LIST_KEYS
from genai_core.kinds.describe import describe_fields
from genai_core.kinds.documents.wording import key_rule, pattern_rule

Schema = dict[str, Any]

_LONGEST_TIME = 64


def structural_schema(model: type[BaseModel]) -> Schema:
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


def worded(node: Schema) -> Schema:
    """A schema whose patterns say in words what they allow."""
    if "pattern" in node:
        node.setdefault("x-kubernetes-validations", []).append(pattern_rule(node["pattern"]))
    for inner in (*node.get("properties", {}).values(), node.get("items"),
                  node.get("additionalProperties")):  # fmt: skip
        if inner is not None:
            worded(inner)
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
