"""Models that `genai build --remote` puts beside a store: how they are called, who names which.

    <prefix>/sources/sha256-<digest of roles and contents>/<role>

An upload is kept like a record: while a lease names it, or while it is younger than gc's grace.
Leases of builds name those that their spec reads, so a build that lives keeps its model also for
the day on which it is resolved anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from genai_core.errors import InvalidSpec
from genai_core.store.address import StoreAddress, bucket_of

__all__ = ["SOURCES", "is_upload", "upload_name", "uploads_among"]

SOURCES = "sources"
"""Folder beside a store's blobs and records. Only what is called as here is ever collected."""

_NAME = re.compile(r"sha256-[0-9a-f]{64}")


def upload_name(digest: str) -> str:
    """The folder of a model.

    Args:
        digest: `sha256:...` of its files and their roles.
    """
    return digest.replace(":", "-")


def is_upload(name: str) -> bool:
    """Tell whether a folder in `sources/` is called as uploads are."""
    return _NAME.fullmatch(name) is not None


def uploads_among(addresses: Iterable[str], store: StoreAddress) -> frozenset[str]:
    """Names of the uploads of a store that a build's sources mean.

    Endpoints are not compared: one server has many names, and to claim what is not there costs
    nothing.

    Args:
        addresses: Sources as specs have them; those of other places are passed over.
        store: Where the uploads would lie.
    """
    start = f"{store.prefix}/{SOURCES}/".lstrip("/")
    found: set[str] = set()
    for address in addresses:
        try:
            where = bucket_of(address)
        except InvalidSpec:
            continue  # whoever reads the source says so
        if where is None:
            continue
        if where.bucket == store.bucket and where.prefix.startswith(start):
            found.add(where.prefix.removeprefix(start).partition("/")[0])
    return frozenset(filter(is_upload, found))
