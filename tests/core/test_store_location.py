"""Addresses of stores, and stores read through to others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_core.errors import CorruptBlob, InvalidSpec, StoreUnreadable
from genai_core.names import Digest
from genai_core.store.address import StoreAddress, StoreCredentials, parse_address
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.layered import LayeredStore
from genai_core.store.location import open_store
from genai_core.store.lookup import publish
from genai_core.store.protocol import BlobStat, Hit, Miss, RecordRef
from genai_core.store.s3.s3_store import S3Store
from genai_core.tasks.record import Blob, Record
from genai_core.testing import S3Server

MakeRecord = Callable[..., Record]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("s3://bucket", StoreAddress("bucket")),
        ("s3://bucket/a/b/", StoreAddress("bucket", "a/b")),
        (
            "s3://bucket/a?endpoint=http://10.0.0.1:7070&region=eu-1&ca=/etc/ca.pem",
            StoreAddress("bucket", "a", "http://10.0.0.1:7070", "eu-1", "/etc/ca.pem", "path"),
        ),
        (
            "s3://bucket?endpoint=https://s3.example&addressing=virtual",
            StoreAddress("bucket", "", "https://s3.example", addressing="virtual"),
        ),
    ],
)
def test_addresses(address: str, expected: StoreAddress) -> None:
    assert parse_address(address) == expected
    assert parse_address(str(expected)) == expected
    store = open_store(address)
    assert isinstance(store, S3Store)
    assert store.location == str(expected)


@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30)
    .map(lambda text: text.strip("/"))
    .filter(lambda text: not {".", ".."} & set(text.split("/")))  # refused: test_paths
)
def test_any_prefix_comes_back_from_its_address(prefix: str) -> None:
    """A worker is given the address that the planner's side has printed."""
    for where in (StoreAddress("bucket", prefix), StoreAddress("bucket", prefix, "http://a:1")):
        again = parse_address(str(where))
        assert (again.bucket, again.prefix, again.endpoint) == ("bucket", prefix, where.endpoint)


def test_a_prefix_may_be_written_as_it_is() -> None:
    for text in ("my model/v2#1", "my%20model/v2%231"):
        assert parse_address(f"s3://bucket/{text}").prefix == "my model/v2#1"


def test_a_store_below_a_prefix_with_spaces_is_one_place(s3: S3Server, fresh_name: str) -> None:
    store = s3.store(f"{fresh_name}/team a/100%")
    blob = store.put_bytes(b"x")
    assert open_store(store.location, credentials=s3.credentials).read_blob(blob) == b"x"


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("s3://", "names no bucket"),
        ("s3://ab/x", "names no bucket"),
        ("s3://bucket?endpoint=host:80", "not an http"),
        ("s3://bucket?regoin=x", "unknown option 'regoin'"),
        ("s3://bucket?region", "bad query"),
        ("s3://bucket?addressing=dns", "path, virtual or auto"),
        ("s3://key:secret-word@bucket/x", "credentials must not stand"),
        ("gs://bucket", "a store is a folder or s3://"),
        ("", "it is empty"),
    ],
)
def test_wrong_addresses_say_what_is_wrong(address: str, why: str) -> None:
    with pytest.raises(InvalidSpec, match=why) as caught:
        open_store(address)
    assert "secret-word" not in str(caught.value)


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for written in (tmp_path / "store", str(tmp_path / "store"), "store", "~/store"):
        store = open_store(written)
        assert isinstance(store, DirectoryStore)
        assert store.root == tmp_path / "store"
    assert not (tmp_path / "store").exists(), "nothing is made before the first write"
    with pytest.raises(StoreUnreadable, match="no such folder"):
        open_store("store", read_from=["nowhere"])


def test_secrets_are_not_shown() -> None:
    assert "hidden" not in repr(StoreCredentials("id", "hidden", "hidden"))


def test_a_directory_store_needs_no_boto3(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['boto3'] = None\n"
        "from genai_core.store.location import open_store\n"
        f"open_store({str(tmp_path)!r}).put_bytes(b'x')\n"
        "from genai_core.errors import StoreUnreadable\n"
        "try: open_store('s3://bucket')\n"
        "except StoreUnreadable as error: print(error)\n"
        "print([m for m in ('botocore', 'urllib3', 'numpy', 'onnx') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    said, loaded = done.stdout.splitlines()
    assert said == ("s3://bucket: boto3 is not installed; pip install 'genai-operator[s3]'")
    assert loaded == "[]"


@pytest.fixture
def team(s3: S3Server, fresh_name: str) -> S3Store:
    return s3.store(fresh_name)


@pytest.fixture
def own(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "own")


@pytest.fixture
def layered(own: DirectoryStore, team: S3Store) -> LayeredStore:
    return LayeredStore(own, [S3Store(team.where, credentials=team._credentials, read_only=True)])


def test_hits_fall_through_and_what_is_used_is_copied(
    own: DirectoryStore,
    team: S3Store,
    layered: LayeredStore,
    make_record: MakeRecord,
    tmp_path: Path,
) -> None:
    used, unused = team.put_bytes(b"used"), team.put_bytes(b"unused")
    record = make_record({"a.bin": used, "b.bin": unused})
    publish(team, record)
    hit = layered.lookup(record.operation, record.key)
    assert isinstance(hit, Hit)
    assert hit.origin == team.location
    layered.fetch_blob(used, tmp_path / "a", shared=True)
    assert (tmp_path / "a").read_bytes() == b"used"
    assert own.head_blob(used.sha256) is not None
    assert own.head_blob(unused.sha256) is None
    assert own.lookup(record.operation, record.key) == Miss("no record")
    team.delete_blob(used.sha256)
    assert layered.read_blob(used) == b"used", "someone else's cleaning does not hurt"


def test_what_a_killed_copy_leaves_is_a_draft(
    own: DirectoryStore, layered: LayeredStore, team: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = team.put_bytes(b"weights")
    seen: list[str] = []
    real = own.put_blob

    def put(path: Path, **options: Any) -> Blob:
        seen.extend(left.name for left, _ in own.leftovers())
        assert path.is_relative_to(own.scratch)
        return real(path, **options)

    monkeypatch.setattr(own, "put_blob", put)
    layered.fetch_blob(blob, own.scratch / "x")
    assert len(seen) == 1, "gc removes what is called so after a day"
    assert list(own.leftovers()) == []


def test_adopted_entries_are_whole(
    own: DirectoryStore, team: S3Store, layered: LayeredStore, make_record: MakeRecord
) -> None:
    record = make_record(
        {"a.bin": team.put_bytes(b"a")}, measurements={"log": team.put_bytes(b"l")}
    )
    publish(team, record)
    adopted = layered.adopt(record.operation, record.key)
    assert adopted is not None
    assert adopted.origin == own.location
    assert isinstance(own.lookup(record.operation, record.key), Hit)
    assert layered.adopt(record.operation, record.key) == adopted
    assert layered.adopt("arcl", record.key) is None


@pytest.mark.parametrize("kind", ["directory", "s3"])
def test_what_an_adopted_entry_names_is_claimed(
    team: S3Store,
    make_record: MakeRecord,
    tmp_path: Path,
    s3: S3Server,
    fresh_name: str,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """A blob that stands there, forgotten for a month: a gc that began before has listed it."""
    first = DirectoryStore(tmp_path / "own") if kind == "directory" else s3.store(f"{fresh_name}-1")
    blob = first.put_bytes(b"weights")
    long_ago = datetime.now(UTC) - timedelta(days=30)
    if isinstance(first, DirectoryStore):
        os.utime(first.blob_path(blob.sha256), (long_ago.timestamp(),) * 2)
    else:
        real = first.head_blob
        sent: list[str] = []
        put = first._objects.put

        def aged(digest: Digest) -> BlobStat | None:
            stat = real(digest)
            return replace(stat, modified=long_ago) if stat and not sent else stat

        def putting(name: str, *args: Any, **options: Any) -> bool:
            sent.extend([name] if name.startswith("blobs/") else [])
            return put(name, *args, **options)

        monkeypatch.setattr(first, "head_blob", aged)
        monkeypatch.setattr(first, "_claimed", lambda _: False)
        monkeypatch.setattr(first._objects, "put", putting)
    record = make_record({"a.bin": team.put_bytes(b"weights")})
    publish(team, record)
    assert LayeredStore(first, [team]).adopt(record.operation, record.key) is not None
    stat = first.head_blob(blob.sha256)
    assert stat is not None
    assert stat.modified > datetime.now(UTC) - timedelta(hours=1)


def test_writes_go_to_the_first_store_only(
    own: DirectoryStore, team: S3Store, layered: LayeredStore, make_record: MakeRecord
) -> None:
    record = make_record({"a.bin": layered.put_bytes(b"x")})
    publish(layered, record)
    assert isinstance(own.lookup(record.operation, record.key), Hit)
    assert list(team.list_records()) == []
    assert list(team.list_blobs()) == []
    assert set(layered.list_records()) == {RecordRef(record.operation, record.key)}


def test_wrong_bytes_of_another_store_stay_there(
    own: DirectoryStore, tmp_path: Path, make_record: MakeRecord
) -> None:
    other = DirectoryStore(tmp_path / "other")
    good = DirectoryStore(tmp_path / "good")
    blob = other.put_bytes(b"right")
    good.put_bytes(b"right")
    path = other.blob_path(blob.sha256)
    path.unlink()
    path.write_bytes(b"wrong")
    store = open_store(own.root, read_from=[other.root, good.root])
    assert store.read_blob(blob) == b"right", "the next store has it"
    own.delete_blob(blob.sha256)
    only = open_store(own.root, read_from=[other.root])
    with pytest.raises(CorruptBlob):
        only.read_blob(blob)
    assert path.read_bytes() == b"wrong", "a store that is only read is not cleaned either"
