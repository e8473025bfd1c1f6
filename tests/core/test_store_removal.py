"""What gc says went is gone; what a bucket keeps or a policy holds back is told by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from genai_core.errors import StoreUnreadable
from genai_core.store.collection.collect import collect
from genai_core.store.collection.removal import CollectResult
from genai_core.store.lookup import publish
from genai_core.store.protocol import Hit
from genai_core.store.s3.s3_store import S3Store
from genai_core.store.verify import verify
from genai_core.tasks.record import Blob, Record
from genai_core.testing import S3Server

MakeRecord = Callable[..., Record]
DATA = b"weights of a model that nobody needs"


@pytest.fixture
def bucket(s3: S3Server, fresh_name: str) -> str:
    s3.store("")._objects.client.create_bucket(Bucket=fresh_name)
    return fresh_name


def keep_versions(s3: S3Server, bucket: str, status: str) -> None:
    s3.store("")._objects.client.put_bucket_versioning(
        Bucket=bucket,
        VersioningConfiguration={"Status": status},  # type: ignore[typeddict-item]
    )


def held(s3: S3Server, bucket: str) -> int:
    """Bytes of blobs that the server still has, in whatever version."""
    answer = s3.store("")._objects.client.list_object_versions(Bucket=bucket)
    return sum(each["Size"] for each in answer.get("Versions", ()) if "/blobs/" in each["Key"])


def gc(store: S3Store, said: list[str] | None = None, *, days: int = 30) -> CollectResult:
    later = datetime.now(UTC) + timedelta(days=days)
    lines = said if said is not None else []
    return collect(store, now=later, grace=timedelta(days=1), progress=lines.append)


def test_gc_tells_what_a_bucket_keeps_as_older_versions(
    s3: S3Server, bucket: str, make_record: MakeRecord
) -> None:
    keep_versions(s3, bucket, "Enabled")
    store = S3Store(replace(s3.where("p"), bucket=bucket), credentials=s3.credentials)
    record = make_record({"a": store.put_bytes(DATA)})
    publish(store, record)
    done = gc(store)
    assert (done.records_deleted, done.blobs_deleted, done.refused) == (1, 1, 0)
    assert done.bytes_deleted == done.bytes_older == len(DATA) == held(s3, bucket)
    assert not list(store.list_blobs())
    again = gc(store)
    assert (again.bytes_deleted, again.bytes_older) == (0, 0), "hidden ones are not found again"
    publish(store, make_record({"a": store.put_bytes(DATA)}))
    assert isinstance(store.lookup(record.operation, record.key), Hit)
    assert store.read_blob(record.outputs["a"]) == DATA


@pytest.mark.parametrize("status", ["", "Suspended"])
def test_gc_counts_nothing_as_kept_when_the_bucket_keeps_no_versions(
    s3: S3Server, bucket: str, make_record: MakeRecord, status: str
) -> None:
    if status:
        keep_versions(s3, bucket, "Enabled")
        keep_versions(s3, bucket, status)
    store = S3Store(replace(s3.where("p"), bucket=bucket), credentials=s3.credentials)
    publish(store, make_record({"a": store.put_bytes(DATA)}))
    done = gc(store)
    assert (done.bytes_deleted, done.bytes_older, held(s3, bucket)) == (len(DATA), 0, 0)


@pytest.fixture
def limited(s3: S3Server, bucket: str) -> Callable[[list[str]], S3Store]:
    """A store whose credentials may do everything but delete the named objects."""
    if not s3.checks_signatures:
        pytest.skip(f"{s3.name} has no policies")
    keys = s3.add_user(f"user-of-{bucket}", "some-secret")

    def opened(names: list[str]) -> S3Store:
        arn = "arn:aws:s3:::" + bucket
        user = [keys.access_key_id]
        rules = [
            {"Effect": "Allow", "Principal": user, "Action": "s3:*", "Resource": [arn, f"{arn}/*"]},
            {
                "Effect": "Deny",
                "Principal": user,
                "Action": "s3:DeleteObject",
                "Resource": [f"{arn}/p/{name}" for name in names],
            },
        ]
        policy = json.dumps({"Version": "2012-10-17", "Statement": rules if names else rules[:1]})
        s3.store("")._objects.client.put_bucket_policy(Bucket=bucket, Policy=policy)
        return S3Store(replace(s3.where("p"), bucket=bucket), credentials=keys)

    return opened


def two_entries(store: S3Store, make_record: MakeRecord) -> tuple[Record, Blob, Blob]:
    held_back, gone = store.put_bytes(DATA), store.put_bytes(DATA * 2)
    publish(store, make_record({"a": held_back}))
    publish(store, make_record({"b": gone}, operation="compile"))
    return make_record({"a": held_back}), held_back, gone


def test_gc_goes_on_and_names_the_blob_when_the_store_does_not_let_it_go(
    limited: Callable[[list[str]], S3Store], make_record: MakeRecord
) -> None:
    _, stays, gone = two_entries(limited([]), make_record)
    store = limited([f"blobs/{stays.sha256[:2]}/{stays.sha256}"])
    said: list[str] = []
    done = gc(store, said)
    assert [blob.sha256 for blob in store.list_blobs()] == [stays.sha256]
    assert (done.records_deleted, done.blobs_deleted, done.blobs_kept) == (2, 1, 1)
    assert (done.bytes_deleted, done.bytes_kept) == (gone.size, stays.size)
    assert done.refused == 1
    assert done.refusals[0].startswith(f"blob {stays.sha256} stays: access is denied")
    assert done.refusals[0] in said
    assert not list(store.list_sweeps())
    assert gc(limited([])).blobs_deleted == 1, "it goes when the policy is gone"


def test_gc_keeps_the_files_of_a_record_that_the_store_does_not_let_go(
    limited: Callable[[list[str]], S3Store], make_record: MakeRecord
) -> None:
    record, stays, gone = two_entries(limited([]), make_record)
    store = limited([f"records/{record.operation}/*"])
    done = gc(store)
    assert (done.records_deleted, done.records_kept, done.refused) == (1, 1, 1)
    assert (done.bytes_deleted, done.bytes_kept) == (gone.size, stays.size)
    hit = store.lookup(record.operation, record.key)
    assert isinstance(hit, Hit), "a record that stays is whole"
    assert store.read_blob(stays) == DATA


def test_gc_stops_when_it_may_delete_nothing_at_all(
    limited: Callable[[list[str]], S3Store], make_record: MakeRecord
) -> None:
    record, stays, _ = two_entries(limited([]), make_record)
    store = limited(["*"])
    with pytest.raises(StoreUnreadable, match=r"cannot remove its own sweeps/.*let these cred"):
        gc(store)
    assert isinstance(store.lookup(record.operation, record.key), Hit)
    assert store.read_blob(stays) == DATA


def test_verify_goes_on_and_says_what_stays_when_the_store_does_not_let_it_go(
    s3: S3Server,
    bucket: str,
    limited: Callable[[list[str]], S3Store],
    make_record: MakeRecord,
) -> None:
    _, stays, gone = two_entries(limited([]), make_record)
    assert s3.folder is not None
    folder = s3.folder.parent / bucket / "p" / "blobs"
    for blob in (stays, gone):
        path = folder / blob.sha256[:2] / blob.sha256
        with path.open("r+b") as stream:
            stream.write(b"W")
    said: list[str] = []
    store = limited([f"blobs/{stays.sha256[:2]}/{stays.sha256}"])
    done = verify(store, remove=True, progress=said.append)
    assert {fault.digest: fault.removed for fault in done.faults} == {
        stays.sha256: False,
        gone.sha256: True,
    }
    assert any(stays.sha256 in line and "it stays: access is denied" in line for line in said)
