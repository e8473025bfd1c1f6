"""Runs a container on this machine, in the vendor's words."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from genai_builder.modules.lora.lora_config import UseCaseRunConfig
from genai_core.container.adapters import AdapterIndex
from genai_core.errors import BadInput
from genai_runtime.container.backend import open_session
from genai_runtime.container.container import Container
from genai_runtime.evaluate import evaluate, read_pieces
from genai_runtime.executor.rows import AdapterUse
from genai_runtime.generate import generate
from genai_runtime.sampling import Sampling
from genai_runtime.session import Session

__all__ = [
    "GenAIExecutable",
    "GenAIExecutor",
    "GenerationExecutionResult",
    "GenerationMetrics",
]

_MOST_TOKENS = 64
"""Of an answer, unless max_new_tokens says otherwise."""

_PIECE = 512
"""Tokens of a piece of text whose perplexity is measured, or the context where that is shorter."""

_SAMPLING = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "seed": "seed",
}


@dataclass(frozen=True)
class GenerationMetrics:
    """Speed of one generation; the names are those of `genai run --json`.

    Attributes:
        init_seconds: Loading the model, where this call loaded it.
        prompt_tokens: Tokens of the prompt.
        prompt_tokens_per_second: Speed of reading them.
        time_to_first_token_seconds: From the call's begin, loading left out.
        generated_tokens: Tokens that were generated.
        generation_tokens_per_second: Speed behind the first; 0 when there was one.
    """

    init_seconds: float
    prompt_tokens: int
    prompt_tokens_per_second: float
    time_to_first_token_seconds: float
    generated_tokens: int
    generation_tokens_per_second: float


@dataclass(frozen=True)
class GenerationExecutionResult:
    """An answer."""

    generated_text: str
    tokens: tuple[int, ...]
    metrics: GenerationMetrics


class GenAIExecutable:
    """A container and the session that runs it; made by `container.get_executor()`."""

    def __init__(self, container: Container, *, holder: object, clean_up: bool = True) -> None:
        self._opened = container
        self._holder = holder  # its files live as long as this
        self._clean_up = clean_up
        self._worn: tuple[AdapterUse, ...] = ()
        self._session: Session | None = None

    def prepare_environment(self) -> None:
        """Load the model; otherwise the first call does."""
        self._ready(self._worn)

    def clean_environment(self) -> None:
        """Free the model; a later call loads it again."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def generate(
        self,
        prompt: str,
        *,
        generation_config: Any = None,
        lora_config: UseCaseRunConfig | None = None,
    ) -> GenerationExecutionResult:
        """Continue a text.

        Args:
            prompt: The text, as it is: no chat template is put around it.
            generation_config: A mapping, or an object with attributes: max_new_tokens (64),
                do_sample, temperature, top_k, top_p, min_p, repetition_penalty, seed.
            lora_config: Adapters of the container; None: the base.

        Raises:
            BadInput: An unknown setting or adapter, or a prompt that is empty or too long.
        """
        limit, sampling = _settings(generation_config)
        worn = _worn(lora_config, self._opened.adapters())
        tokenizer = self._opened.tokenizer()
        if tokenizer is None:
            raise BadInput("the container has no tokenizer", where="generate")
        began = time.monotonic()
        session = self._ready(worn)
        loaded = time.monotonic() - began
        made = generate(
            session,
            tokenizer.encode(prompt),
            max_tokens=limit,
            sampling=sampling,
            stop_tokens=self._opened.stop_tokens(),
        )
        speed = made.metrics
        return GenerationExecutionResult(
            generated_text=tokenizer.decode(made.tokens),
            tokens=made.tokens,
            metrics=GenerationMetrics(
                init_seconds=loaded,
                prompt_tokens=speed.prompt_tokens,
                prompt_tokens_per_second=speed.prompt_tokens_per_second,
                time_to_first_token_seconds=speed.prompt_seconds,
                generated_tokens=speed.generated_tokens,
                generation_tokens_per_second=speed.generation_tokens_per_second,
            ),
        )

    def evaluate_perplexity(
        self,
        dataset_path: str | os.PathLike[str],
        *,
        engine_convert_to_basic: bool = False,
        engine_role: str = "target",
        lora_config: UseCaseRunConfig | None = None,
    ) -> float:
        """Perplexity on a text, or on tokens.

        Args:
            dataset_path: A `.npy` of integers [pieces, length], else a UTF-8 text, which is cut
                into pieces of 512 tokens, or the context where that is shorter.
            engine_convert_to_basic: No effect: nothing speculates here.
            engine_role: "target"; containers have no draft.
            lora_config: Adapters of the container; None: the base.

        Raises:
            BadInput: Another role, or a file that is missing or too short.
        """
        del engine_convert_to_basic
        if engine_role != "target":
            raise BadInput(f"the container has no {engine_role}", where="engine_role")
        session = self._ready(_worn(lora_config, self._opened.adapters()))
        path = Path(dataset_path).expanduser()
        pieces = read_pieces(path) if path.suffix == ".npy" else self._pieces(path, session)
        return evaluate(session, pieces).perplexity

    def _pieces(self, path: Path, session: Session) -> np.ndarray[Any, np.dtype[np.int64]]:
        tokenizer = self._opened.tokenizer()
        if tokenizer is None:
            raise BadInput("the container has no tokenizer", where=str(path))
        try:
            tokens = tokenizer.encode(path.read_text(encoding="utf-8"), special=False)
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"it cannot be read as text: {error}", where=str(path)) from error
        length = min(_PIECE, session.context_length, tokens.size)
        if length < 2:
            raise BadInput(f"it has {tokens.size} tokens, 2 are needed", where=str(path))
        whole = tokens.size // length
        return tokens[: whole * length].reshape(whole, length)

    def _ready(self, worn: tuple[AdapterUse, ...]) -> Session:
        if self._session is None or worn != self._worn:
            self.clean_environment()
            self._session = open_session(self._opened, worn=worn)
            self._worn = worn
        return self._session

    def __enter__(self) -> Self:
        self.prepare_environment()
        return self

    def __exit__(self, *_: object) -> None:
        if self._clean_up:
            self.clean_environment()


GenAIExecutor = GenAIExecutable
"""The vendor's older name."""


def _settings(given: Any) -> tuple[int, Sampling]:
    """The most tokens, and how they are drawn."""
    if given is None:
        values: Mapping[str, Any] = {}
    elif isinstance(given, Mapping):
        values = given
    elif hasattr(given, "model_dump"):
        values = given.model_dump(exclude_unset=True)
    else:
        values = vars(given)
    values = {name: value for name, value in values.items() if value is not None}
    known = {*_SAMPLING, "max_new_tokens", "do_sample"}
    if unknown := sorted(set(values) - known):
        raise BadInput(
            "unknown",
            where=f"generation_config.{unknown[0]}",
            remedy=f"known are {', '.join(sorted(known))}",
        )
    taken = {own: values[name] for name, own in _SAMPLING.items() if name in values}
    # As transformers: without do_sample the answer is greedy, whatever else is set.
    if not values.get("do_sample", "temperature" in values):
        taken.pop("temperature", None)
    elif "temperature" not in taken:
        taken["temperature"] = 1.0
    return int(values.get("max_new_tokens", _MOST_TOKENS)), Sampling(**taken)


def _worn(config: UseCaseRunConfig | None, index: AdapterIndex) -> tuple[AdapterUse, ...]:
    """Adapters of a call.

    Raises:
        BadInput: The container has no such adapter, or one is listed twice.
    """
    if config is None:
        return ()
    names = [run.adapter_name for run in config.adapters]
    for number, name in enumerate(names):
        if name not in index.adapters:
            raise BadInput(
                f"the container has no adapter {name}",
                where=f"use case {config.use_case_name}",
                remedy=f"it has {', '.join(index.adapters) or 'none'}",
            )
        if name in names[:number]:
            raise BadInput(f"{name} is listed twice", where=f"use case {config.use_case_name}")
    return tuple(AdapterUse(run.adapter_name, run.alpha) for run in config.adapters)
