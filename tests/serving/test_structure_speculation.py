"""Guesses under a form: with every method each answer is the one without guesses, and valid."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from heard import SECONDS, Heard, ask
from running import example_tokenizer

from genai_runtime.sampling import Sampling
from genai_runtime.speculation.chained import Chained
from genai_runtime.speculation.control import Counts, Speculation
from genai_runtime.speculation.draft_model import DraftModel
from genai_runtime.speculation.lookahead import Lookahead
from genai_runtime.speculation.method import Method
from genai_runtime.speculation.ngram import Ngram
from genai_runtime.speculation.suffix import Suffix
from genai_runtime.testing import ScriptedExecutor
from genai_runtime.tokenizer import TextTokenizer
from genai_serving.engine import Engine, ServingLimits
from genai_serving.requests import AnswerRequest
from genai_serving.structure.answer_forms import Form, of_choices, of_regex, of_schema
from genai_serving.structure.grammars import Grammars

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-llama" / "model"
VOCAB, CONTEXT, END = 2048, 160, frozenset({2, 6})
LIMITS = ServingLimits(
    sequences=4, tokens=24, waiting=64, cache_bytes=8 * CONTEXT, prefix_bytes=256
)
ROWS = {
    "type": "array",
    "items": {"enum": ["alpha", "beta"]},
    "minItems": 3,
    "maxItems": 4,
}


def valid(text: str) -> bool:
    jsonschema.validate(json.loads(text), ROWS)
    return True


FORMS: dict[str, tuple[Form, Callable[[str], object]]] = {
    "regex": (of_regex("(ab|cd){4,9}", "x"), lambda text: re.fullmatch("(ab|cd){4,9}", text)),
    "schema": (of_schema(ROWS, "x"), valid),
    "choice": (of_choices(["left left left", "left left right"], "x"),
               lambda t: t[:9] == "left left"),
}  # fmt: skip
METHODS: dict[str, Callable[[], Method]] = {
    "ngram": lambda: Ngram(least=1, most=3),
    "ngram,suffix": lambda: Chained([Ngram(least=3, most=4), Suffix(min_token_prob=0)]),
    "lookahead": lambda: Lookahead(window=2, ngram=3, gcap=3),
    "draft_model": lambda: DraftModel(executor(), vocab_size=VOCAB),
}


def executor() -> ScriptedExecutor:
    return ScriptedExecutor(vocab_size=VOCAB, context_length=CONTEXT, trees=True)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return example_tokenizer()


@pytest.fixture(scope="module")
def requests(tokenizer: TextTokenizer) -> list[tuple[str, AnswerRequest]]:
    """Name of the form, request: the prompt repeats an answer, so that guesses are often right."""
    grammars = Grammars(tokenizer, VOCAB, END)
    beginnings = ["abcdabcdababab", json.dumps(["alpha", "beta", "alpha"]) * 2, "left left left"]
    found = []
    for number in range(24):
        name = list(FORMS)[number % 3]
        prompt = tokenizer.encode(beginnings[number % 3], special=False)[:40]
        sampling = Sampling(
            temperature=[0.0, 1.0][number % 2],
            seed=number,
            logit_bias={2: 3.0},
            repetition_penalty=[1.0, 1.2][number % 4 == 3],
        )
        request = ask(
            prompt,
            [60, 5][number % 8 == 7],
            sampling=sampling,
            stop_tokens=END,
            constraint=grammars.compile(FORMS[name][0]).begin,
        )
        found.append((name, request))
    return found


def answers(
    requests: list[tuple[str, AnswerRequest]], speculation: Speculation | None = None
) -> tuple[list[list[int]], Counts | None]:
    engine = Engine(executor(), LIMITS, speculation=speculation)
    heard = []
    for _, request in requests:
        heard.append(Heard())
        engine.submit(request, heard[-1])
    for listener in heard:
        listener.wait()
    counts = engine.guessed
    assert engine.close(seconds=SECONDS)
    return [listener.tokens for listener in heard], counts


@pytest.fixture(scope="module")
def plain(requests: list[tuple[str, AnswerRequest]]) -> list[list[int]]:
    return answers(requests)[0]


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_every_answer_of_a_form_is_that_without_guesses(
    requests: list[tuple[str, AnswerRequest]], plain: list[list[int]], method: str, adaptive: bool
) -> None:
    speculation = Speculation(METHODS[method](), most=4, adaptive=adaptive)
    told, counts = answers(requests, speculation)
    assert told == plain
    assert counts is not None
    if not adaptive:
        assert counts.guessed > 0


def test_every_answer_of_a_form_is_valid_without_guesses(
    requests: list[tuple[str, AnswerRequest]], plain: list[list[int]], tokenizer: TextTokenizer
) -> None:
    whole = 0
    for (name, request), tokens in zip(requests, plain, strict=True):
        if len(tokens) < request.max_tokens:
            whole += 1
            text = tokenizer.decode([token for token in tokens if token not in END])
            assert FORMS[name][1](text), text
    assert whole > 15
