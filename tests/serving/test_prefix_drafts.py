"""A draft model does not read again what it has read for an earlier sequence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from heard import Heard, ask

from genai_runtime.executor.executor import Executor
from genai_runtime.generate import generate
from genai_runtime.prefixes.cache import PrefixCache
from genai_runtime.prefixes.prefix_files import BLOCK, PrefixFiles
from genai_runtime.speculation.control import Speculation
from genai_runtime.speculation.draft_model import DraftModel
from genai_runtime.testing import ScriptedExecutor, ScriptedSession
from genai_serving.engine import Engine, ServingLimits

LIMITS = ServingLimits(sequences=3, tokens=64, waiting=8, cache_bytes=600, prefix_bytes=300)
CONTEXT = 96
PROMPT = [int(token) for token in np.random.default_rng(1).integers(0, 17, 3 * BLOCK + 5)]


class Guessing:
    """An engine, and the draft model beside it."""

    def __init__(self, folder: Path | None = None, seed: int = 1) -> None:
        self.draft = ScriptedExecutor(context_length=CONTEXT, seed=seed)
        speculation = Speculation(DraftModel(self.draft, vocab_size=17), most=3, adaptive=False)

        def opened(executor: Executor) -> tuple[PrefixCache, PrefixFiles | None]:
            files = folder and PrefixFiles(
                folder, executor, identity="draft", most_bytes=1 << 20, scope_text=str
            )
            return PrefixCache(executor, 300), files or None

        speculation.keep_beginnings(opened)
        self.engine = Engine(
            ScriptedExecutor(context_length=CONTEXT), LIMITS, speculation=speculation
        )

    def ask(self, prompt: list[int], most: int = 8, **given: Any) -> int:
        """Tokens that the draft model has read for it, but for those of the answer."""
        self.draft.passes.clear()
        heard = Heard()
        self.engine.submit(ask(prompt, most, **given), heard)
        heard.wait()
        session = ScriptedSession(context_length=CONTEXT)
        assert heard.tokens == list(generate(session, np.asarray(prompt), max_tokens=most).tokens)
        return max((size for one in self.draft.passes for size in one.values()), default=0)

    def close(self) -> None:
        self.engine.close()
        assert self.draft.open_slots == frozenset()


@pytest.fixture
def guessing() -> Iterator[Guessing]:
    made = Guessing()
    yield made
    made.close()


@pytest.mark.parametrize("seed", [0, 1])  # always right, and seldom
def test_a_hit_does_not_make_the_draft_model_read_the_prompt_again(seed: int) -> None:
    guessing = Guessing(seed=seed)
    assert guessing.ask(PROMPT) > len(PROMPT)
    assert guessing.ask(PROMPT) <= 2, "the last token of the prompt and the first one written"
    assert guessing.ask([*PROMPT, 5, 6]) <= 4
    assert guessing.ask([1, 2, 3]) <= 4
    assert guessing.ask(PROMPT[:20]) <= 2
    guessing.close()


def test_a_draft_model_shares_nothing_between_salts(guessing: Guessing) -> None:
    guessing.ask(PROMPT, cache_salt="x")
    assert guessing.ask(PROMPT, cache_salt="y") > len(PROMPT)
    assert guessing.ask(PROMPT) > len(PROMPT)
    assert guessing.ask(PROMPT, cache_salt="x") <= 2


def test_a_pinned_beginning_is_read_by_the_draft_model_too(guessing: Guessing) -> None:
    guessing.ask(PROMPT, 1, pin=True, speculation=False)
    for start in range(1, 12):  # more than there is memory for
        guessing.ask([start] * 40)
    assert guessing.ask([*PROMPT, 3, 4]) <= 3


def test_a_draft_model_goes_on_where_it_was_when_it_is_restarted(tmp_path: Path) -> None:
    first = Guessing(tmp_path)
    first.ask(PROMPT)
    first.close()
    second = Guessing(tmp_path)
    assert second.ask(PROMPT) <= len(PROMPT) - 3 * BLOCK + 1
    second.close()


def test_a_prompt_beyond_the_draft_models_context_is_answered_without_it() -> None:
    guessing = Guessing()
    guessing.draft._context_length = 20
    guessing.ask(PROMPT, 1, pin=True, speculation=False)
    for _ in range(2):
        assert guessing.ask(PROMPT) == 0
    assert guessing.engine.guessed is not None
    guessing.draft._context_length = CONTEXT
    assert guessing.ask(PROMPT) > 0, "it was not given up"
    guessing.close()
