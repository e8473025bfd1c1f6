"""Folders and locks of builds on this machine.

    <store>/tmp/engine-<random>/     one running engine's scratch; removed when it ends
    <store>/tmp/locks/<key>          held while a process runs the task of that key
    <store>/logs/                    output of tasks that failed

A lock is the kernel's (flock), so it ends with its process however that ends: what a killed engine
left is told from what a running one uses by trying its lock. Where the store is a bucket, all this
lies in the cache folder of the user.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from genai_core.errors import NoSpace, StoreUnreadable
from genai_core.files.digest_cache import FileCache
from genai_core.files.home import expanded
from genai_core.files.whole_files import private_name
from genai_core.names import Key
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.layered import LayeredStore
from genai_core.store.protocol import Store

__all__ = [
    "KeyLock",
    "WorkFolder",
    "cache_folder",
    "known_digests",
    "local_folder",
    "writable_store",
]

_PREFIX = "engine-"
_LOCK = "owner.lock"


def cache_folder() -> Path:
    """Where this user's caches lie (XDG): digests of files, and work on stores behind S3."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if Path(base).is_absolute() else expanded("~/.cache")
    return root / "genai-operator"


def known_digests() -> FileCache:
    """Digests of files that this user's commands have read before."""
    return FileCache(cache_folder() / "digests.sqlite")


def writable_store(store: Store) -> Store:
    """The store that workers write to: the first of several."""
    return store.first if isinstance(store, LayeredStore) else store


def local_folder(store: Store) -> Path:
    """The store's own folder, so that files are linked instead of copied; else the cache's."""
    first = writable_store(store)
    return first.root if isinstance(first, DirectoryStore) else cache_folder()


class KeyLock:
    """The right to run the task of a key on this machine.

    Args:
        folder: Of all locks of a store.
        key: Of the task.
    """

    def __init__(self, folder: Path, key: Key) -> None:
        self._path = folder / key
        self._stream: BinaryIO | None = None

    def acquire(self) -> bool:
        """Take it if nobody has it; on file systems without locks it is always given."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            stream = self._path.open("ab")
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.close()
                return False
            except OSError:
                break  # no locks here: two workers are wasteful, not wrong
            if self._is_current(stream):
                break
            stream.close()  # its last owner cleared the file away between the two steps
        self._stream = stream
        return True

    def _is_current(self, stream: BinaryIO) -> bool:
        try:
            return os.path.samestat(os.fstat(stream.fileno()), self._path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Give it back, and clear the file away."""
        if self._stream is not None:
            # While still held: who opens the file from now on makes a new one.
            self._path.unlink(missing_ok=True)
            self._stream.close()
            self._stream = None


class WorkFolder:
    """A private folder that ends with this engine, or is cleared away by the next one.

    Args:
        store: Where results go.

    Raises:
        StoreUnreadable: The store's folder cannot be written.
        NoSpace: There is no room in it.
    """

    def __init__(self, store: Store) -> None:
        root = local_folder(store)
        self.logs = root / "logs"
        scratch = root / "tmp"
        self.locks = scratch / "locks"
        try:
            scratch.mkdir(parents=True, exist_ok=True)
            remove_leftovers(scratch)
            # Locked before it bears the name by which others look for what was left behind.
            draft = scratch / private_name("engine")
            draft.mkdir(mode=0o700)
            self._lock = (draft / _LOCK).open("wb")
            with suppress(OSError):
                fcntl.flock(self._lock, fcntl.LOCK_EX)
            self.path = draft.rename(scratch / f"{_PREFIX}{secrets.token_hex(4)}")
        except OSError as error:
            if error.errno in {28, 122}:  # ENOSPC, EDQUOT
                raise NoSpace(
                    "there is no room left", where=str(root), remedy="free some room"
                ) from error
            raise StoreUnreadable(
                f"it cannot be written: {error.strerror}",
                where=str(root),
                remedy="name another store"
                if root != cache_folder()
                else "set XDG_CACHE_HOME to a folder that can be written: builds work there",
            ) from error

    def keep_log(self, log: Path, name: str) -> Path | None:
        """Keep a failed task's output beyond this folder; None where it wrote nothing."""
        try:
            if log.stat().st_size == 0:
                return None
            self.logs.mkdir(parents=True, exist_ok=True)
            kept = self.logs / f"{name}.log"
            log.replace(kept)
        except OSError:
            return None
        return kept

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def remove_leftovers(scratch: Path) -> None:
    """Remove folders whose engine is gone."""
    for folder in scratch.glob(f"{_PREFIX}*"):
        with suppress(OSError), (folder / _LOCK).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
