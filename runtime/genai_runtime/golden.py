"""Golden prompts: what a container answered when it was built, to be asked again elsewhere.

A replay is teacher-forced: prompt and recorded tokens run in one pass, and at each place the most
likely token is compared with the recorded one. So one early difference does not make everything
behind it different. Where the first and the second choice were closer than the tolerance, another
machine's rounding may swap them; such a place never counts as a mismatch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from genai_core.container.versions import read_versioned
from genai_core.errors import BadInput
from genai_runtime.generate import Generation, generate
from genai_runtime.session import Session, Tokens, in_chunks

GOLDEN_VERSION = 2
"""The newest version of golden.json that this program reads."""
_WORN_VERSION = 2
"""The version that has `worn`."""


class GoldenPrompt(BaseModel):
    """One prompt and its greedy answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = ""
    """The text, empty where the model has no tokenizer."""
    prompt_tokens: list[int] = Field(min_length=1)
    tokens: list[int] = Field(min_length=1)
    margins: list[float]
    """Logit of the first choice minus that of the second, one for each of `tokens`."""


class Golden(BaseModel):
    """golden.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = Field(default=1, ge=1)
    tolerance: float = Field(ge=0)
    """A mismatch counts only where the recorded margin is above this."""
    prompts: list[GoldenPrompt]
    worn: dict[str, list[GoldenPrompt]] = Field(default_factory=dict)
    """Adapter or use case -> the same prompts answered with it. Since version 2."""

    @model_serializer(mode="wrap")
    def _without_unused(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = serialize(self)
        if not self.worn:
            found.pop("worn", None)
        return found

    def of(self, name: str) -> Golden:
        """The prompts as an adapter or a use case answered them; none where they were not asked."""
        return Golden(tolerance=self.tolerance, prompts=self.worn.get(name, []))

    def with_worn(self, worn: Mapping[str, Sequence[GoldenPrompt]]) -> Golden:
        """The same with these adapters' and use cases' answers, and no others."""
        kept = {name: list(prompts) for name, prompts in worn.items() if prompts}
        version = _WORN_VERSION if kept else 1
        return Golden(
            schema_version=version, tolerance=self.tolerance, prompts=self.prompts, worn=kept
        )

    def to_bytes(self) -> bytes:
        """What stands in golden.json."""
        value = self.model_dump(mode="json")
        text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        return f"{text}\n".encode()


@dataclass(frozen=True)
class Mismatch:
    """A place where a replay prefers another token."""

    prompt: int
    position: int
    expected: int
    got: int
    margin: float


@dataclass(frozen=True)
class Replay:
    """Outcome of a replay."""

    compared: int
    mismatches: tuple[Mismatch, ...]
    forgiven: int
    """Differences whose recorded margin is within the tolerance."""

    @property
    def passed(self) -> bool:
        """No mismatch counted."""
        return not self.mismatches


def record(
    session: Session,
    prompts: Sequence[tuple[str, Tokens]],
    *,
    max_tokens: int,
    stop_tokens: frozenset[int] = frozenset(),
    tolerance: float,
    on_answer: Callable[[Generation], None] | None = None,
) -> Golden:
    """Answer each prompt greedily and note how clear each choice was.

    Margins are rounded to six digits, which is how they are compared and stored.

    Args:
        session: What answers.
        prompts: Text (empty where there is none) and tokens of each.
        max_tokens: Of each answer.
        stop_tokens: End tokens.
        tolerance: Recorded with the answers.
        on_answer: Called with each answer, for its speed.
    """
    answers: list[GoldenPrompt] = []
    for text, prompt in prompts:
        answer = generate(session, prompt, max_tokens=max_tokens, stop_tokens=stop_tokens)
        ids = [int(token) for token in np.asarray(prompt)]
        if on_answer is not None:
            on_answer(answer)
        _, margins = _choices(session, ids, list(answer.tokens))
        answers.append(
            GoldenPrompt(
                prompt=text, prompt_tokens=ids, tokens=list(answer.tokens), margins=margins
            )
        )
    session.reset()
    return Golden(tolerance=tolerance, prompts=answers)


def replay(session: Session, golden: Golden) -> Replay:
    """Run the recorded tokens through `session` and compare its choices."""
    compared = forgiven = 0
    counted: list[Mismatch] = []
    for index, entry in enumerate(golden.prompts):
        choices, _ = _choices(session, entry.prompt_tokens, entry.tokens)
        for position, (expected, got, margin) in enumerate(
            zip(entry.tokens, choices, entry.margins, strict=True)
        ):
            compared += 1
            if expected == got:
                continue
            if margin <= golden.tolerance:
                forgiven += 1
            else:
                counted.append(Mismatch(index, position, expected, got, margin))
    session.reset()
    return Replay(compared=compared, mismatches=tuple(counted), forgiven=forgiven)


def read_golden(path: Path) -> Golden:
    """Golden prompts of a container.

    Raises:
        BadInput: The file does not have the form of golden.json.
    """
    try:
        written = path.read_bytes()
    except OSError as error:
        raise BadInput(f"not golden prompts: {error}", where=str(path)) from error
    golden = read_versioned(Golden, written, newest=GOLDEN_VERSION, where=str(path))
    for entry in [*golden.prompts, *(one for worn in golden.worn.values() for one in worn)]:
        if len(entry.margins) != len(entry.tokens):
            raise BadInput("margins and tokens differ in number", where=str(path))
    return golden


def _choices(
    session: Session, prompt: list[int], tokens: list[int]
) -> tuple[list[int], list[float]]:
    """The session's choice and its margin before each of `tokens`, teacher-forced."""
    session.reset()
    given = np.asarray(prompt + tokens[:-1], dtype=np.int64)
    first = len(prompt) - 1
    choices: list[int] = []
    margins: list[float] = []
    start = 0
    for logits in in_chunks(session, given):
        for row in logits[max(0, first - start) :]:
            second, top = np.partition(row, -2)[-2:]
            choices.append(int(row.argmax()))
            margins.append(round(float(top) - float(second), 6))
        start += logits.shape[0]
    return choices, margins
