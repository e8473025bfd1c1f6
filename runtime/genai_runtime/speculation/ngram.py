"""Prompt lookup (Saxena 2023): what followed the last few tokens when they stood here before.

Costs no model. It pays where an answer repeats its prompt or itself: edits, extraction, code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from genai_runtime.executor.rows import Logits
from genai_runtime.speculation.history import History, longest_match
from genai_runtime.speculation.method import Draft, Foresee


class Ngram:
    """See the module's docstring.

    Args:
        least: Tokens that must agree, at least 1.
        most: Tokens that are compared, at least `least`.
    """

    name = "ngram"
    free = True

    def __init__(self, *, least: int, most: int) -> None:
        self._least, self._most = least, most
        self._texts: dict[int, History] = {}

    def branch_tokens(self, guesses: int) -> int:
        """None."""
        del guesses
        return 0

    def start(self, key: int, tokens: Sequence[int], foresee: Foresee | None = None) -> None:
        """Remember the prompt."""
        del foresee
        self._texts[key] = History(tokens)

    def propose(self, wanted: Mapping[int, int]) -> dict[int, Draft]:
        """What followed the longest piece, at its latest place that has as much behind it."""
        drafts = {}
        for key, count in wanted.items():
            text = self._texts[key].tokens
            length, places = longest_match(text, text, self._most)
            if length < self._least:
                continue
            behind = np.minimum(text.size - places, count)
            place = int(places[np.flatnonzero(behind == behind.max())[-1]])
            drafts[key] = Draft(tuple(text[place : place + count].tolist()))
        return drafts

    def extend(self, key: int, tokens: Sequence[int], branch: Logits | None = None) -> None:
        """Remember what was written."""
        del branch
        self._texts[key].extend(tokens)

    def finish(self, key: int) -> None:
        """Forget a sequence."""
        self._texts.pop(key, None)

    def cache_bytes(self, tokens: int) -> int:
        """Nothing beside the tokens."""
        del tokens
        return 0

    def close(self) -> None:
        """Forget all."""
        self._texts.clear()
