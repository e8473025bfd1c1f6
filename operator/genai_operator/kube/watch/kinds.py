"""A row of the table of kinds: what wakes a kind's objects, and which reconciler works on them.

An event of a watch becomes a change of the watch cache (`Intake`). An object of a kind is worked on
when its own user asked for something else, and when a change of another resource concerns it
(`Kind.woken_by`). Nothing is decided here: a pass of its `Reconciler` starts from what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from genai_operator.kube.watch.cache import Cache

__all__ = ["Change", "Intake", "Kind", "KindIntake", "Place", "Reconciler", "Ref", "Wakes"]

V = TypeVar("V")

Place: TypeAlias = tuple[str, str]
"""Namespace (empty where the kind has none) and name."""


@dataclass(frozen=True)
class Ref:
    """An object that is worked on."""

    plural: str
    namespace: str
    name: str


@dataclass(frozen=True)
class Change(Generic[V]):
    """What an event changed in the watch cache.

    Attributes:
        plural: Of the resource.
        before: What was known; None = nothing.
        now: What is known; None = it is gone.
    """

    plural: str
    place: Place
    before: V | None
    now: V | None

    @property
    def value(self) -> V:
        """The object, as it is or was."""
        known = self.now if self.now is not None else self.before
        assert known is not None
        return known


class Intake(Protocol):
    """Takes the events of one resource into the watch cache."""

    @property
    def cache(self) -> Cache[Any]:
        """What is known of its objects."""
        ...

    def take(self, value: Mapping[str, Any], *, deleted: bool) -> Iterable[Change[Any]]:
        """Take in an object as the apiserver sends it; returns what that changes."""
        ...

    def vanished(self, namespace: str, name: str, *, uid: str) -> Iterable[Change[Any]]:
        """Take in that something is gone, of which no watch told."""
        ...


class Reconciler(Protocol):
    """Works on objects of one kind, one pass at a time each."""

    async def reconcile(self, namespace: str, name: str) -> float | None:
        """One pass; returns after how many seconds another one is wanted anyway.

        Raises:
            ApiError: And any other error: it is logged, and tried again with growing pauses.
        """
        ...

    def tidy(self) -> None:
        """Forget what is known of objects that are gone; called every few seconds."""
        ...


Wakes: TypeAlias = Callable[[Change[Any]], Iterable[Place]]
"""A change of another resource -> the objects of a kind that it concerns."""


@dataclass(frozen=True)
class Kind(Generic[V]):
    """A row of the table of kinds.

    Attributes:
        plural: Its name, as in `resources`.
        cache: What is known of its objects.
        view: An object as the apiserver sends it -> what is kept of it.
        asked: Of that: what a user can change. A change of anything else wakes nobody: our own
            status comes back as an event too.
        reconciler: Works on it.
        woken_by: Plural of another resource, or of its own -> whom a change of that concerns.
    """

    plural: str
    cache: Cache[V]
    view: Callable[[Mapping[str, Any]], V]
    asked: Callable[[V], object]
    reconciler: Reconciler
    woken_by: Mapping[str, Wakes] = field(default_factory=dict)

    def woken(self, change: Change[Any]) -> Iterable[Ref]:
        """Its objects that a change concerns."""
        asked = change.plural == self.plural and change.now is not None
        if asked and (change.before is None or self._differs(change)):
            yield Ref(self.plural, *change.place)
        for place in self.woken_by.get(change.plural, _nobody)(change):
            yield Ref(self.plural, *place)

    def _differs(self, change: Change[Any]) -> bool:
        return self.asked(change.before) != self.asked(change.now)  # type: ignore[arg-type]


class KindIntake(Generic[V]):
    """Takes in the events of a kind of ours."""

    def __init__(self, kind: Kind[V]) -> None:
        self._kind = kind

    @property
    def cache(self) -> Cache[V]:
        """What is known of its objects."""
        return self._kind.cache

    def take(self, value: Mapping[str, Any], *, deleted: bool) -> list[Change[V]]:
        """Take in an object as the apiserver sends it; returns what that changes."""
        meta = value["metadata"]
        if deleted:
            return self.vanished(meta.get("namespace", ""), meta["name"], uid=meta["uid"])
        place = meta.get("namespace", ""), meta["name"]
        before, now = self.cache.get(*place), self._kind.view(value)
        self.cache.put(value, now)
        return [Change(self._kind.plural, place, before, now)]

    def vanished(self, namespace: str, name: str, *, uid: str) -> list[Change[V]]:
        """Take in that something is gone, of which no watch told."""
        before = self.cache.get(namespace, name)
        self.cache.drop(namespace, name, uid)
        # Its successor may be known already, from an answer that was quicker than the watch.
        now = self.cache.get(namespace, name)
        if before is None:
            return []
        return [Change(self._kind.plural, (namespace, name), before, now)]


def _nobody(_change: Change[Any]) -> Iterable[Place]:
    return ()
