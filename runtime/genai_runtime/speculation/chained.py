"""Several methods in order: the first that has a guess for a sequence is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from genai_runtime.executor.rows import Logits
from genai_runtime.speculation.method import Draft, Foresee, Method


class Chained:
    """See the module's docstring.

    Args:
        methods: At least one; their drafts have no branches.
    """

    def __init__(self, methods: Sequence[Method]) -> None:
        self._methods = tuple(methods)
        self.name = ",".join(method.name for method in methods)
        self.free = all(method.free for method in methods)

    def branch_tokens(self, guesses: int) -> int:
        """None."""
        del guesses
        return 0

    def start(self, key: int, tokens: Sequence[int], foresee: Foresee | None = None) -> None:
        """Tell all."""
        for method in self._methods:
            method.start(key, tokens, foresee)

    def propose(self, wanted: Mapping[int, int]) -> dict[int, Draft]:
        """Ask each for what those before it left open."""
        drafts: dict[int, Draft] = {}
        for method in self._methods:
            left = {key: count for key, count in wanted.items() if key not in drafts}
            drafts |= method.propose(left) if left else {}
        return drafts

    def extend(self, key: int, tokens: Sequence[int], branch: Logits | None = None) -> None:
        """Tell all."""
        for method in self._methods:
            method.extend(key, tokens, branch)

    def finish(self, key: int) -> None:
        """Tell all."""
        for method in self._methods:
            method.finish(key)

    def cache_bytes(self, tokens: int) -> int:
        """Of all together."""
        return sum(method.cache_bytes(tokens) for method in self._methods)

    def close(self) -> None:
        """Close all."""
        for method in self._methods:
            method.close()
