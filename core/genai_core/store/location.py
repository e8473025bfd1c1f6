"""From what users write to a store: a folder, or `s3://bucket/prefix?endpoint=...&region=...`.

Options behind `?`: `endpoint` (URL of the server; absent = AWS), `region`, `ca` (file of CA
certificates), `addressing` (`path` or `virtual`; `path` where an endpoint is given). Credentials
never stand in an address, since addresses are shown in logs and statuses: they come from the
caller or from the usual places (AWS_* variables, ~/.aws, the pod's service account).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from genai_core.errors import InvalidSpec, StoreUnreadable
from genai_core.store.protocol import Store

__all__ = ["S3Credentials", "S3Location", "open_store", "parse_s3"]


@dataclass(frozen=True)
class S3Credentials:
    """Access to a bucket; empty = found in the environment."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class S3Location:
    """Where a store lies behind S3.

    Attributes:
        prefix: Without slashes at its ends; may be empty.
        endpoint: URL; None = AWS.
        ca: File with the certificates that the endpoint's is checked against.
    """

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    ca: str | None = None
    addressing: Literal["path", "virtual", "auto"] = "auto"

    def __str__(self) -> str:
        """The address as `open_store` reads it."""
        options = {"endpoint": self.endpoint, "region": self.region, "ca": self.ca}
        if self.addressing != ("path" if self.endpoint else "auto"):
            options["addressing"] = self.addressing
        query = urlencode({k: v for k, v in options.items() if v}, safe=":/")
        path = f"/{quote(self.prefix)}" if self.prefix else ""
        return f"s3://{self.bucket}{path}" + (f"?{query}" if query else "")


def parse_s3(address: str) -> S3Location:
    """Read an `s3://` address.

    Raises:
        InvalidSpec: Names what is wrong with it.
    """
    try:
        parts = urlsplit(address)
        options = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
    except ValueError as error:
        raise _wrong(address, str(error)) from error
    if parts.username or parts.password:
        shown = f"s3://{parts.hostname}{parts.path}"
        raise _wrong(shown, "credentials must not stand in an address")
    if parts.scheme != "s3" or len(parts.netloc) < 3:
        raise _wrong(address, "it names no bucket (at least 3 characters)")
    unknown = sorted(options.keys() - {"endpoint", "region", "ca", "addressing"})
    if unknown:
        raise _wrong(address, f"unknown option {unknown[0]!r}")
    endpoint = options.get("endpoint")
    if endpoint and urlsplit(endpoint).scheme not in {"http", "https"}:
        raise _wrong(address, "endpoint is not an http:// or https:// URL")
    addressing = options.get("addressing", "path" if endpoint else "auto")
    if addressing not in {"path", "virtual", "auto"}:
        raise _wrong(address, "addressing is path, virtual or auto")
    return S3Location(
        bucket=parts.netloc,
        prefix=parts.path.strip("/"),
        endpoint=endpoint,
        region=options.get("region"),
        ca=options.get("ca"),
        addressing=addressing,  # type: ignore[arg-type]
    )


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
        if _is_folder(other) and not Path(other).expanduser().is_dir():
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
            raise _wrong(str(location), "it is empty")
        from genai_core.store.directory import DirectoryStore

        return DirectoryStore(Path(location).expanduser(), read_only=read_only)
    if not str(location).startswith("s3://"):
        raise _wrong(str(location), "a store is a folder or s3://bucket/prefix")
    try:
        from genai_core.store.s3 import S3Store
    except ModuleNotFoundError as error:
        raise StoreUnreadable(
            f"{error.name} is not installed",
            where=str(location),
            remedy="pip install 'genai-operator[s3]'",
        ) from error

    return S3Store(parse_s3(str(location)), credentials=credentials, read_only=read_only)


def _wrong(address: str, why: str) -> InvalidSpec:
    return InvalidSpec(
        why, where=address, remedy="write s3://bucket/prefix?endpoint=https://host&region=name"
    )
