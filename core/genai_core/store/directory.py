"""A store in a directory: a laptop's cache, or a shared file system.

    blobs/<aa>/<sha256>                    read-only, 0444
    records/<operation>/<key>.json         the commit point
    leases/<name>.json
    <model-slug>/<operation>_<32 hex>/     what people look at, see `view`
    tmp/                                   drafts; what a killed writer left is removed by gc

Creation is a hard link, which fails where the name exists, so the first writer wins even on file
systems without locks. Where locks work they also order record and view: a reader never sees a
record whose folder is still to come. Every fetch hashes what it hands out (about 1.5 GB/s), since
a stat cache would miss a byte that was changed with its time put back.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, cast

from genai_core.canonical import digest_bytes, is_digest
from genai_core.errors import CorruptBlob, GenAIError, StoreUnreadable
from genai_core.names import Digest, Key
from genai_core.record import Blob, Record
from genai_core.store import view
from genai_core.store.files import (
    copy_hashed,
    explain,
    hash_file,
    sync_folder,
    temporary,
    write_atomically,
)
from genai_core.store.leases import check_lease_name, lease_from_bytes, lease_to_bytes
from genai_core.store.lookup import first_fault
from genai_core.store.protocol import (
    BlobStat,
    Capabilities,
    Committed,
    Existing,
    Hit,
    Lease,
    Lookup,
    Miss,
    RecordRef,
    StoredRecord,
)

__all__ = ["DirectoryStore"]


class DirectoryStore:
    """See the module's docstring, and `protocol.Store` for each method.

    Args:
        root: The folder; made with the first write.
        read_only: Never write, not even to remove a wrong blob.
    """

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        self.root = root.absolute()
        self.read_only = read_only
        if self.root.exists() and not self.root.is_dir():
            raise StoreUnreadable(
                "it is a file, not a folder", where=str(root), remedy="name a folder as the store"
            )

    @property
    def location(self) -> str:
        """The folder."""
        return str(self.root)

    @property
    def scratch(self) -> Path:
        """A folder on the store's file system, for drafts."""
        if self.read_only:
            raise StoreUnreadable(
                "it is only read", where=self.location, remedy="name another store to write to"
            )
        folder = self.root / "tmp"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def blob_path(self, digest: Digest) -> Path:
        """Return where a blob is or would be."""
        return self.root / "blobs" / digest[:2] / digest

    def _record_path(self, operation: str, key: Key) -> Path:
        return self.root / "records" / operation / f"{key}.json"

    # Blobs

    def head_blob(self, digest: Digest) -> BlobStat | None:
        """Return size and time of a blob; a directory keeps no checksum beside it."""
        path = self.blob_path(digest)
        try:
            stat = path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise explain(error, path) from error
        return BlobStat(digest, stat.st_size, None, datetime.fromtimestamp(stat.st_mtime, UTC))

    def put_blob(self, path: Path, *, digest: Digest | None = None, consume: bool = False) -> Blob:
        """Store a file: linked where consumed, else copied and hashed in one pass."""
        with self._explained(path):
            size = path.stat().st_size
        with self._explained(self.root, need=size):
            if digest is not None and self._claim(Blob(sha256=digest, size=size)):
                return Blob(sha256=digest, size=size)
            with temporary(self.scratch, path.name) as draft:
                blob = self._take_over(path, draft) if consume else self._copy_in(path, draft)
                if digest is not None and blob.sha256 != digest:
                    raise CorruptBlob(
                        f"it was announced as {digest[:12]} and is {blob.sha256[:12]}",
                        where=str(path),
                    )
                self._place(draft, blob)
        return blob

    def put_bytes(self, data: bytes) -> Blob:
        """Store bytes in memory."""
        blob = Blob(sha256=digest_bytes(data), size=len(data))
        with self._explained(self.root, need=len(data)), temporary(self.scratch, "bytes") as draft:
            with draft.open("xb") as stream:
                stream.write(data)
                stream.flush()
                _seal(stream)
            self._place(draft, blob)
        return blob

    def _claim(self, blob: Blob) -> bool:
        """Renew the time of a blob that stands and is right."""
        path = self.blob_path(blob.sha256)
        if self.check_blob(blob) is not None:
            return False
        try:
            os.utime(path)
        except OSError:
            return False  # another user's: written anew under our name, so that gc sees the claim
        return True

    def _copy_in(self, path: Path, draft: Path) -> Blob:
        with path.open("rb", buffering=0) as source, draft.open("xb", buffering=0) as target:
            digest, size = copy_hashed(source, target)
            _seal(target)
        return Blob(sha256=digest, size=size)

    def _take_over(self, path: Path, draft: Path) -> Blob:
        """Link a file into the store and seal it, where it has no other name; else copy it.

        A file with a second name is not the caller's alone to give: it may be the user's model,
        which must stay writable and whose later change must not reach the store.
        """
        try:
            if path.is_symlink() or path.stat().st_nlink > 1:
                return self._adopt_linked(path, draft)
            os.link(path, draft)
            with draft.open("rb", buffering=0) as source:
                _seal(source)
                digest, size = copy_hashed(source, None)
        except OSError:  # another file system, or another user's file
            draft.unlink(missing_ok=True)
            return self._copy_in(path, draft)
        return Blob(sha256=digest, size=size)

    def _adopt_linked(self, path: Path, draft: Path) -> Blob:
        """Copy a file to the draft unless its bytes stand already: an input passed on."""
        digest, size = hash_file(path)
        blob = Blob(sha256=digest, size=size)
        with suppress(OSError):
            if path.samefile(self.blob_path(digest)):
                os.utime(path)
                return blob
        return blob if self._claim(blob) else self._copy_in(path, draft)

    def _place(self, draft: Path, blob: Blob) -> None:
        if not draft.exists() or self._claim(blob):
            return  # what stands stays, so that views go on sharing its bytes
        final = self.blob_path(blob.sha256)
        final.parent.mkdir(parents=True, exist_ok=True)
        draft.replace(final)
        sync_folder(final.parent)

    def check_blob(self, blob: Blob) -> str | None:
        """Read a blob whole and compare."""
        path = self.blob_path(blob.sha256)
        try:
            if path.stat().st_size != blob.size:
                return f"has {path.stat().st_size} bytes instead of {blob.size}"
            digest, _ = hash_file(path)
        except FileNotFoundError:
            return "is missing"
        except OSError as error:
            raise explain(error, path) from error
        return None if digest == blob.sha256 else f"has bytes of digest {digest[:12]}"

    def fetch_blob(self, blob: Blob, dest: Path, *, shared: bool = False) -> None:
        """Place a blob: a hard link for readers, else a copy; hashed either way."""
        with (
            self._explained(dest, need=0 if shared else blob.size),
            temporary(dest.parent, dest.name) as draft,
        ):
            try:
                linked = shared and _try_link(self.blob_path(blob.sha256), draft)
                source = draft if linked else self.blob_path(blob.sha256)
                with source.open("rb", buffering=0) as stream:
                    if linked:
                        digest, size = copy_hashed(stream, None)
                    else:
                        with draft.open("xb", buffering=0) as target:
                            digest, size = copy_hashed(stream, target)
            except FileNotFoundError as error:
                if dest.parent.is_dir():
                    raise self._corrupt(blob, "is missing") from error
                raise
            if (digest, size) != (blob.sha256, blob.size):
                raise self._corrupt(blob, f"has {size} bytes of digest {digest[:12]}")
            draft.replace(dest)

    @contextmanager
    def open_blob(self, blob: Blob) -> Iterator[BinaryIO]:
        """Open a blob after reading it through once."""
        path = self.blob_path(blob.sha256)
        with self._explained(path):
            try:
                stream = path.open("rb", buffering=0)
            except FileNotFoundError as error:
                raise self._corrupt(blob, "is missing") from error
        with stream:
            digest, size = copy_hashed(cast("BinaryIO", stream), None)
            if (digest, size) != (blob.sha256, blob.size):
                raise self._corrupt(blob, f"has {size} bytes of digest {digest[:12]}")
            stream.seek(0)
            yield io.BufferedReader(stream)

    def read_blob(self, blob: Blob) -> bytes:
        """Return a small blob's bytes."""
        try:
            data = self.blob_path(blob.sha256).read_bytes()
        except FileNotFoundError as error:
            raise self._corrupt(blob, "is missing") from error
        except OSError as error:
            raise explain(error, self.blob_path(blob.sha256)) from error
        if digest_bytes(data) != blob.sha256:
            raise self._corrupt(blob, "has other bytes")
        return data

    def _corrupt(self, blob: Blob, what: str) -> CorruptBlob:
        if not self.read_only:
            with suppress(OSError):
                self.blob_path(blob.sha256).unlink()
        return CorruptBlob(
            f"blob {blob.sha256[:12]} {what}; its task runs again", where=self.location
        )

    def delete_blob(self, digest: Digest) -> None:
        """Remove a blob."""
        with self._explained(self.blob_path(digest)):
            self.blob_path(digest).unlink(missing_ok=True)

    def list_blobs(self) -> Iterator[BlobStat]:
        """Go through `blobs/`."""
        with self._explained(self.root / "blobs"):
            for folder in _children(self.root / "blobs"):
                for path in _children(folder):
                    stat = self.head_blob(Digest(path.name)) if is_digest(path.name) else None
                    if stat is not None:
                        yield stat

    # Records

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
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise explain(error, path) from error

    def lookup(self, operation: str, key: Key) -> Lookup:
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
        if view.is_invalidated(self.root, record):
            return Miss("its folder was deleted", _etag(data))
        fault = first_fault(record, self.head_blob, pool=None)
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
        path = self._record_path(record.operation, record.key)
        data = record.to_bytes()
        with self._explained(path, need=len(data)):
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path.parent / ".lock"):
                standing = self._record_bytes(record.operation, record.key)
                if standing is not None and _etag(standing) != etag:
                    kept = _parsed(standing)
                    if kept is not None:
                        return Existing(kept, _etag(standing))
                view.write_view(
                    self.root, record, blob_path=self._places(record), scratch=self.scratch
                )
                first = standing is None
                if write_atomically(path, data, scratch=self.scratch, exclusive=first):
                    return Committed(record)
        # Without working locks another writer slipped in: its record stands, so its folder must.
        stored = self.get_record(record.operation, record.key)
        if stored is None:
            return self._write_record(record, etag=etag)
        places = self._places(stored.record)
        with self._explained(path):
            view.write_view(self.root, stored.record, blob_path=places, scratch=self.scratch)
        return Existing(stored.record, stored.etag)

    def delete_record(self, ref: RecordRef) -> None:
        """Remove a record, then its folder."""
        path = self._record_path(ref.operation, ref.key)
        with self._explained(path):
            if not path.parent.is_dir():
                return
            with _locked(path.parent / ".lock"):
                standing = self._record_bytes(ref.operation, ref.key)
                path.unlink(missing_ok=True)
                record = _parsed(standing) if standing is not None else None
                if record is not None:
                    view.remove_view(self.root, record, scratch=self.scratch)

    def list_records(self, operation: str | None = None) -> Iterator[RecordRef]:
        """Go through `records/`."""
        with self._explained(self.root / "records"):
            for folder in _children(self.root / "records"):
                if operation not in {None, folder.name}:
                    continue
                for path in _children(folder):
                    if path.suffix != ".json" or not is_digest(path.stem):
                        continue
                    with suppress(FileNotFoundError):
                        modified = datetime.fromtimestamp(path.stat().st_mtime, UTC)
                        yield RecordRef(folder.name, Key(path.stem), modified)

    # Leases and the store itself

    def put_lease(self, lease: Lease) -> None:
        """Write `leases/<name>.json`."""
        path = self.root / "leases" / f"{check_lease_name(lease.name)}.json"
        with self._explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lease_to_bytes(lease), scratch=self.scratch)

    def delete_lease(self, name: str) -> None:
        """Remove `leases/<name>.json`."""
        path = self.root / "leases" / f"{check_lease_name(name)}.json"
        with self._explained(path):
            path.unlink(missing_ok=True)

    def list_leases(self) -> Sequence[Lease]:
        """Read `leases/`."""
        found = []
        with self._explained(self.root / "leases"):
            for path in _children(self.root / "leases"):
                if path.suffix != ".json":
                    continue
                with suppress(FileNotFoundError):
                    found.append(lease_from_bytes(path.read_bytes(), path.stem))
        return found

    def probe(self) -> Capabilities:
        """Try links, replacement and locks in `tmp/`."""
        with self._explained(self.root, need=16):
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
                    yield path, datetime.fromtimestamp(path.lstat().st_mtime, UTC)

    def delete_leftover(self, path: Path) -> None:
        """Remove what `leftovers` found."""
        with self._explained(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    @contextmanager
    def _explained(self, path: Path, *, need: int | None = None) -> Iterator[None]:
        try:
            yield
        except GenAIError:
            raise
        except OSError as error:
            raise explain(error, path, need=need) from error


def _children(folder: Path) -> list[Path]:
    """List a folder; unlike glob, an unreadable one is an error: gc must not take it for empty."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _seal(stream: BinaryIO | io.FileIO) -> None:
    """Make a file read-only, young (gc's grace counts from now) and durable."""
    os.fchmod(stream.fileno(), 0o444)
    os.utime(stream.fileno())
    os.fsync(stream.fileno())


def _try_link(blob: Path, draft: Path) -> bool:
    try:
        os.link(blob, draft)
    except FileNotFoundError:
        raise
    except OSError:
        return False  # another file system
    return True


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _parsed(data: bytes) -> Record | None:
    try:
        return Record.from_bytes(data)
    except ValueError:
        return None


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold a lock file; yields False where the file system has no locks."""
    with path.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True
