"""One token after another: greedy or sampled, until an end token or a limit.

Sampling follows the usual order: temperature, then the top_k most likely, then the smallest set
whose probability reaches top_p (Holtzman et al. 2020), then one draw. The draw depends on the seed
and the logits alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genai_core.errors import BadInput, BadModel
from genai_runtime.session import Session, Tokens, in_chunks


@dataclass(frozen=True)
class Sampling:
    """How the next token is taken from the logits.

    Attributes:
        temperature: 0 is greedy: the most likely token, the lowest id of equals.
        top_k: Keep this many; 0 keeps all.
        top_p: Keep the smallest set with at least this probability; 1 keeps all.
        seed: Of the draws.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values without a meaning.

        Raises:
            BadInput: temperature or top_k is negative, or top_p is outside (0, 1].
        """
        if not self.temperature >= 0 or self.temperature == float("inf"):
            raise BadInput("must be 0 or a positive number", where="temperature")
        if self.top_k < 0:
            raise BadInput("must be 0 (all) or a positive number", where="top-k")
        if not 0 < self.top_p <= 1:
            raise BadInput("must be above 0 and at most 1", where="top-p")


@dataclass(frozen=True)
class Metrics:
    """Speed of one generation.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        prompt_seconds: Time to the first token.
        generated_tokens: Tokens that were generated.
        generation_seconds: Time from the first token to the last.
    """

    prompt_tokens: int
    prompt_seconds: float
    generated_tokens: int
    generation_seconds: float

    @property
    def prompt_tokens_per_second(self) -> float:
        """Speed of reading the prompt."""
        return self.prompt_tokens / max(self.prompt_seconds, 1e-9)

    @property
    def generation_tokens_per_second(self) -> float:
        """Speed behind the first token; 0 when there was none."""
        if self.generated_tokens < 2:
            return 0.0
        return (self.generated_tokens - 1) / max(self.generation_seconds, 1e-9)


@dataclass(frozen=True)
class Generation:
    """Generated tokens, an end token included where one was reached."""

    tokens: tuple[int, ...]
    metrics: Metrics
    stopped: bool
    """An end token was reached before the limit."""


def distribution(logits: NDArray[np.float32], sampling: Sampling) -> NDArray[np.float64]:
    """The probabilities [V] that a token is drawn from; all on one token when greedy."""
    if sampling.temperature == 0:
        chosen = np.zeros(logits.shape[-1], dtype=np.float64)
        chosen[int(logits.argmax())] = 1.0
        return chosen
    wide = logits.astype(np.float64)
    scaled = (wide - wide.max()) / sampling.temperature
    if not sampling.top_k and sampling.top_p == 1:
        order = np.zeros(0, dtype=np.intp)
    else:
        order = np.argsort(-scaled, kind="stable")
    if sampling.top_k:
        scaled[order[sampling.top_k :]] = -np.inf
    probabilities = np.exp(scaled)
    probabilities /= probabilities.sum()
    if sampling.top_p < 1:
        before = np.cumsum(probabilities[order]) - probabilities[order]
        probabilities[order[before >= sampling.top_p]] = 0.0
        probabilities /= probabilities.sum()
    result: NDArray[np.float64] = probabilities
    return result


def choose(logits: NDArray[np.float32], sampling: Sampling, random: np.random.Generator) -> int:
    """One token from logits [V]."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    cumulative = np.cumsum(distribution(logits, sampling))
    place = np.searchsorted(cumulative, random.random() * cumulative[-1], side="right")
    return int(min(place, cumulative.size - 1))


def generate(
    session: Session,
    prompt: Tokens,
    *,
    max_tokens: int,
    sampling: Sampling | None = None,
    stop_tokens: Collection[int] = (),
    on_token: Callable[[int], None] | None = None,
) -> Generation:
    """Continue `prompt` from an empty cache by at most `max_tokens` tokens.

    Generation also ends when the context is full.

    Args:
        session: What computes the logits.
        prompt: [T] ids, T >= 1; nothing is added to it.
        max_tokens: At least 1.
        sampling: Greedy by default.
        stop_tokens: End tokens.
        on_token: Called with each token as soon as it is known.

    Raises:
        BadInput: The prompt is empty, too long or outside the vocabulary.
    """
    if max_tokens < 1:
        raise BadInput("must be at least 1", where="max-tokens")
    sampling = sampling or Sampling()
    random = np.random.default_rng(sampling.seed)
    session.reset()
    began = time.monotonic()
    logits = np.zeros((1, session.vocab_size), dtype=np.float32)
    for part in in_chunks(session, prompt):
        logits = part
    tokens = [choose(logits[-1], sampling, random)]
    first = time.monotonic()
    if on_token:
        on_token(tokens[-1])
    while (
        len(tokens) < max_tokens
        and tokens[-1] not in stop_tokens
        and session.length < session.context_length
    ):
        logits = session.forward(np.asarray(tokens[-1:], dtype=np.int64))
        tokens.append(choose(logits[-1], sampling, random))
        if on_token:
            on_token(tokens[-1])
    ended = time.monotonic()
    return Generation(
        tokens=tuple(tokens),
        metrics=Metrics(
            prompt_tokens=int(np.asarray(prompt).size),
            prompt_seconds=first - began,
            generated_tokens=len(tokens),
            generation_seconds=ended - first,
        ),
        stopped=tokens[-1] in stop_tokens,
    )


def stop_tokens(folder: Path, *, holds: Callable[[str], bool] = lambda _: True) -> frozenset[int]:
    """The end tokens that generation_config.json, else config.json, of a folder names.

    Args:
        folder: Of a model or container.
        holds: Whether a file of that name may be read.

    Raises:
        BadModel: The file is not JSON, or eos_token_id is neither a number nor a list of them.
    """
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if not (holds(name) and path.is_file()):
            continue
        try:
            value = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        except (ValueError, AttributeError) as error:
            raise BadModel(f"not a JSON object: {error}", where=name) from error
        if value is None:
            continue
        listed = value if isinstance(value, list) else [value]
        if not all(isinstance(token, int) for token in listed):
            raise BadModel("must be a token id or a list of them", where=f"{name}: eos_token_id")
        return frozenset(listed)
    return frozenset()
