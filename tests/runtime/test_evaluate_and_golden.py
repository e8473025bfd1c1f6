"""Loss against its definition; golden prompts against sessions that answer differently."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from genai_core.errors import BadInput
from genai_runtime.evaluate import Evaluation, evaluate, losses, read_pieces
from genai_runtime.executor.rows import Logits, Tokens, Tree
from genai_runtime.golden import Golden, read_golden, record, replay
from genai_runtime.testing import ScriptedSession


class Wrapped(ScriptedSession):
    """The scripted session with its logits changed at some positions."""

    def __init__(self, change: Callable[[int, Logits], object]) -> None:
        super().__init__()
        self.change = change

    def forward(self, tokens: Tokens, tree: Tree | None = None) -> Logits:
        start = self.length
        logits = super().forward(tokens, tree)
        for row in range(len(logits)):
            self.change(start + row, logits[row])
        return logits


def loss_by_hand(pieces: np.ndarray) -> float:
    total, count = 0.0, 0
    for piece in pieces:
        for position in range(1, len(piece)):
            row = ScriptedSession().forward(piece[:position])[-1].astype(np.float64)
            total -= math.log(math.exp(row[piece[position]]) / sum(math.exp(x) for x in row))
            count += 1
    return total / count


def test_loss_is_the_mean_over_positions_one_to_the_last_of_each_piece() -> None:
    pieces = np.random.default_rng(0).integers(0, 17, (5, 9)).astype(np.uint16)
    found = evaluate(ScriptedSession(), pieces)
    assert found.nats_per_token == pytest.approx(loss_by_hand(pieces), rel=1e-6)
    assert found.tokens == 5 * 8
    assert found.perplexity == pytest.approx(math.exp(found.nats_per_token))


def test_small_chunks_do_not_change_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = np.random.default_rng(1).integers(0, 17, (3, 11))
    whole = evaluate(ScriptedSession(), pieces)
    monkeypatch.setattr("genai_runtime.session.LOGITS_PER_CHUNK", 17 * 3)
    session = ScriptedSession()
    assert evaluate(session, pieces).nats_per_token == pytest.approx(whole.nats_per_token)
    assert max(session.passes) == 3


def test_losses_survive_large_logits() -> None:
    logits = np.array([[1000.0, 0.0], [-1000.0, 0.0]], dtype=np.float32)
    np.testing.assert_allclose(losses(logits, np.array([0, 0])), [0.0, 1000.0])


def test_perplexity_of_a_hopeless_model_is_infinite() -> None:
    assert Evaluation(nats_per_token=1e6, tokens=1).perplexity == math.inf


@pytest.mark.parametrize(
    "pieces",
    [
        np.zeros((3,), dtype=int),
        np.zeros((2, 1), dtype=int),
        np.zeros((0, 5), dtype=int),
        np.zeros((2, 3)),
        np.full((1, 3), 17),
        np.full((1, 3), -1),
        np.zeros((1, 70), dtype=int),
    ],
)
def test_tokens_that_cannot_be_scored_are_refused(pieces: np.ndarray) -> None:
    with pytest.raises(BadInput):
        evaluate(ScriptedSession(), pieces)


def test_pieces_are_read_and_cut(tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", np.arange(12, dtype=np.uint16).reshape(3, 4))
    assert read_pieces(tmp_path / "tokens.npy", pieces=2, length=3).tolist() == [
        [0, 1, 2],
        [4, 5, 6],
    ]
    assert read_pieces(tmp_path / "tokens.npy").shape == (3, 4)


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_files_without_an_array_name_themselves(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "tokens.npy"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=r"tokens\.npy"):
        read_pieces(path)


def test_an_array_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(BadInput, match=r"tokens\.npy"):
        read_pieces(tmp_path / "tokens.npy")


def recorded(tolerance: float = 0.1) -> Golden:
    prompts = [("one", np.array([1, 2, 3])), ("", np.array([4]))]
    return record(ScriptedSession(), prompts, max_tokens=8, tolerance=tolerance)


def test_the_same_session_replays_without_a_mismatch() -> None:
    golden = recorded()
    outcome = replay(ScriptedSession(), golden)
    assert outcome.passed
    assert outcome.compared == 16
    assert outcome.forgiven == 0


def test_margins_are_the_gap_between_first_and_second_choice() -> None:
    golden = recorded()
    row = np.sort(ScriptedSession().forward(np.array([1, 2, 3]))[-1])
    assert golden.prompts[0].margins[0] == pytest.approx(row[-1] - row[-2], abs=1e-5)


def test_one_wrong_choice_is_one_mismatch_however_much_follows() -> None:
    golden = recorded()

    def spoil(position: int, row: Logits) -> None:
        if position == 4:
            row[(golden.prompts[0].tokens[2] + 1) % 17] = 1e3

    outcome = replay(Wrapped(spoil), golden)
    assert [(m.prompt, m.position) for m in outcome.mismatches] == [(0, 2), (1, 4)]
    assert outcome.mismatches[0].expected == golden.prompts[0].tokens[2]


def test_a_close_choice_may_fall_the_other_way() -> None:
    golden = recorded(tolerance=1e9)
    outcome = replay(Wrapped(lambda _, row: np.negative(row, out=row)), golden)
    assert outcome.passed
    assert outcome.forgiven > 0


def test_a_difference_just_above_the_tolerance_counts() -> None:
    golden = recorded()
    margin = golden.prompts[0].margins[0]
    answer = golden.prompts[0].tokens[0]

    def swap(position: int, row: Logits) -> None:
        if position == 2:
            row[answer] -= 2 * margin + 1e-3

    for tolerance, passed in ((margin * 0.999, False), (margin, True)):
        only = Golden(tolerance=tolerance, prompts=golden.prompts[:1])
        assert replay(Wrapped(swap), only).passed is passed


def test_recording_stops_at_an_end_token() -> None:
    full = recorded().prompts[0].tokens
    golden = record(
        ScriptedSession(),
        [("", np.array([1, 2, 3]))],
        max_tokens=8,
        stop_tokens=frozenset({full[3]}),
        tolerance=0,
    )
    assert golden.prompts[0].tokens == full[: full.index(full[3]) + 1]


def test_golden_prompts_survive_the_file(tmp_path: Path) -> None:
    golden = recorded()
    path = tmp_path / "golden.json"
    path.write_text(golden.model_dump_json())
    assert read_golden(path) == golden


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "no json",
        '{"tolerance": 0, "prompts": [{"prompt_tokens": [1], "tokens": [1, 2], "margins": [0.1]}]}',
        '{"tolerance": 0, "prompts": [{"prompt_tokens": [], "tokens": [1], "margins": [0.1]}]}',
    ],
)
def test_broken_golden_files_name_themselves(tmp_path: Path, text: str) -> None:
    path = tmp_path / "golden.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"golden\.json"):
        read_golden(path)


def test_golden_of_an_adapter_is_a_version_that_older_programs_refuse() -> None:
    from genai_runtime.golden import Golden, GoldenPrompt

    prompt = GoldenPrompt(prompt_tokens=[1], tokens=[2], margins=[0.5])
    plain = Golden(tolerance=0.1, prompts=[prompt])
    assert b"worn" not in plain.to_bytes(), "files of containers without adapters stay as they are"
    worn = plain.with_worn({"one": [prompt], "none": []})
    assert (worn.schema_version, list(worn.worn)) == (2, ["one"])
    assert worn.of("one").prompts == [prompt]
    assert worn.of("other").prompts == []
    assert worn.with_worn({}) == plain
