"""Leases of builds: what they keep while they work, when they end, and when they fail."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_core.errors import StoreUnavailable
from genai_core.names import Digest, Key
from genai_core.store.collection.build_lease import Holder, with_containers
from genai_core.store.collection.collect import collect
from genai_core.store.collection.sweeps import await_sweeps
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.lookup import BlobSwept, publish
from genai_core.store.protocol import Hit, KeptContainer, Lease, RecordRef, Store, Sweep
from genai_core.tasks.record import Record

MakeRecord = Callable[..., Record]
DAY = timedelta(days=1)
START = datetime(2026, 1, 1, tzinfo=UTC)


def ref(number: int, operation: str = "package") -> RecordRef:
    return RecordRef(operation, Key(f"{number:064x}"))


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def hold(store: Store, clock: Clock) -> Holder:
    return Holder(store, "b", holder="someone", now=clock, sleep=lambda _: None)


def claimed(store: Store) -> set[RecordRef]:
    lease = store.get_lease("b")
    return set(lease.claimed) if lease else set()


def test_leases_and_sweeps_come_back_as_they_were_written(store: Store) -> None:
    lease = Lease("b", "kim", (ref(1), ref(2)), START, (KeptContainer("cpu", ref(1), START - DAY),))
    sweep = Sweep("gc-1", frozenset({ref(3)}), frozenset({Digest("a" * 64)}), START)
    store.put_lease(lease)
    store.put_sweep(sweep)
    assert store.get_lease("b") == lease
    assert list(store.list_leases()) == [lease]
    assert list(store.list_sweeps()) == [sweep]
    store.delete_sweep("gc-1")
    store.delete_sweep("gc-1")
    assert list(store.list_sweeps()) == []
    assert store.get_lease("other") is None


def test_a_build_claims_before_it_looks_and_keeps_what_was_good(store: Store, clock: Clock) -> None:
    first = hold(store, clock)
    first.claim([ref(1)])
    assert claimed(store) == {ref(1)}, "it stands before the lookup"
    first.claim([ref(1), ref(2)])
    first.settle([ref(1), ref(2)], {"cpu": ref(2)})
    second = hold(store, clock)  # the spec was edited, or the operator restarted
    second.claim([ref(3)])
    assert claimed(store) == {ref(1), ref(2), ref(3)}, "what it builds now may fail"
    second.settle([ref(3)], {"cpu": ref(3)})
    assert claimed(store) == {ref(2), ref(3)}, "the last revision stays, its other parts go"


def test_the_same_claim_writes_nothing_until_a_third_of_its_time_is_over(
    tmp_path: Path, clock: Clock
) -> None:
    store = DirectoryStore(tmp_path)
    file = tmp_path / "leases" / "b.json"
    held = hold(store, clock)
    held.claim([ref(1)])
    held.settle([ref(1)], {"cpu": ref(1)})
    before = file.read_bytes()
    clock.now += timedelta(days=9)
    held.claim([ref(1)])
    held.settle([ref(1)], {"cpu": ref(1)})
    assert held.renew()
    assert file.read_bytes() == before
    clock.now += timedelta(days=2)
    assert held.due
    assert held.renew()
    lease = store.get_lease("b")
    assert lease is not None
    assert lease.expires_at == clock.now + timedelta(days=30)
    assert lease.containers[0].built_at == START
    clock.now += timedelta(days=31)
    assert not hold(store, clock).renew(), "it ended; what it kept may be gone"


def test_a_store_that_cannot_be_written_is_a_problem_not_an_error(
    tmp_path: Path, clock: Clock
) -> None:
    held = hold(DirectoryStore(tmp_path, read_only=True), clock)
    held.claim([ref(1)])
    assert "only read" in held.problem


@given(
    rounds=st.lists(
        st.dictionaries(st.sampled_from(["cpu", "sm8750"]), st.integers(0, 5)), max_size=12
    ),
    keep=st.integers(0, 4),
)
def test_the_last_revisions_of_each_target_stay(rounds: list[dict[str, int]], keep: int) -> None:
    kept: tuple[KeptContainer, ...] = ()
    history: dict[str, list[int]] = {}
    for day, built in enumerate(rounds):
        refs = {target: ref(number) for target, number in built.items()}
        kept = with_containers(kept, refs, keep=keep, now=START + day * DAY)
        for target, number in built.items():
            order = history.setdefault(target, [])
            history[target] = [number, *(other for other in order if other != number)]
        for target in set(history) - set(built):
            history[target] = history[target][:keep]
        for target in built:
            history[target] = history[target][: max(keep, 1)]
    for target, order in history.items():
        found = [one.ref for one in kept if one.target == target]
        assert found == [ref(number) for number in order]


def test_a_killed_gc_holds_nobody_up_for_long(store: Store, clock: Clock) -> None:
    store.put_sweep(Sweep("gc-1", frozenset({ref(1)}), frozenset(), START + timedelta(minutes=5)))
    naps = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        clock.now += timedelta(minutes=1)

    await_sweeps(store, records=[ref(2)], blobs=["b" * 64], now=clock, sleep=sleep)  # type: ignore[list-item]
    assert not naps
    await_sweeps(store, records=[ref(1)], now=clock, sleep=sleep)
    assert len(naps) == 5


def test_a_record_is_not_committed_without_its_blobs(store: Store, make_record: MakeRecord) -> None:
    blob = store.put_bytes(b"taken away before the commit")
    store.delete_blob(blob.sha256)
    record = make_record({"a": blob})
    with pytest.raises(BlobSwept, match="is missing"):
        publish(store, record)
    assert store.get_record(record.operation, record.key) is None
    store.put_bytes(b"taken away before the commit")
    publish(store, record)
    assert isinstance(store.lookup(record.operation, record.key), Hit)


def test_gc_keeps_the_containers_of_leases_and_leaves_no_sweep(
    store: Store, make_record: MakeRecord
) -> None:
    records = [make_record({"a": store.put_bytes(bytes([n]))}, seed=n) for n in range(3)]
    for record in records:
        publish(store, record)
    refs = [RecordRef(record.operation, record.key) for record in records]
    later = datetime.now(UTC) + 20 * DAY
    kept = (KeptContainer("cpu", refs[1], START),)
    store.put_lease(Lease("b", "kim", (refs[0],), later + DAY, kept))
    collect(store, now=later, grace=DAY)
    assert set(store.list_records()) == {refs[0], refs[1]}
    assert list(store.list_sweeps()) == []


def test_an_unreadable_sweep_is_not_skipped(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "gc.json").write_text('{"schema": "genai.sweep/9"}')
    with pytest.raises(StoreUnavailable, match=r"sweeps/gc\.json"):
        await_sweeps(store, records=[ref(1)])
