"""What speculation may be asked for, how long drafts become, and what a failing method does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_core.errors import BadInput
from genai_runtime.container.container import Container
from genai_runtime.executor.rows import Logits
from genai_runtime.generate import generate
from genai_runtime.sampling import Typical
from genai_runtime.speculation.config import named_config, parse_config
from genai_runtime.speculation.control import Room, Speculation
from genai_runtime.speculation.lengths import Costs, Length
from genai_runtime.speculation.method import NOTHING, Draft, Foresee, accept
from genai_runtime.speculation.ngram import Ngram
from genai_runtime.speculator import open_speculation
from genai_runtime.testing import ScriptedExecutor, ScriptedSession


def test_vllms_configurations_are_read() -> None:
    config = parse_config(
        '{"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4, "model": null}'
    )
    assert (config.names, config.most, config.lookup) == (("ngram",), 5, (2, 4))
    suffix = parse_config('{"method": "suffix", "suffix_decoding_max_tree_depth": 12}')
    assert suffix.most == 12
    draft = parse_config('{"model": "d", "num_speculative_tokens": 3}')
    assert draft.names == ("draft_model",), "a model without a method is a draft model"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "method: must be given; there are ngram"),
        ('{"method": "medusa", "num_speculative_tokens": 3}', "'medusa' is not there; .*draft_mod"),
        ('{"method": "ngram"}', "num_speculative_tokens: must be given"),
        ('{"method": "ngram", "num_speculative_tokens": 0}', "num_speculative_tokens: .*greater"),
        ('{"method": "ngram", "num_speculative_tokens": "4"}', "num_speculative_tokens: .*integer"),
        (
            '{"method": "suffix", "prompt_lookup_min": 5, "prompt_lookup_max": 4}',
            "prompt_lookup_min: 5 is above prompt_lookup_max 4",
        ),
        ('{"method": "ngram", "num_speculative_tokens": 3, "lookup": 1}', "lookup: no such key"),
        ('{"method": "ngram", "num_speculative_tokens": 3, "model": "x"}', "model: ngram takes no"),
        ('{"methods": ["ngram", "draft_model"], "model": "x"}', "draft_model works alone"),
        ('{"methods": ["suffix", "suffix"]}', "each may stand there once"),
        ('{"method": "suffix", "methods": ["ngram"]}', "either method or methods"),
        ('{"method": "suffix", "quantization": "fp8"}', "quantization: has no meaning here"),
        (
            '{"method": "suffix", "draft_tensor_parallel_size": 2}',
            "draft_tensor_parallel_size: has",
        ),
        ('{"method": "suffix", "acceptance-method": "typical"}', "acceptance_method"),
        ('{"method": "suffix", "posterior_alpha": 0}', "posterior_alpha"),
        ('{"method": "suffix", "rejection_sample_method": "block"}', "rejection_sample_method"),
        ('{"method": "lookahead", "window": 0}', "window: "),
        ('{"method": "lookahead", "window": 32, "ngram": 16}', "window . .ngram - 1. must be at"),
        ('{"method": "suffix", "min_speculative_tokens": 30}', "min_speculative_tokens: above"),
    ],
)
def test_what_has_no_meaning_is_refused_by_its_key(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        parse_config(text, where="--speculative-config")
    assert "--speculative-config" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_method_may_be_named_with_its_options_or_written_out() -> None:
    assert named_config("ngram").most == 4
    assert named_config("ngram,suffix", tokens=6).names == ("ngram", "suffix")
    assert named_config("draft_model", draft="folder", tokens=2).model == "folder"
    written = json.dumps({"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3})
    assert named_config(written, tokens=7).most == 7
    assert named_config(written).lookup == (2, 3)
    for text in ("", ",", "medusa", "ngram,lookahead"):
        with pytest.raises(BadInput):
            named_config(text)


def test_speculation_that_would_change_answers_is_refused_unless_lossy_is_asked_for() -> None:
    target = ScriptedExecutor()
    with pytest.raises(BadInput, match="would differ from plain ones"):
        open_speculation(named_config("ngram"), target, steady=False)
    lossy = parse_config('{"method": "ngram", "num_speculative_tokens": 2, "lossy": true}')
    assert open_speculation(lossy, target, steady=False).name == "ngram"
    with pytest.raises(BadInput, match="lookahead needs a model whose passes may hold a tree"):
        open_speculation(named_config("lookahead"), target, steady=True)


def costs_of(slope: float, rows: int = 1) -> Costs:
    costs = Costs()
    for extra in (0, rows, 4 * rows):
        for _ in range(3):
            costs.observe(rows, extra, 0.03 * (1 + slope * extra / rows))
    return costs


def test_lengths_follow_acceptance_and_costs() -> None:
    length = Length(most=8)
    for _ in range(20):
        length.observe(4, 4)
    assert length.chosen(costs_of(0.1), 1) == 8
    assert length.chosen(costs_of(1.5), 1) == 0, "a pass costs more than it can bring"
    for _ in range(20):
        length.observe(1, 0)
    assert length.acceptance < 0.2
    assert length.chosen(costs_of(0.12), 1) == 0
    for _ in range(6):
        length.observe(1, 1)
    assert length.chosen(costs_of(0.12), 1) > 0, "what came true without being run counts"
    assert Length(most=8, least=2).chosen(costs_of(1.5), 1) == 2


def test_a_length_of_nothing_is_tried_again_where_nothing_else_tells_of_better_guesses() -> None:
    length = Length(most=4)
    tries = []
    for place in range(400):
        chosen = length.chosen(costs_of(0.9), 1, free=False)
        if chosen:
            tries.append(place)
            length.observe(chosen, 0)
    assert 3 <= len(tries) <= 8
    assert np.all(np.diff(np.diff(tries)) >= 0), "ever more seldom"


class Coin:
    """Guesses that are right with a probability, and take some time."""

    name = "coin"

    def branch_tokens(self, guesses: int) -> int:
        return 0

    def __init__(self, chance: float, price: float, seed: int) -> None:
        self.free, self.price, self.now = price == 0, price, 0.0
        self.chance, self.random = chance, np.random.default_rng(seed)

    def start(self, key: int, tokens: Sequence[int], foresee: Foresee | None = None) -> None:
        pass

    def propose(self, wanted: Mapping[int, int]) -> dict[int, Draft]:
        self.now += self.price * sum(wanted.values())
        # A guess of 1 is right: the text is all ones.
        return {
            key: Draft(tuple((self.random.random(count) < self.chance).astype(int).tolist()))
            for key, count in wanted.items()
        }

    def extend(self, key: int, tokens: Sequence[int], branch: Logits | None = None) -> None:
        pass

    def finish(self, key: int) -> None:
        pass

    def cache_bytes(self, tokens: int) -> int:
        return 0

    def close(self) -> None:
        pass


def played(
    chances: Sequence[float], slope: float, price: float, *, seed: int, length: int = 400
) -> float:
    """Time of answers of ones, each with its chance, in plain passes."""
    method = Coin(chances[0], price, seed)
    speculation = Speculation(method, most=4, clock=lambda: method.now)
    for key, chance in enumerate(chances):
        method.chance = chance
        speculation.start(key, [1])
        written = 1
        while written < length:
            room = Room(answer=length - written - 1, slot=length)
            draft = speculation.propose(speculation.wanted({key: room}), [key]).get(key, NOTHING)
            taken = 1 + slope * draft.size
            method.now += taken
            speculation.observe_pass(1, draft.size, taken)
            new = accept(
                np.tile([0.0, 1.0], (draft.size + 1, 1)), draft.tokens, lambda *_: (1, False)
            )
            speculation.extend(key, new)
            written += len(new)
        speculation.finish(key)
    return method.now


@pytest.mark.parametrize(("chance", "price"), [(0.9, 0.1), (0.0, 0.4)])
def test_gain_is_what_plain_passes_would_have_taken_for_the_same_tokens(
    chance: float, price: float
) -> None:
    """A plain pass takes 1, whatever the drafts do: so each token is worth 1."""
    method = Coin(chance, price, 7)
    speculation = Speculation(method, most=4, adaptive=False, clock=lambda: method.now)
    speculation.start(0, [1])
    for _ in range(3):
        speculation.propose({})
        speculation.observe_pass(1, 0, 1.0)
        speculation.wrote(1)
    assert (speculation.gain.plain, speculation.gain.seconds) == (0, 0), "nothing to compare with"
    tokens, began = 0, method.now
    for _ in range(200):
        speculation.propose({})  # a prompt's pass is told of by nobody, and counts for nothing
        speculation.wrote(1)
        draft = speculation.propose({0: 4}, [0]).get(0, NOTHING)
        taken = 1 + 0.2 * draft.size
        method.now += taken
        speculation.observe_pass(1, draft.size, taken)
        rows = np.tile([0.0, 1.0], (draft.size + 1, 1))
        new = accept(rows, draft.tokens, lambda *_: (1, False))
        speculation.extend(0, new)
        speculation.wrote(len(new))
        tokens += len(new)
    assert speculation.gain.plain == pytest.approx(tokens)
    assert speculation.gain.seconds == pytest.approx(method.now - began)
    assert (speculation.gain.plain > speculation.gain.seconds) == (chance > 0.5)


@pytest.mark.parametrize("price", [0, 0.1, 0.4])
@pytest.mark.parametrize("slope", [0.0, 0.1, 0.3, 1.0])
def test_speculation_is_never_slower_by_much_and_faster_where_it_pays(
    slope: float, price: float
) -> None:
    plain = 4 * 399
    for seed, chances in enumerate(([0.0] * 4, [0.2] * 4, [0.5] * 4, [0.9] * 4, [0.9, 0, 0.9, 0])):
        taken = played(chances, slope, price, seed=seed)
        assert taken <= plain / 0.97, (chances, taken / plain)
    ceiling = max(
        sum(0.9**place for place in range(k + 1)) / (1 + (slope + price) * k) for k in range(5)
    )
    gained = plain / played([0.9] * 4, slope, price, seed=9)
    assert gained >= 0.85 * ceiling


def test_a_pass_that_took_long_by_chance_does_not_end_speculation() -> None:
    costs = costs_of(0.1)
    for extra in (1, 4):
        for _ in range(9):
            costs.observe(1, extra, 9.0)
    length = Length(most=4, prior=0.9)
    waits = 0
    while not length.chosen(costs, 1):
        costs.observe(1, 0, 0.03)
        waits += 1
    assert 100 < waits < 2000


@given(st.floats(0, 1), st.floats(0, 2), st.integers(1, 8))
def test_no_length_is_chosen_that_costs_more_than_it_brings(
    acceptance: float, slope: float, rows: int
) -> None:
    length = Length(most=8)
    for _ in range(60):
        length.observe(1, 0)
    length._right, length._tried = acceptance, 1.0
    costs = costs_of(slope, rows)
    chosen = length.chosen(costs, rows)
    tokens = sum(acceptance**place for place in range(chosen + 1))
    assert tokens >= costs.factor(rows, chosen * rows)


def test_plain_passes_come_first_and_now_and_then() -> None:
    costs = Costs()
    assert costs.plain_is_due(1)
    for _ in range(3):
        costs.observe(1, 0, 0.01)
    assert not costs.plain_is_due(1)
    assert costs.plain_is_due(2)
    for _ in range(64):
        costs.observe(1, 3, 0.012)
    assert costs.plain_is_due(1)


def test_adaptive_speculation_writes_the_same() -> None:
    prompt = np.array([1, 2, 0, 1, 2, 0, 1, 2])
    speculation = Speculation(Ngram(least=1, most=3), most=4)
    result = generate(ScriptedSession(vocab_size=3), prompt, max_tokens=50, speculation=speculation)
    plain = generate(ScriptedSession(vocab_size=3), prompt, max_tokens=50)
    assert result.tokens == plain.tokens


class Broken(Ngram):
    """Fails at its second proposal."""

    calls = 0

    def propose(self, wanted: Mapping[int, int]) -> dict[int, Draft]:
        self.calls += 1
        if self.calls > 1:
            raise RuntimeError("lost")
        return super().propose(wanted)


def test_a_method_that_fails_is_off_and_the_answer_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    prompt = np.array([1, 2, 1, 2, 1])
    speculation = Speculation(Broken(least=1, most=2), most=2, adaptive=False)
    result = generate(ScriptedSession(), prompt, max_tokens=12, speculation=speculation)
    assert result.tokens == generate(ScriptedSession(), prompt, max_tokens=12).tokens
    assert "speculation by ngram failed and is off" in caplog.text


class Tokens:
    """A container's tokenizer, as far as it is compared."""

    def __init__(
        self,
        words: dict[str, int] | None,
        vocab_size: int = 4,
        *,
        folder: str = "target",
        own: Tokens | None = None,
    ) -> None:
        self.words, self.own = words, own
        self.folder = folder
        self.metadata = SimpleNamespace(vocab_size=vocab_size, head=None)

    def draft(self) -> Tokens | None:
        return self.own

    def tokenizer(self) -> SimpleNamespace | None:
        words = self.words
        return words if words is None else SimpleNamespace(vocabulary=lambda: words)


@pytest.mark.parametrize(
    ("draft", "target", "fits"),
    [
        (Tokens({"a": 0, "b": 1}), Tokens({"b": 1, "a": 0}), True),
        (Tokens({"a": 0, "b": 1}), Tokens({"a": 1, "b": 0}), False),
        (Tokens({"a": 0}), Tokens({"a": 0, "b": 1}), False),
        (Tokens(None), Tokens({"a": 0}), False),
        (Tokens(None), Tokens(None), True),
        (Tokens(None, 5), Tokens(None), False),
    ],
)
def test_a_draft_model_of_another_tokenizer_is_refused_by_name(
    draft: Tokens, target: Tokens, fits: bool
) -> None:
    asked: list[int | None] = []

    def open_draft(_container: Container, threads: int | None) -> ScriptedExecutor:
        asked.append(threads)
        return ScriptedExecutor()

    def opened() -> Speculation:
        return open_speculation(
            named_config("draft_model", draft="small/cpu"),
            ScriptedExecutor(),
            steady=True,
            tokenizer_of=cast("Container", target),
            open_draft=open_draft,
            load_draft=lambda _path: cast("Container", draft),
        )

    if fits:
        assert opened().name == "draft_model"
        assert asked == [None]
        return
    draft.folder = "small/cpu"
    with pytest.raises(BadInput, match="small/cpu: its tokenizer is not that of target"):
        opened()
    assert not asked


def test_the_draft_model_of_the_container_itself_is_taken_where_none_is_named() -> None:
    words = {"a": 0}

    def opened(target: Tokens) -> Speculation:
        return open_speculation(
            named_config("draft_model"),
            ScriptedExecutor(),
            steady=True,
            tokenizer_of=cast("Container", target),
            open_draft=lambda _container, _threads: ScriptedExecutor(),
        )

    assert opened(Tokens(words, own=Tokens(words))).name == "draft_model"
    with pytest.raises(BadInput, match="the container carries no draft model"):
        opened(Tokens(words))


def test_typical_acceptance_is_asked_for_in_either_spelling_and_nowhere_else() -> None:
    assert named_config("ngram").typical is None
    asked = '{"method": "suffix", "acceptance-method": "typical_acceptance_sampler"}'
    assert named_config(asked).typical == Typical(0.09, 0.3)
    asked = (
        '{"method": "suffix", "acceptance_method": "typical_acceptance_sampler", '
        '"typical_acceptance_sampler_posterior_threshold": 0.2, "posterior_alpha": 0.5}'
    )
    assert named_config(asked).typical == Typical(0.2, 0.5)
