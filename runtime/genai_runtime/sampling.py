"""How the next token is taken from the logits: greedily, or by a draw from a shaped distribution.

The order is vLLM's: logit_bias; penalties (repetition over prompt and answer, presence and
frequency over the answer, as in OpenAI's API); temperature; min_p; the top_k most likely; the
smallest set whose probability reaches top_p (Holtzman et al. 2020); one draw. A token depends on
the settings, the tokens before it, the seed and its place in the answer alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from genai_core.errors import BadInput, BadModel
from genai_runtime.executor.rows import Tokens

_FIRST_CANDIDATES = 64
"""How many of the most likely tokens are sorted first when a top_p is looked for."""

MAX_LOGIT_BIAS = 100.0
"""OpenAI's bound."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is taken from the logits.

    Attributes:
        temperature: 0 is greedy: the most likely token, the lowest id of equals.
        top_k: Keep this many; 0 keeps all.
        top_p: Keep the smallest set with at least this probability; 1 keeps all.
        min_p: Keep tokens at least this likely relative to the most likely one; 0 keeps all.
        repetition_penalty: Above 1, logits of tokens in prompt or answer move towards "unlikely"
            by this factor (Keskar et al. 2019); 1 does nothing.
        presence_penalty: Taken from the logit of each token that the answer has.
        frequency_penalty: The same, times how often the answer has it.
        logit_bias: Token id -> added to its logit, -100 to 100.
        seed: Of the draws.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values without a meaning.

        Raises:
            BadInput: A value is outside its range; `where` names it.
        """
        if not 0 <= self.temperature < float("inf"):
            raise BadInput("must be 0 or a positive number", where="temperature")
        if self.top_k < 0:
            raise BadInput("must be 0 (all) or a positive number", where="top-k")
        if not 0 < self.top_p <= 1:
            raise BadInput("must be above 0 and at most 1", where="top-p")
        if not 0 <= self.min_p <= 1:
            raise BadInput("must be from 0 to 1", where="min-p")
        if not 0 < self.repetition_penalty < float("inf"):
            raise BadInput("must be a positive number", where="repetition-penalty")
        for name in ("presence", "frequency"):
            if not -2 <= getattr(self, f"{name}_penalty") <= 2:
                raise BadInput("must be from -2 to 2", where=f"{name}-penalty")
        for token, bias in self.logit_bias.items():
            if token < 0 or not -MAX_LOGIT_BIAS <= bias <= MAX_LOGIT_BIAS:
                raise BadInput(
                    "must map token ids to numbers from -100 to 100", where=f"logit-bias {token}"
                )
        if self.seed < 0:
            raise BadInput("must be 0 or a positive number", where="seed")


@dataclass(frozen=True)
class Typical:
    """Takes a guess that is likely enough where it is drawn, instead of drawing (Cai et al. 2024).

    A guess is kept where its probability is above `min(threshold, alpha * exp(-entropy))`. More
    guesses come true than by draws, and answers no longer have the model's distribution. Greedy
    answers stay as they are.

    Attributes:
        threshold: Probability that is enough wherever it is.
        alpha: Of what the entropy allows: in flat distributions a smaller probability is enough.
    """

    threshold: float = 0.09
    alpha: float = 0.3

    def keeps(self, guess: int, probabilities: NDArray[np.float64]) -> bool:
        """Whether a guess is kept, of the distribution [V] that its place is drawn from."""
        there = probabilities[probabilities > 0]
        entropy = -float((there * np.log(there)).sum())
        enough = min(self.threshold, self.alpha * float(np.exp(-entropy)))
        return bool(probabilities[guess] > enough)


class Constraint(Protocol):
    """What an answer must look like; it follows the tokens that are taken."""

    @property
    def finished(self) -> bool:
        """Nothing can follow."""
        ...

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come now, [V]; one at least unless it is finished."""
        ...

    def consume(self, token: int) -> None:
        """Go on behind a token that was allowed."""
        ...


class Sampler:
    """Takes the tokens of one answer, one after another.

    Args:
        sampling: The settings.
        vocab_size: V.
        prompt: Token ids [T], for the repetition penalty.
        constraint: Only tokens that it allows are taken; penalties and biases choose among them.
        typical: How guesses are kept that were not drawn; None = they never are.

    Raises:
        BadInput: A biased token lies outside the vocabulary.
    """

    def __init__(
        self,
        sampling: Sampling,
        *,
        vocab_size: int,
        prompt: Tokens = (),  # type: ignore[assignment]
        constraint: Constraint | None = None,
        typical: Typical | None = None,
    ) -> None:
        outside = [token for token in sampling.logit_bias if token >= vocab_size]
        if outside:
            raise BadInput(
                f"token {outside[0]} is outside the vocabulary of {vocab_size}", where="logit-bias"
            )
        self._sampling = sampling
        self._constraint = constraint
        self._typical = typical if sampling.temperature else None
        self._random = np.random.default_rng(sampling.seed)
        self._draws: deque[float] = deque()
        self._counts: NDArray[np.int64] = np.zeros(vocab_size, dtype=np.int64)
        self._seen: NDArray[np.bool_] = np.zeros(vocab_size, dtype=np.bool_)
        self._seen[np.asarray(prompt, dtype=np.int64)] = True
        self._biased = np.fromiter(sampling.logit_bias, np.int64, len(sampling.logit_bias))
        self._bias = np.fromiter(sampling.logit_bias.values(), np.float32, self._biased.size)

    def next(
        self,
        logits: NDArray[np.float32],
        *,
        banned: Collection[int] = (),
        guess: int | None = None,
    ) -> int:
        """The next token of the answer, from logits [V]; it counts for what follows.

        Args:
            logits: Not changed.
            banned: Tokens that must not come now; end tokens before an answer's least length.
            guess: What stands at this place of a draft; only typical acceptance asks for it.

        Raises:
            BadModel: The logits are no numbers: any token would be as good.
        """
        if not np.isfinite(logits.max()):
            raise BadModel(
                "the model computes no finite logits here",
                where="logits",
                remedy="try it without adapters and penalties; build it again from weights that "
                "are finite",
            )
        shaped = self.shaped(logits, banned=banned)
        token = _taken(shaped, self._sampling, self._next_draw)
        if guess is not None and self._keeps(guess, shaped):
            token = guess
        if self._constraint is not None:
            self._constraint.consume(token)
        self._counts[token] += 1
        self._seen[token] = True
        return token

    def _keeps(self, guess: int, shaped: NDArray[np.float32]) -> bool:
        """Whether a guess is kept whatever was drawn."""
        if self._typical is None:
            return False
        return self._typical.keeps(guess, distribution(shaped, self._sampling))

    def foreseen(self, logits: NDArray[np.float32], ahead: int) -> int:
        """The token that `next` would take, `ahead` calls from now, if these were its logits.

        Nothing changes by it. A model that guesses asks this, with its own logits: the draw is the
        one that will be made, so a guess comes true far more often than the likeliest token would.
        What depends on the tokens between (penalties, a form) counts as it is now, or not at all.
        """

        def draw() -> float:
            while len(self._draws) <= ahead:
                self._draws.append(self._random.random())
            return self._draws[ahead]

        return _taken(self._weighed(logits), self._sampling, draw)

    def _next_draw(self) -> float:
        return self._draws.popleft() if self._draws else self._random.random()

    @property
    def finished(self) -> bool:
        """The answer has its form, and nothing can follow."""
        return self._constraint is not None and self._constraint.finished

    def shaped(
        self, logits: NDArray[np.float32], *, banned: Collection[int] = ()
    ) -> NDArray[np.float32]:
        """Logits with biases, penalties and bans; the array itself where there are none."""
        constraint = self._constraint
        shaped = self._weighed(logits)
        if not (banned or constraint):
            return shaped
        shaped = np.array(shaped, dtype=np.float32)
        if constraint is None:
            shaped[list(banned)] = -np.inf
            return shaped
        allowed = constraint.allowed()
        fewer = allowed.copy()
        fewer[list(banned)] = False
        # Where only an end can follow, the form decides.
        shaped[~(fewer if fewer.any() else allowed)] = -np.inf
        return shaped

    def _weighed(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits with biases and penalties; the array itself where there are none."""
        asked = self._sampling
        repeated = asked.repetition_penalty != 1
        penalized = bool(asked.presence_penalty or asked.frequency_penalty)
        if not (self._biased.size or repeated or penalized):
            return logits
        shaped = np.array(logits, dtype=np.float32)
        shaped[self._biased] += self._bias
        if repeated:
            values = shaped[self._seen]
            factor = np.float32(asked.repetition_penalty)
            shaped[self._seen] = np.where(values > 0, values / factor, values * factor)
        if penalized:
            there = np.flatnonzero(self._counts)
            less = asked.presence_penalty + asked.frequency_penalty * self._counts[there]
            shaped[there] -= less.astype(np.float32)
        return shaped


def distribution(logits: NDArray[np.float32], sampling: Sampling) -> NDArray[np.float64]:
    """The probabilities [V] that a token is drawn from; all on one token when greedy.

    Penalties and biases are not applied here: they depend on an answer, see `Sampler.shaped`.
    """
    if sampling.temperature == 0:
        chosen = np.zeros(logits.shape[-1], dtype=np.float64)
        chosen[int(logits.argmax())] = 1.0
        return chosen
    wide = logits.astype(np.float64)
    scaled = (wide - wide.max()) / sampling.temperature
    if sampling.min_p:
        scaled[scaled < np.log(sampling.min_p)] = -np.inf
    if 0 < sampling.top_k < scaled.size:
        hidden = np.ones(scaled.size, dtype=np.bool_)
        hidden[_largest(scaled, sampling.top_k)] = False
        scaled[hidden] = -np.inf
    probabilities: NDArray[np.float64] = np.exp(scaled)
    probabilities /= probabilities.sum()
    if sampling.top_p < 1:
        hidden = np.ones(scaled.size, dtype=np.bool_)
        hidden[_nucleus(scaled, probabilities, sampling.top_p)] = False
        probabilities[hidden] = 0.0
        probabilities /= probabilities.sum()
    return probabilities


def choose(logits: NDArray[np.float32], sampling: Sampling, random: np.random.Generator) -> int:
    """One token from logits [V]."""
    return _taken(logits, sampling, random.random)


def _taken(logits: NDArray[np.float32], sampling: Sampling, draw: Callable[[], float]) -> int:
    """One token from logits [V]; `draw` gives a number in [0, 1) where one is needed."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    cumulative = np.cumsum(distribution(logits, sampling))
    place = np.searchsorted(cumulative, draw() * cumulative[-1], side="right")
    return int(min(place, cumulative.size - 1))


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability."""

    token: int
    logprob: float


def logprobs(logits: NDArray[np.float32], token: int, top: int) -> list[TokenLogprob]:
    """`token` first, then the `top` most likely ones in order, by the model's own distribution.

    Neither temperature nor penalties change what is told here.
    """
    wide = logits.astype(np.float64)
    peak = wide.max()
    total = np.log(np.exp(wide - peak).sum()) + peak
    told = [token, *(int(t) for t in _largest(wide, min(top, wide.size)))]
    return [TokenLogprob(t, float(wide[t] - total)) for t in told]


def _largest(values: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Places of the `count` largest values, largest first, of equals the first; no full sort."""
    if count <= 0:
        return np.zeros(0, dtype=np.intp)
    least = np.partition(values, values.size - count)[values.size - count]
    above = np.flatnonzero(values > least)
    equal = np.flatnonzero(values == least)[: count - above.size]
    found = np.concatenate([above, equal])
    order: NDArray[np.intp] = found[np.argsort(-values[found], kind="stable")]
    return order


def _nucleus(
    logits: NDArray[np.float64], probabilities: NDArray[np.float64], top_p: float
) -> NDArray[np.intp]:
    """Places of the smallest set of most likely tokens whose probability reaches `top_p`.

    Logits tell the order: close ones have equal probabilities once they are rounded.
    """
    count = _FIRST_CANDIDATES
    while True:
        order = _largest(logits, min(count, logits.size))
        reached = np.cumsum(probabilities[order])
        if reached[-1] >= top_p or order.size == logits.size:
            return order[reached - probabilities[order] < top_p]
        count *= 8
