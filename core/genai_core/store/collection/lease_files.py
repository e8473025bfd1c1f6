"""Leases and sweeps as files: what clusters and laptops that share a store tell each other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from genai_core.canonical import canonical_json, is_digest
from genai_core.errors import StoreUnavailable, StoreUnreadable
from genai_core.files.json_budgets import LEASE, SWEEP, Budget
from genai_core.names import Digest, Key
from genai_core.store.protocol import LEASE_MOST, KeptContainer, Lease, RecordRef, Sweep

__all__ = [
    "bounded",
    "check_lease_name",
    "lease_from_bytes",
    "lease_to_bytes",
    "readable_sweep",
    "sweep_from_bytes",
    "sweep_to_bytes",
]

_SCHEMA = "genai.lease/1"
_SWEEP_SCHEMA = "genai.sweep/1"
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
    value: dict[str, Any] = {
        "schema": _SCHEMA,
        "holder": lease.holder,
        # Whoever does not know `containers` keeps them all the same.
        "records": sorted(map(str, lease.claimed)),
        "expires_at": _time(lease.expires_at),
    }
    if lease.containers:
        value["containers"] = [
            {"target": kept.target, "record": str(kept.ref), "built_at": _time(kept.built_at)}
            for kept in lease.containers
        ]
    if lease.uploads is not None:
        value["uploads"] = sorted(lease.uploads)
    return canonical_json(value)


def lease_from_bytes(data: bytes, name: str) -> Lease:
    """Read what `lease_to_bytes` wrote.

    Raises:
        StoreUnreadable: It is no lease. Never skipped: gc would then delete what it claims.
    """
    remedy = "use the newest genai for gc, or delete that file"
    with _read_as(_SCHEMA, LEASE, data, f"leases/{name}.json", remedy) as value:
        uploads = value.get("uploads")
        return Lease(
            name,
            str(value["holder"]),
            tuple(map(_ref, value["records"])),
            _read_time(value["expires_at"]),
            tuple(
                KeptContainer(
                    str(kept["target"]), _ref(kept["record"]), _read_time(kept["built_at"])
                )
                for kept in value.get("containers", ())
            ),
            tuple(map(str, uploads)) if uploads is not None else None,
        )


def bounded(lease: Lease, written: datetime) -> Lease:
    """The lease, ending not later than any honest one that was written then.

    Args:
        lease: As its file says.
        written: When, by the store's clock.
    """
    return replace(lease, expires_at=min(lease.expires_at, written + LEASE_MOST))


def sweep_to_bytes(sweep: Sweep) -> bytes:
    """Return a sweep as canonical JSON."""
    return canonical_json(
        {
            "schema": _SWEEP_SCHEMA,
            "records": sorted(map(str, sweep.records)),
            "blobs": sorted(sweep.blobs),
            "uploads": sorted(sweep.uploads),
            "expires_at": _time(sweep.expires_at),
        }
    )


def sweep_from_bytes(data: bytes, name: str) -> Sweep:
    """Read what `sweep_to_bytes` wrote.

    Raises:
        StoreUnreadable: It is no sweep. Never skipped while a gc may be at it (see `list_sweeps`):
            a builder would then use what goes.
    """
    remedy = "use the newest genai, or delete that file where no gc runs"
    with _read_as(_SWEEP_SCHEMA, SWEEP, data, f"sweeps/{name}.json", remedy) as value:
        return Sweep(
            name,
            frozenset(map(_ref, value["records"])),
            frozenset(map(Digest, value["blobs"])),
            _read_time(value["expires_at"]),
            frozenset(map(str, value.get("uploads", ()))),
        )


def readable_sweep(data: bytes, name: str, location: str) -> Sweep:
    """Read a sweep that is young.

    Raises:
        StoreUnavailable: It is none. Ten minutes after it was written it counts for nothing.
    """
    try:
        return sweep_from_bytes(data, name)
    except StoreUnreadable as error:
        raise StoreUnavailable(
            f"{error.where}: {error.message}; a gc may be at work",
            where=location,
            remedy=f"{error.remedy}; ten minutes after it was written it counts for nothing",
        ) from error


@contextmanager
def _read_as(
    schema: str, budget: Budget, data: bytes, where: str, remedy: str
) -> Iterator[dict[str, Any]]:
    """Yield the JSON object; whatever it is not becomes an error that names the file."""
    try:
        value = budget.read(data)
        _expect_schema(value["schema"], schema)
        yield value
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        kind = schema.partition("/")[0].removeprefix("genai.")
        raise StoreUnreadable(
            f"not a {kind} of a version known here ({error})",
            where=where,
            remedy=remedy,
        ) from error


def _expect_schema(found: object, wanted: str) -> None:
    if found != wanted:
        raise ValueError(f"schema {found}")


def _time(value: datetime) -> str:
    if value.tzinfo is None:
        raise ValueError("a time needs a zone")
    return value.astimezone(UTC).isoformat()


def _read_time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _ref(text: str) -> RecordRef:
    operation, _, key = text.partition("/")
    if not operation or not is_digest(key):
        raise ValueError(text)
    return RecordRef(operation, Key(key))
