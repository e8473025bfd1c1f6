"""gc beside running builds, in every order of their steps that hypothesis can think of.

Each call of a store is a step; a scheduler lets one side take one step at a time, in an order that
the test is given. Whatever the order: what a build found or made is there when it is done.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from genai_core.canonical import digest_bytes
from genai_core.sources.source_files import SourceFacts, SourceFile
from genai_core.store.collection.build_lease import Holder
from genai_core.store.collection.collect import collect
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.lookup import BlobSwept, publish
from genai_core.store.protocol import Hit, RecordRef
from genai_core.store.s3.s3_store import S3Store
from genai_core.store.s3.source_upload import SourceUpload
from genai_core.tasks.keys import task_key, toolchain_id
from genai_core.tasks.record import Blob, Output, Record, ToolchainUsed
from genai_core.testing import S3Server

DAY = timedelta(days=1)
# Where fsync costs nothing.
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
TOOLS = toolchain_id({})
CONTENTS = [b"first", b"second", b"third"]


def record_of(task: int) -> Record:
    """Task n writes content n and the one before it: neighbours share a blob."""
    outputs = {
        f"{index}.bin": Output(sha256=digest_bytes(CONTENTS[index]), size=len(CONTENTS[index]))
        for index in {task, max(task - 1, 0)}
    }
    return Record(
        operation="convert",
        config={"task": task},
        key=task_key("convert", 1, toolchain_id=TOOLS, config={"task": task}, inputs={}),
        outputs=outputs,
        toolchain=ToolchainUsed(id=TOOLS),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def ref_of(task: int) -> RecordRef:
    return RecordRef("convert", record_of(task).key)


class Turns:
    """Lets threads take steps in a given order; after its end, in turn."""

    def __init__(self, order: list[int]) -> None:
        self._order = list(order)
        self._changed = threading.Condition()
        self._at: int | None = None
        self._waiting: set[int] = set()
        self._alive: set[int] = set()
        self._last = -1

    def run(self, *sides: Callable[[], None]) -> list[BaseException]:
        """Run all sides to their ends; returns what they raised."""
        raised: list[BaseException] = []

        def side(number: int, work: Callable[[], None]) -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - the test looks at it
                raised.append(error)
            finally:
                with self._changed:
                    self._alive.discard(number)
                    self._release(number)

        self._alive = set(range(len(sides)))
        threads = [
            threading.Thread(target=side, args=entry, name=f"side-{entry[0]}", daemon=True)
            for entry in enumerate(sides)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive(), "they wait for each other"
        return raised

    def step(self, *, rest: bool = False) -> None:
        """Wait for this side's turn; `rest`: only when others could go first."""
        number = int(threading.current_thread().name.rpartition("-")[2])
        with self._changed:
            self._release(number)
            self._waiting.add(number)
            self._choose(besides=number if rest else None)
            while self._at != number:
                assert self._changed.wait(20), "nobody is given a turn"
            self._waiting.discard(number)

    def _release(self, number: int) -> None:
        if self._at == number:
            self._at = None
        self._choose()

    def _choose(self, besides: int | None = None) -> None:
        if self._at is not None or not self._alive or self._waiting != self._alive:
            return
        able = sorted(self._alive - {besides}) or sorted(self._alive)
        wanted = self._order.pop(0) if self._order else self._last + 1
        self._at = self._last = able[wanted % len(able)]
        self._changed.notify_all()


class Stepping:
    """A store each of whose calls waits for its turn."""

    def __init__(self, store: DirectoryStore | S3Store, turns: Turns) -> None:
        self._store = store
        self._turns = turns

    @property
    def writable(self) -> Stepping:
        return self

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not callable(found):
            return found

        def step(*args: Any, **options: Any) -> Any:
            self._turns.step()
            answer = found(*args, **options)
            return list(answer) if name.startswith("list_") else answer

        return step


def old_store(folder: Path, blobs: set[int], records: set[int]) -> DirectoryStore:
    """A store in which everything was written a month ago."""
    store = DirectoryStore(folder)
    for index in blobs:
        store.put_bytes(CONTENTS[index])
    for task in records:
        for index in {task, max(task - 1, 0)}:
            store.put_bytes(CONTENTS[index])
        store.commit(record_of(task))
    long_ago = datetime.now(UTC).timestamp() - 30 * 86400
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (long_ago, long_ago))
    return store


def survives(
    order: list[int], blobs: set[int], records: set[int], wanted: list[int], *, careful: bool
) -> bool:
    """Whether a build beside a gc has all that it used, when both are done."""
    with tempfile.TemporaryDirectory(prefix="store-race-", dir=MEMORY) as folder:
        store = old_store(Path(folder), blobs, records)
        turns = Turns(order)
        shared: Any = Stepping(store, turns)

        def rest(_seconds: float) -> None:
            turns.step(rest=True)

        holder = Holder(shared, "build", holder="a build", sleep=rest)

        def build() -> None:
            for task in wanted:
                if careful:
                    holder.claim([ref_of(task)])
                if isinstance(shared.lookup("convert", ref_of(task).key), Hit):
                    continue
                for _ in range(4):
                    for index in {task, max(task - 1, 0)}:
                        path = Path(folder) / f"out-{index}"
                        path.write_bytes(CONTENTS[index])
                        shared.put_blob(path, digest=digest_bytes(CONTENTS[index]))
                    with suppress(BlobSwept):
                        publish(shared, record_of(task), sleep=rest)
                        break
                else:
                    raise AssertionError("its outputs were swept again and again")

        def gc() -> None:
            collect(shared, now=datetime.now(UTC), grace=DAY)

        raised = turns.run(build, gc)
        assert not raised, raised
        return all(
            isinstance(store.lookup("convert", ref_of(task).key), Hit)
            and store.check_blob(Blob(sha256=out.sha256, size=out.size)) is None
            for task in wanted
            for out in record_of(task).outputs.values()
        )


orders = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 12)), max_size=10).map(
    lambda runs: [side for side, length in runs for _ in range(length)]
)
some = st.sets(st.integers(0, 2))
plans = st.permutations([0, 1, 2]).flatmap(
    lambda tasks: st.integers(1, 3).map(lambda count: tasks[:count])
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(order=orders, blobs=some, records=some, wanted=plans)
def test_what_a_build_uses_stays(
    order: list[int], blobs: set[int], records: set[int], wanted: list[int]
) -> None:
    assert survives(order, blobs, records, wanted, careful=True)


def test_the_orders_above_would_find_a_build_that_claims_nothing() -> None:
    """Without the lease some order loses a record: the test before can fail."""
    try:
        find(
            orders,
            lambda order: not survives(order, set(), {0}, [0], careful=False),
            settings=settings(max_examples=200, deadline=None),
        )
    except NoSuchExample:
        pytest.fail("no order of steps endangers a build that holds no lease")


class SteppingObjects:
    """The same for each request of an upload."""

    def __init__(self, objects: Any, turns: Turns) -> None:
        self._objects = objects
        self._turns = turns

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._objects, name)

        def step(*args: Any, **options: Any) -> Any:
            self._turns.step()
            return found(*args, **options)

        return step


def upload_survives(
    s3: S3Server, prefix: str, order: list[int], standing: int, *, careful: bool
) -> bool:
    """Whether a model that is sent beside a gc is whole, when both are done.

    Args:
        s3: The server.
        prefix: Of a store that no other example uses.
        order: Of the steps.
        standing: How many of the model's two files somebody sent long ago.
        careful: The sender claims it first.
    """
    store = s3.store(prefix)
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        files = {}
        for role, data in (("a", b"first"), ("b", b"second")):
            path = Path(folder) / role
            path.write_bytes(data)
            files[role] = SourceFile(path, digest_bytes(data), len(data))
        facts = SourceFacts(Path(folder), files)
        upload = SourceUpload(store.where, facts, credentials=s3.credentials)
        for role in list(files)[:standing]:
            upload.send(role)
        turns = Turns(order)
        shared: Any = Stepping(store, turns)
        real = upload._objects
        upload._objects = SteppingObjects(real, turns)  # type: ignore[assignment]

        def rest(_seconds: float) -> None:
            turns.step(rest=True)

        def send() -> None:
            if careful:
                Holder(shared, "upload", holder="kim", sleep=rest).claim((), [upload.name])
            for role in upload.missing():
                upload.send(role)

        def gc() -> None:
            collect(shared, now=datetime.now(UTC) + 2 * DAY, grace=DAY)

        raised = turns.run(send, gc)
        assert not raised, raised
        upload._objects = real
        return upload.missing() == []


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(order=orders, standing=st.integers(0, 2))
def test_a_model_that_is_sent_stays(s3: S3Server, order: list[int], standing: int) -> None:
    prefix = f"upload-{secrets.token_hex(8)}"
    assert upload_survives(s3, prefix, order, standing, careful=True)


def test_the_orders_above_would_find_a_sender_that_claims_nothing(s3: S3Server) -> None:
    late = [0] * 2 + [1] * 20  # it looks, finds both files, and then they go
    prefix = f"upload-{secrets.token_hex(8)}"
    assert not upload_survives(s3, prefix, late, 2, careful=False)
