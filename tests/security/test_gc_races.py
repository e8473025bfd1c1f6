"""gc beside builds on a directory store, in processes of their own.

Readers claim and look up: a hit stays fetchable while a gc sweeps what nothing leases. Writers find
an old blob standing, store it again and publish. Afterwards every young record has its blobs.
"""

from __future__ import annotations

import random
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from gc_racers import PROCESSES, age, gc, reader, ref_of, stored, writer

from genai_core.canonical import digest_bytes
from genai_core.errors import GenAIError
from genai_core.store.collection.collect import LEAST_GRACE, collect
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.lookup import publish
from genai_core.store.protocol import Hit
from genai_core.tasks.record import Blob


def race(root: Path, chance: random.Random, *, reads: bool, reader_first: bool) -> Counter[str]:
    """One gc or two beside readers or writers.

    Args:
        root: The store.
        chance: Draws who begins when.
        reads: Readers; otherwise writers.
        reader_first: A reader has claimed before any gc begins, however busy the machine is.
    """
    store = DirectoryStore(root)
    datas = [[chance.randbytes(200) for _ in range(3)] for _ in range(8)]
    shared = chance.randbytes(300)
    for number, data in enumerate(datas):
        publish(store, stored(store, number, [*data, shared]))
    age(root, 20 * 3600)
    told, begun = PROCESSES.SimpleQueue(), PROCESSES.Event()
    first = begun if reader_first else None
    work: list[Any] = [(gc, root, chance.random() * 0.03, told, first)]
    if chance.random() < 0.4:
        work.append((gc, root, chance.random() * 0.05, told, first))
    if reads:
        for _ in range(2):
            numbers = chance.sample(range(8), 4)
            work.append((reader, root, numbers, chance.random() * 0.04, told, begun))
    else:
        for number in chance.sample(range(8), chance.choice([0, 4, 8])):
            store.delete_record(ref_of(number))
        for number in chance.sample(range(8), 3):
            data = [*datas[number], shared]
            work.append((writer, root, number, data, chance.random() * 0.04, told))
    processes = [PROCESSES.Process(target=call, args=tuple(rest)) for call, *rest in work]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    counts: Counter[str] = Counter()
    while not told.empty():
        kind, value = told.get()
        assert kind != "error", value
        counts[kind] += value
    now = store.now()
    for ref in store.list_records():
        assert ref.modified is not None
        young = now - ref.modified < timedelta(hours=1)
        assert not young or isinstance(store.lookup(ref.operation, ref.key), Hit), ref
    return counts


def races(folder: Path, rounds: int, seed: int) -> Counter[str]:
    chance, counts = random.Random(seed), Counter[str]()
    for number in range(rounds):
        counts += race(
            folder / f"s{number}", chance, reads=number % 2 == 0, reader_first=number % 4 == 0
        )
    return counts


@pytest.mark.parametrize("rounds", [6, pytest.param(400, marks=[pytest.mark.long])])
def test_what_builds_use_stays_when_a_gc_runs_beside_them(tmp_path: Path, rounds: int) -> None:
    counts = races(tmp_path, rounds, seed=rounds)
    assert counts["gc"] > 0
    assert counts["hit"] > 0
    assert counts["written"] == 3 * (rounds // 2)


def test_a_gc_alone_removes_what_the_races_above_protect(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    publish(store, stored(store, 1, [b"a"]))
    age(tmp_path, 20 * 3600)
    assert collect(store, grace=LEAST_GRACE).records_deleted == 1
    with pytest.raises(GenAIError):
        store.read_blob(Blob(sha256=digest_bytes(b"a"), size=1))
