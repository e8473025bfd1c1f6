"""Objects of one kind as the watches delivered them, by namespace and name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

__all__ = ["Cache", "Entry", "V", "version_of"]

V = TypeVar("V")

_MOST_GONE = 10_000
"""How many vanished objects are remembered, so that a listing from before does not revive them."""


@dataclass(frozen=True)
class Entry(Generic[V]):
    """One object and the version it was seen in."""

    uid: str
    version: int
    value: V


def version_of(value: Mapping[str, Any]) -> int:
    """A resourceVersion as the number that it is (etcd's revision)."""
    text = str(value["metadata"].get("resourceVersion", "0"))
    return int(text) if text.isdigit() else 0


class Cache(Generic[V]):
    """Objects of one kind by (namespace, name)."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], Entry[V]] = {}
        self._gone: dict[str, None] = {}

    def put(self, value: Mapping[str, Any], view: V) -> bool:
        """Keep an object unless a newer version of it is known; tells whether it was kept."""
        meta = value["metadata"]
        place = (meta.get("namespace", ""), meta["name"])
        known = self._entries.get(place)
        version = version_of(value)
        if meta["uid"] in self._gone:  # a late answer or listing; it does not come back
            return False
        if known is not None and known.uid == meta["uid"] and known.version > version:
            return False
        self._entries[place] = Entry(meta["uid"], version, view)
        return True

    def amend(self, namespace: str, name: str, view: V) -> None:
        """Change what is known of an object, as of the version that it was seen in."""
        known = self._entries[namespace, name]
        self._entries[namespace, name] = replace(known, value=view)

    def drop(self, namespace: str, name: str, uid: str) -> V | None:
        """Forget exactly that object, for good; returns what was known of it."""
        self._gone[uid] = None
        if len(self._gone) > _MOST_GONE:
            del self._gone[next(iter(self._gone))]
        known = self._entries.get((namespace, name))
        if known is None or known.uid != uid:
            return None
        del self._entries[namespace, name]
        return known.value

    def get(self, namespace: str, name: str) -> V | None:
        """What is known of an object."""
        entry = self._entries.get((namespace, name))
        return entry.value if entry else None

    def entry(self, namespace: str, name: str) -> Entry[V] | None:
        """The same with its version."""
        return self._entries.get((namespace, name))

    def __iter__(self) -> Iterator[V]:
        """All objects."""
        return iter([entry.value for entry in self._entries.values()])

    def __len__(self) -> int:
        """How many."""
        return len(self._entries)

    def places(self) -> list[tuple[str, str]]:
        """(namespace, name) of all."""
        return list(self._entries)

    def missed(
        self, listed: Iterable[Mapping[str, Any]]
    ) -> tuple[list[tuple[str, str]], list[tuple[str, str, str]]]:
        """Compare with a listing that was begun after the last event was taken in.

        Returns:
            (namespace, name) of what is newer than known, and (namespace, name, uid) of what is
            known and not listed.
        """
        newer, seen = [], set()
        for value in listed:
            meta = value["metadata"]
            place = (meta.get("namespace", ""), meta["name"])
            seen.add(place)
            if meta["uid"] in self._gone:
                continue
            known = self._entries.get(place)
            if known is None or known.uid != meta["uid"] or known.version < version_of(value):
                newer.append(place)
        gone = [
            (place[0], place[1], entry.uid)
            for place, entry in self._entries.items()
            if place not in seen
        ]
        return newer, gone
