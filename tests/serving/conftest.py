"""A server in this process on an executor without a model, and a client for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from running import CONTEXT, VOCAB, Client, Running, run_server

from genai_runtime.speculation.control import Speculation
from genai_runtime.speculation.draft_model import DraftModel
from genai_runtime.testing import ScriptedExecutor


@pytest.fixture
def make_server() -> Iterator[Callable[..., Running]]:
    made = []

    def make(**given: Any) -> Running:
        made.append(run_server(**given))
        return made[-1]

    yield make
    for running in made:
        running.stop()
        assert running.executor.open_slots == frozenset(), "a slot was left open"


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    """For tests that leave it as it was."""
    running = run_server()
    yield running
    load = running.engine.load
    running.stop()
    assert (load.running, load.waiting) == (0, 0)
    assert running.executor.open_slots == frozenset()


@pytest.fixture
def client(shared: Running) -> Client:
    return shared.client


@pytest.fixture(scope="module")
def guessing() -> Iterator[Running]:
    """A server whose draft model is the base itself, and wrong where an adapter is worn."""
    draft = ScriptedExecutor(vocab_size=VOCAB, context_length=CONTEXT)
    method = DraftModel(draft, vocab_size=VOCAB)
    running = run_server(speculation=Speculation(method, most=3, adaptive=False))
    yield running
    running.stop()
    assert running.executor.open_slots == draft.open_slots == frozenset()
