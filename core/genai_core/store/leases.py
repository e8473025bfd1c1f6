"""Leases as files: what clusters and laptops that share a store tell each other's gc."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

from genai_core.canonical import canonical_json, is_digest
from genai_core.errors import StoreUnreadable
from genai_core.names import Key
from genai_core.store.protocol import Lease, RecordRef

__all__ = ["check_lease_name", "lease_from_bytes", "lease_to_bytes"]

_SCHEMA = "genai.lease/1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def check_lease_name(name: str) -> str:
    """Return a name that is a file name everywhere.

    Raises:
        ValueError: It is not.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a lease")
    return name


def lease_to_bytes(lease: Lease) -> bytes:
    """Return a lease as canonical JSON."""
    if lease.expires_at.tzinfo is None:
        raise ValueError("a lease ends at a time with a zone")
    return canonical_json(
        {
            "schema": _SCHEMA,
            "holder": lease.holder,
            "records": sorted(map(str, lease.records)),
            "expires_at": lease.expires_at.astimezone(UTC).isoformat(),
        }
    )


def lease_from_bytes(data: bytes, name: str) -> Lease:
    """Read what `lease_to_bytes` wrote.

    Raises:
        StoreUnreadable: It is no lease. Never skipped: gc would then delete what it claims.
    """
    try:
        value = json.loads(data)
        _expect_schema(value["schema"])
        expires_at = datetime.fromisoformat(value["expires_at"])
        records = tuple(map(_ref, value["records"]))
        return Lease(name, str(value["holder"]), records, expires_at.astimezone(UTC))
    except (ValueError, KeyError, TypeError) as error:
        raise StoreUnreadable(
            f"not a lease of a version known here ({error})",
            where=f"leases/{name}.json",
            remedy="use the newest genai for gc, or delete that file",
        ) from error


def _ref(text: str) -> RecordRef:
    operation, _, key = text.partition("/")
    if not operation or not is_digest(key):
        raise ValueError(text)
    return RecordRef(operation, Key(key))


def _expect_schema(found: object) -> None:
    if found != _SCHEMA:
        raise ValueError(f"schema {found}")
