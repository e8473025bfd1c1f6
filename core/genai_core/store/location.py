"""From what users write to a store: a folder, or an `s3://` address (see `s3.location`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from genai_core.errors import StoreUnreadable
from genai_core.files.home import expanded
from genai_core.store.protocol import Store
from genai_core.store.s3.location import S3Credentials, parse_s3, wrong_address

__all__ = ["open_store"]


def open_store(
    location: str | Path,
    *,
    read_from: Sequence[str | Path] = (),
    credentials: S3Credentials | None = None,
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
    location: str | Path, credentials: S3Credentials | None, *, read_only: bool = False
) -> Store:
    if _is_folder(location):
        if not str(location):
            raise wrong_address(str(location), "it is empty")
        from genai_core.store.directory.directory_store import DirectoryStore

        return DirectoryStore(expanded(location), read_only=read_only)
    if not str(location).startswith("s3://"):
        raise wrong_address(str(location), "a store is a folder or s3://bucket/prefix")
    try:
        from genai_core.store.s3 import client  # noqa: F401 - first: it says boto3 is missing
        from genai_core.store.s3.s3_store import S3Store
    except ModuleNotFoundError as error:
        raise StoreUnreadable(
            f"{error.name} is not installed",
            where=str(location),
            remedy="pip install 'genai-operator[s3]'",
        ) from error

    return S3Store(parse_s3(str(location)), credentials=credentials, read_only=read_only)
