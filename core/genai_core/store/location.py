"""Opens stores, and models in buckets: the one place that knows which kinds of stores there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from genai_core.errors import StoreUnreadable
from genai_core.files.home import expanded
from genai_core.names import Digest
from genai_core.network.addresses import Refuse
from genai_core.sources.resolved import ListedFile
from genai_core.sources.source_files import SourceFacts
from genai_core.store.address import (
    StoreAddress,
    StoreCredentials,
    bucket_of,
    wrong_address,
)
from genai_core.store.protocol import Store

if TYPE_CHECKING:
    from genai_core.store.s3.source_upload import SourceUpload

__all__ = [
    "SourceFolder",
    "buckets_are_readable",
    "configured_endpoint",
    "open_at",
    "open_source_folder",
    "open_store",
    "open_upload",
]


def open_store(
    location: str | Path,
    *,
    read_from: Sequence[str | Path] = (),
    credentials: StoreCredentials | None = None,
) -> Store:
    """Open a store; nothing is read or written yet.

    Args:
        location: A folder, or an `s3://` address.
        read_from: Further stores that are only read: a lookup falls through to them in order, and
            what is used from them is copied into the first.
        credentials: Of every S3 store named; None = from the usual places.

    Raises:
        InvalidSpec: An address that cannot be read.
        StoreUnreadable: A file where a folder must be, a `read_from` folder that does not exist, or
            no boto3.
    """
    first = _open_one(location, credentials)
    if not read_from:
        return first
    from genai_core.store.layered import LayeredStore

    others = []
    for other in read_from:
        if _is_folder(other) and not expanded(other).is_dir():
            raise StoreUnreadable(
                "there is no such folder", where=str(other), remedy="correct the store to read from"
            )
        others.append(_open_one(other, credentials, read_only=True))
    return LayeredStore(first, others)


def _is_folder(location: str | Path) -> bool:
    return isinstance(location, Path) or "://" not in location


def _open_one(
    location: str | Path, credentials: StoreCredentials | None, *, read_only: bool = False
) -> Store:
    if _is_folder(location):
        if not str(location):
            raise wrong_address(str(location), "it is empty")
        from genai_core.store.directory.directory_store import DirectoryStore

        return DirectoryStore(expanded(location), read_only=read_only)
    where = bucket_of(str(location))
    if where is None:
        raise wrong_address(str(location), "a store is a folder or s3://bucket/prefix")
    return open_at(where, credentials=credentials, read_only=read_only)


def open_at(
    where: StoreAddress,
    *,
    credentials: StoreCredentials | None = None,
    read_only: bool = False,
    refuse: Refuse | None = None,
) -> Store:
    """Open the store in a bucket; nothing is read or written yet.

    Args:
        where: Its address.
        credentials: None = from the usual places.
        read_only: Writing to it is a defect.
        refuse: Addresses that nobody may be sent to.

    Raises:
        StoreUnreadable: boto3 is not installed.
    """
    with _installed(where):
        from genai_core.store.s3.s3_store import S3Store
    return S3Store(where, credentials=credentials, read_only=read_only, refuse=refuse)


class SourceFolder(Protocol):
    """A model's folder in a bucket: listed, hashed and fetched, never written."""

    @property
    def where(self) -> StoreAddress:
        """The folder."""
        ...

    def list(self) -> dict[str, ListedFile]:
        """Relative path -> size and tag of every file.

        Raises:
            SourceNotFound: There is none.
            StoreUnreadable: There are more than a model has.
        """
        ...

    def digest(self, name: str, *, tag: str) -> Digest:
        """The SHA-256 of a file's bytes, as listed with this tag.

        Raises:
            SourceChanging: It changed since it was listed.
        """
        ...

    def fetch(self, name: str, dest: Path, *, size: int, tag: str = "") -> Digest:
        """Write a file to `dest`; returns the digest of its bytes.

        Args:
            name: Of the file.
            dest: It is made.
            size: As listed.
            tag: As listed; empty where the caller compares the digest.

        Raises:
            BadModel: It is not there any more, or has another size, and no tag was given.
            SourceChanging: It changed since it was listed with this tag.
            NoSpace: No room.
        """
        ...

    def noted(self, name: str) -> Digest | None:
        """The SHA-256 that the bucket has noted for a file; None where it has none."""
        ...


def open_source_folder(
    where: StoreAddress,
    credentials: StoreCredentials | None = None,
    *,
    refuse: Refuse | None = None,
) -> SourceFolder:
    """Open a model's folder in a bucket; arguments and errors as for `open_at`."""
    with _installed(where):
        from genai_core.store.s3.source_folder import S3Source
    return S3Source(where, credentials, refuse=refuse)


def open_upload(
    store: StoreAddress, facts: SourceFacts, *, credentials: StoreCredentials | None = None
) -> SourceUpload:
    """Begin to put a model beside a store; nothing is sent yet."""
    with _installed(store):
        from genai_core.store.s3.source_upload import SourceUpload
    return SourceUpload(store, facts, credentials=credentials)


def buckets_are_readable() -> bool:
    """Tell whether the library for buckets is installed."""
    return find_spec("boto3") is not None


def configured_endpoint() -> str:
    """Return the server of addresses without one: AWS, or what the environment says.

    Raises:
        StoreUnreadable: A configuration that cannot be used.
    """
    from genai_core.store.s3 import client

    return client.configured_endpoint()


@contextmanager
def _installed(where: StoreAddress) -> Iterator[None]:
    try:
        from genai_core.store.s3 import client  # noqa: F401 - first: it says boto3 is missing

        yield
    except ModuleNotFoundError as error:
        raise StoreUnreadable(
            f"{error.name} is not installed",
            where=str(where),
            remedy="pip install 'genai-operator[s3]'",
        ) from error
