"""EAGLE heads over the packed graphs of a real model: bits, what is accepted, what is dropped."""

from __future__ import annotations

from pathlib import Path

import heads
import numpy as np
import pytest
import speculation_checks as checks
from models import EXAMPLE
from numpy.typing import NDArray

from genai_core.errors import BadInput
from genai_core.names import Gaps, Precision
from genai_core.operations import IngestConfig
from genai_runtime.executor.rows import Row, Want
from genai_runtime.speculation.control import Speculation
from genai_runtime.tokenizer import TextTokenizer


@pytest.fixture(scope="module", params=[1, 3], ids=lambda version: f"eagle-{version}")
def version(request: pytest.FixtureRequest) -> int:
    param: int = request.param
    return param


@pytest.fixture(scope="module")
def head(version: int, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, heads.Compiled]:
    """Core graph and open graphs of a head."""
    folder = tmp_path_factory.mktemp("head")
    given = heads.source(folder / "source", version)
    core = heads.ingested(folder / "core", given, IngestConfig(head=True))
    return core, heads.Compiled.of(heads.built(folder / "built", core))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, heads.Compiled]:
    """The example in two precisions, with the hidden states of both heads."""
    folder = tmp_path_factory.mktemp("models")
    core = heads.ingested(folder / "core", EXAMPLE, IngestConfig())
    gaps = {Precision.FLOAT: Gaps.FLOAT, Precision.INT8: Gaps.ERROR}
    states = tuple(layer for layers in heads.LAYERS.values() for layer in layers)
    return {
        precision: heads.Compiled.of(
            heads.built(
                folder / precision, core, precision=precision, gaps=gap, hidden_states=states
            )
        )
        for precision, gap in gaps.items()
    }


@pytest.fixture(scope="module")
def float_model(version: int, models: dict[Precision, heads.Compiled]) -> heads.Giving:
    return heads.Giving(models[Precision.FLOAT], version)


@pytest.fixture(scope="module")
def int8_model(version: int, models: dict[Precision, heads.Compiled]) -> heads.Giving:
    return heads.Giving(models[Precision.INT8], version)


def test_eagle_changes_no_bit(
    version: int,
    head: tuple[Path, heads.Compiled],
    float_model: heads.Giving,
    int8_model: heads.Giving,
) -> None:
    tokenizer = TextTokenizer.of_folder(EXAMPLE)
    assert tokenizer is not None

    def prompt_of(seed: int) -> NDArray[np.int64]:
        return tokenizer.encode(f"        self.assertEqual(a{seed}, b)\n" * 3)

    for model in (float_model, int8_model):
        accepted = checks.conforms(
            model.executor, lambda: heads.eagle(*head), tokens=24, prompt_of=prompt_of
        )
        assert accepted > 0


def test_eagle_accepts_what_its_reference_accepts(
    version: int, head: tuple[Path, heads.Compiled], float_model: heads.Giving
) -> None:
    """A wrong pairing, order of layers, map or feedback still gives the greedy text."""
    accepted = drafts = 0
    for case in heads.REFERENCE:
        prompt = np.asarray(case["prompt"])
        result, _ = checks.ran(float_model.executor(), prompt, heads.eagle(*head), max_tokens=48)
        assert list(result.tokens) == case["greedy"]
        spent = checks.spent(result)
        accepted += spent.accepted
        drafts += spent.drafts
        if version == 3:
            told = sum(case["accepted_per_pass"])
            # The reference may run over the last token; logits here are another library's.
            assert abs(spent.accepted - told) <= 4
        assert spent.positions[0] <= spent.drafts
    least = {1: 0.9, 3: 1.5}[version]  # measured 1.27 and 1.88; mistaken ones 0.0 to 1.3
    assert accepted / drafts > least


def test_states_of_a_row_are_those_of_its_tokens_whatever_stands_beside_it(
    version: int, int8_model: heads.Giving
) -> None:
    executor = int8_model.executor()
    text, other = checks.text(executor, 9, 0), checks.text(executor, 5, 1)
    first, second, third = (executor.open() for _ in range(3))
    (whole,) = executor.forward([Row(first, text, want=Want.NONE, states=True)])
    assert whole.states is not None
    assert whole.states.shape == (text.size, 192 * len(heads.LAYERS[version]))
    parts = []
    for start in range(0, text.size, 4):
        rows = [Row(second, text[start : start + 4], want=Want.NONE, states=True)]
        if start == 4:
            rows.insert(0, Row(third, other, states=True))
        states = executor.forward(rows)[-1].states
        assert states is not None
        parts.append(states)
    np.testing.assert_array_equal(np.concatenate(parts), whole.states)
    (output,) = executor.forward([Row(first, other)])
    assert output.states is None
    if version == 1:  # what the output layer reads is given out in any case
        (both,) = executor.forward([Row(third, other, hidden=True, states=True)])
        assert both.states is not None
        assert both.hidden is not None
        np.testing.assert_array_equal(both.states[-1:], both.hidden)


def test_a_head_that_joins_late_guesses_from_the_states_that_are_known(
    head: tuple[Path, heads.Compiled], float_model: heads.Giving
) -> None:
    """Keys and values of a prompt's beginning may come out of a cache: then nobody has states."""
    case = heads.REFERENCE[0]
    prompt = np.asarray(case["prompt"])
    executor, method = float_model.executor(), heads.eagle(*head)
    speculation = Speculation(method, most=4, adaptive=False)
    slot = executor.open()
    executor.forward([Row(slot, prompt[:20], want=Want.NONE)])
    (output,) = executor.forward([Row(slot, prompt[20:], states=True)])
    newest = int(output.logits[-1].argmax())
    speculation.start(0, prompt.tolist())
    assert output.states is not None
    speculation.observe(0, 20, output.states)
    speculation.extend(0, [newest])
    (draft,) = speculation.propose({0: 4}).values()
    assert len(draft.tokens) == 4
    # States that nothing joins with what is known: it begins anew behind the gap.
    row = Row(slot, np.asarray([newest, *draft.tokens]), states=True)
    (output,) = executor.forward([row])
    assert output.states is not None
    speculation.observe(0, prompt.size + 2, output.states[2:])
    speculation.extend(0, [*draft.tokens, int(output.logits[-1].argmax())])
    assert len(speculation.propose({0: 2})[0].tokens) == 2
    speculation.close()


def test_forward_refuses_rows_that_lack_what_the_model_reads(
    version: int, head: tuple[Path, heads.Compiled], float_model: heads.Giving
) -> None:
    executor = head[1].executor()
    slot = executor.open()
    with pytest.raises(BadInput, match="the model reads"):
        executor.forward([Row(slot, np.array([1, 2]))])
    given = {name: np.zeros((2, width), np.float32) for name, width in executor.given.items()}
    (output,) = executor.forward([Row(slot, np.array([1, 2047]), given=given)])
    assert output.logits.shape == (1, executor.vocab_size)
    with pytest.raises(BadInput, match="outside the vocabulary of 2048"):
        executor.forward([Row(slot, np.array([1, 2048]), given=given)])
    target = float_model.executor()
    with pytest.raises(BadInput, match="the model reads"):
        target.forward([Row(target.open(), np.array([1, 2]), given=given)])


def test_a_head_with_encodings_is_quantized_and_guesses_nearly_as_well(
    tmp_path: Path, models: dict[Precision, heads.Compiled], version: int
) -> None:
    if version == 1:
        pytest.skip("its layers are quantized as those of any model")
    folder = heads.source(tmp_path / "source", version)
    heads.write_encodings(folder)
    core = heads.ingested(tmp_path / "core", folder, IngestConfig(head=True))
    path = heads.built(tmp_path / "built", core, precision=Precision.INT8, gaps=Gaps.ERROR)
    head = heads.Compiled.of(path)
    assert sum(node.op_type == "QuantizeLinear" for node in head.model.proto.graph.node) >= 5
    model = heads.Giving(models[Precision.FLOAT], version)
    accepted = drafts = 0
    for case in heads.REFERENCE:
        result, _ = checks.ran(
            model.executor(), np.asarray(case["prompt"]), heads.eagle(core, head), max_tokens=48
        )
        assert list(result.tokens) == case["greedy"]
        spent = checks.spent(result)
        accepted += spent.accepted
        drafts += spent.drafts
    assert accepted / drafts > 1.3  # 1.88 of the float head
