"""A store in a directory: a laptop's cache, or a shared file system.

    blobs/<aa>/<sha256>                    read-only, 0444
    records/<operation>/<key>.json         the commit point
    leases/<name>.json, sweeps/<name>.json
    <model-slug>/<operation>_<32 hex>/     what people look at, see `view`
    tmp/                                   drafts; what a killed writer left is removed by gc

Creation is a hard link, which fails where the name exists, so the first writer wins even on file
systems without locks. Where locks work they also order record and view: a reader never sees a
record whose folder is still to come.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from genai_core.canonical import is_digest
from genai_core.errors import CorruptBlob, StoreUnavailable, StoreUnreadable
from genai_core.files.json_budgets import LEASE, RECORD, SWEEP, Budget
from genai_core.files.regular import NotRegular, read_regular
from genai_core.files.whole_files import (
    DRAFT_SUFFIX,
    explain,
    put_away,
    temporary,
    write_atomically,
)
from genai_core.names import Digest, Key
from genai_core.store.collection.lease_files import (
    bounded,
    check_lease_name,
    lease_from_bytes,
    lease_to_bytes,
    readable_sweep,
    sweep_to_bytes,
)
from genai_core.store.collection.sweeps import utc_now
from genai_core.store.directory import view
from genai_core.store.directory.blob_folder import BlobFolder, children
from genai_core.store.lookup import first_fault
from genai_core.store.protocol import (
    SWEEP_LASTS,
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
from genai_core.tasks.record import Record

__all__ = ["DirectoryStore"]

_LOCK_SECONDS = 120


class DirectoryStore(BlobFolder):
    """See the module's docstring, and `protocol.Store` for each method.

    Args:
        root: The folder; made with the first write.
        read_only: Never write, not even to remove a wrong blob.
    """

    @property
    def writable(self) -> DirectoryStore:
        """Itself."""
        return self

    def _record_path(self, operation: str, key: Key) -> Path:
        return self.root / "records" / operation / f"{key}.json"

    def get_record(self, operation: str, key: Key) -> StoredRecord | None:
        """Read a record."""
        data = self._record_bytes(operation, key)
        if data is None:
            return None
        try:
            record = Record.from_bytes(data)
        except ValueError as error:
            raise CorruptBlob(
                f"the record {operation}/{key[:12]} cannot be read", where=self.location
            ) from error
        return StoredRecord(record, _etag(data))

    def _record_bytes(self, operation: str, key: Key) -> bytes | None:
        path = self._record_path(operation, key)
        try:
            return read_regular(path, RECORD.most_bytes)
        except FileNotFoundError:
            return None
        except NotRegular:
            return b""  # no record: a miss, and the next writer replaces whatever stands there
        except OSError as error:
            raise explain(error, path) from error

    def lookup(self, operation: str, key: Key, *, head: HeadBlob | None = None) -> Lookup:
        """Hit where record, folder and blobs stand."""
        data = self._record_bytes(operation, key)
        if data is None:
            return Miss("no record")
        try:
            record = Record.from_bytes(data)
        except ValueError:
            return Miss("its record cannot be read", _etag(data))
        if (record.operation, record.key) != (operation, key):
            return Miss("its record is another task's", _etag(data))
        if (untrue := key_fault(record)) is not None:
            return Miss(untrue, _etag(data))
        if view.is_invalidated(self.root, record):
            return Miss("its folder was deleted", _etag(data))
        fault = first_fault(record, head or self.head_blob, pool=None)
        fault = fault or container_miss(record, self)
        if fault is not None:
            return Miss(fault, _etag(data))
        self._refresh_view(record)
        return Hit(record, _etag(data), self.location)

    def _refresh_view(self, record: Record) -> None:
        places = self._places(record)
        if self.read_only or not view.is_stale(self.root, record, blob_path=places):
            return
        with suppress(OSError):
            lock = self._record_path(record.operation, record.key).parent / ".lock"
            with _locked(lock):
                if not view.is_invalidated(self.root, record):
                    view.write_view(self.root, record, blob_path=places, scratch=self.scratch)

    def _places(self, record: Record) -> dict[Digest, Path]:
        return {digest: self.blob_path(digest) for digest in record.blobs()}

    def commit(self, record: Record) -> Committed | Existing:
        """Write folder and record where no record stands."""
        return self._write_record(record, etag=None)

    def heal(self, record: Record, etag: str) -> Committed | Existing:
        """Replace the record that bears `etag`."""
        return self._write_record(record, etag=etag)

    def _write_record(self, record: Record, *, etag: str | None) -> Committed | Existing:
        self._must_be_writable()
        path = self._record_path(record.operation, record.key)
        data = record.to_bytes()
        with self.explained(path, need=len(data)):
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path.parent / ".lock"):
                standing = self._record_bytes(record.operation, record.key)
                kept = _parsed(standing) if standing is not None else None
                if standing is not None and kept is not None:
                    if _etag(standing) != etag:
                        return Existing(kept, _etag(standing))
                    if kept.model != record.model:  # healed by a build of another name
                        view.remove_view(self.root, kept, scratch=self.scratch)
                view.write_view(
                    self.root, record, blob_path=self._places(record), scratch=self.scratch
                )
                first = standing is None
                if path.is_dir():
                    put_away(path, self.scratch)
                if write_atomically(path, data, scratch=self.scratch, exclusive=first):
                    return Committed(record)
        # Without working locks another writer slipped in: its record stands, so its folder must.
        stored = self.get_record(record.operation, record.key)
        if stored is None:
            return self._write_record(record, etag=etag)
        places = self._places(stored.record)
        with self.explained(path):
            view.write_view(self.root, stored.record, blob_path=places, scratch=self.scratch)
        return Existing(stored.record, stored.etag)

    def delete_record(self, ref: RecordRef) -> None:
        """Remove a record, then its folder."""
        self._must_be_writable()
        path = self._record_path(ref.operation, ref.key)
        with self.explained(path):
            if not path.parent.is_dir():
                return
            with _locked(path.parent / ".lock"):
                standing = self._record_bytes(ref.operation, ref.key)
                put_away(path, self.scratch)
                record = _parsed(standing) if standing is not None else None
                if record is not None:
                    view.remove_view(self.root, record, scratch=self.scratch)

    def list_records(self, operation: str | None = None) -> Iterator[RecordRef]:
        """Go through `records/`."""
        with self.explained(self.root / "records"):
            for folder in children(self.root / "records"):
                if operation not in {None, folder.name}:
                    continue
                for path in children(folder):
                    if path.suffix != ".json" or not is_digest(path.stem):
                        continue
                    with suppress(FileNotFoundError):
                        modified = datetime.fromtimestamp(path.stat().st_mtime, UTC)
                        yield RecordRef(folder.name, Key(path.stem), modified)

    # Uploaded models: they go to buckets, which clusters reach

    def list_uploads(self) -> Sequence[Upload]:
        """There are none."""
        return ()

    def delete_upload(self, name: str) -> bool:
        """There are none."""
        return True

    # Leases, sweeps and the store itself

    def put_lease(self, lease: Lease) -> None:
        """Write `leases/<name>.json`."""
        self._put_note("leases", lease.name, lease_to_bytes(lease))

    def delete_lease(self, name: str) -> None:
        """Remove `leases/<name>.json`."""
        self._delete_note("leases", name)

    def get_lease(self, name: str) -> Lease | None:
        """Read `leases/<name>.json`."""
        path = self._note("leases", name)
        with self.explained(path):
            try:
                return _lease(path)
            except FileNotFoundError:
                return None

    def list_leases(self) -> Sequence[Lease]:
        """Read `leases/`."""
        paths = self._notes("leases")
        now = self.now() if paths else None
        found: list[Lease] = []
        for path in paths:
            with self.explained(path), suppress(FileNotFoundError):
                found.append(_lease(path, now))
        return found

    def put_sweep(self, sweep: Sweep) -> None:
        """Write `sweeps/<name>.json`."""
        self._put_note("sweeps", sweep.name, sweep_to_bytes(sweep))

    def delete_sweep(self, name: str) -> None:
        """Remove `sweeps/<name>.json`."""
        self._delete_note("sweeps", name)

    def list_sweeps(self) -> Sequence[Sweep]:
        """Read what is young of `sweeps/`."""
        paths = self._notes("sweeps")
        now = self.now() if paths else None
        found: list[Sweep] = []
        for path in paths:
            with self.explained(path), suppress(FileNotFoundError):
                if now is not None and abs(now - _modified(path)) < SWEEP_LASTS:
                    found.append(readable_sweep(_note_bytes(path, SWEEP), path.stem, self.location))
        return found

    def _note(self, folder: str, name: str) -> Path:
        return self.root / folder / f"{check_lease_name(name)}.json"

    def _put_note(self, folder: str, name: str, data: bytes) -> None:
        path = self._note(folder, name)
        with self.explained(path, need=len(data)):
            scratch = self.scratch
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data, scratch=scratch)

    def _delete_note(self, folder: str, name: str) -> None:
        self._must_be_writable()
        path = self._note(folder, name)
        with self.explained(path):
            put_away(path, self.scratch)

    def _notes(self, folder: str) -> list[Path]:
        with self.explained(self.root / folder):
            return [path for path in children(self.root / folder) if path.suffix == ".json"]

    def now(self) -> datetime:
        """When a file that is written now counts as written."""
        try:
            with temporary(self.scratch, "clock") as path:
                path.touch()
                return _modified(path)
        except (OSError, StoreUnreadable):
            return utc_now()  # it is only read, or full

    def probe(self) -> Capabilities:
        """Try links, replacement and locks in `tmp/`."""
        with self.explained(self.root, need=16):
            scratch = self.scratch
            with temporary(scratch, "probe") as path:
                first = write_atomically(path, b"1", scratch=scratch, exclusive=True)
                second = write_atomically(path, b"2", scratch=scratch, exclusive=True)
                if path.read_bytes() != b"1":
                    raise StoreUnreadable("it does not return what was written", where=str(path))
                with _locked(path) as locks:
                    return Capabilities(
                        conditional_create=first and not second,
                        conditional_replace=locks,
                        checksums=False,
                    )

    def leftovers(self) -> Iterator[tuple[Path, datetime]]:
        """Go through `tmp/`: drafts of running writers, and what killed ones left."""
        with suppress(FileNotFoundError):
            for path in (self.root / "tmp").iterdir():
                with suppress(FileNotFoundError):
                    if path.name.endswith(DRAFT_SUFFIX):  # others keep their locks beside
                        yield path, datetime.fromtimestamp(path.lstat().st_mtime, UTC)

    def delete_drafts(self, before: datetime, *, dry_run: bool = False) -> int:
        """Remove old files and folders in `tmp/`."""
        self._must_be_writable()
        old = [path for path, modified in self.leftovers() if modified < before]
        for path in [] if dry_run else old:
            with self.explained(path):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
        return len(old)


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _parsed(data: bytes) -> Record | None:
    try:
        return Record.from_bytes(data)
    except ValueError:
        return None


def _modified(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _note_bytes(path: Path, budget: Budget) -> bytes:
    """A lease or a sweep; what is no file, or too large, has no bytes that could be read as one."""
    try:
        return read_regular(path, budget.most_bytes)
    except NotRegular:
        return b""


def _lease(path: Path, now: datetime | None = None) -> Lease:
    data, written = _note_bytes(path, LEASE), _modified(path)
    # A file's time can be set, to the future as well.
    return bounded(lease_from_bytes(data, path.stem), min(written, now or written))


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold a lock file; yields False where the file system has no locks.

    Raises:
        StoreUnavailable: Somebody else has held it for two minutes; writers take milliseconds.
    """
    try:
        # Not blocked by a FIFO, which whoever may write here could have put in its place.
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except IsADirectoryError:
        yield False
        return
    with os.fdopen(handle, "ab") as stream:
        until, pause = time.monotonic() + _LOCK_SECONDS, 0.002
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise StoreUnavailable(
                        f"another process has held its lock for {_LOCK_SECONDS} s", where=str(path)
                    ) from error
                time.sleep(pause)
                pause = min(2 * pause, 0.1)
            except OSError:
                yield False
                return
        yield True
