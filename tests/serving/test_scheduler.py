"""The scheduler against any order of arrivals, ends and cancellations."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from genai_core.errors import BadInput
from genai_serving.scheduler import QueueFull, Scheduler, Sequence, ServingLimits, TooLarge

LIMITS = ServingLimits(sequences=3, tokens=8, waiting=4, cache_bytes=100)


class Machine(RuleBasedStateMachine):
    """Keeps a book of its own, and compares."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(LIMITS)
        self.next_key = 0
        self.asked: dict[int, Sequence] = {}
        self.arrived: list[int] = []
        self.admitted: list[int] = []
        self.read: dict[int, int] = {}
        self.written: dict[int, int] = {}
        self.gone: set[int] = set()

    @property
    def alive(self) -> list[int]:
        return [key for key in self.arrived if key not in self.gone]

    @rule(prompt=st.integers(1, 30), most=st.integers(1, 6), memory=st.integers(1, 100))
    def arrive(self, prompt: int, most: int, memory: int) -> None:
        sequence = Sequence(self.next_key, prompt, most, memory)
        self.next_key += 1
        before = self.scheduler.waiting
        try:
            self.scheduler.add(sequence)
        except QueueFull:
            assert len(before) >= LIMITS.waiting
            assert self.scheduler.waiting == before
            return
        self.asked[sequence.key] = sequence
        self.arrived.append(sequence.key)
        self.read[sequence.key] = self.written[sequence.key] = 0

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.alive))
        assert self.scheduler.cancel(key)
        assert not self.scheduler.cancel(key)
        self.gone.add(key)

    @rule(
        stopping=st.sets(st.integers(0, 60)),
        gone=st.sets(st.integers(0, 60), max_size=2),
        guessing=st.dictionaries(st.integers(0, 60), st.integers(1, 9)),
        luck=st.integers(0, 9),
    )
    def run(self, stopping: set[int], gone: set[int], guessing: dict[int, int], luck: int) -> None:
        """A pass; some sequences meet an end token, some are cancelled while it runs.

        Args:
            guessing: What guesses would add, of whom; as ever no more than an answer has left.
            luck: How many guesses of a draft are right; its method has half of what was granted.
        """
        wanted = {
            key: min(size, self.asked[key].most - self.written[key] - 1)
            for key, size in guessing.items()
            if key in self.alive and self.written[key]
        }
        plain = self.scheduler.schedule()
        step = self.scheduler.schedule(wanted=wanted)
        assert step == self.scheduler.schedule(wanted=wanted), "asking changes nothing"
        for without, work in zip(plain.work, step.work, strict=True):
            assert work.count == without.count + work.guesses, "guesses took what others need"
            assert work.guesses <= wanted.get(work.key, 0)
        granted = [work.guesses for work in step.work if wanted.get(work.key, 0) > 0]
        if granted and sum(granted) < sum(wanted.values()):
            assert sum(work.count for work in step.work) == LIMITS.tokens, "room was left"
        assert sum(work.count for work in step.work) <= LIMITS.tokens
        step = step.with_guesses({work.key: -(-work.guesses // 2) for work in step.work})
        if self.alive:
            assert step.work, "somebody waits or runs, and nothing happens"
        assert sum(work.count for work in step.work) <= LIMITS.tokens
        assert len(step.work) <= LIMITS.sequences
        assert len({work.key for work in step.work}) == len(step.work)
        for key in step.admitted:
            older = [k for k in self.alive if k < key and k not in self.admitted]
            assert not older, "somebody was let past another"
            self.admitted.append(key)
        for work in step.work:
            known = self.asked[work.key].prompt + self.written[work.key]
            assert work.start == self.read[work.key]
            assert work.count >= 1
            appended = work.start + work.count - work.guesses
            assert appended <= known
            assert work.yields == (appended == known)
            assert work.yields or not work.guesses
        for key in [k for k in self.admitted if k not in self.gone]:
            if self.written[key]:
                assert any(w.key == key and w.yields for w in step.work), "a writer was left out"
        for key in gone & set(self.alive):
            self.scheduler.cancel(key)
            self.gone.add(key)
        finished = {w.key for w in step.work if w.yields and w.key in stopping}
        written = {w.key: 1 + min(luck, w.guesses) for w in step.work if w.guesses}
        ended = self.scheduler.update(step, finished=finished, written=written)
        for work in step.work:
            if work.key in self.gone:
                assert work.key not in ended
                continue
            new = written.get(work.key, int(work.yields))
            self.read[work.key] += new if work.guesses else work.count
            self.written[work.key] += new
            full = self.written[work.key] == self.asked[work.key].most
            assert (work.key in ended) == (full or work.key in finished)
            if work.key in ended:
                self.gone.add(work.key)

    @invariant()
    def within_limits(self) -> None:
        scheduler = self.scheduler
        assert len(scheduler.running) <= LIMITS.sequences
        assert len(scheduler.waiting) <= LIMITS.waiting + LIMITS.sequences
        assert scheduler.reserved_bytes <= LIMITS.cache_bytes
        assert [*scheduler.running, *scheduler.waiting] == sorted(self.alive)

    def teardown(self) -> None:
        """Whatever is left ends, within the passes that it needs when it is alone."""
        alone = sum(-(-s.prompt // LIMITS.tokens) + s.most for s in self.asked.values())
        for _ in range(alone):
            if not self.alive:
                break
            self.run(set(), set(), {}, 0)
        assert not self.alive, "starved"


TestScheduler = Machine.TestCase
TestScheduler.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_add_refuses_with_numbers_when_a_request_would_never_fit() -> None:
    scheduler = Scheduler(ServingLimits(sequences=2, tokens=4, waiting=1, cache_bytes=10 << 20))
    with pytest.raises(TooLarge, match=r"5 prompt tokens and 7 more take 12\.0 MiB .* has 10\.0"):
        scheduler.add(Sequence(0, 5, 7, 12 << 20))
    assert scheduler.waiting == ()


def test_add_refuses_with_numbers_when_the_queue_is_full() -> None:
    scheduler = Scheduler(ServingLimits(sequences=1, tokens=4, waiting=0, cache_bytes=10 << 20))
    scheduler.add(Sequence(0, 1, 9, 8 << 20))
    scheduler.update(scheduler.schedule())
    with pytest.raises(QueueFull, match=r"1 sequences run .* 8\.0 of 10\.0 MiB .* needs 4\.0"):
        scheduler.add(Sequence(1, 1, 1, 4 << 20))
    scheduler.cancel(0)
    scheduler.add(Sequence(2, 1, 1, 4 << 20))


def test_a_request_waits_when_memory_is_short_although_a_slot_is_free() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add(Sequence(0, 2, 2, 70))
    scheduler.add(Sequence(1, 2, 2, 40))
    scheduler.add(Sequence(2, 2, 2, 1))
    step = scheduler.schedule()
    assert step.admitted == (0,), "nobody passes another, however small"
    scheduler.update(step, finished={0})
    assert scheduler.schedule().admitted == (1, 2)


def test_prompts_share_a_pass_with_writers_when_the_budget_allows() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add(Sequence(0, 3, 5, 1))
    scheduler.update(scheduler.schedule())
    scheduler.add(Sequence(1, 20, 5, 1))
    step = scheduler.schedule()
    assert [(w.key, w.count, w.yields) for w in step.work] == [(0, 1, True), (1, 7, False)]


def test_guesses_get_evenly_what_prompts_leave() -> None:
    scheduler = Scheduler(ServingLimits(sequences=4, tokens=16, waiting=4, cache_bytes=100))
    for key in range(3):
        scheduler.add(Sequence(key, 1, 50, 1))
    scheduler.update(scheduler.schedule())
    step = scheduler.schedule(wanted={0: 9, 1: 2, 2: 9})
    assert [work.guesses for work in step.work] == [4, 2, 7]
    scheduler.add(Sequence(3, 40, 5, 1))
    step = scheduler.schedule(wanted={0: 9, 1: 2, 2: 9})
    assert [(work.count, work.guesses) for work in step.work] == [(1, 0)] * 3 + [(13, 0)]


def test_overdue_names_who_waits_and_who_runs_past_the_deadline() -> None:
    scheduler = Scheduler(ServingLimits(sequences=1, tokens=4, waiting=4, cache_bytes=9))
    for key, deadline in ((0, 5.0), (1, 3.0), (2, None)):
        scheduler.add(Sequence(key, 1, 9, 1, deadline))
    scheduler.update(scheduler.schedule())
    assert scheduler.overdue(2.9) == ()
    assert scheduler.overdue(3.0) == (1,)
    assert scheduler.overdue(9.0) == (1, 0)


@pytest.mark.parametrize(
    "values",
    [
        {"sequences": 0},
        {"tokens": 2},
        {"waiting": -1},
        {"cache_bytes": 0},
    ],
)
def test_limits_refuse_what_could_never_work(values: dict[str, int]) -> None:
    with pytest.raises(BadInput):
        ServingLimits(**({"sequences": 3, "tokens": 8, "waiting": 4, "cache_bytes": 9} | values))


@pytest.mark.parametrize("changed", [{"key": 0}, {"prompt": 0}, {"most": 0}])
def test_add_refuses_what_the_engine_must_never_ask(changed: dict[str, int]) -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add(Sequence(0, 1, 1, 1))
    with pytest.raises(ValueError, match="sequence"):
        scheduler.add(Sequence(**({"key": 1, "prompt": 1, "most": 1, "cache_bytes": 1} | changed)))
