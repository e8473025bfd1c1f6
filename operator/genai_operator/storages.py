"""kopf's storages, keeping nothing.

kopf remembers on each object what its handlers saw last and how far they came. Event handlers ask
for neither, yet by default both are worked out for every event, from deep copies of the object:
that was half of the operator's time while a thousand Jobs came and went.
"""

from __future__ import annotations

from typing import Any

import kopf

__all__ = ["NoDiffs", "NoProgress"]


class NoDiffs(kopf.DiffBaseStorage):
    """No object differs from what it was."""

    def build(self, **_: Any) -> Any:
        """What matters of an object: nothing."""
        return {}

    def fetch(self, **_: Any) -> Any:
        """What was seen last: nothing."""
        return None

    def store(self, **_: Any) -> None:
        """Write nothing."""


class NoProgress(kopf.ProgressStorage):
    """No handler has ever begun."""

    def fetch(self, **_: Any) -> Any:
        """How far a handler came: nowhere."""
        return None

    def store(self, **_: Any) -> None:
        """Write nothing."""

    def purge(self, **_: Any) -> None:
        """There is nothing to take away."""

    def touch(self, **_: Any) -> None:
        """Write nothing."""

    def clear(self, *, essence: Any) -> Any:
        """What matters of an object, without our own marks: there are none."""
        return essence
