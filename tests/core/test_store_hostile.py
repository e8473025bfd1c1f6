"""What one who may write a store can do to those who read it, and what he cannot.

See docs/stores.md, "What a writer can do to readers". Every test runs on a directory and on S3.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from genai_core.canonical import digest_bytes
from genai_core.errors import CorruptBlob, StoreUnavailable
from genai_core.files import json_budgets as budgets
from genai_core.names import Key
from genai_core.store.collection import build_lease as claiming
from genai_core.store.collection import collect as collecting
from genai_core.store.collection import sweeps
from genai_core.store.collection.build_lease import Holder
from genai_core.store.collection.collect import collect
from genai_core.store.collection.sweeps import await_sweeps
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.lookup import publish
from genai_core.store.protocol import (
    LEASE_MOST,
    SWEEP_LASTS,
    Hit,
    Lease,
    Miss,
    RecordRef,
    Store,
    Sweep,
)
from genai_core.store.s3.s3_store import S3Store
from genai_core.store.verify import verify
from genai_core.tasks.record import Blob, Record

MakeRecord = Callable[..., Record]
NEVER = datetime(9999, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def plant(store: Store, name: str, data: bytes) -> None:
    """Write bytes into a store, as one who may write it can."""
    if isinstance(store, S3Store):
        store._objects.put(name, data)
        return
    assert isinstance(store, DirectoryStore)
    path = store.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def name_of(record: Record) -> str:
    return f"records/{record.operation}/{record.key}.json"


def with_facts(record: Record, text: str) -> bytes:
    return record.to_bytes().replace(b'"facts":{}', b'"facts":{"x":' + text.encode() + b"}")


def nested(record: Record, depth: int) -> bytes:
    return with_facts(record, "[" * depth + "]" * depth)


BAD: dict[str, Callable[[Record], bytes]] = {
    "empty": lambda _: b"",
    "no JSON": lambda _: b"{",
    "no UTF-8": lambda _: b"\xff\xfe\x00",
    "deep": lambda _: b"[" * 200_000,
    "deep facts": lambda record: nested(record, 100),
    "many lists": lambda record: with_facts(record, "[" + "[]," * 600_000 + "[]]"),
    "too long": lambda record: with_facts(record, '"' + "x" * budgets.RECORD.most_bytes + '"'),
    "32 MiB": lambda _: bytes(32 << 20),
    "infinite": lambda record: with_facts(record, "1e999"),
    "huge integer": lambda record: with_facts(record, "9223372036854775807"),
    "newer schema": lambda record: record.to_bytes().replace(b"genai.record/1", b"genai.record/2"),
    "output that leaves": lambda record: record.to_bytes().replace(b'"a.bin"', b'"../a.bin"'),
    "another task's": lambda record: record.to_bytes().replace(
        f'"key":"{record.key}"'.encode(), b'"key":"' + b"0" * 64 + b'"'
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_lookup_misses_and_publish_heals_when_a_record_is_bad(
    store: Store, make_record: MakeRecord, kind: str
) -> None:
    record = make_record({"a.bin": store.put_bytes(b"bytes")})
    data = BAD[kind](record)
    assert data != record.to_bytes()
    plant(store, name_of(record), data)
    found = store.lookup(record.operation, record.key)
    assert isinstance(found, Miss), found
    if kind != "another task's":
        with pytest.raises(CorruptBlob, match="cannot be read"):
            store.get_record(record.operation, record.key)
        assert len(verify(store).unreadable) == 1
    publish(store, record)
    assert isinstance(store.lookup(record.operation, record.key), Hit)


def test_collect_goes_on_when_records_are_bad(store: Store, make_record: MakeRecord) -> None:
    good = make_record({"a.bin": store.put_bytes(b"bytes")}, seed=1)
    publish(store, good)
    for seed, kind in enumerate(("deep", "32 MiB", "empty"), start=2):
        bad = make_record(seed=seed)
        plant(store, name_of(bad), BAD[kind](bad))
    done = collect(
        store, now=store.now() + 14 * 24 * HOUR, roots=[RecordRef(good.operation, good.key)]
    )
    assert (done.records_kept, done.records_deleted) == (1, 3)


# Sweeps and leases


def eternal(record: Record) -> Sweep:
    return Sweep(
        "gc-evil", frozenset({RecordRef(record.operation, record.key)}), frozenset(), NEVER
    )


def test_await_sweeps_gives_up_when_a_sweep_is_written_again_and_again(
    store: Store,
    make_record: MakeRecord,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert SWEEP_LASTS.total_seconds() == sweeps._MOST_SECONDS
    monkeypatch.setattr(sweeps, "_MOST_SECONDS", 20.0)
    sweep, naps = eternal(make_record()), [0.0]
    store.put_sweep(sweep)

    def sleep(seconds: float) -> None:
        naps.append(seconds)

    with pytest.raises(StoreUnavailable, match=r"sweeps/gc-evil\.json says for too long"):
        await_sweeps(store, records=sweep.records, sleep=sleep)
    assert 20 < sum(naps) < 23
    told = [record.getMessage() for record in caplog.records if "waits for" in record.message]
    assert len(told) == 1
    assert "sweeps/gc-evil.json" in told[0]


def test_await_sweeps_goes_on_when_a_sweep_is_older_than_any_gc(
    tmp_path: Path, make_record: MakeRecord
) -> None:
    store, sweep = DirectoryStore(tmp_path), eternal(make_record())
    store.put_sweep(sweep)
    now = store.now().timestamp()
    for when in (now - 601, now + 1e9):  # a file's time can be set, to the future as well
        os.utime(tmp_path / "sweeps" / "gc-evil.json", (when, when))
        await_sweeps(store, records=sweep.records, sleep=lambda _: pytest.fail("it waits"))


BAD_NOTES = {
    "no JSON": b"garbage",
    "deep": b"[" * 100_000,
    "other": b'{"schema":"genai.sweep/9"}',
    "large": bytes(5 << 20),
    "bomb": b'{"schema":"genai.sweep/1","blobs":[' + b"[]," * 60_000 + b"[]]}",
}


@pytest.mark.parametrize("kind", BAD_NOTES)
def test_claim_says_when_to_try_again_when_a_sweep_cannot_be_read(store: Store, kind: str) -> None:
    plant(store, "sweeps/x.json", BAD_NOTES[kind])
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="ten minutes after it was written"):
        Holder(store, "b", holder="me").claim([RecordRef("ingest", Key("a" * 64))])
    assert time.monotonic() - began < 10


def test_claim_goes_on_when_a_sweep_that_cannot_be_read_is_old(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    plant(store, "sweeps/x.json", b"garbage")
    os.utime(tmp_path / "sweeps" / "x.json", (0, 0))
    Holder(store, "b", holder="me").claim([RecordRef("ingest", Key("a" * 64))])


def test_get_lease_is_bounded_by_the_store_clock_when_it_never_expires(store: Store) -> None:
    store.put_lease(Lease("evil", "me", (), NEVER))
    for lease in (store.get_lease("evil"), *store.list_leases()):
        assert lease is not None
        assert abs(lease.expires_at - store.now() - LEASE_MOST) < HOUR


def test_list_leases_bounds_a_lease_when_its_file_is_of_the_future(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.put_lease(Lease("evil", "me", (), NEVER))
    os.utime(tmp_path / "leases" / "evil.json", (2e10, 2e10))
    assert store.list_leases()[0].expires_at < store.now() + LEASE_MOST + HOUR


# Clocks


@pytest.mark.parametrize("days", [-40, -1, 1, 40, 400])
def test_collect_keeps_what_is_young_or_leased_when_this_machines_clock_is_wrong(
    store: Store, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    young = make_record({"a.bin": store.put_bytes(b"young")}, seed=1)
    publish(store, young)

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(days=days)

    for module in (sweeps, claiming, collecting):
        monkeypatch.setattr(module, "datetime", Wrong, raising=False)
    assert abs(sweeps.utc_now() - datetime.now(UTC)) > timedelta(hours=12)
    Holder(store, "b", holder="me").claim([RecordRef(young.operation, young.key)])
    done = collect(store, grace=13 * HOUR)
    assert (done.records_deleted, done.blobs_deleted, done.leases_expired) == (0, 0, 0)
    lease = store.get_lease("b")
    assert lease is not None
    assert abs(lease.expires_at - datetime.now(UTC) - claiming.LASTS) < HOUR


# Files that are none


@pytest.fixture
def folder(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.mkdir()
    (path / "inner").write_text("x")


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(3 << 30)


ODD = [fifo, directory, endless, sparse]


def replace(path: Path, make: Callable[[Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    make(path)


@pytest.mark.parametrize("make", ODD)
def test_directory_store_heals_when_a_record_is_no_file(
    folder: DirectoryStore, make_record: MakeRecord, make: Callable[[Path], None]
) -> None:
    record = make_record({"a.bin": folder.put_bytes(b"bytes")})
    path = folder.root / name_of(record)
    replace(path, make)
    assert isinstance(folder.lookup(record.operation, record.key), Miss)
    publish(folder, record)
    assert isinstance(folder.lookup(record.operation, record.key), Hit)
    replace(path, make)
    folder.delete_record(RecordRef(record.operation, record.key))
    assert not path.exists()


@pytest.mark.parametrize("make", ODD)
def test_directory_store_heals_when_a_blob_is_no_file(
    folder: DirectoryStore, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    blob = folder.put_bytes(b"bytes")
    path = folder.blob_path(blob.sha256)
    for use in (
        lambda: folder.fetch_blob(blob, tmp_path / "dest"),
        lambda: folder.fetch_blob(blob, tmp_path / "dest", shared=True),
        lambda: folder.read_blob(blob),
        lambda: folder.open_blob(blob).__enter__(),
    ):
        replace(path, make)
        assert folder.check_blob(blob) is not None
        with pytest.raises(CorruptBlob):
            use()
        assert not path.exists(), "the next lookup is a miss"
        assert folder.put_bytes(b"bytes") == blob
    replace(path, make)
    stat = folder.head_blob(blob.sha256)
    assert stat is None or stat.size != blob.size
    assert folder.put_bytes(b"bytes") == blob
    assert folder.read_blob(blob) == b"bytes"


def test_empty_blob_that_is_a_fifo_blocks_nobody(folder: DirectoryStore, tmp_path: Path) -> None:
    blob = folder.put_bytes(b"")
    replace(folder.blob_path(blob.sha256), fifo)
    assert folder.head_blob(blob.sha256) is None
    assert folder.check_blob(blob) == "is no ordinary file"
    with pytest.raises(CorruptBlob):
        folder.fetch_blob(blob, tmp_path / "dest")


@pytest.mark.parametrize("make", [fifo, directory])
def test_directory_store_blocks_nobody_when_notes_and_locks_are_no_files(
    folder: DirectoryStore, make_record: MakeRecord, make: Callable[[Path], None]
) -> None:
    record = make_record({"a.bin": folder.put_bytes(b"bytes")})
    replace(folder.root / "records" / record.operation / ".lock", make)
    publish(folder, record)
    assert isinstance(folder.lookup(record.operation, record.key), Hit)
    replace(folder.root / "sweeps" / "x.json", make)
    with pytest.raises(StoreUnavailable, match=r"sweeps/x\.json"):
        await_sweeps(folder, records=[RecordRef(record.operation, record.key)])
    os.utime(folder.root / "sweeps" / "x.json", (0, 0))
    await_sweeps(folder, records=[RecordRef(record.operation, record.key)])


def test_put_blob_refuses_what_is_no_file(folder: DirectoryStore, tmp_path: Path) -> None:
    fifo(tmp_path / "pipe")
    with pytest.raises(Exception, match="no ordinary file"):
        folder.put_blob(tmp_path / "pipe")
    with pytest.raises(Exception, match="no ordinary file"):
        folder.put_blob(tmp_path / "pipe", consume=True)


def test_read_blob_refuses_a_blob_that_a_record_says_to_be_large(store: Store) -> None:
    blob = Blob(sha256=digest_bytes(b"x"), size=1 << 40)
    with pytest.raises(CorruptBlob, match="are read at once"):
        store.read_blob(blob)


def test_lookup_refuses_a_record_of_a_hundred_thousand_blobs(
    store: Store, make_record: MakeRecord
) -> None:
    record = make_record()
    value = json.loads(record.to_bytes())
    value["outputs"] = {f"f{n}": {"sha256": f"{n:064x}", "size": 1} for n in range(20_000)}
    plant(store, name_of(record), json.dumps(value).encode())
    began = time.monotonic()
    assert store.lookup(record.operation, record.key) == Miss(
        "its record cannot be read",
        store.lookup(record.operation, record.key).etag,
    )
    assert time.monotonic() - began < 5, "nothing was asked about them"
