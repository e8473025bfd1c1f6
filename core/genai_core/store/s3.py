"""A store behind S3: any server with SHA-256 checksums, best with conditional writes.

    <prefix>/blobs/<aa>/<sha256>              the SHA-256 as checksum and as metadata
    <prefix>/records/<operation>/<key>.json   If-None-Match: the commit point; If-Match: healing
    <prefix>/leases/<name>.json, <prefix>/sweeps/<name>.json
    <prefix>/probe/<random>                   gone after a probe

No key is ever a folder of another (POSIX-backed servers refuse that). The server's conditional
writes are tried once before the first commit: a server that ignores If-None-Match would otherwise
let the last writer win unseen. Without them a commit looks, writes and looks again, with a
warning. A blob's age counts from its last writer, so an old one that is put again is sent again:
between the claim and the record that names it, gc must not take it for forgotten.
"""

from __future__ import annotations

import io
import logging
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from genai_core.canonical import digest_bytes, is_digest
from genai_core.errors import CorruptBlob, GenAIError, StoreUnavailable, StoreUnreadable
from genai_core.names import Digest, Key
from genai_core.record import Blob, Record
from genai_core.store import s3_transfer as transfer
from genai_core.store.files import explain, hash_file, temporary
from genai_core.store.leases import (
    check_lease_name,
    lease_from_bytes,
    lease_to_bytes,
    sweep_from_bytes,
    sweep_to_bytes,
)
from genai_core.store.lookup import first_fault
from genai_core.store.protocol import (
    BlobStat,
    Capabilities,
    Committed,
    Existing,
    HeadBlob,
    Hit,
    Lease,
    Lookup,
    Miss,
    RecordRef,
    StoredRecord,
    Sweep,
)
from genai_core.store.s3_errors import code_of, explained, is_absent
from genai_core.store.s3_guard import Refuse, guard
from genai_core.store.s3_location import S3Credentials, S3Location
from genai_core.store.s3_objects import Head, Objects

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["CLAIM_LASTS", "S3Store", "new_client", "shared_session"]

CLAIM_LASTS = timedelta(hours=12)
"""A blob younger than this is not sent again. gc's grace period must be longer."""

_ATTEMPTS = 6
_IN_MEMORY_BYTES = 32 << 20

log = logging.getLogger("genai_core.store")

_making = threading.Lock()  # boto3's sessions are not safe for threads; its clients are


@cache
def shared_session() -> boto3.session.Session:
    """Return the session of all clients: reading S3's model for each store took 0.2 s and 10 MB."""
    return boto3.session.Session()


def new_client(
    where: S3Location,
    credentials: S3Credentials | None = None,
    *,
    refuse: Refuse | None = None,
) -> S3Client:
    """Make boto3's client for a place.

    Args:
        where: Endpoint, region, CA and addressing count.
        credentials: None = boto3's usual places.
        refuse: Address and port that it was connected to -> why it must hang up, or None.

    Raises:
        StoreUnreadable: An address or certificate that cannot be used.
    """
    with explained(str(where)):
        session = shared_session()
        region = where.region or session.region_name
        client = session.client(
            "s3",
            endpoint_url=where.endpoint,
            region_name=region or ("us-east-1" if where.endpoint else None),
            verify=where.ca,
            aws_access_key_id=credentials.access_key_id if credentials else None,
            aws_secret_access_key=credentials.secret_access_key if credentials else None,
            aws_session_token=credentials.session_token if credentials else None,
            config=Config(
                retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
                connect_timeout=10,
                read_timeout=60,
                max_pool_connections=32,
                # Our own checksum goes along as a signed header, which more servers know
                # than the trailing checksums that boto3 would add, and which makes a second
                # hash of the body for the signature needless.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": where.addressing, "payload_signing_enabled": False},
                tcp_keepalive=True,
            ),
        )
        if refuse is not None:
            guard(client, refuse)
        return client


class S3Store:
    """See the module's docstring, and `protocol.Store` for each method.

    Args:
        where: Bucket, prefix, endpoint.
        credentials: None = boto3's usual places.
        read_only: Never write, not even to remove a wrong blob.
        capabilities: What an earlier probe found; None = probed before the first commit.
        refuse: As for `new_client`.
    """

    def __init__(
        self,
        where: S3Location,
        *,
        credentials: S3Credentials | None = None,
        read_only: bool = False,
        capabilities: Capabilities | None = None,
        refuse: Refuse | None = None,
    ) -> None:
        self.where = where
        self.read_only = read_only
        self._credentials = credentials
        self._capabilities = capabilities
        self._refuse = refuse
        self._made: S3Client | None = None
        self._objects = Objects(
            self._client, where.bucket, prefix=where.prefix, location=self.location
        )

    @property
    def location(self) -> str:
        """The address, without credentials."""
        return str(self.where)

    @property
    def writable(self) -> S3Store:
        """Itself."""
        return self

    def _client(self) -> S3Client:
        with _making:
            if self._made is None:
                self._made = new_client(self.where, self._credentials, refuse=self._refuse)
            return self._made

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(8, thread_name_prefix="s3-head")

    def _must_be_writable(self) -> None:
        if self.read_only:
            raise StoreUnreadable(
                "it is only read", where=self.location, remedy="name another store to write to"
            )

    # Blobs

    def _blob_key(self, digest: Digest) -> str:
        return self._objects.key(_blob_name(digest))

    def head_blob(self, digest: Digest) -> BlobStat | None:
        """Ask for size, checksum and time."""
        head = self._objects.head(_blob_name(digest))
        return _stat(digest, head) if head else None

    def put_blob(self, path: Path, *, digest: Digest | None = None, consume: bool = False) -> Blob:
        """Send a file, unless it stands and is young; `consume` changes nothing here."""
        del consume
        self._must_be_writable()
        try:
            before = path.stat()
            if before.st_size <= transfer.PART_BYTES:
                return self._put_small(path.read_bytes(), path, digest)
            known, size = (digest, before.st_size) if digest else hash_file(path)
            blob = Blob(sha256=known, size=size)
            if self._claimed(blob):
                return blob
            with explained(self.location):
                transfer.upload(
                    self._client(),
                    path,
                    bucket=self.where.bucket,
                    key=self._blob_key(blob.sha256),
                    blob=blob,
                    check=digest is not None,
                )
            after = path.stat()
        except OSError as error:
            raise explain(error, path) from error
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            self.delete_blob(blob.sha256)
            raise CorruptBlob("it changed while it was stored", where=str(path))
        return blob

    def _put_small(self, data: bytes, path: Path, announced: Digest | None) -> Blob:
        blob = Blob(sha256=digest_bytes(data), size=len(data))
        if announced not in {None, blob.sha256}:
            raise CorruptBlob(
                f"it was announced as {announced[:12]} and is {blob.sha256[:12]}", where=str(path)
            )
        return self.put_bytes(data)

    def put_bytes(self, data: bytes) -> Blob:
        """Send bytes in memory."""
        self._must_be_writable()
        blob = Blob(sha256=digest_bytes(data), size=len(data))
        if not self._claimed(blob):
            self._objects.put(_blob_name(blob.sha256), data, metadata={"sha256": blob.sha256})
        return blob

    def _claimed(self, blob: Blob) -> bool:
        head = self._objects.head(_blob_name(blob.sha256))
        if head is None or not _stat(blob.sha256, head).stands_for(blob.sha256, blob.size):
            return False
        return head.now - head.modified < CLAIM_LASTS

    def fetch_blob(self, blob: Blob, dest: Path, *, shared: bool = False) -> None:
        """Download, hashed on the way; `shared` changes nothing here."""
        del shared
        try:
            with temporary(dest.parent, dest.name) as draft:
                with draft.open("x+b", buffering=0) as target:
                    self._download(blob, cast("BinaryIO", target))
                draft.replace(dest)
        except OSError as error:
            raise explain(error, dest, need=blob.size) from error

    def _download(self, blob: Blob, target: BinaryIO) -> None:
        with explained(self.location):
            try:
                digest, size = transfer.download(
                    self._client(),
                    target,
                    bucket=self.where.bucket,
                    key=self._blob_key(blob.sha256),
                    size=blob.size,
                )
            except ClientError as error:
                if not is_absent(error):
                    raise
                self._objects.head(_blob_name(blob.sha256))  # raises where the bucket is missing
                raise self._corrupt(blob, "is missing") from error
        if (digest, size) != (blob.sha256, blob.size):
            raise self._corrupt(blob, f"has {size} bytes of digest {digest[:12]}", remove=True)

    @contextmanager
    def open_blob(self, blob: Blob) -> Iterator[BinaryIO]:
        """Open a verified copy: in memory where small, else in a temporary file."""
        if blob.size <= _IN_MEMORY_BYTES:
            yield io.BytesIO(self.read_blob(blob))
            return
        with tempfile.TemporaryFile(buffering=0) as stream:
            try:
                self._download(blob, cast("BinaryIO", stream))
            except OSError as error:
                raise explain(error, Path(tempfile.gettempdir()), need=blob.size) from error
            stream.seek(0)
            yield io.BufferedReader(cast("io.RawIOBase", stream))

    def read_blob(self, blob: Blob) -> bytes:
        """Read a small blob into memory."""
        found = self._objects.get(_blob_name(blob.sha256))
        if found is None:
            raise self._corrupt(blob, "is missing")
        if digest_bytes(found[0]) != blob.sha256:
            raise self._corrupt(blob, "has other bytes", remove=True)
        return found[0]

    def check_blob(self, blob: Blob) -> str | None:
        """Read a blob whole and compare."""
        with explained(self.location):
            try:
                digest, size = transfer.hash_object(
                    self._client(), bucket=self.where.bucket, key=self._blob_key(blob.sha256)
                )
            except ClientError as error:
                if not is_absent(error):
                    raise
                return "is missing"
        if size != blob.size:
            return f"has {size} bytes instead of {blob.size}"
        return None if digest == blob.sha256 else f"has bytes of digest {digest[:12]}"

    def _corrupt(self, blob: Blob, what: str, *, remove: bool = False) -> CorruptBlob:
        if remove and not self.read_only:
            with suppress(GenAIError):
                self.delete_blob(blob.sha256)
        return CorruptBlob(
            f"blob {blob.sha256[:12]} {what}; its task runs again", where=self.location
        )

    def delete_blob(self, digest: Digest) -> None:
        """Remove a blob."""
        self._must_be_writable()
        self._objects.delete(_blob_name(digest))

    def list_blobs(self) -> Iterator[BlobStat]:
        """List `blobs/`."""
        for name, size, modified in self._objects.list("blobs"):
            digest = name.rpartition("/")[2]
            if is_digest(digest):
                yield BlobStat(Digest(digest), size, None, modified)

    # Records

    def get_record(self, operation: str, key: Key) -> StoredRecord | None:
        """Read a record."""
        found = self._objects.get(_record_name(operation, key))
        if found is None:
            return None
        record = _parsed(found[0])
        if record is None:
            raise CorruptBlob(
                f"the record {operation}/{key[:12]} cannot be read", where=self.location
            )
        return StoredRecord(record, found[1])

    def lookup(self, operation: str, key: Key, *, head: HeadBlob | None = None) -> Lookup:
        """Hit where the record stands and every blob answers to HEAD."""
        found = self._objects.get(_record_name(operation, key))
        if found is None:
            return Miss("no record")
        record, etag = _parsed(found[0]), found[1]
        if record is None:
            return Miss("its record cannot be read", etag)
        if (record.operation, record.key) != (operation, key):
            return Miss("its record is another task's", etag)
        fault = first_fault(record, head or self.head_blob, pool=self._pool)
        return Miss(fault, etag) if fault else Hit(record, etag, self.location)

    def commit(self, record: Record) -> Committed | Existing:
        """Write a record with If-None-Match."""
        return self._write_record(record, etag=None)

    def heal(self, record: Record, etag: str) -> Committed | Existing:
        """Replace a record with If-Match."""
        return self._write_record(record, etag=etag)

    def _write_record(self, record: Record, *, etag: str | None) -> Committed | Existing:
        self._must_be_writable()
        name, data = _record_name(record.operation, record.key), record.to_bytes()
        for _ in range(_ATTEMPTS):
            if self._put_on_condition(name, data, etag):
                return Committed(record)
            found = self._objects.get(name)
            if found is None:  # deleted since
                etag = None
                continue
            if found[0] == data:  # ours: the first answer was lost and the request repeated
                return Committed(record)
            kept = _parsed(found[0])
            if kept is not None and found[1] != etag:
                return Existing(kept, found[1])
            etag = found[1]  # unreadable: exactly this one is replaced
        raise StoreUnavailable("a record kept changing while it was written", where=self.location)

    def _put_on_condition(self, name: str, data: bytes, etag: str | None) -> bool:
        """Put where nothing stands, or in place of exactly `etag`; False where that is not so."""
        can = self._known_capabilities()
        if can.conditional_create if etag is None else can.conditional_replace:
            return self._objects.put(name, data, only_new=etag is None, replaces=etag)
        standing = self._objects.get(name)
        if (standing[1] if standing else None) != etag:
            return False
        self._objects.put(name, data)
        # A writer at the same moment may have overwritten ours: what is read back stands.
        written = self._objects.get(name)
        return written is not None and written[0] == data

    def _known_capabilities(self) -> Capabilities:
        if self._capabilities is None:
            self._capabilities = self.probe()
            if not self._capabilities.conditional_create:
                log.warning(
                    "%s has no conditional writes: of two writers at the same moment the last may "
                    "win; both results are valid",
                    self.location,
                )
        return self._capabilities

    def delete_record(self, ref: RecordRef) -> None:
        """Remove a record."""
        self._must_be_writable()
        self._objects.delete(_record_name(ref.operation, ref.key))

    def list_records(self, operation: str | None = None) -> Iterator[RecordRef]:
        """List `records/`."""
        place = f"records/{operation}" if operation else "records"
        for name, _, modified in self._objects.list(place):
            folder, _, file = name.rpartition("/")
            key = file.removesuffix(".json")
            if is_digest(key):
                yield RecordRef(operation or folder, Key(key), modified)

    def delete_drafts(self, before: datetime, *, dry_run: bool = False) -> int:
        """Abort old uploads in parts: nobody sees them, and their bytes cost."""
        self._must_be_writable()
        return self._objects.abort_uploads("blobs", before, dry_run=dry_run)

    # Leases, sweeps and the store itself

    def put_lease(self, lease: Lease) -> None:
        """Write `leases/<name>.json`."""
        self._must_be_writable()
        self._objects.put(_note_name("leases", lease.name), lease_to_bytes(lease))

    def delete_lease(self, name: str) -> None:
        """Remove `leases/<name>.json`."""
        self._must_be_writable()
        self._objects.delete(_note_name("leases", name))

    def get_lease(self, name: str) -> Lease | None:
        """Read `leases/<name>.json`."""
        found = self._objects.get(_note_name("leases", name))
        return lease_from_bytes(found[0], name) if found else None

    def list_leases(self) -> Sequence[Lease]:
        """Read `leases/`."""
        return [lease_from_bytes(data, name) for name, data in self._notes("leases")]

    def put_sweep(self, sweep: Sweep) -> None:
        """Write `sweeps/<name>.json`."""
        self._must_be_writable()
        self._objects.put(_note_name("sweeps", sweep.name), sweep_to_bytes(sweep))

    def delete_sweep(self, name: str) -> None:
        """Remove `sweeps/<name>.json`."""
        self._must_be_writable()
        self._objects.delete(_note_name("sweeps", name))

    def list_sweeps(self) -> Sequence[Sweep]:
        """Read `sweeps/`."""
        return [sweep_from_bytes(data, name) for name, data in self._notes("sweeps")]

    def _notes(self, folder: str) -> Iterator[tuple[str, bytes]]:
        for file, _, _ in self._objects.list(folder):
            name = file.removesuffix(".json")
            data = self._objects.get(f"{folder}/{file}")
            if data is not None and name != file:
                yield name, data[0]

    def create_bucket(self) -> None:
        """Create the store's bucket; no error where it is ours already."""
        self._must_be_writable()
        with explained(self.location):
            try:
                self._client().create_bucket(Bucket=self.where.bucket)
            except ClientError as error:
                if code_of(error) != "BucketAlreadyOwnedByYou":
                    raise

    def probe(self) -> Capabilities:
        """Create twice, replace with a wrong tag, read, ask for the checksum, delete."""
        self._must_be_writable()
        return self._objects.probe()


def _blob_name(digest: Digest) -> str:
    return f"blobs/{digest[:2]}/{digest}"


def _record_name(operation: str, key: Key) -> str:
    return f"records/{operation}/{key}.json"


def _note_name(folder: str, name: str) -> str:
    return f"{folder}/{check_lease_name(name)}.json"


def _stat(digest: Digest, head: Head) -> BlobStat:
    return BlobStat(digest, head.size, head.digest, head.modified)


def _parsed(data: bytes) -> Record | None:
    try:
        return Record.from_bytes(data)
    except ValueError:
        return None
