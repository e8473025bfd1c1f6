"""Generates tokens: greedy or sampled, until an end token or a limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from genai_core.errors import BadInput, BadModel
from genai_core.files.foreign import read_json_object
from genai_runtime.executor.row_checks import checked_tokens
from genai_runtime.executor.rows import Embeddings
from genai_runtime.sampling import Sampler, Sampling
from genai_runtime.session import Session, SlotSession, Tokens, in_chunks
from genai_runtime.speculation.control import Counts, Room, Speculation
from genai_runtime.speculation.method import NOTHING, Take, accept

_KEY = 0
"""Of the one sequence."""


@dataclass(frozen=True)
class GenerationMetrics:
    """Speed of one generation.

    Attributes:
        prompt_tokens: Tokens of the prompt that were read.
        prompt_seconds: Time to the first token.
        generated_tokens: Tokens that were generated.
        generation_seconds: Time from the first token to the last.
        speculation: What came of drafts; None where nothing was guessed.
    """

    prompt_tokens: int
    prompt_seconds: float
    generated_tokens: int
    generation_seconds: float
    speculation: Counts | None = None

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
    metrics: GenerationMetrics
    stopped: bool
    """An end token was reached before the limit."""


def generate(
    session: Session,
    prompt: Tokens,
    *,
    max_tokens: int,
    sampling: Sampling | None = None,
    stop_tokens: Collection[int] = (),
    on_token: Callable[[int], None] | None = None,
    kept: int = 0,
    speculation: Speculation | None = None,
    embeddings: Embeddings | None = None,
) -> Generation:
    """Continue `prompt` by at most `max_tokens` tokens.

    Generation also ends when the context is full.

    Args:
        session: What computes the logits.
        prompt: [T] ids, T >= 1; nothing is added to it.
        max_tokens: At least 1.
        sampling: Greedy by default.
        stop_tokens: End tokens.
        on_token: Called with each token as soon as it is known.
        kept: So many tokens at the prompt's beginning, fewer than it has, are in the cache already
            and not read again; what lies behind them there is forgotten.
        speculation: Guesses tokens; the answer is the same, unless it keeps typical ones.
        embeddings: What stands in places of the prompt instead of its tokens' own; the session is
            then a `SlotSession`.

    Raises:
        BadInput: The prompt is empty, too long or outside the vocabulary.
    """
    if max_tokens < 1:
        raise BadInput("must be at least 1", where="max-tokens")
    sampler = Sampler(
        sampling or Sampling(),
        vocab_size=session.vocab_size,
        prompt=checked_tokens(prompt, session, 0),
        typical=None if speculation is None else speculation.typical,
    )
    if kept:
        session.truncate(kept)
    else:
        session.reset()
    began = time.monotonic()
    logits = np.zeros((1, session.vocab_size), dtype=np.float32)
    states = _States(session, speculation)
    instead = embeddings and embeddings.between(kept, len(prompt))
    for part in in_chunks(session, prompt[kept:], instead):
        logits = part
        states.keep(session.length - len(part))
    tokens = [sampler.next(logits[-1])]
    first = time.monotonic()
    if on_token:
        on_token(tokens[-1])

    def take(logits: NDArray[np.float32], guess: int | None) -> tuple[int, bool]:
        token = sampler.next(logits, guess=guess)
        tokens.append(token)
        if on_token:
            on_token(token)
        return token, token in stop_tokens or len(tokens) == max_tokens

    spent = None
    try:
        if speculation is not None:
            speculation.start(_KEY, np.asarray(prompt).tolist(), sampler.foreseen)
            states.tell()
            speculation.extend(_KEY, tokens)
        while (
            len(tokens) < max_tokens
            and tokens[-1] not in stop_tokens
            and session.length < session.context_length
        ):
            room = Room(
                answer=max_tokens - len(tokens) - 1,
                slot=session.context_length - session.length - 1,
            )
            _step(session, tokens[-1], room, take, states)
    finally:
        states.close()
        if speculation is not None:
            spent = speculation.finish(_KEY)
    ended = time.monotonic()
    return Generation(
        tokens=tuple(tokens),
        metrics=GenerationMetrics(
            prompt_tokens=int(np.asarray(prompt).size) - kept,
            prompt_seconds=first - began,
            generated_tokens=len(tokens),
            generation_seconds=ended - first,
            speculation=spent,
        ),
        stopped=tokens[-1] in stop_tokens,
    )


class _States:
    """The model's states on their way from passes to a method that guesses from them."""

    def __init__(self, session: Session, speculation: Speculation | None) -> None:
        self.speculation = speculation
        self._session: SlotSession | None = None
        if speculation is not None and speculation.observes:
            assert isinstance(session, SlotSession)
            self._session = session
            session.states_wanted = True
        self._kept: list[tuple[int, NDArray[np.float32]]] = []

    def keep(self, start: int, count: int | None = None) -> None:
        """Those of the last pass, of tokens from `start` on; the first `count` of them."""
        if self._session is not None and self._session.states is not None:
            self._kept.append((start, self._session.states[:count]))

    def tell(self) -> None:
        """Hand on what was kept."""
        for start, states in self._kept:
            assert self.speculation is not None
            self.speculation.observe(_KEY, start, states)
        self._kept.clear()

    def close(self) -> None:
        """Passes yield none any more."""
        if self._session is not None:
            self._session.states_wanted, self._session.states = False, None


def _step(
    session: Session,
    newest: int,
    room: Room,
    take: Take,
    states: _States,
) -> None:
    """Run one pass: take the next token and a draft's accepted ones; the last is not cached."""
    draft, speculation = NOTHING, states.speculation
    if speculation is not None:
        granted = speculation.wanted({_KEY: room})
        draft = speculation.propose(granted, [_KEY]).get(_KEY, NOTHING)
    start = session.length
    began = time.monotonic()
    row, tree = draft.row(newest), draft.tree(start)
    logits = session.forward(row) if tree is None else session.forward(row, tree)
    if speculation is not None:
        speculation.observe_pass(1, draft.size, time.monotonic() - began)
    kept = 1  # where a listener ends it all, no guess stays in the cache
    try:
        written = accept(logits, draft.tokens, take)
        kept = len(written)
    finally:
        if draft.size:
            session.truncate(start + kept)
    if speculation is not None:
        states.keep(start, kept)
        states.tell()
        behind = logits[1 + len(draft.tokens) :] if draft.branch is not None else None
        speculation.extend(_KEY, written, behind)


def stop_tokens(folder: Path, *, holds: Callable[[str], bool] = lambda _: True) -> frozenset[int]:
    """The end tokens that generation_config.json, else config.json, of a folder names.

    Args:
        folder: Of a model or container.
        holds: Whether a file of that name may be read.

    Raises:
        BadModel: The file is not JSON, or eos_token_id is neither a number nor a list of them.
    """
    return stated_stop_tokens(folder, holds=holds)[1]


def stated_stop_tokens(
    folder: Path, *, holds: Callable[[str], bool] = lambda _: True
) -> tuple[str, frozenset[int]]:
    """The same, with the file that names them; empty where none does."""
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        if not (holds(name) and path.is_file()):
            continue
        value = read_json_object(path, where=name).get("eos_token_id")
        if value is None:
            continue
        listed = value if isinstance(value, list) else [value]
        if not all(isinstance(token, int) and not isinstance(token, bool) for token in listed):
            raise BadModel(
                f"{value!r} is neither a token id nor a list of them"[:200],
                where=f"{name}: eos_token_id",
                remedy="write numbers, e.g. 2 or [2, 5]",
            )
        return name, frozenset(listed)
    return "", frozenset()
