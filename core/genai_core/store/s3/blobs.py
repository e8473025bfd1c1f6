"""Blobs behind S3: `blobs/<aa>/<sha256>`, the SHA-256 as the server's checksum and as metadata.

A blob's age counts from its last writer, so an old one that is put again is sent again: between
the claim and the record that names it, gc must not take it for forgotten. What is read is hashed on
the way; what is found wrong is removed, so that its task runs again.
"""

from __future__ import annotations

import io
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from botocore.exceptions import ClientError

from genai_core.canonical import digest_bytes, is_digest
from genai_core.errors import CorruptBlob, GenAIError, StoreUnreadable
from genai_core.files.whole_files import explain, hash_file, temporary
from genai_core.names import Digest
from genai_core.network.addresses import Refuse
from genai_core.store.address import StoreAddress, StoreCredentials
from genai_core.store.collection.sweeps import CLAIM_LASTS
from genai_core.store.protocol import BlobStat, check_small
from genai_core.store.s3 import transfer
from genai_core.store.s3.client import new_client
from genai_core.store.s3.errors import explained, is_absent, is_bare
from genai_core.store.s3.objects import ObjectHead, S3Objects
from genai_core.tasks.record import Blob

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["S3Blobs"]

_IN_MEMORY_BYTES = 32 << 20


class S3Blobs:
    """The half of a store behind S3 that knows blobs; see `protocol.Store` for each method.

    Args:
        where: Bucket, prefix, endpoint.
        credentials: None = boto3's usual places.
        read_only: Never write, not even to remove a wrong blob.
        refuse: As for `new_client`.
    """

    def __init__(
        self,
        where: StoreAddress,
        *,
        credentials: StoreCredentials | None = None,
        read_only: bool = False,
        refuse: Refuse | None = None,
    ) -> None:
        self.where = where
        self.read_only = read_only
        self._credentials = credentials
        self._refuse = refuse
        self._making = threading.Lock()
        self._made: S3Client | None = None
        self._objects = S3Objects(
            self._client, where.bucket, prefix=where.prefix, location=self.location
        )

    @property
    def location(self) -> str:
        """The address, without credentials."""
        return str(self.where)

    def _client(self) -> S3Client:
        with self._making:
            if self._made is None:
                self._made = new_client(self.where, self._credentials, refuse=self._refuse)
            return self._made

    def _must_be_writable(self) -> None:
        if self.read_only:
            raise StoreUnreadable(
                "it is only read", where=self.location, remedy="name another store to write to"
            )

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
        """Whether it stands, and is young by the clock that a gc goes by."""
        head = self._objects.head(_blob_name(blob.sha256))
        if head is None or not _stat(blob.sha256, head).stands_for(blob.sha256, blob.size):
            return False
        return self._objects.age(head) < CLAIM_LASTS

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
                if is_bare(error) or is_absent(error):
                    self._objects.head(_blob_name(blob.sha256))  # raises with the reason
                if not is_absent(error):
                    raise
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
        check_small(blob, self.location)
        try:
            found = self._objects.get(_blob_name(blob.sha256), most=blob.size)
        except transfer.ObjectTooLarge as error:
            raise self._corrupt(blob, "has more bytes", remove=True) from error
        if found is None:
            raise self._corrupt(blob, "is missing")
        if digest_bytes(found.data) != blob.sha256:
            raise self._corrupt(blob, "has other bytes", remove=True)
        return found.data

    def check_blob(self, blob: Blob) -> str | None:
        """Read a blob whole and compare."""
        with explained(self.location):
            try:
                digest, size = transfer.hash_object(
                    self._client(),
                    bucket=self.where.bucket,
                    key=self._blob_key(blob.sha256),
                    most=blob.size + 1,
                )
            except ClientError as error:
                if not is_absent(error):
                    raise
                return "is missing"
        if size > blob.size:
            return f"has more than {blob.size} bytes"
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

    def delete_blob(self, digest: Digest) -> bool:
        """Remove a blob."""
        self._must_be_writable()
        return self._objects.delete(_blob_name(digest))

    def list_blobs(self) -> Iterator[BlobStat]:
        """List `blobs/`."""
        for name, size, modified, _ in self._objects.list("blobs"):
            digest = name.rpartition("/")[2]
            if is_digest(digest):
                yield BlobStat(Digest(digest), size, None, modified)


def _blob_name(digest: Digest) -> str:
    return f"blobs/{digest[:2]}/{digest}"


def _stat(digest: Digest, head: ObjectHead) -> BlobStat:
    return BlobStat(digest, head.size, head.digest, head.modified)
