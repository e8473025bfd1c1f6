"""The executor's contract, on one that needs no model; sessions are slots of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import conformance
import numpy as np
import pytest

from genai_core.errors import BadInput
from genai_runtime.executor.executor import Executor
from genai_runtime.executor.rows import Row, RowOutput, Want
from genai_runtime.executor.slot_table import SlotTable
from genai_runtime.session import Session, SlotSession
from genai_runtime.steadiness import Steadiness, try_out
from genai_runtime.testing import ScriptedExecutor


@pytest.fixture
def executor() -> Iterator[ScriptedExecutor]:
    made = ScriptedExecutor()
    yield made
    assert made.open_slots == frozenset()


def test_scripted_executor_conforms(executor: ScriptedExecutor) -> None:
    assert isinstance(executor, Executor)
    conformance.rows_equal_each_alone(executor, conformance.bits)
    conformance.wanted_places_are_those_of_all(executor)
    conformance.slots_truncate_grow_and_free(executor, conformance.bits)
    conformance.copies_go_on_by_themselves(executor, conformance.bits)
    conformance.refusals_leave_every_slot_alone(executor)


def test_move_keeps_the_named_places_when_a_branch_is_accepted(executor: ScriptedExecutor) -> None:
    slot = executor.open()
    executor.forward([Row(slot, np.array([1, 2, 3, 4, 5]))])
    executor.move(slot, 2, [2, 4])
    (after,) = executor.forward([Row(slot, np.array([6]))])
    expected = conformance.alone(executor, np.array([1, 2, 3, 5, 6]))
    np.testing.assert_array_equal(after.logits, expected[-1:])
    executor.free(slot)


def test_slot_session_is_one_slot_when_others_run_beside_it() -> None:
    executor = ScriptedExecutor()
    session = SlotSession(executor)
    other = executor.open()
    assert isinstance(session, Session)
    text = np.array([4, 5, 6, 7])
    expected = conformance.alone(executor, text)
    got = [session.forward(text[:2])]
    executor.forward([Row(other, np.array([1, 2, 3]))])
    got.append(session.forward(text[2:]))
    np.testing.assert_array_equal(np.concatenate(got), expected)
    assert (session.length, executor.length(other)) == (4, 3)
    session.truncate(1)
    with pytest.raises(BadInput):
        session.truncate(2)
    session.reset()
    assert session.length == 0
    session.close()
    assert executor.closed


def test_slot_table_gives_the_lowest_number_again_when_it_is_freed() -> None:
    table: SlotTable[str] = SlotTable()
    assert [table.add(name) for name in "abc"] == [0, 1, 2]
    assert table.pop(1) == "b"
    assert table.add("d") == 1
    with pytest.raises(BadInput, match="slot 7"):
        table.pop(7)


@pytest.mark.parametrize(("want", "count"), [(Want.NONE, 0), (Want.LAST, 1), (Want.ALL, 5)])
def test_want_counts_the_places(want: Want, count: int) -> None:
    assert want.count(5) == count


class Unsteady(ScriptedExecutor):
    """Answers otherwise where a pass has more than `rows` rows, or a row fewer than `tokens`."""

    def __init__(self, *, rows: int = 99, tokens: int = 0) -> None:
        super().__init__()
        self.limits = (rows, tokens)

    def forward(self, rows: Sequence[Row]) -> list[RowOutput]:
        outputs = super().forward(rows)
        most, least = self.limits
        if len(rows) > most or any(row.tokens.size < least for row in rows):
            for output in outputs:
                output.logits[-1, 0] += 1e-6
        return outputs


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, Steadiness(chunks=True, neighbours=True)),
        ({"rows": 4}, Steadiness(chunks=True, neighbours=False)),
        ({"tokens": 2}, Steadiness(chunks=False, neighbours=False)),
    ],
)
def test_try_out_finds_what_bits_depend_on(limits: dict[str, int], expected: Steadiness) -> None:
    executor = Unsteady(**limits)
    assert try_out(executor) == expected
    assert executor.open_slots == frozenset()


def test_try_out_fits_a_short_context() -> None:
    assert try_out(ScriptedExecutor(context_length=6)).chunks
