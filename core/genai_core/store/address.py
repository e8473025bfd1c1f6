"""Addresses of stores and models in buckets: `s3://bucket/prefix?endpoint=...&region=...`.

Options behind `?`: `endpoint` (URL of the server; absent = AWS), `region`, `ca` (file of CA
certificates), `addressing` (`path` or `virtual`; `path` where an endpoint is given). Credentials
never stand in an address, since addresses are shown in logs and statuses: they come from the
caller or from the usual places (AWS_* variables, ~/.aws, the pod's service account). A prefix may
hold any character: written with %, as in other URLs, or as it is but for `?` and `%`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from genai_core.errors import InvalidSpec

__all__ = [
    "ANONYMOUS",
    "StoreAddress",
    "StoreCredentials",
    "bucket_of",
    "is_bucket",
    "parse_address",
    "same_server",
    "source_credentials",
    "wrong_address",
]


_AWS = re.compile(
    r"([a-z0-9.-]+\.)?s3(-[a-z0-9-]+)?(\.dualstack)?(\.[a-z]{2}(-[a-z]+)+-\d+)?(\.vpce)?"
    r"\.amazonaws\.com(\.cn)?"
)
"""Hosts of AWS's S3; other hosts of the domain are its customers' (functions, gateways)."""


@dataclass(frozen=True)
class StoreCredentials:
    """Access to a bucket; empty = found in the environment."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


ANONYMOUS = StoreCredentials("", "")
"""None at all: requests are not signed, and only what is public can be read."""


@dataclass(frozen=True)
class StoreAddress:
    """Where a store, or a model's folder, lies in a bucket.

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


def is_bucket(address: str) -> bool:
    """Whether it is meant as the address of a bucket, and not of a folder, archive or volume."""
    return address.startswith("s3://")


def bucket_of(address: str) -> StoreAddress | None:
    """The bucket behind an address; None where it is meant as something else.

    Raises:
        InvalidSpec: It is meant as a bucket's and cannot be read.
    """
    return parse_address(address) if is_bucket(address) else None


def parse_address(address: str) -> StoreAddress:
    """Read the address of a bucket.

    Raises:
        InvalidSpec: Names what is wrong with it.
    """
    try:
        parts = urlsplit(address, allow_fragments=False)
        options = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
    except ValueError as error:
        raise wrong_address(address, str(error)) from error
    if parts.username or parts.password:
        shown = f"s3://{parts.hostname}{parts.path}"
        raise wrong_address(shown, "credentials must not stand in an address")
    if parts.scheme != "s3" or len(parts.netloc) < 3:
        raise wrong_address(address, "it names no bucket (at least 3 characters)")
    unknown = sorted(options.keys() - {"endpoint", "region", "ca", "addressing"})
    if unknown:
        raise wrong_address(address, f"unknown option {unknown[0]!r}")
    endpoint = options.get("endpoint")
    if endpoint:
        _check_endpoint(endpoint, f"s3://{parts.netloc}{parts.path}")
    addressing = options.get("addressing", "path" if endpoint else "auto")
    if addressing not in {"path", "virtual", "auto"}:
        raise wrong_address(address, "addressing is path, virtual or auto")
    prefix = unquote(parts.path).strip("/")
    if {".", ".."} & set(prefix.split("/")):
        raise wrong_address(address, "its prefix holds . or ..")
    if "\0" in prefix:
        raise wrong_address(address, "its prefix holds %00")
    return StoreAddress(
        bucket=parts.netloc,
        prefix=prefix,
        endpoint=endpoint,
        region=options.get("region"),
        ca=options.get("ca"),
        addressing=addressing,  # type: ignore[arg-type]
    )


def _check_endpoint(endpoint: str, shown: str) -> None:
    """Refuse an endpoint that is none, without showing it: it may hold a password."""
    try:
        parts = urlsplit(endpoint)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise wrong_address(shown, "its endpoint is no URL") from error
    if parts.scheme not in {"http", "https"} or not host:
        raise wrong_address(shown, "endpoint is not an http:// or https:// URL")
    if "@" in endpoint:
        raise wrong_address(shown, "credentials must not stand in its endpoint")
    if parts.query or parts.fragment:
        raise wrong_address(shown, "its endpoint has more than a host, a port and a path")


def same_server(one: str | None, other: str | None) -> bool:
    """Tell whether two endpoints are one server, to which the same credentials belong.

    Args:
        one: URL; None = AWS, as any `https://` host of its S3 (not of what others run there).
        other: As well.
    """
    return _server(one) == _server(other)


def _server(endpoint: str | None) -> tuple[str, str, int]:
    parts = urlsplit(endpoint or "https://s3.amazonaws.com")
    host = (parts.hostname or "").rstrip(".")
    if parts.scheme == "https" and _AWS.fullmatch(host):
        return ("https", "AWS", 443)
    return (parts.scheme, host, parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0))


def source_credentials(
    source: StoreAddress,
    *,
    own: StoreCredentials | None,
    store: StoreAddress | None,
    of_store: StoreCredentials | None,
) -> StoreCredentials | None:
    """What a model's bucket is read with.

    A store's credentials go to the store's own server and to no other: whoever names a source need
    not be whoever they belong to.

    Args:
        source: The bucket.
        own: Credentials that were given for it.
        store: Of the build; None = it lies in a folder, and has no credentials.
        of_store: The store's credentials; None = those of the environment.
    """
    if own is not None:
        return own
    if store is None or same_server(source.endpoint, store.endpoint):
        return of_store
    return ANONYMOUS


def wrong_address(address: str, why: str) -> InvalidSpec:
    """Return the error for an address that cannot be read."""
    return InvalidSpec(
        why,
        where=address.partition("?")[0],
        remedy="write s3://bucket/prefix?endpoint=https://host&region=name",
    )
