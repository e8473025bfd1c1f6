"""How long something is waited for that may never come: ever longer, up to a bound."""

from __future__ import annotations

from collections.abc import Collection

from genai_operator.steps import Wait

__all__ = ["Backoff"]

_MOST_DOUBLED = 20


class Backoff:
    """Remembers, of each object, for what it has waited and how often it has looked."""

    def __init__(self) -> None:
        self._looks: dict[str, tuple[str, int]] = {}

    def after(self, uid: str, wait: Wait) -> float:
        """Seconds until it is looked at again: doubled with each look, for one reason."""
        reason, looks = self._looks.get(uid, ("", 0))
        looks = looks + 1 if reason == wait.reason else 0
        self._looks[uid] = (wait.reason, min(looks, _MOST_DOUBLED))
        after = wait.after or 0.0
        return float(min(after * 2**looks, max(wait.most, after)))

    def forget(self, uid: str) -> None:
        """It does not wait any more."""
        self._looks.pop(uid, None)

    def keep(self, uids: Collection[str]) -> None:
        """Forget objects that are gone."""
        for uid in self._looks.keys() - set(uids):
            del self._looks[uid]
