"""A store behind S3: any server with SHA-256 checksums, best with conditional writes.

    <prefix>/blobs/<aa>/<sha256>              see `blobs`
    <prefix>/records/<operation>/<key>.json   If-None-Match: the commit point; If-Match: healing
    <prefix>/leases/<name>.json, <prefix>/sweeps/<name>.json
    <prefix>/sources/sha256-<digest>/<role>   uploaded models, see `source_upload`
    <prefix>/probe/<random>                   gone after a probe

No key is ever a folder of another (POSIX-backed servers refuse that). The server's conditional
writes are tried once before the first commit: a server that ignores If-None-Match would otherwise
let the last writer win unseen. Without them a commit looks, writes and looks again, with a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import cached_property

from botocore.exceptions import ClientError

from genai_core.canonical import is_digest
from genai_core.errors import CorruptBlob, StoreUnavailable
from genai_core.files.json_budgets import LEASE, RECORD, SWEEP, Budget
from genai_core.names import Key
from genai_core.network.addresses import Refuse
from genai_core.store.address import StoreAddress, StoreCredentials
from genai_core.store.collection.lease_files import (
    bounded,
    check_lease_name,
    lease_from_bytes,
    lease_to_bytes,
    readable_sweep,
    sweep_to_bytes,
)
from genai_core.store.lookup import first_fault
from genai_core.store.protocol import (
    SWEEP_LASTS,
    AccessDenied,
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
    Upload,
)
from genai_core.store.record_checks import container_miss, key_fault
from genai_core.store.s3.blobs import S3Blobs
from genai_core.store.s3.errors import code_of, explained
from genai_core.store.s3.transfer import ObjectTooLarge
from genai_core.store.upload_names import SOURCES, is_upload
from genai_core.tasks.record import Record

__all__ = ["S3Store"]

_ROUNDS = 6
_UNSEEN = 2
"""Of the rounds: so often a server may say that a record stands that it does not show."""
_MOST_NOTES = 20_000
"""Leases, or sweeps, in one store; of sweeps those that a killed gc left as well."""
_MOST_SWEEPS = 100
"""That are read: young ones of gcs at work, of which there is one a store as a rule."""
_NOTES_SECONDS = 120.0

log = logging.getLogger("genai_core.store")


class S3Store(S3Blobs):
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
        where: StoreAddress,
        *,
        credentials: StoreCredentials | None = None,
        read_only: bool = False,
        capabilities: Capabilities | None = None,
        refuse: Refuse | None = None,
    ) -> None:
        super().__init__(where, credentials=credentials, read_only=read_only, refuse=refuse)
        self._capabilities = capabilities

    @property
    def writable(self) -> S3Store:
        """Itself."""
        return self

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(8, thread_name_prefix="s3-head")

    # Records

    def get_record(self, operation: str, key: Key) -> StoredRecord | None:
        """Read a record."""
        found = self._standing(_record_name(operation, key))
        if found is None:
            return None
        record = _parsed(found[0])
        if record is None:
            raise CorruptBlob(
                f"the record {operation}/{key[:12]} cannot be read", where=self.location
            )
        return StoredRecord(record, found[1])

    def _standing(self, name: str) -> tuple[bytes, str] | None:
        """A record's bytes and tag; what is larger than any record has no bytes that are one."""
        try:
            found = self._objects.get(name, most=RECORD.most_bytes)
        except ObjectTooLarge as error:
            return b"", error.etag
        return (found.data, found.etag) if found is not None else None

    def lookup(self, operation: str, key: Key, *, head: HeadBlob | None = None) -> Lookup:
        """Hit where the record stands and every blob answers to HEAD."""
        found = self._standing(_record_name(operation, key))
        if found is None:
            return Miss("no record")
        record, etag = _parsed(found[0]), found[1]
        if record is None:
            return Miss("its record cannot be read", etag)
        if (record.operation, record.key) != (operation, key):
            return Miss("its record is another task's", etag)
        if (untrue := key_fault(record)) is not None:
            return Miss(untrue, etag)
        fault = first_fault(record, head or self.head_blob, pool=self._pool)
        fault = fault or container_miss(record, self)
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
        unseen = 0
        for _ in range(_ROUNDS):
            if self._put_on_condition(name, data, etag, trusted=unseen < _UNSEEN):
                return Committed(record)
            found = self._standing(name)
            if found is None:
                # Deleted since; or a server that keeps versions takes its own mark of what was
                # deleted for an object (versitygw 1.8).
                unseen += 1
                etag = None
                continue
            if found[0] == data:  # ours: the first answer was lost and the request repeated
                return Committed(record)
            kept = _parsed(found[0])
            if kept is not None and found[1] != etag:
                return Existing(kept, found[1])
            etag = found[1]  # unreadable: exactly this one is replaced
        raise StoreUnavailable("a record kept changing while it was written", where=self.location)

    def _put_on_condition(self, name: str, data: bytes, etag: str | None, *, trusted: bool) -> bool:
        """Put where nothing stands, or in place of exactly `etag`; False where that is not so.

        Args:
            name: Of the object.
            data: Its bytes.
            etag: None where nothing stands.
            trusted: The server judges; else a look before and one after.
        """
        can = self._known_capabilities()
        if trusted and (can.conditional_create if etag is None else can.conditional_replace):
            return self._objects.put(name, data, only_new=etag is None, replaces=etag)
        standing = self._standing(name)
        if (standing[1] if standing else None) != etag:
            return False
        self._objects.put(name, data)
        # A writer at the same moment may have overwritten ours: what is read back stands.
        written = self._standing(name)
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
        for name, _, modified, _ in self._objects.list(place):
            folder, _, file = name.rpartition("/")
            key = file.removesuffix(".json")
            if is_digest(key):
                yield RecordRef(operation or folder, Key(key), modified)

    def delete_drafts(self, before: datetime, *, dry_run: bool = False) -> int:
        """Abort old uploads in parts: nobody sees them, and their bytes cost."""
        self._must_be_writable()
        return sum(
            self._objects.abort_uploads(folder, before, dry_run=dry_run)
            for folder in ("blobs", SOURCES)
        )

    # Uploaded models

    def list_uploads(self) -> Sequence[Upload]:
        """List `sources/`; what users put there under other names is theirs."""
        found: dict[str, Upload] = {}
        for path, size, modified, _ in self._objects.list(SOURCES):
            name = path.partition("/")[0]
            if is_upload(name):
                one = found.get(name, Upload(name, 0, modified))
                found[name] = Upload(name, one.size + size, max(one.modified, modified))
        return sorted(found.values())

    def delete_upload(self, name: str) -> bool:
        """Remove all files of `sources/<name>/`."""
        self._must_be_writable()
        if not is_upload(name):
            raise ValueError(f"{name!r} is not the name of an upload")
        freed, refused = True, None
        for file in self._objects.list(f"{SOURCES}/{name}"):
            try:
                freed &= self._objects.delete(f"{SOURCES}/{name}/{file.name}")
            except AccessDenied as error:
                refused = error
        if refused is not None:
            raise refused
        return freed

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
        found = self._note(_note_name("leases", name), LEASE)
        return bounded(lease_from_bytes(found[0], name), found[1]) if found else None

    def list_leases(self) -> Sequence[Lease]:
        """Read `leases/`."""
        found: list[Lease] = []
        for name, _, _, _ in self._objects.list("leases", most=_MOST_NOTES):
            data = self._note(f"leases/{name}", LEASE) if name.endswith(".json") else None
            if data is not None:
                lease = lease_from_bytes(data[0], name.removesuffix(".json"))
                found.append(bounded(lease, data[1]))
        return found

    def put_sweep(self, sweep: Sweep) -> None:
        """Write `sweeps/<name>.json`."""
        self._must_be_writable()
        self._objects.put(_note_name("sweeps", sweep.name), sweep_to_bytes(sweep))

    def delete_sweep(self, name: str) -> None:
        """Remove `sweeps/<name>.json`."""
        self._must_be_writable()
        self._objects.delete(_note_name("sweeps", name))

    def list_sweeps(self) -> Sequence[Sweep]:
        """Read what is young of `sweeps/`."""
        files = list(self._objects.list("sweeps", most=_MOST_NOTES, seconds=_NOTES_SECONDS))
        now = self.now() if files else None
        found: list[Sweep] = []
        for file in files:
            if now is None or now - file.modified >= SWEEP_LASTS or file.name[-5:] != ".json":
                continue
            if len(found) >= _MOST_SWEEPS:
                raise StoreUnavailable(
                    f"more than {_MOST_SWEEPS} sweeps are under way", where=self.location
                )
            data = self._note(f"sweeps/{file.name}", SWEEP)
            if data is not None:
                name = file.name.removesuffix(".json")
                found.append(readable_sweep(data[0], name, self.location))
        return found

    def _note(self, name: str, budget: Budget) -> tuple[bytes, datetime] | None:
        """A lease's or sweep's bytes and time; what is too large has no bytes that are one."""
        try:
            found = self._objects.get(name, most=budget.most_bytes)
        except ObjectTooLarge:
            return b"", self.now()
        return (found.data, found.modified) if found is not None else None

    def now(self) -> datetime:
        """When an object that is written now counts as written, by the server."""
        return self._objects.now(writable=not self.read_only)

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


def _record_name(operation: str, key: Key) -> str:
    return f"records/{operation}/{key}.json"


def _note_name(folder: str, name: str) -> str:
    return f"{folder}/{check_lease_name(name)}.json"


def _parsed(data: bytes) -> Record | None:
    try:
        return Record.from_bytes(data)
    except ValueError:
        return None
