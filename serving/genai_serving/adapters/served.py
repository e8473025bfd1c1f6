"""What clients may name beside the base: adapters and use cases, as they are now.

Of the event loop alone, as requests are.
"""

from __future__ import annotations

from genai_core.container.adapters import AdapterEntry, AdapterIndex
from genai_runtime.executor.rows import AdapterUse

__all__ = ["ServedAdapters"]


class ServedAdapters:
    """See the module's docstring.

    Args:
        index: The container's own.
    """

    def __init__(self, index: AdapterIndex | None = None) -> None:
        self._own = AdapterIndex() if index is None else index
        self._entries = dict(self._own.adapters)
        self._internal = {name: name for name in self._entries}
        self._loads = 0
        self._contents = {name: entry.sha256 for name, entry in self._entries.items()}
        """By the executor's names, of all that ever were: such a name is never given twice."""
        self.revision = ""
        """Whose adapters and use cases these are; empty = the container's that was opened."""

    @property
    def own(self) -> AdapterIndex:
        """The container's, or that of the revision which is followed since."""
        return self._own

    def follow(self, revision: str, index: AdapterIndex) -> None:
        """Use cases are another revision's from now on."""
        self.revision, self._own = revision, index

    @property
    def entries(self) -> dict[str, AdapterEntry]:
        """Adapters by name."""
        return dict(self._entries)

    @property
    def names(self) -> list[str]:
        """Adapters, and use cases all of whose adapters are the container's own."""
        return [*self._entries, *(name for name in self._own.use_cases if self._whole(name))]

    def worn(self, name: str) -> tuple[AdapterUse, ...] | None:
        """What a request of this name wears, by the executor's names; None = no such name."""
        if name in self._entries:
            return (AdapterUse(self._internal[name]),)
        if name not in self._own.use_cases or not self._whole(name):
            return None
        members = self._own.use_cases[name].adapters
        return tuple(AdapterUse(self._internal[worn.name], worn.alpha) for worn in members)

    @staticmethod
    def public(internal: str) -> str:
        """The name that clients know."""
        return internal.partition("@")[0]

    def next_name(self, name: str) -> str:
        """The executor's name of an adapter that is loaded now; never given twice."""
        self._loads += 1
        return f"{name}@{self._loads}"

    def put(self, name: str, internal: str, entry: AdapterEntry) -> str | None:
        """An adapter is loaded; the executor's name of the one that it replaces."""
        before = self._internal.get(name)
        self._entries[name], self._internal[name] = entry, internal
        self._contents[internal] = entry.sha256
        return before

    def content(self, internal: str) -> str | None:
        """SHA-256 of the file of an adapter, by the executor's name; in any thread."""
        return self._contents.get(internal)

    def take_out(self, name: str) -> str | None:
        """An adapter is not to be worn any more; the executor's name of it."""
        self._entries.pop(name, None)
        return self._internal.pop(name, None)

    def _whole(self, use_case: str) -> bool:
        """A use case was composed of these very contents."""
        return all(
            worn.name in self._entries
            and worn.name in self._own.adapters
            and self._entries[worn.name].sha256 == self._own.adapters[worn.name].sha256
            for worn in self._own.use_cases[use_case].adapters
        )
