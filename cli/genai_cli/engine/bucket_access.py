"""Whom the user's S3 credentials are sent to when a build names a bucket as its source.

A build's file may be somebody else's, and its addresses name servers (`?endpoint=`). Credentials of
the environment (AWS_*, ~/.aws) go where the user has sent them: to AWS or the server of
AWS_ENDPOINT_URL_S3, and to the servers of the stores of this build. Any other server is asked
without a signature, so that only what is public is read.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from genai_core.errors import StoreUnreadable
from genai_core.store.address import (
    ANONYMOUS,
    StoreAddress,
    StoreCredentials,
    bucket_of,
    parse_address,
    same_server,
)
from genai_core.store.location import configured_endpoint
from genai_core.store.protocol import AccessDenied

__all__ = ["BucketAccess", "bucket_access"]


@dataclass(frozen=True)
class BucketAccess:
    """How a source's bucket is read.

    Attributes:
        where: The bucket; on a store's server with the store's certificates.
        credentials: `ANONYMOUS`, or None = those of the environment.
    """

    where: StoreAddress
    credentials: StoreCredentials | None = None

    @contextmanager
    def explained(self, field: str) -> Iterator[None]:
        """Say of a bucket that is not public why it was asked without credentials.

        Raises:
            StoreUnreadable: With the variable that sends them there.
        """
        try:
            yield
        except AccessDenied as error:
            if self.credentials != ANONYMOUS:
                raise
            url = self.where.endpoint or ""
            raise StoreUnreadable(
                f"{error.message}, and your credentials are not sent to {url}, which only the "
                "build names",
                where=f"{field} ({self.where})",
                remedy=f"if they are for that server, set AWS_ENDPOINT_URL_S3={shlex.quote(url)}; "
                "a --store on it counts as well",
            ) from error


def bucket_access(address: str, named: Iterable[str] = ()) -> BucketAccess:
    """How the bucket at an address is read.

    Args:
        address: Of a source.
        named: Addresses that the user has typed or set, not a file: of the build's stores.

    Raises:
        InvalidSpec: The address cannot be read.
    """
    where = parse_address(address)
    if where.endpoint is None:
        return BucketAccess(where)  # AWS, or what AWS_ENDPOINT_URL_S3 says
    for store in named:
        known = bucket_of(store)
        if known is None:
            continue
        if known.endpoint is not None and same_server(where.endpoint, known.endpoint):
            return BucketAccess(replace(where, ca=known.ca or where.ca))
    if same_server(where.endpoint, configured_endpoint()):
        return BucketAccess(where)
    return BucketAccess(where, ANONYMOUS)
