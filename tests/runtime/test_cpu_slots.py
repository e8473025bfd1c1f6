"""Any sequence of openings, passes, truncations, growth and ends: every row as if it were alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from models import random_model

from genai_core.names import Precision
from genai_runtime import processor
from genai_runtime.cpu import CpuSession
from genai_runtime.cpu.executor import CpuExecutor
from genai_runtime.cpu.model import read_model
from genai_runtime.cpu.prepared import PreparedSessions, prepare
from genai_runtime.executor.rows import Row, Want

CONTEXT = 300
WANTS = st.sampled_from(list(Want))


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> type[RuleBasedStateMachine]:
    folder = tmp_path_factory.mktemp("model")
    path = random_model(folder, Precision.INT8, qk_norm=True)
    model, features = read_model(path), processor.features()
    exact = model.wide and processor.saturates(features)
    prepared = prepare(model, folder / "cache", identity="a", features=features, exact=exact)
    executor = CpuExecutor(
        model, PreparedSessions(prepared, threads=1, exact=exact), context_length=CONTEXT
    )
    reference = CpuSession(path, context_length=CONTEXT, threads=1)

    class Slots(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.texts: dict[int, list[int]] = {}

        @precondition(lambda self: len(self.texts) < 11)
        @rule(room=st.integers(0, CONTEXT))
        def open(self, room: int) -> None:
            slot = executor.open()
            assert slot not in self.texts
            assert executor.length(slot) == 0
            if room:
                executor.grow(slot, room)
            self.texts[slot] = []

        @precondition(lambda self: self.texts)
        @rule(data=st.data(), seed=st.integers(0, 2**32))
        def forward(self, data: st.DataObject, seed: int) -> None:
            random = np.random.default_rng(seed)
            members = data.draw(
                st.lists(st.sampled_from(sorted(self.texts)), min_size=1, unique=True)
            )
            rows = []
            for slot in members:
                count = data.draw(st.sampled_from([1, 1, 2, 3, 17, 130]))
                count = min(count, CONTEXT - len(self.texts[slot]))
                if count:
                    tokens = random.integers(0, executor.vocab_size, count)
                    rows.append(Row(slot, tokens, want=data.draw(WANTS), hidden=bool(count % 2)))
            if not rows:
                return
            for row, output in zip(rows, executor.forward(rows), strict=True):
                self.texts[row.slot] += [int(token) for token in row.tokens]
                wanted = row.want.count(row.tokens.size)
                assert output.logits.shape == (wanted, executor.vocab_size)
                if wanted:
                    reference.reset()
                    expected = reference.forward(np.array(self.texts[row.slot]))[-wanted:]
                    np.testing.assert_array_equal(output.logits, expected)

        @precondition(lambda self: self.texts)
        @rule(data=st.data())
        def truncate(self, data: st.DataObject) -> None:
            slot = data.draw(st.sampled_from(sorted(self.texts)))
            length = data.draw(st.integers(0, len(self.texts[slot])))
            executor.truncate(slot, length)
            del self.texts[slot][length:]

        @precondition(lambda self: 0 < len(self.texts) < 8)
        @rule(data=st.data())
        def copy(self, data: st.DataObject) -> None:
            slot = data.draw(st.sampled_from(sorted(self.texts)))
            length = data.draw(st.integers(0, len(self.texts[slot])))
            made = executor.copy(slot, length)
            assert made not in self.texts
            self.texts[made] = self.texts[slot][:length]
            assert executor.slot_bytes(made) == executor.cache_bytes(length)
            assert executor.slot_bytes(slot) >= executor.cache_bytes(len(self.texts[slot]))

        @precondition(lambda self: self.texts)
        @rule(data=st.data())
        def free(self, data: st.DataObject) -> None:
            slot = data.draw(st.sampled_from(sorted(self.texts)))
            executor.free(slot)
            del self.texts[slot]

        def teardown(self) -> None:
            for slot, text in self.texts.items():
                assert executor.length(slot) == len(text)
                executor.free(slot)

    return Slots


def test_slots_hold_their_own_whatever_is_done_with_others(
    machine: type[RuleBasedStateMachine],
) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=8, stateful_step_count=20, deadline=None)
    )


@pytest.mark.long
def test_slots_hold_their_own_over_many_runs(machine: type[RuleBasedStateMachine]) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=150, stateful_step_count=60, deadline=None)
    )
