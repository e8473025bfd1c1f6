"""An apiserver in memory behind the operator's `Api`, with the rules that the operator relies on.

It names, versions and refuses objects as a real one does (404, 409, 422). An apply merges what this
field manager says and removes what it says no more. A write that changes nothing makes no version
and no event. apiserver_rules.py says each rule; tests/cluster holds a real apiserver to the same.

Not played: other field managers, admission, garbage collection, lists' keys in an apply (a list is
replaced whole), projection of listings.
"""

from __future__ import annotations

import asyncio
import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from genai_operator.kube.apiserver.api import ApiError
from genai_operator.kube.apiserver.resources import RESOURCES
from genai_operator.kube.values import Json

Place = tuple[str, str, str]
"""Plural, namespace (empty where the resource has none) and name."""
_KINDS = {
    "services": "Service", "poddisruptionbudgets": "PodDisruptionBudget", "jobs": "Job",
    "deployments": "Deployment", "pods": "Pod", "genaibuilds": "GenAIBuild",
}  # fmt: skip
_NO_STATUS = {"events", "secrets", "leases"}
"""All others have a subresource for their status: a create or an apply of the object leaves it."""
_STATUS_DEFAULTS = {"genaibuilds": {"cached": 0}}
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_IN = re.compile(r"(\S+) in \(([^)]*)\)")


@dataclass(frozen=True)
class Call:
    """A request.

    Attributes:
        verb: Name of the method of `Api`.
        name: Of the object; empty of a listing.
        how: Its further arguments.
    """

    verb: str
    plural: str
    name: str = ""
    namespace: str = ""
    how: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _Numbers:
    version: int = 100
    uids: int = 0


class FakeApiserver:
    """See the module's docstring.

    Attributes:
        calls: All requests, in order, the refused ones too.
        statuses: Bodies of the statuses that were applied, in order.
        deleted: Names of the objects that were deleted by request, in order.
        logs: Of all pods.
        watchers: Called with plural, type of the event and object.
        kinds: Of our own group, that are installed.
        clock: When an object is made, and when its deletion was asked for.
    """

    server = "https://10.96.0.1"

    def __init__(self) -> None:
        self.objects: dict[Place, Json] = {}
        self.calls: list[Call] = []
        self.statuses: list[Json] = []
        self.deleted: list[str] = []
        self.logs: str | None = None
        self.watchers: list[Callable[[str, str, Json], None]] = []
        self.kinds = [row.plural for row in RESOURCES.values() if row.ours]
        self.clock: Callable[[], datetime] = lambda: datetime.now(UTC)
        self._numbers = _Numbers()
        self._applied: dict[tuple[Place, str], Json] = {}
        self._refusals: list[tuple[str, str, Exception]] = []
        self._held: dict[tuple[str, str], asyncio.Event] = {}

    # What a test arranges and looks at

    @property
    def version(self) -> int:
        """Of the newest write."""
        return self._numbers.version

    @version.setter
    def version(self, number: int) -> None:
        self._numbers.version = number

    def client(self) -> FakeApiserver:
        """Another way to the same objects, with calls and refusals of its own."""
        other = copy.copy(self)
        other.calls, other._refusals, other._held = [], [], {}
        return other

    def put(self, plural: str, value: Json) -> Json:
        """Someone else's write: what the metadata says stays; what they leave out is filled in."""
        value = copy.deepcopy(value)
        meta = value["metadata"]
        there = self.objects.get(self._place(plural, meta))
        if "uid" not in meta and there is not None:
            meta["uid"] = there["metadata"]["uid"]
        self._identify(plural, meta)
        if "resourceVersion" in meta:
            self.version = max(self.version, int(meta["resourceVersion"]))
        return self._store(plural, value, version=meta.get("resourceVersion"))

    def remove(self, plural: str, name: str, *, namespace: str = "") -> None:
        """Someone else's deletion, or the end of a grace period."""
        self._drop(self._place(plural, {"name": name, "namespace": namespace}))

    def of(self, plural: str) -> list[Json]:
        """Objects of a resource, in the order of their creation."""
        return [copy.deepcopy(value) for place, value in self.objects.items() if place[0] == plural]

    @property
    def events(self) -> list[Json]:
        """Events that were posted."""
        return self.of("events")

    @property
    def reasons(self) -> list[str]:
        """Of those Events."""
        return [event["reason"] for event in self.events]

    def asked(self, verb: str, plural: str) -> list[Call]:
        """Requests of that kind."""
        return [call for call in self.calls if (call.verb, call.plural) == (verb, plural)]

    def refuse(self, error: Exception, *, verb: str = "", plural: str = "") -> None:
        """Answer such requests with an error from now on; left out: all."""
        self._refusals.append((verb, plural, error))

    def allow(self) -> None:
        """Refuse nothing any more."""
        self._refusals.clear()

    def hold(self, verb: str, plural: str) -> asyncio.Event:
        """Let such requests wait until the event is set."""
        return self._held.setdefault((verb, plural), asyncio.Event())

    # As an `Api`

    async def served(self) -> set[str]:
        """Resources of our own group."""
        await self._asked(Call("served", ""))
        return {name for plural in self.kinds for name in (plural, f"{plural}/status")}

    async def get(self, plural: str, name: str, *, namespace: str = "") -> Json | None:
        """One object; None where there is none."""
        await self._asked(Call("get", plural, name, namespace))
        place = self._place(plural, {"name": name, "namespace": namespace})
        return copy.deepcopy(self.objects.get(place))

    async def read(self, plural: str, pod: str, *, namespace: str, most_bytes: int) -> str | None:
        """A pod's log."""
        await self._asked(Call("read", plural, pod, namespace, {"most_bytes": most_bytes}))
        return None if self.logs is None else self.logs.encode()[:most_bytes].decode()

    async def list(
        self,
        plural: str,
        *,
        namespace: str = "",
        name: str = "",
        labels: str = "",
        about: str = "",
        most: int = 0,
        fresh: bool = False,
        names_only: bool = False,
    ) -> tuple[list[Json], int]:
        """Objects in the order of their names, and the version of the whole."""
        how = {"namespace": namespace, "name": name, "labels": labels, "about": about,
               "most": most, "fresh": fresh, "names_only": names_only}  # fmt: skip
        await self._asked(
            Call("list", plural, name, namespace, {k: v for k, v in how.items() if v})
        )
        found = [
            copy.deepcopy({"metadata": value["metadata"]} if names_only else value)
            for place, value in sorted(self.objects.items(), key=lambda entry: entry[0])
            if place[0] == plural
            and namespace in {"", place[1]}
            and name in {"", place[2]}
            and about in {"", (value.get("involvedObject") or {}).get("uid", "")}
            and _selects(labels, value["metadata"].get("labels") or {})
        ]
        return found[:most] if most else found, self.version

    async def create(self, plural: str, value: Json, *, namespace: str) -> Json:
        """Create; 409 where the name is taken, 422 where the object cannot be."""
        meta = value["metadata"]
        await self._asked(Call("create", plural, meta.get("name", ""), namespace))
        self._check(plural, value, namespace)
        if self._place(plural, {**meta, "namespace": namespace}) in self.objects:
            raise _refusal(409, "AlreadyExists", f'{plural} "{meta["name"]}" already exists')
        value = copy.deepcopy(value)
        if plural not in _NO_STATUS:
            value.pop("status", None)
        if RESOURCES[plural].ours:
            value["status"] = {"observedGeneration": -1, **_STATUS_DEFAULTS.get(plural, {})}
        value["metadata"]["namespace"] = namespace
        self._identify(plural, value["metadata"])
        return self._store(plural, value)

    async def replace(self, plural: str, value: Json, *, namespace: str) -> Json:
        """Update; 409 where the object is not the one that was read any more."""
        meta = value["metadata"]
        await self._asked(Call("replace", plural, meta["name"], namespace))
        if not meta.get("resourceVersion"):
            message = "metadata.resourceVersion: Invalid value: must be specified for an update"
            raise _refusal(422, "Invalid", message, "metadata.resourceVersion")
        place = self._place(plural, {**meta, "namespace": namespace})
        if place not in self.objects and plural == "leases":
            return await self.create(plural, value, namespace=namespace)
        place, there = self._there(plural, meta["name"], namespace)
        known = there["metadata"]
        same = meta["resourceVersion"], meta.get("uid", known["uid"])
        if same != (known["resourceVersion"], known["uid"]):
            raise _conflict(place)
        return self._write(place, copy.deepcopy(value))

    async def apply(self, plural: str, value: Json, *, namespace: str) -> Json:
        """Server-side apply: the object is created where it is not there."""
        meta = value["metadata"]
        await self._asked(Call("apply", plural, meta["name"], namespace))
        self._check(plural, value, namespace)
        place = self._place(plural, {**meta, "namespace": namespace})
        there = self.objects.get(place)
        if there is None and meta.get("uid"):
            raise _conflict(place)
        if there is not None:
            _check_uid(place, meta, there)
        said = {k: v for k, v in copy.deepcopy(value).items() if k != "status"}
        if there is None:
            made = copy.deepcopy(said)
            made["metadata"]["namespace"] = namespace
            self._identify(plural, made["metadata"])
            self._applied[place, ""] = said
            return self._store(plural, made)
        return self._merge(place, "", said)

    async def apply_status(self, plural: str, value: Json, *, namespace: str = "") -> Json:
        """Server-side apply of a status; 404 where the object is gone."""
        await self._asked(Call("apply_status", plural, value["metadata"]["name"], namespace))
        place, there = self._there(plural, value["metadata"]["name"], namespace)
        _check_uid(place, value["metadata"], there)
        self.statuses.append(copy.deepcopy(value))
        return self._merge(place, "status", {"status": copy.deepcopy(value.get("status", {}))})

    async def merge_lists(self, plural: str, name: str, value: Json, *, namespace: str) -> Json:
        """Strategic merge of metadata: owners by their UID, annotations by their keys."""
        await self._asked(Call("merge_lists", plural, name, namespace))
        place, there = self._there(plural, name, namespace)
        patch = copy.deepcopy(value)
        assert set(patch) == {"metadata"}, "nothing else is merged by the operator"
        wanted = copy.deepcopy(there)
        meta, said = wanted["metadata"], patch["metadata"]
        _check_uid(place, said, there)
        said.pop("uid", None)
        for entry in said.pop("ownerReferences", ()):
            drops = entry.pop("$patch", "") == "delete"
            owners = [o for o in meta.get("ownerReferences", ()) if o["uid"] != entry["uid"]]
            known = [o for o in meta.get("ownerReferences", ()) if o["uid"] == entry["uid"]]
            meta["ownerReferences"] = owners + ([] if drops else [*(known or ({},))[:1]])
            if not drops:
                meta["ownerReferences"][-1] = {**meta["ownerReferences"][-1], **entry}
        for name_, entries in said.items():
            assert name_ in {"annotations", "labels"}, name_
            merged = {**meta.get(name_, {}), **entries}
            meta[name_] = {key: text for key, text in merged.items() if text is not None}
        return self._write(place, wanted)

    async def delete(
        self, plural: str, name: str, *, namespace: str, uid: str, grace: int | None = None
    ) -> bool:
        """Delete exactly that object; a pod that runs gets its grace period first."""
        await self._asked(Call("delete", plural, name, namespace, {"uid": uid, "grace": grace}))
        place = self._place(plural, {"name": name, "namespace": namespace})
        there = self.objects.get(place)
        if there is None or there["metadata"]["uid"] != uid:
            return False
        self.deleted.append(name)
        waits = plural == "pods" and grace != 0 and (there.get("spec") or {}).get("nodeName")
        if waits or there["metadata"].get("finalizers"):
            wanted = copy.deepcopy(there)
            wanted["metadata"].setdefault("deletionTimestamp", self._now())
            self._write(place, wanted)
        else:
            self._drop(place)
        return True

    # Within

    def _now(self) -> str:
        return self.clock().strftime("%Y-%m-%dT%H:%M:%SZ")

    async def _asked(self, call: Call) -> None:
        self.calls.append(call)
        held = self._held.get((call.verb, call.plural))
        if held is not None:
            await held.wait()
        for verb, plural, error in self._refusals:
            if verb in {"", call.verb} and plural in {"", call.plural}:
                raise error

    def _place(self, plural: str, meta: Mapping[str, Any]) -> Place:
        namespaced = RESOURCES[plural].namespaced
        return plural, meta.get("namespace", "") if namespaced else "", meta["name"]

    def _there(self, plural: str, name: str, namespace: str) -> tuple[Place, Json]:
        place = self._place(plural, {"name": name, "namespace": namespace})
        if place not in self.objects:
            raise _refusal(404, "NotFound", f'{plural} "{name}" not found')
        return place, self.objects[place]

    def _identify(self, plural: str, meta: Json) -> None:
        if not RESOURCES[plural].namespaced:
            meta.pop("namespace", None)
        if "uid" not in meta:
            self._numbers.uids += 1
            meta["uid"] = f"uid-{self._numbers.uids}"
        meta.setdefault("creationTimestamp", self._now())
        meta.setdefault("generation", 1)

    def _check(self, plural: str, value: Json, namespace: str) -> None:
        meta = value["metadata"]
        if meta.get("namespace", namespace) != namespace:
            message = "the namespace of the object does not match the namespace on the request"
            raise _refusal(400, "BadRequest", message)
        wrong = [] if _NAME.fullmatch(meta["name"]) else ["metadata.name"]
        for text in (meta.get("labels") or {}).values():
            if not _LABEL.fullmatch(text):
                wrong.append("metadata.labels")
        owners = meta.get("ownerReferences") or ()
        members = ("apiVersion", "kind", "name", "uid")
        if any(not owner.get(member) for owner in owners for member in members):
            wrong.append("metadata.ownerReferences")
        if sum(bool(owner.get("controller")) for owner in owners) > 1:
            wrong.append("metadata.ownerReferences")
        if wrong:
            kind = _KINDS.get(plural, plural)
            message = f'{kind} "{meta["name"]}" is invalid: {wrong[0]}: Invalid value'
            raise _refusal(422, "Invalid", message, *wrong)

    def _merge(self, place: Place, part: str, said: Json) -> Json:
        """What this manager said and says; the rest stays."""
        before = self._applied.get((place, part), {})
        self._applied[place, part] = copy.deepcopy(said)
        wanted = copy.deepcopy(self.objects[place])
        _forget(wanted, before, said)
        _lay(wanted, said)
        return self._write(place, wanted)

    def _write(self, place: Place, wanted: Json) -> Json:
        """A write of an object that is there: of one that changes nothing there is no trace."""
        there = self.objects[place]
        kept = ("uid", "resourceVersion", "creationTimestamp", "generation", "namespace", "name")
        for name in kept:
            if name in there["metadata"]:
                wanted["metadata"][name] = there["metadata"][name]
        if wanted == there:
            return copy.deepcopy(there)
        if _asks(wanted) != _asks(there):
            wanted["metadata"]["generation"] += 1
        return self._store(place[0], wanted)

    def _store(self, plural: str, value: Json, *, version: str | None = None) -> Json:
        place = self._place(plural, value["metadata"])
        if version is None:
            self.version += 1
        value["metadata"]["resourceVersion"] = version or str(self.version)
        kind = "MODIFIED" if place in self.objects else "ADDED"
        self.objects[place] = value
        self._tell(plural, kind, value)
        return copy.deepcopy(value)

    def _drop(self, place: Place) -> None:
        value = self.objects.pop(place)
        for part in ("", "status"):
            self._applied.pop((place, part), None)
        self.version += 1
        value["metadata"]["resourceVersion"] = str(self.version)
        self._tell(place[0], "DELETED", value)

    def _tell(self, plural: str, kind: str, value: Json) -> None:
        for watcher in self.watchers:
            watcher(plural, kind, copy.deepcopy(value))


def _asks(value: Json) -> Json:
    """What counts for an object's generation."""
    return {name: part for name, part in value.items() if name not in {"metadata", "status"}}


def _forget(target: Json, before: Json, now: Json) -> None:
    """Take out of an object what was said before and is not said now."""
    for name, old in before.items():
        if name not in now:
            target.pop(name, None)
        elif all(isinstance(part, dict) for part in (old, now[name], target.get(name))):
            _forget(target[name], old, now[name])


def _lay(target: Json, said: Json) -> None:
    for name, new in said.items():
        if isinstance(new, dict) and isinstance(target.get(name), dict):
            _lay(target[name], new)
        else:
            target[name] = copy.deepcopy(new)


def _selects(selector: str, labels: Mapping[str, str]) -> bool:
    """Equality and `in`, of which the operator uses one at a time."""
    if not selector:
        return True
    if found := _IN.fullmatch(selector):
        return labels.get(found[1]) in {text.strip() for text in found[2].split(",")}
    name, equal, text = selector.partition("=")
    if not equal or "," in selector:
        raise NotImplementedError(selector)
    return labels.get(name) == text


def _refusal(code: int, reason: str, message: str, *fields: str) -> ApiError:
    return ApiError(code, reason, message, fields=fields)


def _check_uid(place: Place, said: Mapping[str, Any], there: Json) -> None:
    if said.get("uid", there["metadata"]["uid"]) != there["metadata"]["uid"]:
        kind = _KINDS.get(place[0], place[0])
        message = f'{kind} "{place[2]}" is invalid: metadata.uid: field is immutable'
        raise _refusal(422, "Invalid", message, "metadata.uid")


def _conflict(place: Place) -> ApiError:
    message = f'Operation cannot be fulfilled on {place[0]} "{place[2]}": it is another one by now'
    return _refusal(409, "Conflict", message)
