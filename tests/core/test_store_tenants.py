"""Two tenants in one bucket, kept apart by the bucket policy that is shipped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from genai_core.errors import StoreUnreadable
from genai_core.store.address import StoreAddress
from genai_core.store.collection.build_lease import Holder
from genai_core.store.collection.collect import collect
from genai_core.store.lookup import publish
from genai_core.store.protocol import Hit, RecordRef
from genai_core.store.s3.client import new_client
from genai_core.store.s3.s3_store import S3Store
from genai_core.tasks.record import Record
from genai_core.testing import FaultProxy, S3Server

POLICY = Path(__file__).parents[2] / "deploy" / "stores" / "bucket-policy.json"
TEAMS = ("team-a", "team-b")


@pytest.fixture(scope="module")
def stores(s3: S3Server) -> dict[str, S3Store]:
    """Each tenant's store, opened with that tenant's credentials."""
    if s3.program is None:
        pytest.skip(f"{s3.name} has no accounts: NOT TESTED")
    root = new_client(s3.where(""), s3.credentials)
    root.create_bucket(Bucket="genai")
    found = {}
    for team in TEAMS:
        keys = s3.add_user(team, f"secret-of-{team}")
        where = replace(s3.where(team), bucket="genai")
        found[team] = S3Store(where, credentials=keys)
    root.put_bucket_policy(Bucket="genai", Policy=POLICY.read_text())
    return found


def test_the_policy_is_all_that_a_store_needs(
    stores: dict[str, S3Store], make_record: Callable[..., Record], tmp_path: Path
) -> None:
    store = stores["team-a"]
    assert store.probe().conditional_create
    big = tmp_path / "big"
    big.write_bytes(bytes(20 << 20))
    blob = store.put_blob(big)
    record = make_record({"big": blob})
    publish(store, record)
    assert isinstance(store.lookup(record.operation, record.key), Hit)
    Holder(store, "b", holder="kim").claim([RecordRef(record.operation, record.key)])
    done = collect(store, now=datetime.now(UTC) + timedelta(days=20), grace=timedelta(days=1))
    assert (done.records_kept, done.records_deleted) == (1, 0)


def test_one_tenants_credentials_are_refused_on_the_others_prefix(
    stores: dict[str, S3Store],
) -> None:
    stores["team-a"].put_bytes(b"of team a")
    client = stores["team-b"]._client()
    root: dict[str, Any] = {"Bucket": "genai"}
    name = next(iter(stores["team-a"].list_blobs())).sha256
    theirs = root | {"Key": f"team-a/blobs/{name[:2]}/{name}"}
    calls: dict[str, Callable[[], Any]] = {
        "get": lambda: client.get_object(**theirs),
        "head": lambda: client.head_object(**theirs),
        "put": lambda: client.put_object(**theirs, Body=b"mine"),
        "put beside": lambda: client.put_object(**root, Key="team-a/records/x", Body=b"mine"),
        "delete": lambda: client.delete_object(**theirs),
        "list": lambda: client.list_objects_v2(**root, Prefix="team-a/"),
        "list all": lambda: client.list_objects_v2(**root),
        "list above": lambda: client.list_objects_v2(**root, Prefix="team-"),
        "copy": lambda: client.copy_object(
            **root, Key="team-b/stolen", CopySource=f"genai/{theirs['Key']}"
        ),
        "upload in parts": lambda: client.create_multipart_upload(**theirs),
        "policy": lambda: client.put_bucket_policy(**root, Policy="{}"),
        "read policy": lambda: client.get_bucket_policy(**root),
    }
    for what, call in calls.items():
        with pytest.raises(ClientError) as caught:
            call()
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403, what
    assert stores["team-a"].head_blob(name) is not None, "nothing was changed"


def test_a_store_on_the_others_prefix_says_that_access_is_denied(
    stores: dict[str, S3Store], s3: S3Server
) -> None:
    wrong = S3Store(replace(stores["team-a"].where), credentials=stores["team-b"]._credentials)
    with pytest.raises(StoreUnreadable, match="access is denied"):
        wrong.probe()
    with pytest.raises(StoreUnreadable, match="access is denied"):
        list(wrong.list_records())


def test_the_policy_names_nothing_beside_prefixes() -> None:
    for statement in json.loads(POLICY.read_text())["Statement"]:
        (team,) = statement["Principal"]["AWS"]
        if statement["Action"] == ["s3:ListBucket"]:
            assert statement["Condition"] == {"StringLike": {"s3:prefix": [f"{team}/*"]}}
        else:
            assert statement["Resource"] == [f"arn:aws:s3:::genai/{team}/*"]


# Where a client must hang up


@pytest.fixture
def canary(s3: S3Server) -> Iterator[FaultProxy]:
    """A server that nobody must ask anything."""
    with FaultProxy(s3.endpoint).running() as running:
        yield running


def refusing(address: str, _port: int) -> str | None:
    return "is refused here" if address == "127.0.0.1" else None


def test_a_client_hangs_up_before_it_asks_a_refused_address(
    canary: FaultProxy, s3: S3Server
) -> None:
    for name in ("127.0.0.1", "localhost"):
        endpoint = canary.endpoint.replace("127.0.0.1", name)
        where = StoreAddress("artifacts", "x", endpoint, "us-east-1", None, "path")
        store = S3Store(where, credentials=s3.credentials, refuse=refusing)
        with pytest.raises(StoreUnreadable, match=r"must not be used: 127\.0\.0\.1 is refused"):
            store.probe()
    assert canary.seen == []
    allowed = S3Store(where, credentials=s3.credentials, refuse=lambda *_: None)
    assert allowed.probe().checksums


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_an_endpoint_cannot_send_a_client_elsewhere(
    canary: FaultProxy, s3: S3Server, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    monkeypatch.setattr("genai_core.store.s3.client._ATTEMPTS", 1)

    class Redirects(BaseHTTPRequestHandler):
        def _away(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(code)
            self.send_header("Location", f"{canary.endpoint}{self.path}")
            self.send_header("x-amz-bucket-region", "us-east-1")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_PUT = do_HEAD = do_DELETE = _away

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Redirects)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        where = StoreAddress("artifacts", "x", endpoint, "us-east-1", None, "path")
        store = S3Store(where, credentials=s3.credentials)
        with pytest.raises(Exception, match=f"{code}|endpoint"):
            store.put_bytes(b"secret of a tenant")
        assert canary.seen == []
    finally:
        server.shutdown()
        server.server_close()
