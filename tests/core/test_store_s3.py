"""S3 when it goes wrong: throttling, broken streams, lost answers, wrong credentials."""

from __future__ import annotations

import logging
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from genai_core.canonical import digest_bytes
from genai_core.errors import CorruptBlob, NoSpace, StoreUnavailable, StoreUnreadable
from genai_core.names import Digest, Key
from genai_core.store import blobs
from genai_core.store.address import StoreCredentials
from genai_core.store.collection.build_lease import LASTS, Holder
from genai_core.store.collection.collect import collect
from genai_core.store.lookup import lookup_all, publish
from genai_core.store.protocol import AccessDenied, Committed, Existing, Hit, Miss, RecordRef
from genai_core.store.s3 import client as s3_client
from genai_core.store.s3 import transfer as s3_transfer
from genai_core.store.s3.objects import ObjectHead
from genai_core.store.s3.s3_store import S3Store
from genai_core.tasks.record import Blob, Record
from genai_core.testing import FaultProxy, S3Server, ServerFault, certificate

MakeRecord = Callable[..., Record]
BIG = 33 * 2**20 + 5


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3.endpoint).running() as running:
        yield running


@pytest.fixture
def store(s3: S3Server, proxy: FaultProxy, fresh_name: str) -> S3Store:
    return s3.store(fresh_name, endpoint=proxy.endpoint)


def first(
    count: int, fault: ServerFault, method: str = "", part: str = ""
) -> Callable[..., ServerFault | None]:
    """Let the first requests of a kind go wrong."""
    left = [count]

    def rule(verb: str, path: str, _: Mapping[str, str]) -> ServerFault | None:
        if left[0] and method in {"", verb} and part in path:
            left[0] -= 1
            return fault
        return None

    return rule


def whole(path: Path, size: int = BIG) -> Path:
    path.write_bytes((bytes(range(253)) * (size // 253 + 1))[:size])
    return path


def test_throttling_is_waited_out(
    store: S3Store, proxy: FaultProxy, make_record: MakeRecord, tmp_path: Path
) -> None:
    proxy.rule = first(3, ServerFault(status=503))
    blob = store.put_blob(whole(tmp_path / "a", 1000))
    proxy.rule = first(2, ServerFault(status=503), "PUT", "/records/")
    record = make_record({"a": blob})
    assert publish(store, record) == Committed(record)
    proxy.rule = first(2, ServerFault(status=503), "GET")
    store.fetch_blob(blob, tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


def test_server_that_stays_away_is_unavailable(
    store: S3Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(s3_client, "_ATTEMPTS", 2)
    proxy.rule = lambda *_: ServerFault(status=503)
    with pytest.raises(StoreUnavailable, match="503"):
        store.put_bytes(b"x")
    with pytest.raises(StoreUnavailable):
        store.lookup("convert", "0" * 64)  # type: ignore[arg-type]
    proxy.rule = lambda *_: ServerFault(status=507)
    with pytest.raises(NoSpace, match="make room in the bucket"):
        store.put_bytes(b"x")


def test_nobody_listens(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_client, "_ATTEMPTS", 1)
    with pytest.raises(StoreUnavailable, match="does not answer"):
        s3.store("x", endpoint="http://127.0.0.1:9").put_bytes(b"x")


@pytest.mark.parametrize("size", [100_000, BIG])
def test_broken_stream_is_read_again(
    store: S3Store, proxy: FaultProxy, tmp_path: Path, size: int
) -> None:
    blob = store.put_blob(whole(tmp_path / "a", size))
    proxy.rule = first(2, ServerFault(cut_after=50_000), "GET")
    store.fetch_blob(blob, tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    assert sum(line.startswith("GET") for line in proxy.seen) >= 3


def test_stream_that_always_breaks_leaves_nothing(
    store: S3Store, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genai_core.store.s3.transfer._ATTEMPTS", 2)
    blob = store.put_blob(whole(tmp_path / "a", 100_000))
    proxy.rule = lambda verb, *_: ServerFault(cut_after=50_000) if verb == "GET" else None
    with pytest.raises(StoreUnavailable):
        store.fetch_blob(blob, tmp_path / "b")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("size", [100_000, BIG])
def test_byte_flipped_on_the_way_is_never_served(
    store: S3Store, proxy: FaultProxy, tmp_path: Path, size: int
) -> None:
    blob = store.put_blob(whole(tmp_path / "a", size))
    proxy.rule = lambda verb, *_: ServerFault(flip=99_999) if verb == "GET" else None
    assert "has bytes of digest" in str(store.check_blob(blob))
    with pytest.raises(CorruptBlob):
        store.fetch_blob(blob, tmp_path / "b")
    proxy.rule = lambda *_: None
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert store.head_blob(blob.sha256) is None, "a wrong blob is a miss from now on"


def test_byte_flipped_at_rest(
    s3: S3Server, fresh_name: str, make_record: MakeRecord, tmp_path: Path
) -> None:
    if s3.folder is None:
        pytest.skip(f"{s3.name} keeps no files that could be damaged")
    store = s3.store(fresh_name)
    blob = store.put_blob(whole(tmp_path / "a", 100_000))
    record = make_record({"a": blob})
    publish(store, record)
    file = s3.folder / fresh_name / "blobs" / blob.sha256[:2] / blob.sha256
    with file.open("r+b") as stream:
        stream.seek(500)
        stream.write(b"\xff\xfe")
    assert isinstance(store.lookup(record.operation, record.key), Hit), "HEAD cannot see it"
    with pytest.raises(CorruptBlob):
        store.read_blob(blob)
    assert isinstance(store.lookup(record.operation, record.key), Miss)
    store.put_blob(tmp_path / "a")
    file.write_bytes(b"short")
    missed = store.lookup(record.operation, record.key)
    assert isinstance(missed, Miss)
    assert "5 bytes instead of 100000" in missed.reason


def test_commit_whose_answer_was_lost_is_ours(
    store: S3Store, proxy: FaultProxy, make_record: MakeRecord
) -> None:
    record = make_record({"a": store.put_bytes(b"x")})
    store.probe()
    proxy.rule = first(1, ServerFault(lose_answer=True), "PUT", "/records/")
    assert store.commit(record) == Committed(record)
    assert sum("PUT" in line and "/records/" in line for line in proxy.seen) == 2


def test_commit_without_conditional_writes_warns_once(
    unconditional_endpoint: S3Server,
    fresh_name: str,
    make_record: MakeRecord,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = unconditional_endpoint.store(fresh_name)
    with caplog.at_level(logging.WARNING, "genai_core.store"):
        for seed in (1, 2):
            record = make_record(seed=seed)
            assert store.commit(record) == Committed(record)
            other = make_record(seed=seed, source="a later writer")
            assert isinstance(store.commit(other), Existing)
    assert [r.message for r in caplog.records if "no conditional writes" in r.message] != []
    assert len([r for r in caplog.records if r.name == "genai_core.store"]) == 1


def test_server_that_says_it_has_no_conditional_writes(
    store: S3Store, proxy: FaultProxy, make_record: MakeRecord
) -> None:
    def rule(_: str, __: str, headers: Mapping[str, str]) -> ServerFault | None:
        return ServerFault(status=501) if {"if-match", "if-none-match"} & headers.keys() else None

    proxy.rule = rule
    found = store.probe()
    assert (found.conditional_create, found.conditional_replace) == (False, False)
    record = make_record()
    assert store.commit(record) == Committed(record)


def test_wrong_credentials_and_buckets(s3: S3Server, fresh_name: str) -> None:
    if not s3.checks_signatures:
        pytest.skip(f"{s3.name} checks no signatures")
    where = s3.where(fresh_name)
    strangers = [
        StoreCredentials("nobody", s3.credentials.secret_access_key),
        StoreCredentials(s3.credentials.access_key_id, "wrong"),
    ]
    for credentials in strangers:
        stranger = S3Store(where, credentials=credentials)
        for call in (
            lambda s=stranger: s.head_blob("0" * 64),
            lambda s=stranger: s.lookup("arcl", "0" * 64),
            lambda s=stranger: s.put_bytes(b"x"),
            lambda s=stranger: s.probe(),
            lambda s=stranger: list(s.list_records()),
        ):
            with pytest.raises(StoreUnreadable, match="check the credentials"):
                call()
    lost = S3Store(
        S3Server(s3.name, s3.endpoint, None, bucket="no-such-bucket").where(""),
        credentials=s3.credentials,
    )
    for asked in (
        lambda: lost.head_blob(Digest("0" * 64)),
        lost.probe,
        lambda: list(lost.list_blobs()),
    ):
        with pytest.raises(StoreUnreadable, match="no such bucket"):
            asked()


def test_no_credentials_at_all(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3_client.shared_session.cache_clear()
    with pytest.raises(StoreUnreadable, match="AWS_ACCESS_KEY_ID"):
        S3Store(s3.where("x")).put_bytes(b"x")
    s3_client.shared_session.cache_clear()


def test_old_blob_is_sent_again_so_that_gc_sees_the_claim(
    store: S3Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = store.put_bytes(b"old weights")
    store.put_bytes(b"old weights")  # sees what the server's time is, once
    proxy.seen.clear()
    store.put_bytes(b"old weights")
    assert [line.split()[0] for line in proxy.seen] == ["HEAD"], "young: only asked for"
    real = store._objects.head

    def aged(name: str) -> ObjectHead | None:
        head = real(name)
        if head is None:
            return None
        return replace(head, modified=head.modified - timedelta(hours=13))

    monkeypatch.setattr(store._objects, "head", aged)
    store.put_bytes(b"old weights")
    assert proxy.seen[-1].startswith("PUT")
    assert store.read_blob(blob) == b"old weights"


def test_failed_upload_is_aborted(
    store: S3Store,
    proxy: FaultProxy,
    s3: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(s3_client, "_ATTEMPTS", 1)
    path = whole(tmp_path / "a")
    proxy.rule = first(100, ServerFault(status=503), "PUT", "partNumber=2")
    with pytest.raises(StoreUnavailable):
        store.put_blob(path)
    client = store._client()
    assert "Uploads" not in client.list_multipart_uploads(Bucket=s3.bucket)
    assert list(store.list_blobs()) == []


def test_the_lost_answer_to_an_uploads_end_is_no_failure(
    store: S3Store, proxy: FaultProxy, tmp_path: Path
) -> None:
    """The server has put the parts together; asked again, it knows no such upload any more."""
    path = whole(tmp_path / "a")
    faults = [ServerFault(lose_answer=True), ServerFault(status=404)]

    def rule(verb: str, asked: str, _: Mapping[str, str]) -> ServerFault | None:
        return faults.pop(0) if verb == "POST" and "uploadId=" in asked else None

    proxy.rule = rule
    blob = store.put_blob(path)
    assert sum("POST" in line and "uploadId=" in line for line in proxy.seen) == 2
    assert store.check_blob(blob) is None


def test_an_upload_that_somebody_aborted_may_be_tried_again(
    store: S3Store, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gc takes what was begun a day ago for left behind."""
    monkeypatch.setattr(s3_transfer, "_THREADS", 1)
    path = whole(tmp_path / "a")

    def rule(verb: str, asked: str, _: Mapping[str, str]) -> ServerFault | None:
        if verb == "PUT" and "partNumber=3" in asked:
            proxy.rule = lambda *_: None
            store.delete_drafts(datetime.now(UTC) + timedelta(days=1))
        return None

    proxy.rule = rule
    with pytest.raises(StoreUnavailable, match="NoSuchUpload"):
        store.put_blob(path)
    assert store.check_blob(store.put_blob(path)) is None


@pytest.mark.parametrize("way", ["up", "down"])
def test_after_an_interruption_no_further_part_is_moved(
    store: S3Store,
    proxy: FaultProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    monkeypatch.setattr(s3_transfer, "PART_BYTES", 5 << 20)
    monkeypatch.setattr(s3_transfer, "_THREADS", 1)
    path = whole(tmp_path / "a", 60 << 20)
    blob = store.put_blob(path) if way == "down" else None
    proxy.seen.clear()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    proxy.rule = lambda *_: ServerFault(seconds=0.1)
    if blob is not None:
        monkeypatch.setattr("os.preadv", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.fetch_blob(blob, tmp_path / "b")
        moved = [line for line in proxy.seen if line.startswith("GET")]
    else:
        monkeypatch.setattr(s3_transfer, "hash_file", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.put_blob(path, digest=digest_bytes(path.read_bytes()))
        moved = [line for line in proxy.seen if "partNumber=" in line]
    assert len(moved) <= 3, "those that were on their way, of twelve"


def test_what_is_far_too_large_is_not_read_into_memory(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenant's bucket, an operator's memory."""
    monkeypatch.setattr(blobs, "READ_AT_ONCE_BYTES", 1 << 20)
    blob = store.put_bytes(bytes((1 << 20) + 1))
    with pytest.raises(CorruptBlob, match="has 1048577 bytes, and at most 1048576 are read"):
        store.read_blob(blob)
    small = store.put_bytes(b"small")
    store._objects.put(f"blobs/{small.sha256[:2]}/{small.sha256}", bytes(1 << 20))
    with pytest.raises(CorruptBlob, match="has more bytes"):
        store.read_blob(small)


def test_a_clock_that_is_wrong_is_named(store: S3Store) -> None:
    from botocore.exceptions import ClientError

    from genai_core.store.s3.errors import explained

    answer = {
        "Error": {"Code": "RequestTimeTooSkewed", "Message": "The difference is too large."},
        "ResponseMetadata": {"HTTPStatusCode": 403},
    }
    with (
        pytest.raises(StoreUnreadable, match="set this machine's clock"),
        explained(store.location),
    ):
        raise ClientError(answer, "PutObject")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "code", "remedy"),
    [
        (400, "ExpiredToken", "get new ones"),
        (403, "InvalidToken", "get new ones"),
        (403, "RequestTimeTooSkewed", "set this machine's clock"),
        (403, "InvalidAccessKeyId", "check the credentials"),
    ],
)
def test_store_says_why_it_is_refused_when_the_answer_has_no_body(
    store: S3Store, proxy: FaultProxy, tmp_path: Path, status: int, code: str, remedy: str
) -> None:
    large = store.put_blob(whole(tmp_path / "large"))
    fault = ServerFault(status=status, error=code)
    proxy.rule = lambda *_: fault
    for call in (
        lambda: store.head_blob(large.sha256),
        lambda: store.put_bytes(b"x"),
        lambda: store.put_blob(tmp_path / "large"),
        lambda: store.fetch_blob(large, tmp_path / "fetched"),
        lambda: store.lookup("arcl", Key("0" * 64)),
    ):
        with pytest.raises(AccessDenied if "clock" not in remedy else StoreUnreadable) as caught:
            call()
        assert remedy in str(caught.value)
    proxy.rule = lambda *_: None
    store.fetch_blob(large, tmp_path / "fetched")


@pytest.mark.parametrize("days", [-40, 40])
def test_collect_goes_by_the_times_of_objects_when_a_proxy_gives_answers_another_date(
    store: S3Store, proxy: FaultProxy, make_record: MakeRecord, days: int
) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(days=days), usegmt=True)
    young = make_record({"a": store.put_bytes(b"young")})
    publish(store, young)
    proxy.rule = lambda *_: ServerFault(headers={"date": date})
    Holder(store, "b", holder="me").claim([RecordRef(young.operation, young.key)])
    lease = store.get_lease("b")
    assert lease is not None
    assert abs(lease.expires_at - datetime.now(UTC) - LASTS) < timedelta(hours=1)
    done = collect(store, grace=timedelta(days=7))
    assert (done.records_deleted, done.blobs_deleted, done.leases_expired) == (0, 0, 0)
    later = collect(store, now=datetime.now(UTC) + timedelta(days=50), grace=timedelta(days=7))
    assert (later.records_deleted, later.blobs_deleted, later.leases_expired) == (1, 1, 1)


def test_store_is_refused_when_its_server_does_not_list_what_was_written(
    s3: S3Server, store: S3Store, proxy: FaultProxy, make_record: MakeRecord, fresh_name: str
) -> None:
    empty = ServerFault(body=b"<ListBucketResult></ListBucketResult>")
    proxy.rule = lambda _, path, __: empty if "list-type=2" in path else None
    with pytest.raises(StoreUnreadable, match="does not list what was written"):
        store.commit(make_record())
    if s3.folder is not None:  # it takes a//b for a/b, but not where it lists
        with pytest.raises(StoreUnreadable, match="without an empty part"):
            s3.store(f"{fresh_name}//x").probe()


def test_a_connection_that_breaks_off_is_no_matter_of_certificates(store: S3Store) -> None:
    import ssl

    from botocore.exceptions import SSLError

    from genai_core.store.s3.errors import explained

    for error, expected in {
        "EOF occurred in violation of protocol (_ssl.c:2427)": StoreUnavailable,
        "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed": StoreUnreadable,
    }.items():
        with pytest.raises(expected), explained(store.location):
            raise SSLError(endpoint_url="https://s3.example", error=ssl.SSLError(error))


_KILLED = """
import sys
from pathlib import Path
from genai_core.store.location import open_store
from genai_core.store.address import StoreCredentials
open_store(sys.argv[1], credentials=StoreCredentials(*sys.argv[3:])).put_blob(Path(sys.argv[2]))
"""


def test_writer_killed_in_the_middle_of_an_upload(
    store: S3Store, proxy: FaultProxy, s3: S3Server, fresh_name: str, tmp_path: Path
) -> None:
    path = whole(tmp_path / "a")
    last_part = threading.Event()

    def rule(_: str, asked: str, __: Mapping[str, str]) -> ServerFault | None:
        if "partNumber=3" not in asked:
            return None
        last_part.set()
        return ServerFault(seconds=2)

    proxy.rule = rule
    address = str(s3.where(fresh_name, endpoint=proxy.endpoint))
    keys = (s3.credentials.access_key_id, s3.credentials.secret_access_key)
    writer = subprocess.Popen([sys.executable, "-c", _KILLED, address, str(path), *keys])
    try:
        assert last_part.wait(60)
    finally:
        writer.kill()
        writer.wait()
    proxy.rule = lambda *_: None
    assert list(store.list_blobs()) == []
    soon = datetime.now(UTC) + timedelta(minutes=1)
    if s3.checks_signatures:  # moto says of every upload that it began in 2010
        assert collect(store, now=soon).drafts_deleted == 0, "its writer may be alive"
    assert collect(store, now=soon + timedelta(days=1), dry_run=True).drafts_deleted == 1
    assert collect(store, now=soon + timedelta(days=1)).drafts_deleted == 1
    assert collect(store, now=soon + timedelta(days=1)).drafts_deleted == 0
    blob = store.put_blob(path)
    assert [stat.sha256 for stat in store.list_blobs()] == [blob.sha256]


def test_certificates_are_checked(s3: S3Server, fresh_name: str, tmp_path: Path) -> None:
    ca, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca, key)
    with FaultProxy(s3.endpoint).running(context) as proxy:
        where = s3.where(fresh_name, endpoint=proxy.endpoint)
        with pytest.raises(StoreUnreadable, match=r"certificate is not accepted.*ca= in the"):
            S3Store(where, credentials=s3.credentials).put_bytes(b"x")
        trusted = S3Store(replace(where, ca=str(ca)), credentials=s3.credentials)
        blob = trusted.put_blob(whole(tmp_path / "a"))
        trusted.fetch_blob(blob, tmp_path / "b")
        with pytest.raises(StoreUnreadable, match="nowhere"):
            S3Store(
                replace(where, ca=str(tmp_path / "nowhere")), credentials=s3.credentials
            ).probe()


def test_full_disk_on_download(store: S3Store, tmp_path: Path) -> None:
    import resource
    import signal

    blob = store.put_blob(whole(tmp_path / "a"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(NoSpace, match=f"{BIG} bytes are needed"):
            store.fetch_blob(blob, tmp_path / "b")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_slow_server_only_takes_longer(
    store: S3Store, proxy: FaultProxy, make_record: MakeRecord
) -> None:
    blobs = {f"{n}.bin": store.put_bytes(b"%d" % n) for n in range(8)}
    record = make_record(blobs)
    publish(store, record)
    proxy.rule = lambda verb, *_: ServerFault(seconds=0.2) if verb == "HEAD" else None
    import time

    start = time.monotonic()
    assert isinstance(store.lookup(record.operation, record.key), Hit)
    assert time.monotonic() - start < 8 * 0.2, "blobs are asked for at once, not in turn"


def test_shared_blobs_are_asked_for_once_at_plan_time(
    store: S3Store, proxy: FaultProxy, make_record: MakeRecord
) -> None:
    weights = {f"layer_{n}.data": store.put_bytes(b"%d" % n) for n in range(5)}
    records = [make_record(weights, seed=seed) for seed in range(6)]
    for record in records:
        publish(store, record)
    proxy.seen.clear()
    refs = [RecordRef(record.operation, record.key) for record in records]
    found = lookup_all(store, refs, threads=1)
    assert all(isinstance(answer, Hit) for answer in found.values())
    assert sum(line.startswith("HEAD") for line in proxy.seen) == 5


def test_listing_goes_on_after_a_thousand(
    s3: S3Server, fresh_name: str, make_record: MakeRecord
) -> None:
    if s3.folder is None:
        pytest.skip("too slow to fill")
    store = s3.store(fresh_name)
    store.put_bytes(b"makes the folder")
    folder = s3.folder / fresh_name / "records" / "arcl"
    folder.mkdir(parents=True)
    for number in range(1100):
        (folder / f"{number:064x}.json").write_bytes(b"{}")
    assert len(list(store.list_records())) == 1100
    assert len(list(store.list_records("arcl"))) == 1100
    assert list(store.list_records("arc")) == []


def test_blob_in_parts_has_its_digest_noted(store: S3Store, tmp_path: Path) -> None:
    blob = store.put_blob(whole(tmp_path / "a"))
    stat = store.head_blob(blob.sha256)
    assert stat is not None
    assert stat.stored_digest == blob.sha256
    assert stat.stands_for(blob.sha256, BIG)
    with store.open_blob(blob) as stream:
        assert stream.read(100) == (tmp_path / "a").read_bytes()[:100]
    store.fetch_blob(Blob(sha256=blob.sha256, size=BIG), tmp_path / "b")
    assert (tmp_path / "b").stat().st_size == BIG
