"""Of each object that the apiserver sends, what is read: the rest goes while it is parsed. Pure.

Whoever may write an object decides how large it is: annotations, labels, owners, what managers of
fields left, a megabyte and a half of all that. Parsed, a megabyte can take thirty, and namespaces
that are not enabled are watched too. So listings are cut into their objects as they come in, and of
each object that much is kept as an honest one has. One of our own kinds that is larger is marked
(`PARTIAL`): whoever works on it has it read whole, and lets it go again.
"""

from __future__ import annotations

import json
import re
from codecs import getincrementaldecoder
from collections.abc import Callable, Mapping
from typing import Any

from genai_core.files.deep_json import without_depth
from genai_core.wire import GROUP, JOB_NAME, MANAGED, REQUESTED_AT, STAGE_CONTAINER
from genai_operator.kube.apiserver.resources import watched
from genai_operator.kube.values import Json

__all__ = ["OURS", "PARTIAL", "Listing", "lean", "plural_of", "whole"]


PARTIAL = "partial"
"""Member of an object of ours whose spec or status was not kept."""

OURS = frozenset(row.plural for row in watched() if row.ours)
_PLACE = re.compile(
    r"/(?:api|apis/[^/]+)/v[0-9a-z]+(?:/namespaces/[^/]+)?/"
    f"({'|'.join(row.plural for row in watched())})"
)

_META = (
    *("name", "namespace", "uid", "resourceVersion", "generation"),
    *("creationTimestamp", "deletionTimestamp"),
)
_LABELS = (MANAGED, JOB_NAME)
_MOST_SPEC = 8 << 10
_MOST_STATUS = 32 << 10
_MOST_NOTE = 16 << 10
_MOST_REQUEST = 256
_MOST_OWNERS = 2000
_MOST_WORD = 1024
_MOST_NAMED = 32
_MOST_VALUE = 16 << 20
"""Characters of one object; the apiserver itself takes three megabytes."""


def plural_of(path: str) -> str | None:
    """The kind that a URL's path lists or watches; None: another, or a single object."""
    match = _PLACE.fullmatch(path.rstrip("/"))
    return match[1] if match else None


def lean(plural: str, value: Mapping[str, Any]) -> Json:
    """An object with what is read of it; see the module's docstring."""
    meta = value["metadata"]
    projected: Json = {name: value[name] for name in ("apiVersion", "kind") if name in value}
    metadata: Json = {name: meta[name] for name in _META if name in meta}
    projected["metadata"] = metadata
    if plural not in OURS:
        metadata |= _marks(meta)
        projected["spec"] = _words(value.get("spec"))
        template = (value.get("spec") or {}).get("template")
        if isinstance(template, Mapping):
            projected["spec"]["template"] = {"spec": _words(template.get("spec"))}
            if plural == "deployments":
                marks = _marks(template.get("metadata") or {})
                projected["spec"]["template"]["metadata"] = {"annotations": marks["annotations"]}
        if plural == "pods":
            projected["spec"]["containers"] = _stage(value.get("spec"))
        projected["status"] = _bounded(value.get("status"), _MOST_STATUS)
        return projected
    request = (meta.get("annotations") or {}).get(REQUESTED_AT)
    if request:
        metadata["annotations"] = {REQUESTED_AT: request[:_MOST_REQUEST]}
    partial = value.get(PARTIAL, False)
    for name, most, some in (
        ("spec", _MOST_SPEC, _named),
        ("status", _MOST_STATUS, _words),
    ):
        part = value.get(name)
        if not isinstance(part, Mapping):
            continue
        if len(json.dumps(part)) > most:
            partial, part = True, some(part)
        projected[name] = part
    if partial:
        projected[PARTIAL] = True
    return projected


def whole(value: Mapping[str, Any]) -> Json:
    """An object of ours with all of its spec and status, for as long as it is worked on."""
    parts = {name: value[name] for name in ("spec", "status") if name in value}
    projected = lean("genaibuilds", {k: v for k, v in value.items() if k != PARTIAL}) | parts
    projected.pop(PARTIAL, None)
    return projected


def _marks(meta: Mapping[str, Any]) -> Json:
    """Of a Job or a pod: what we wrote on it, and who claims it."""
    marks: Json = {}
    for name, wanted, most in (
        ("labels", (f"{GROUP}/", *_LABELS), _MOST_WORD),
        ("annotations", (f"{GROUP}/",), _MOST_NOTE),
    ):
        pairs = meta.get(name) or {}
        marks[name] = {
            key: text for key, text in pairs.items() if key.startswith(wanted) and len(text) <= most
        }
    owners = (meta.get("ownerReferences") or ())[:_MOST_OWNERS]
    marks["ownerReferences"] = [_owner(owner) for owner in owners]
    return marks


def _owner(owner: Mapping[str, Any]) -> Json:
    """Its UID; of a server's pod also which ReplicaSet made it."""
    kept: Json = {"uid": owner["uid"]}
    if owner.get("kind") == "ReplicaSet" and len(owner["name"]) <= _MOST_WORD:
        kept |= {name: owner.get(name) for name in ("kind", "name", "controller")}
    return kept


def _words(part: Any) -> Json:
    """The short values of an object, and its conditions."""
    if not isinstance(part, Mapping):
        return {}
    words = {
        name: value
        for name, value in part.items()
        if isinstance(value, int | float) or (isinstance(value, str) and len(value) <= _MOST_WORD)
    }
    conditions = part.get("conditions")
    if isinstance(conditions, list):
        words["conditions"] = _bounded({"of": conditions}, _MOST_NOTE).get("of", [])
    return words


def _stage(spec: Any) -> list[Json]:
    """Name and image of a stage's container."""
    containers = spec.get("containers") if isinstance(spec, Mapping) else None
    for container in containers if isinstance(containers, list) else ():
        image = container.get("image")
        named = container.get("name") == STAGE_CONTAINER
        if named and isinstance(image, str) and len(image) <= _MOST_WORD:
            return [{"name": STAGE_CONTAINER, "image": image}]
    return []


def _bounded(part: Any, most: int) -> Json:
    if not isinstance(part, Mapping):
        return {}
    return dict(part) if len(json.dumps(part)) <= most else _words(part)


def _named(spec: Mapping[str, Any]) -> Json:
    """What a build or a deployment, whose spec is not kept, waits for."""
    kept: Json = {}
    targets = spec.get("targets")
    if isinstance(targets, list):
        kept["targets"] = [text for text in targets[:_MOST_NAMED] if isinstance(text, str)]
    origin = spec.get("from")
    if isinstance(origin, Mapping):
        kept["from"] = _words(origin)
    server = spec.get("server")
    if isinstance(server, Mapping) and isinstance(server.get("modelName"), str):
        kept["server"] = {"modelName": server["modelName"][:_MOST_WORD]}
    store = spec.get("store")
    if isinstance(store, Mapping) and isinstance(store.get("name"), str):
        kept["store"] = {"name": store["name"][:_MOST_WORD]}
    return kept


class Listing:
    """Reads a listing (`{"items": [...], ...}`) piece by piece, an object at a time.

    Args:
        keep: What is kept of each object.
    """

    def __init__(self, keep: Callable[[Json], Json]) -> None:
        self._keep = keep
        self._decode = getincrementaldecoder("utf-8")().decode
        self._scan = json.JSONDecoder().raw_decode
        self._text = ""
        self._at = 0
        self._enough = 0
        self._key: str | None = None
        self._in_items = False
        self._ended = False
        self._found: Json = {"items": []}

    def feed(self, data: bytes) -> None:
        """Take the next bytes in.

        Raises:
            ValueError: An object without an end.
        """
        self._text += self._decode(data)
        if len(self._text) < min(self._enough, _MOST_VALUE):
            return
        while not self._ended and self._step():
            pass
        self._text = self._text[self._at :]
        self._at = 0
        # What is incomplete is tried again when there is much more of it, and not at each byte.
        self._enough = 4 * len(self._text)
        if len(self._text) > _MOST_VALUE:
            raise ValueError(f"an object of more than {_MOST_VALUE >> 20} MiB in a listing")

    def end(self) -> Json:
        """The listing, with what was kept of its objects.

        Raises:
            ValueError: It was cut short, or is no listing.
        """
        self._enough = 0
        self.feed(b"")
        if not self._ended:
            raise ValueError("a listing was cut short")
        self._found["items"] = self._found["items"] or []  # Go writes null for none
        return self._found

    def _step(self) -> bool:
        """One token on; False where more bytes are needed for it."""
        sign = self._sign()
        if not sign:
            return False
        if sign in "{," or (sign == "[" and self._key == "items" and not self._in_items):
            self._in_items = self._in_items or sign == "["
            self._at += 1
            return True
        if sign == "]" and self._in_items:
            self._in_items, self._key = False, None
            self._at += 1
            return True
        if sign == "}" and self._key is None:
            self._ended = True
            return True
        return self._value()

    def _sign(self) -> str:
        """The character that comes next; at the beginning of an object it is not ours to skip."""
        while self._at < len(self._text) and self._text[self._at] in " \t\r\n:":
            self._at += 1
        sign = self._text[self._at : self._at + 1]
        # "{" opens the listing itself, or a value: an item, or what stands under a name.
        return "v" if sign == "{" and (self._in_items or self._key is not None) else sign

    def _value(self) -> bool:
        try:
            value, end = self._scan(self._text, self._at)
        except json.JSONDecodeError:
            return False
        except RecursionError:
            cut = without_depth(self._text, self._at)
            if cut is None:
                return False
            value, end = json.loads(cut[0]), cut[1]
        if end == len(self._text):  # a number may go on
            return False
        self._at = end
        if self._in_items:
            self._found["items"].append(self._keep(value))
        elif self._key is None:
            self._key = str(value)
        else:
            self._found[self._key], self._key = value, None
        return True
