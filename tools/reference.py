"""The reference page of a kind, from its CRD's schema: every field, type, default and meaning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from genai_core.kinds.definitions.crd import crd
from genai_core.kinds.definitions.defined_kinds import DefinedKind

Schema = dict[str, Any]

_OF_KUBERNETES = {
    "affinity": "https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/"
    "#affinity-and-anti-affinity"
}
"""Fields that another page tells of: name -> its address."""

_INTRO = """\
<!-- Generated from core/genai_core/kinds by `make generate`; never edit. -->
# {kind}: every field

{about}

The same file works with `genai build -f` on a laptop and with `kubectl apply` in a cluster. Values
of closed lists are written as they stand here: the command line reads them without regard to case,
an apiserver does not. A field that is left out has its default. On the command line a relative
`model.source` counts from the YAML file, and files such as tokens from the model's source. A
mistake is named with file, line and field:

```
$ genai build -f build.yaml
error: build.yaml:14: spec.quantisation: unknown field; did you mean quantization?
```

## Example

```yaml
{example}```

"""


def page(kind: DefinedKind, example: str) -> str:
    """Markdown for one kind's spec.

    Args:
        kind: Of `genai_core.kinds.definitions.defined_kinds.KINDS`.
        example: A YAML file that uses it.
    """
    version = crd(kind)["spec"]["versions"][0]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    text = _INTRO.format(kind=kind.kind, about=spec.get("description", ""), example=example)
    parts = [text, "## spec\n\n", _table(spec, "spec")]
    for path, schema in _sections(spec, "spec"):
        about = f"{schema['description']}\n\n" if schema.get("description") else ""
        parts.append(f"\n## {path}\n\n{about}{_table(schema, path)}")
    if kind.rules:
        parts.append("\n## What fields say together\n\n")
        parts += [f"- `{rule.path}`: {rule.message}\n" for rule in kind.rules]
    return "".join(parts)


def _sections(schema: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """Every object with fields of its own below a schema, in reading order."""
    for name, value in schema.get("properties", {}).items():
        if name in _OF_KUBERNETES:
            continue
        at = f"{path}.{name}"
        inner = value
        if value.get("type") == "array":
            inner, at = value["items"], f"{at}[]"
        if "properties" in inner:
            yield at, inner
            yield from _sections(inner, at)


def _table(schema: Schema, path: str) -> str:
    required = set(schema.get("required", []))
    rows = ["| field | type | default | meaning |\n", "|---|---|---|---|\n"]
    for name, value in schema["properties"].items():
        default = "required" if name in required else _default(value)
        meaning = value.get("description", "").replace("|", "\\|")
        kind = _type(value, f"{path}.{name}").replace("|", "\\|")
        rows.append(f"| `{name}` | {kind} | {default} | {meaning} |\n")
    return "".join(rows)


def _default(value: Schema) -> str:
    if "default" not in value or value["default"] in ("", [], {}):
        return ""
    if "properties" in value:
        return ""
    return f"`{json.dumps(value['default'], ensure_ascii=False)}`".replace('`"', "`").replace(
        '"`', "`"
    )


def _type(value: Schema, path: str) -> str:
    if "enum" in value:
        return ", ".join(f"`{item}`" for item in value["enum"])
    if value.get("x-kubernetes-int-or-string"):
        return "number or `auto`"
    if value.get("type") == "array":
        inner = value["items"]
        if "properties" in inner:
            return f"list of [{path.rsplit('.', 1)[1]}](#{_anchor(path + '[]')})"
        return f"list of {_plural(_type(inner, path))}"
    if (address := _OF_KUBERNETES.get(path.rsplit(".", 1)[1])) is not None:
        return f"[mapping]({address})"
    if "properties" in value:
        return f"[mapping](#{_anchor(path)})"
    if "additionalProperties" in value:
        return "mapping of text to text"
    if value.get("type") == "object":
        return "mapping"
    name = {
        "integer": "whole number",
        "number": "number",
        "boolean": "true or false",
        "string": "text",
    }
    kind = str(value.get("type", ""))
    return name.get(kind, kind) + _limits(value)


def _plural(text: str) -> str:
    return text.replace("whole number", "whole numbers").replace("text", "texts", 1)


def _limits(value: Schema) -> str:
    low, high = value.get("minimum"), value.get("maximum")
    if low is not None and high is not None:
        return f", {low:g} to {high:g}" if high < 10**6 else f", at least {low:g}"
    if low is not None:
        return f", at least {low:g}"
    return ""


def _anchor(path: str) -> str:
    return "".join(c for c in path.lower() if c.isalnum() or c in "-_")
