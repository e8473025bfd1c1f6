"""Speculation over the packed graphs of a real model: answers, logits and cache to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import speculation_checks as checks
from models import EXAMPLE, tiny_llama
from numpy.typing import NDArray

from genai_core.names import Precision
from genai_runtime.cpu.executor import CpuExecutor
from genai_runtime.cpu.model import read_model
from genai_runtime.cpu.sessions import PlainSessions
from genai_runtime.executor.rows import Row, Tree, Want
from genai_runtime.processor import features, saturates
from genai_runtime.speculation.draft_model import DraftModel
from genai_runtime.speculation.lookahead import Lookahead
from genai_runtime.speculation.ngram import Ngram
from genai_runtime.speculation.suffix import Suffix
from genai_runtime.tokenizer import TextTokenizer

EXACT = saturates(features())


@pytest.fixture(scope="module", params=[Precision.INT8, Precision.FLOAT], ids=lambda p: p.value)
def executor_of(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> checks.MakeExecutor:
    """Executors over one set of sessions."""
    folder = tmp_path_factory.mktemp(request.param.value)
    model = read_model(tiny_llama(folder, request.param))
    sessions = PlainSessions(model, threads=1, exact=EXACT, sizes=(1, 4))
    return lambda: CpuExecutor(model, sessions, context_length=96)


def test_each_method_changes_no_bit(executor_of: checks.MakeExecutor) -> None:
    vocab_size = executor_of().vocab_size
    tokenizer = TextTokenizer.of_folder(EXAMPLE)
    assert tokenizer is not None

    def prompt_of(seed: int) -> NDArray[np.int64]:
        return tokenizer.encode(f"        self.assertEqual(a{seed}, b)\n" * 3)

    methods: dict[str, checks.MakeMethod] = {
        "ngram": lambda: Ngram(least=1, most=3),
        "suffix": Suffix,
        "lookahead": lambda: Lookahead(window=3, ngram=3, gcap=3),
        "draft_model": lambda: DraftModel(executor_of(), vocab_size=vocab_size),
    }
    for name, method_of in methods.items():
        accepted = checks.conforms(executor_of, method_of, tokens=24, prompt_of=prompt_of)
        # How often others are right depends on the last bits of this machine's logits.
        assert accepted > 0 or name != "draft_model", "the model is its own draft"


def test_a_rejection_at_each_place_leaves_the_cache_of_plain_decoding(
    executor_of: checks.MakeExecutor,
) -> None:
    prompt = checks.text(executor_of(), 9, 0)
    plain, alone = checks.ran(executor_of(), prompt, None, max_tokens=7)
    behind = checks.text(executor_of(), 3, 1)
    expected = alone.forward(behind)
    for wrong in range(1, 6):
        method = checks.Forced(plain.tokens, [wrong], vocab_size=executor_of().vocab_size)
        result, session = checks.ran(executor_of(), prompt, method, most=5, max_tokens=7)
        assert result.tokens == plain.tokens
        np.testing.assert_array_equal(session.forward(behind), expected)


def test_a_chain_before_hidden_tokens_keeps_its_bits(executor_of: checks.MakeExecutor) -> None:
    """What lookahead rests on: a branch stands behind the chain, never between its keys."""
    executor = executor_of()
    prompt, row = checks.text(executor, 9, 0), checks.text(executor, 6, 1)[:9]
    slot, other = executor.open(), executor.open()
    executor.forward([Row(slot, prompt), Row(other, prompt)])
    (chain,) = executor.forward([Row(slot, row[:4], want=Want.ALL)])
    sees = np.eye(9, dtype=np.bool_)
    sees[:4, :4] = np.tril(np.ones((4, 4), np.bool_))
    sees[4:, 0] = True
    positions = prompt.size + np.array([0, 1, 2, 3, 1, 1, 2, 2, 3])
    (both,) = executor.forward([Row(other, row, want=Want.ALL, tree=Tree(positions, sees))])
    np.testing.assert_array_equal(both.logits[:4], chain.logits)
    executor.truncate(other, prompt.size + 4)
    behind = checks.text(executor, 3, 2)
    here, there = executor.forward([Row(other, behind), Row(slot, behind)])
    np.testing.assert_array_equal(here.logits, there.logits)
