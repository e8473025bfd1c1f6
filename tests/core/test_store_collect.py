"""gc and verify on a directory and on S3."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from genai_core.errors import StoreUnreadable
from genai_core.store.collection.collect import collect
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.lookup import publish
from genai_core.store.protocol import Hit, Lease, Miss, RecordRef, Store
from genai_core.store.verify import verify
from genai_core.tasks.record import Record, entry_folder

MakeRecord = Callable[..., Record]
DAY = timedelta(days=1)


def later(days: float) -> datetime:
    return datetime.now(UTC) + days * DAY


def ref(record: Record) -> RecordRef:
    return RecordRef(record.operation, record.key)


@pytest.fixture
def three(store: Store, make_record: MakeRecord) -> list[Record]:
    """Three entries; the first two share a blob."""
    shared = store.put_bytes(b"shared weights")
    records = [
        make_record({"w.bin": shared, "a": store.put_bytes(b"graph 1")}, seed=1),
        make_record(
            {"w.bin": shared}, seed=2, measurements={"log": store.put_bytes(b"the log of 2")}
        ),
        make_record({"c": store.put_bytes(b"graph three")}, seed=3),
    ]
    for record in records:
        publish(store, record)
    return records


def hits(store: Store, records: list[Record]) -> list[bool]:
    return [isinstance(store.lookup(r.operation, r.key), Hit) for r in records]


def test_young_things_stay(store: Store, three: list[Record]) -> None:
    orphan = store.put_bytes(b"its record is about to be committed")
    done = collect(store, now=later(6), grace=7 * DAY)
    assert (done.records_deleted, done.blobs_deleted) == (0, 0)
    assert (done.records_kept, done.blobs_kept) == (3, 5)
    assert hits(store, three) == [True] * 3
    assert store.head_blob(orphan.sha256) is not None


def test_what_nothing_reaches_goes(store: Store, three: list[Record]) -> None:
    planned = collect(store, now=later(8), grace=7 * DAY, roots=[ref(three[1])], dry_run=True)
    assert hits(store, three) == [True] * 3, "a dry run removes nothing"
    done = collect(store, now=later(8), grace=7 * DAY, roots=[ref(three[1])])
    assert hits(store, three) == [False, True, False]
    assert (done.records_deleted, done.blobs_deleted) == (2, 2)
    assert done.bytes_deleted == len(b"graph 1") + len(b"graph three")
    assert done.bytes_kept == len(b"shared weights") + len(b"the log of 2")
    assert set(done.deleted) == {ref(three[0]), ref(three[2])}
    planned.dry_run = False
    assert planned == done, "a dry run tells exactly what would go"
    assert len(list(store.list_blobs())) == 2
    again = collect(store, now=later(8), grace=7 * DAY, roots=[ref(three[1])])
    assert (again.records_deleted, again.blobs_deleted) == (0, 0)


def test_leases_of_others_count_until_they_expire(store: Store, three: list[Record]) -> None:
    store.put_lease(Lease("cluster-a", "cluster a", (ref(three[0]),), later(30)))
    store.put_lease(Lease("laptop", "kim", (ref(three[2]),), later(9)))
    done = collect(store, now=later(8), grace=DAY)
    assert sorted(done.holders) == ["cluster a", "kim"]
    assert hits(store, three) == [True, False, True]
    done = collect(store, now=later(10), grace=DAY)
    assert done.holders == ["cluster a"]
    assert done.leases_expired == 1
    assert hits(store, three) == [True, False, False]
    assert [lease.name for lease in store.list_leases()] == ["cluster-a"]


def test_lease_written_while_gc_runs_counts(
    store: Store, three: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that starts between gc's listing and its first removal."""
    real = store.list_records

    def listing(operation: str | None = None) -> object:
        yield from real(operation)
        store.put_lease(Lease("new", "a new build", (ref(three[0]),), later(30)))

    monkeypatch.setattr(store, "list_records", listing)
    collect(store, now=later(8), grace=DAY)
    monkeypatch.undo()
    assert hits(store, three) == [True, False, False]


def test_blob_claimed_while_gc_runs_stays(
    store: Store, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that finds its blob there, after gc has listed it as old."""
    blob = store.put_bytes(b"old, and needed again")
    before = datetime.now(UTC) + timedelta(seconds=1)
    real = store.list_blobs

    def listing() -> object:
        for stat in real():
            yield type(stat)(stat.sha256, stat.size, None, stat.modified - 30 * DAY)

    monkeypatch.setattr(store, "list_blobs", listing)
    collect(store, now=before, grace=DAY)
    assert store.head_blob(blob.sha256) is not None


def test_unreadable_lease_stops_gc(tmp_path: Path, make_record: MakeRecord) -> None:
    store = DirectoryStore(tmp_path)
    publish(store, make_record())
    (tmp_path / "leases").mkdir()
    for damage in ("", "{}", '{"schema": "genai.lease/9"}'):
        (tmp_path / "leases" / "theirs.json").write_text(damage)
        with pytest.raises(StoreUnreadable, match=r"leases/theirs\.json"):
            collect(store, now=later(100), grace=DAY)
    assert len(list(store.list_records())) == 1


def test_folders_and_drafts_of_a_directory_go_too(tmp_path: Path, make_record: MakeRecord) -> None:
    store = DirectoryStore(tmp_path)
    record = make_record({"a.bin": store.put_bytes(b"a")})
    publish(store, record)
    draft = tmp_path / "tmp" / ".big.1-00.part"
    draft.write_bytes(b"left by a killed writer")
    folder = tmp_path / "tmp" / ".convert.1-01.part"
    folder.mkdir()
    (folder / "x").touch()
    lock = tmp_path / "tmp" / "locks" / "a"
    lock.parent.mkdir()
    lock.touch()
    done = collect(store, now=later(0.5), grace=7 * DAY)
    assert done.drafts_deleted == 0, "its writer may be alive"
    done = collect(store, now=later(8), grace=7 * DAY)
    assert done.drafts_deleted == 2
    assert not (tmp_path / entry_folder(record)).exists()
    left = [p for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"]
    assert left == [lock]


def damage(store: Store, request: pytest.FixtureRequest, digest: str) -> None:
    if isinstance(store, DirectoryStore):
        path = store.blob_path(digest)  # type: ignore[arg-type]
        path.chmod(0o644)
    else:
        server = request.getfixturevalue("s3")
        if server.folder is None or "without" in request.node.name:
            pytest.skip("this server keeps no files that could be damaged")
        path = server.folder / store.where.prefix / "blobs" / digest[:2] / digest  # type: ignore[attr-defined]
    stat = path.stat()
    with path.open("r+b") as stream:
        stream.write(b"\xff")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_verify_finds_flipped_and_missing_blobs(
    store: Store, three: list[Record], request: pytest.FixtureRequest
) -> None:
    clean = verify(store)
    assert clean.clean
    assert (clean.records, clean.blobs) == (3, 4)
    flipped = three[0].outputs["w.bin"].sha256
    lost = three[2].outputs["c"].sha256
    store.delete_blob(lost)
    damage(store, request, flipped)
    said: list[str] = []
    found = verify(store, progress=said.append)
    assert not found.clean
    faults = {fault.digest: fault for fault in found.faults}
    assert set(faults) == {flipped, lost}
    assert faults[lost].what == "is missing"
    assert "has bytes of digest" in faults[flipped].what
    assert set(faults[flipped].records) == {ref(three[0]), ref(three[1])}
    assert len(said) == 2
    assert hits(store, three) == [True, True, False], "looking changes nothing"
    assert all(fault.removed for fault in verify(store, remove=True).faults)
    assert hits(store, three) == [False, False, False]
    missed = store.lookup(three[0].operation, three[0].key)
    assert isinstance(missed, Miss)
    assert flipped[:12] in missed.reason


def test_verify_lists_unreadable_records(tmp_path: Path, make_record: MakeRecord) -> None:
    store = DirectoryStore(tmp_path)
    record = make_record({"a.bin": store.put_bytes(b"a")})
    publish(store, record)
    (tmp_path / "records" / record.operation / f"{record.key}.json").write_bytes(b"{}")
    assert verify(store).unreadable == [ref(record)]
