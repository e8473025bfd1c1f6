"""Models uploaded beside a store: who names them, and what gc does with them."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_core.canonical import digest_bytes
from genai_core.errors import BadModel, StoreUnreadable
from genai_core.names import Digest
from genai_core.sources.source_files import SourceFacts, SourceFile
from genai_core.store.address import StoreAddress
from genai_core.store.collection.build_lease import Holder
from genai_core.store.collection.collect import collect
from genai_core.store.collection.lease_files import (
    lease_from_bytes,
    lease_to_bytes,
    sweep_from_bytes,
)
from genai_core.store.collection.sweeps import await_sweeps
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.protocol import Lease, RecordRef, Sweep
from genai_core.store.s3 import transfer as s3_transfer
from genai_core.store.s3.s3_store import S3Store
from genai_core.store.s3.source_upload import SourceUpload
from genai_core.store.upload_names import uploads_among
from genai_core.tasks.record import Record
from genai_core.testing import S3Server

MakeRecord = Callable[..., Record]
DAY = timedelta(days=1)
START = datetime(2026, 1, 1, tzinfo=UTC)


def later(days: float) -> datetime:
    return datetime.now(UTC) + days * DAY


@pytest.fixture
def store(s3: S3Server, fresh_name: str) -> S3Store:
    return s3.store(fresh_name)


def facts_of(folder: Path, text: str) -> SourceFacts:
    """A model of two files."""
    folder.mkdir(parents=True)
    files = {}
    for role, data in (("model.onnx", text.encode()), ("data/w.bin", text.encode() * 2)):
        path = folder / role
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        files[role] = SourceFile(path, digest_bytes(data), len(data))
    return SourceFacts(folder, files)


def sent(s3: S3Server, store: S3Store, folder: Path, text: str) -> str:
    """Upload a model; returns its name."""
    upload = SourceUpload(store.where, facts_of(folder / text, text), credentials=s3.credentials)
    for role in upload.missing():
        upload.send(role)
    assert upload.missing() == []
    return upload.name


def names(store: S3Store) -> list[str]:
    return [upload.name for upload in store.list_uploads()]


HEX = "0123456789abcdef" * 4
NAME = f"sha256-{HEX}"


@pytest.mark.parametrize(
    ("address", "found"),
    [
        (f"s3://models/team/a/sources/{NAME}", {NAME}),
        (f"s3://models/team/a/sources/{NAME}/", {NAME}),
        (f"s3://models/team/a/sources/{NAME}?endpoint=https://s3.example.com", {NAME}),
        (f"s3://models/team/a/sources/{NAME}/part", {NAME}),
        (f"s3://models/team/b/sources/{NAME}", set()),
        (f"s3://others/team/a/sources/{NAME}", set()),
        ("s3://models/team/a/sources/mine", set()),
        ("s3://models/team/a/sources", set()),
        ("s3://models?nonsense", set()),
        ("https://models/team/a/sources/x.tar", set()),
        ("/srv/kim/model", set()),
    ],
)
def test_a_build_names_what_lies_beside_its_store(address: str, found: set[str]) -> None:
    assert uploads_among([address], StoreAddress("models", "team/a")) == found


def test_a_store_at_the_root_of_its_bucket_has_uploads_too() -> None:
    assert uploads_among([f"s3://models/sources/{NAME}"], StoreAddress("models")) == {NAME}


def test_uploads_are_listed_and_removed_whole(s3: S3Server, store: S3Store, tmp_path: Path) -> None:
    one, two = (sent(s3, store, tmp_path, text) for text in ("one", "three"))
    assert names(store) == sorted([one, two])
    sizes = {upload.name: upload.size for upload in store.list_uploads()}
    assert sizes == {one: 9, two: 15}
    store.delete_upload(one)
    store.delete_upload(one)
    assert names(store) == [two]
    for wrong in ("", "mine", "../blobs", f"{NAME}/x"):
        with pytest.raises(ValueError, match="name of an upload"):
            store.delete_upload(wrong)


def test_an_upload_of_many_files_is_listed_and_removed_over_pages(store: S3Store) -> None:
    """A server lists at most a thousand objects at a time."""
    other = f"sha256-{'cd' * 32}"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: store._objects.put(f"sources/{NAME}/{n:04}", b"x"), range(1003)))
    store._objects.put(f"sources/{other}/model.onnx", b"xy")
    assert [(one.name, one.size) for one in store.list_uploads()] == [(NAME, 1003), (other, 2)]
    store.delete_upload(NAME)
    assert names(store) == [other]


def test_an_upload_stays_while_a_lease_names_it_or_while_it_is_young(
    s3: S3Server, store: S3Store, tmp_path: Path
) -> None:
    needed, forgotten = (sent(s3, store, tmp_path, text) for text in ("needed", "forgotten"))
    store.put_lease(Lease("b", "cluster a", (), later(30), uploads=(needed,)))
    young = collect(store, now=later(6), grace=7 * DAY)
    assert (young.uploads_kept, young.uploads_deleted) == (2, 0)
    planned = collect(store, now=later(8), grace=7 * DAY, dry_run=True)
    assert names(store) == sorted([needed, forgotten]), "a dry run removes nothing"
    said: list[str] = []
    done = collect(store, now=later(8), grace=7 * DAY, progress=said.append)
    assert names(store) == [needed]
    assert (done.uploads_kept, done.uploads_deleted) == (1, 1)
    assert (done.bytes_kept, done.bytes_deleted) == (3 * len("needed"), 3 * len("forgotten"))
    assert said == [f"upload {forgotten} {3 * len('forgotten')} bytes"]
    planned.dry_run = False
    assert planned == done, "a dry run tells exactly what would go"
    assert list(store.list_sweeps()) == []
    gone = collect(store, now=later(31), grace=7 * DAY)
    assert gone.uploads_deleted == 1, "the lease has ended"
    assert list(store._objects.list("sources")) == []


def test_a_model_that_a_user_put_there_is_the_users(s3: S3Server, store: S3Store) -> None:
    for name in ("sources/mine/model.onnx", "sources/model.onnx", f"sources/{NAME[:-1]}/x"):
        store._objects.put(name, b"mine")
    done = collect(store, now=later(100), grace=DAY)
    assert (done.uploads_kept, done.uploads_deleted) == (0, 0)
    assert len(list(store._objects.list("sources"))) == 3


def test_a_lease_of_an_older_version_keeps_all_uploads(
    s3: S3Server, store: S3Store, tmp_path: Path
) -> None:
    """It cannot say which of them its build reads."""
    name = sent(s3, store, tmp_path, "old")
    written = Lease("old", "an older cluster", (), later(30), uploads=None)
    assert b"uploads" not in lease_to_bytes(written)
    assert lease_from_bytes(lease_to_bytes(written), "old") == written
    store.put_lease(written)
    store.put_lease(Lease("new", "a newer one", (), later(30)))
    assert collect(store, now=later(8), grace=DAY).uploads_kept == 1
    assert names(store) == [name]
    store.delete_lease("old")
    assert collect(store, now=later(8), grace=DAY).uploads_deleted == 1


def test_an_upload_claimed_while_gc_runs_stays(
    s3: S3Server, store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody sends it again, and finds it there, after gc has taken it for forgotten."""
    name = sent(s3, store, tmp_path, "again")
    real = store.list_uploads

    def listing() -> Any:
        found = real()
        store.put_lease(Lease("upload", "kim", (), later(30), uploads=(name,)))
        return found

    monkeypatch.setattr(store, "list_uploads", listing)
    done = collect(store, now=later(8), grace=DAY)
    assert (done.uploads_kept, done.uploads_deleted) == (1, 0)
    monkeypatch.undo()
    assert names(store) == [name]


def test_whoever_needs_an_upload_waits_until_its_sweep_is_over(store: S3Store) -> None:
    now = [START]
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        now[0] += timedelta(minutes=1)

    end = START + timedelta(minutes=5)
    store.put_sweep(Sweep("gc-1", frozenset(), frozenset(), end, frozenset({NAME})))
    await_sweeps(store, uploads=["sha256-other"], now=lambda: now[0], sleep=sleep)
    assert not naps
    Holder(store, "b", holder="kim", now=lambda: now[0], sleep=sleep).claim((), [NAME])
    assert len(naps) == 5


def held(store: S3Store | DirectoryStore) -> tuple[str, ...] | None:
    lease = store.get_lease("b")
    assert lease is not None
    return lease.uploads


def test_a_builds_lease_names_its_models(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    now = [START]
    ref = RecordRef("ingest", "0" * 64)  # type: ignore[arg-type]

    def holder() -> Holder:
        return Holder(store, "b", holder="kim", now=lambda: now[0], sleep=lambda _: None)

    one = holder()
    one.claim((), ["first"])
    assert held(store) == ("first",), "before anything else is known"
    one.claim([ref], ["second"])
    assert held(store) == ("first", "second"), "the model before the edit may still be needed"
    before = (tmp_path / "leases/b.json").read_bytes()
    one.claim([ref], ["second"])
    assert (tmp_path / "leases/b.json").read_bytes() == before
    one.settle([ref], {}, uploads=["second"])
    assert held(store) == ("second",)
    now[0] += 15 * DAY
    assert one.renew()
    assert held(store) == ("second",)
    one.settle([ref], {})
    assert held(store) == ()


def test_renewing_an_older_versions_lease_says_no_more_than_it_knows(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.put_lease(Lease("b", "kim", (), START + DAY, uploads=None))
    one = Holder(store, "b", holder="kim", now=lambda: START, sleep=lambda _: None)
    assert one.renew()
    assert held(store) is None
    one.claim(())
    assert held(store) == (), "now it is said"


@given(st.frozensets(st.sampled_from(["a", "b", "c"])), st.booleans())
@settings(max_examples=20)
def test_leases_with_uploads_come_back_as_they_were_written(
    uploads: frozenset[str], known: bool
) -> None:
    lease = Lease("b", "kim", (), START, uploads=tuple(sorted(uploads)) if known else None)
    assert lease_from_bytes(lease_to_bytes(lease), "b") == lease


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "7",
        '{"schema": "genai.sweep/1", "records": [1], "blobs": [], "expires_at": "2026-01-01"}',
        '{"schema": "genai.sweep/1", "records": [], "blobs": [], "expires_at": 5}',
    ],
)
def test_what_is_no_sweep_is_named_not_thrown(text: str) -> None:
    with pytest.raises(StoreUnreadable, match=r"sweeps/gc\.json: not a sweep"):
        sweep_from_bytes(text.encode(), "gc")
    with pytest.raises(StoreUnreadable, match=r"leases/b\.json: not a lease"):
        lease_from_bytes(text.replace("sweep", "lease").encode(), "b")


def test_an_upload_in_parts_that_was_broken_off_goes_too(s3: S3Server, store: S3Store) -> None:
    client = store._client()
    key = f"{store.where.prefix}/sources/{NAME}/model.onnx"
    client.create_multipart_upload(Bucket=s3.bucket, Key=key)
    assert collect(store, now=later(0.5), grace=DAY).drafts_deleted == 0, "it may be going on"
    assert collect(store, now=later(2), grace=DAY).drafts_deleted == 1
    assert collect(store, now=later(2), grace=DAY).drafts_deleted == 0


def test_a_large_file_that_changed_is_said_to_have_changed(
    s3: S3Server, store: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_transfer, "PART_BYTES", 5 << 20)
    path = tmp_path / "model.data"
    path.write_bytes(random.Random(1).randbytes(6 << 20))
    file = SourceFile(path, Digest("ab" * 32), path.stat().st_size)
    facts = SourceFacts(tmp_path, {"model.data": file})
    upload = SourceUpload(store.where, facts, credentials=s3.credentials)
    with pytest.raises(BadModel, match="changed while it was sent"):
        upload.send("model.data")
    assert names(store) == []
