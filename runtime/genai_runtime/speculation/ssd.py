"""Self-speculative decoding: the model forecasts its own next tokens, in the passes it runs.

A model is trained to read forecast tokens, ids behind its vocabulary whose embeddings are rows of
their own, and perhaps keys and values that these alone see (the forecast prefix). The logits of
forecast j behind a text are an opinion of the token j places behind the next one (Qualcomm's SSD,
after Bhendawade et al., Speculative Streaming, 2024, and Lin et al., BiTA, 2024).

A pass has the newest token, the guesses, and behind each of these a group of forecasts: whichever
guess is the last that comes true, its group forecasts what follows. So no model runs for a draft,
and each draft costs (guesses + 1) x forecasts tokens more in its pass.

Guesses are a chain here, the likeliest token of each forecast. Siblings' numbers would agree with
plain decoding to rounding only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from genai_runtime.executor.executor import Executor
from genai_runtime.executor.rows import Logits
from genai_runtime.speculation.method import Branch, Draft, Foresee

__all__ = ["Ssd"]


@dataclass
class _Sequence:
    """What is forecast of a sequence.

    Attributes:
        foresee: How it takes tokens.
        guesses: The tokens behind the newest one, as far as any are forecast.
        asked: A draft with forecasts is out.
    """

    foresee: Foresee | None
    guesses: tuple[int, ...] = ()
    asked: bool = False


class Ssd:
    """See the module's docstring.

    Args:
        target: The model; only asked what it is.
        forecasts: Behind each token: guesses of a draft at most.
    """

    name = "ssd"
    free = False

    def __init__(self, target: Executor, *, forecasts: int) -> None:
        self._target = target
        self._forecasts = forecasts
        self._ids = tuple(range(target.vocab_size, target.vocab_size + forecasts))
        self._sequences: dict[int, _Sequence] = {}

    def branch_tokens(self, guesses: int) -> int:
        """A group behind the newest token, and one behind each guess."""
        return self._forecasts * (guesses + 1)

    def start(self, key: int, tokens: Sequence[int], foresee: Foresee | None = None) -> None:
        """Nothing is forecast yet."""
        del tokens
        self._sequences[key] = _Sequence(foresee)

    def propose(self, wanted: Mapping[int, int]) -> dict[int, Draft]:
        """What the pass before has forecast, and forecasts for the next one."""
        drafts = {}
        for key, count in wanted.items():
            sequence = self._sequences[key]
            guesses = sequence.guesses[:count]
            drafts[key] = Draft(guesses, self._branch(len(guesses)))
            sequence.asked = True
        return drafts

    def extend(self, key: int, tokens: Sequence[int], branch: Logits | None = None) -> None:
        """Keep what was forecast behind the last token that came true."""
        sequence = self._sequences[key]
        written = tuple(int(token) for token in tokens)
        group = None
        if branch is not None and sequence.asked:
            first = (len(written) - 1) * self._forecasts
            group = branch[first : first + self._forecasts]
        if group is not None and len(group):
            foresee = sequence.foresee
            sequence.guesses = tuple(
                int(row.argmax()) if foresee is None else foresee(row, place)
                for place, row in enumerate(group)
            )
        elif sequence.guesses[: len(written)] == written:  # a pass without forecasts
            sequence.guesses = sequence.guesses[len(written) :]
        else:
            sequence.guesses = ()
        sequence.asked = False

    def finish(self, key: int) -> None:
        """Forget a sequence."""
        self._sequences.pop(key, None)

    def cache_bytes(self, tokens: int) -> int:
        """The prefix at most, which stands in the target's slot while a pass runs."""
        del tokens
        target = self._target
        return target.cache_bytes(target.prefix) if target.prefix else 0

    def close(self) -> None:
        """Forget all."""
        self._sequences.clear()

    def _branch(self, guesses: int) -> Branch:
        """The groups behind the newest token and so many guesses, group by group."""
        group, place = np.divmod(np.arange(self.branch_tokens(guesses)), self._forecasts)
        same = group[:, None] == group[None]
        return Branch(
            self._ids * (guesses + 1),
            offsets=(group + place + 1).astype(np.int64),
            sees=same & (place[None] <= place[:, None]),
            guesses=group.astype(np.int64),
            prefixed=bool(self._target.prefix),
        )
