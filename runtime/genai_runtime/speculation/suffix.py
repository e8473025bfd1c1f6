"""Suffix decoding (Oliaro et al. 2024): the most frequent continuation of the longest known suffix.

The text that is searched is the sequence's own and the answers of earlier sequences. How far a
guess goes depends on how much agreed and on how often the continuation was seen. Agents that ask
for nearly the same again and again gain most.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from genai_runtime.executor.rows import Logits
from genai_runtime.speculation.history import History, longest_match
from genai_runtime.speculation.method import Draft, Foresee

MOST_CACHED_TOKENS = 1 << 16
"""Of all earlier answers: searching them takes some 20 us."""

_END = -1
"""Stands between answers; no token."""


class Suffix:
    """See the module's docstring.

    Args:
        max_tree_depth: Tokens that are compared, and guessed, at most.
        max_cached_requests: Earlier answers that are searched; 0 = only a sequence's own text.
        max_spec_factor: Guesses for each token that agreed.
        min_token_prob: A guess that is less likely ends the draft: the share of its continuation
            among all that were seen, times that of the guesses before it.
    """

    name = "suffix"
    free = True

    def __init__(
        self,
        *,
        max_tree_depth: int = 24,
        max_cached_requests: int = 10_000,
        max_spec_factor: float = 1.0,
        min_token_prob: float = 0.1,
    ) -> None:
        self._depth = max_tree_depth
        self._most_cached = max_cached_requests
        self._factor = max_spec_factor
        self._least_prob = min_token_prob
        self._texts: dict[int, History] = {}
        self._prompts: dict[int, int] = {}
        self._cache = History()
        self._sizes: deque[int] = deque()

    def branch_tokens(self, guesses: int) -> int:
        """None."""
        del guesses
        return 0

    def start(self, key: int, tokens: Sequence[int], foresee: Foresee | None = None) -> None:
        """Remember the prompt."""
        del foresee
        self._texts[key] = History(tokens)
        self._prompts[key] = len(tokens)

    def propose(self, wanted: Mapping[int, int]) -> dict[int, Draft]:
        """The likeliest continuation for each."""
        drafts = {}
        for key, count in wanted.items():
            tokens = self._continued(self._texts[key].tokens, count)
            if tokens:
                drafts[key] = Draft(tuple(tokens))
        return drafts

    def extend(self, key: int, tokens: Sequence[int], branch: Logits | None = None) -> None:
        """Remember what was written."""
        del branch
        self._texts[key].extend(tokens)

    def finish(self, key: int) -> None:
        """Keep the answer for others."""
        text = self._texts.pop(key, None)
        prompt = self._prompts.pop(key, 0)
        if text is None or not self._most_cached or text.tokens.size == prompt:
            return
        answer = text.tokens[prompt:][-MOST_CACHED_TOKENS:].tolist()
        self._cache.extend([*answer, _END])
        self._sizes.append(len(answer) + 1)
        while (
            len(self._sizes) > self._most_cached or self._cache.tokens.size > MOST_CACHED_TOKENS + 1
        ):
            self._cache.forget(self._sizes.popleft())

    def cache_bytes(self, tokens: int) -> int:
        """Nothing beside the tokens."""
        del tokens
        return 0

    def close(self) -> None:
        """Forget all."""
        self._texts.clear()
        self._cache = History()
        self._sizes.clear()

    def _continued(self, text: NDArray[np.int32], count: int) -> list[int]:
        matches = [
            (*longest_match(source, text, self._depth), source)
            for source in (text, self._cache.tokens)
        ]
        length = max(size for size, _, _ in matches)
        matches = [match for match in matches if match[0] == length]
        most = min(count, self._depth, int(length * self._factor))
        places = [match[1] for match in matches]
        sources = [match[2] for match in matches]
        guesses: list[int] = []
        probability = 1.0
        while len(guesses) < most:
            behind = [s[p[p < s.size]] for s, p in zip(sources, places, strict=True)]
            following = np.concatenate(behind)
            if following.size == 0:
                break
            values, counts = np.unique(following, return_counts=True)
            best = int(counts.argmax())
            probability *= float(counts[best] / following.size)
            token = int(values[best])
            if token == _END or probability < self._least_prob:
                break
            guesses.append(token)
            places = [
                p[p < s.size][b == token] + 1
                for s, p, b in zip(sources, places, behind, strict=True)
            ]
        return guesses
