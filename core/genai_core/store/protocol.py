"""What a store is: blobs by digest, records by operation and key, leases; and uploaded models.

Three parts, each a protocol of its own, so that a function asks for no more than it uses: `blobs`,
`records`, `leases`. Everything else (the folders people look at, sizes, listings) is derived.

Implementations: `directory.DirectoryStore`, `s3.S3Store`, `layered.LayeredStore`. All are safe to
use from several threads, processes and machines at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from genai_core.errors import StoreUnreadable
from genai_core.store.blobs import READ_AT_ONCE_BYTES, Blobs, BlobStat, HeadBlob, check_small
from genai_core.store.leases import LEASE_MOST, SWEEP_LASTS, KeptContainer, Lease, Leases, Sweep
from genai_core.store.records import (
    Committed,
    Existing,
    Hit,
    Lookup,
    Miss,
    RecordRef,
    Records,
    StoredRecord,
)

__all__ = [
    "LEASE_MOST",
    "READ_AT_ONCE_BYTES",
    "SWEEP_LASTS",
    "AccessDenied",
    "BlobStat",
    "Blobs",
    "Capabilities",
    "Committed",
    "Existing",
    "HeadBlob",
    "Hit",
    "KeptContainer",
    "Lease",
    "Leases",
    "Lookup",
    "Miss",
    "RecordRef",
    "Records",
    "Store",
    "StoredRecord",
    "Sweep",
    "Upload",
    "check_small",
]


class AccessDenied(StoreUnreadable):
    """These credentials, or none, may not do this there."""


@dataclass(frozen=True, order=True)
class Upload:
    """A model that `genai build --remote` put beside the store; see `s3.upload_names`.

    Attributes:
        name: Of its folder: `sha256-` and the digest of its files and their roles.
        size: Bytes of all its files.
        modified: When its newest file was sent.
    """

    name: str
    size: int
    modified: datetime


@dataclass(frozen=True)
class Capabilities:
    """What a probe found out by doing it.

    Attributes:
        conditional_create: A second create of the same object is refused (If-None-Match).
        conditional_replace: A replacement with an outdated tag is refused (If-Match).
        checksums: The store keeps a SHA-256 beside the bytes and shows it without reading them.
    """

    conditional_create: bool
    conditional_replace: bool
    checksums: bool


class Store(Blobs, Records, Leases, Protocol):
    """The contract; see the module's docstring.

    Every method raises `StoreUnavailable` where trying again may help and `StoreUnreadable` where
    the user must act (credentials, permissions, no such bucket or folder).
    """

    @property
    def writable(self) -> Store:
        """Where writes go: itself, or the first of several."""
        ...

    def list_uploads(self) -> Sequence[Upload]:
        """Return the uploaded models; a directory has none."""
        ...

    def delete_upload(self, name: str) -> bool:
        """Remove an uploaded model; no error where there is none.

        Returns:
            Whether its bytes are gone, as for `delete_blob`.

        Raises:
            AccessDenied: Some of its files may not be removed; those that may are gone.
        """
        ...

    def probe(self) -> Capabilities:
        """Write, write again under conditions, read, delete; return what the store can do.

        Raises:
            StoreUnreadable: It cannot be written or read; the message says which.
        """
        ...
