"""Blobs in a folder: `blobs/<aa>/<sha256>`, read-only, drafts in `tmp/`.

Every read hashes what it hands out (about 1.5 GB/s), since a stat cache would miss a byte that was
changed with its time put back. What is found wrong is removed, so that its task runs again.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO, cast

from genai_core.canonical import digest_bytes, is_digest
from genai_core.errors import CorruptBlob, GenAIError, StoreUnreadable
from genai_core.files.regular import NotRegular, open_regular, read_regular
from genai_core.files.whole_files import (
    copy_hashed,
    explain,
    hash_file,
    put_away,
    sync_folder,
    temporary,
)
from genai_core.names import Digest
from genai_core.store.protocol import BlobStat, check_small
from genai_core.tasks.record import Blob

__all__ = ["BlobFolder", "children"]


class BlobFolder:
    """The half of a directory store that knows blobs; see `protocol.Store` for each method.

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
        self._must_be_writable()
        folder = self.root / "tmp"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _must_be_writable(self) -> None:
        if self.read_only:
            raise StoreUnreadable(
                "it is only read", where=self.location, remedy="name another store to write to"
            )

    def blob_path(self, digest: Digest) -> Path:
        """Return where a blob is or would be."""
        return self.root / "blobs" / digest[:2] / digest

    def head_blob(self, digest: Digest) -> BlobStat | None:
        """Return size and time of a blob; a directory keeps no checksum beside it."""
        path = self.blob_path(digest)
        try:
            stat = path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise explain(error, path) from error
        if not S_ISREG(stat.st_mode):
            return None  # whoever put it there, it is no blob
        return BlobStat(digest, stat.st_size, None, datetime.fromtimestamp(stat.st_mtime, UTC))

    def put_blob(self, path: Path, *, digest: Digest | None = None, consume: bool = False) -> Blob:
        """Store a file: linked where consumed, else copied and hashed in one pass."""
        with self.explained(path):
            size = path.stat().st_size
        with self.explained(self.root, need=size):
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
        with self.explained(self.root, need=len(data)), temporary(self.scratch, "bytes") as draft:
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
        with open_regular(path) as source, draft.open("xb", buffering=0) as target:
            digest, size = copy_hashed(cast("BinaryIO", source), target)
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
            with open_regular(draft) as source:
                _seal(source)
                digest, size = copy_hashed(cast("BinaryIO", source), None)
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
        if final.is_dir():
            put_away(final, self.scratch)
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
        except NotRegular:
            return "is no ordinary file"
        except OSError as error:
            raise explain(error, path) from error
        return None if digest == blob.sha256 else f"has bytes of digest {digest[:12]}"

    def fetch_blob(self, blob: Blob, dest: Path, *, shared: bool = False) -> None:
        """Place a blob: a hard link for readers, else a copy; hashed either way."""
        with (
            self.explained(dest, need=0 if shared else blob.size),
            temporary(dest.parent, dest.name) as draft,
        ):
            try:
                linked = shared and _try_link(self.blob_path(blob.sha256), draft)
                source = draft if linked else self.blob_path(blob.sha256)
                with self._opened(blob, source) as stream:
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
        with self.explained(path):
            try:
                stream = self._opened(blob, path)
            except FileNotFoundError as error:
                raise self._corrupt(blob, "is missing") from error
        with stream:
            digest, size = copy_hashed(stream, None)
            if (digest, size) != (blob.sha256, blob.size):
                raise self._corrupt(blob, f"has {size} bytes of digest {digest[:12]}")
            stream.seek(0)
            yield io.BufferedReader(cast("io.RawIOBase", stream))

    def _opened(self, blob: Blob, path: Path) -> BinaryIO:
        """Open a blob's file; one of another size need not be read to be wrong."""
        try:
            stream = open_regular(path)
        except NotRegular as error:
            raise self._corrupt(blob, "is no ordinary file") from error
        size = os.fstat(stream.fileno()).st_size
        if size != blob.size:
            stream.close()
            raise self._corrupt(blob, f"has {size} bytes instead of {blob.size}")
        return cast("BinaryIO", stream)

    def read_blob(self, blob: Blob) -> bytes:
        """Return a small blob's bytes."""
        check_small(blob, self.location)
        try:
            data = read_regular(self.blob_path(blob.sha256), blob.size)
        except FileNotFoundError as error:
            raise self._corrupt(blob, "is missing") from error
        except NotRegular as error:
            raise self._corrupt(blob, str(error.strerror)) from error
        except OSError as error:
            raise explain(error, self.blob_path(blob.sha256)) from error
        if digest_bytes(data) != blob.sha256:
            raise self._corrupt(blob, "has other bytes")
        return data

    def _corrupt(self, blob: Blob, what: str) -> CorruptBlob:
        if not self.read_only:
            with suppress(OSError):
                put_away(self.blob_path(blob.sha256), self.scratch)
        return CorruptBlob(
            f"blob {blob.sha256[:12]} {what}; its task runs again", where=self.location
        )

    def delete_blob(self, digest: Digest) -> bool:
        """Remove a blob."""
        self._must_be_writable()
        with self.explained(self.blob_path(digest)):
            put_away(self.blob_path(digest), self.scratch)
        return True

    def list_blobs(self) -> Iterator[BlobStat]:
        """Go through `blobs/`."""
        with self.explained(self.root / "blobs"):
            for folder in children(self.root / "blobs"):
                for path in children(folder):
                    stat = self.head_blob(Digest(path.name)) if is_digest(path.name) else None
                    if stat is not None:
                        yield stat

    @contextmanager
    def explained(self, path: Path, *, need: int | None = None) -> Iterator[None]:
        """Turn the operating system's errors into ours."""
        try:
            yield
        except GenAIError:
            raise
        except OSError as error:
            raise explain(error, path, need=need) from error


def children(folder: Path) -> list[Path]:
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
