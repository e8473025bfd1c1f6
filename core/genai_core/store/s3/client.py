"""boto3's client for a place: how long it waits and tries, and whom it must not talk to."""

from __future__ import annotations

import threading
from functools import cache
from typing import TYPE_CHECKING

import boto3
from botocore import UNSIGNED
from botocore.config import Config

from genai_core.network.addresses import Refuse
from genai_core.store.address import ANONYMOUS, StoreAddress, StoreCredentials
from genai_core.store.s3.errors import explained
from genai_core.store.s3.guard import guard

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["configured_endpoint", "new_client", "shared_session"]

_ATTEMPTS = 6

_making = threading.Lock()  # boto3's sessions are not safe for threads; its clients are


@cache
def shared_session() -> boto3.session.Session:
    """Return the session of all clients: reading S3's model for each store took 0.2 s and 10 MB."""
    return boto3.session.Session()


def configured_endpoint() -> str:
    """Return the server of addresses without one: AWS, or that of AWS_ENDPOINT_URL_S3 or ~/.aws.

    Raises:
        StoreUnreadable: A configuration that cannot be used.
    """
    client = new_client(StoreAddress("bucket"), ANONYMOUS)
    try:
        return str(client.meta.endpoint_url)
    finally:
        client.close()


def new_client(
    where: StoreAddress,
    credentials: StoreCredentials | None = None,
    *,
    refuse: Refuse | None = None,
) -> S3Client:
    """Make boto3's client for a place.

    Args:
        where: Endpoint, region, CA and addressing count.
        credentials: None = boto3's usual places; `ANONYMOUS` = none.
        refuse: Address and port that it was connected to -> why it must hang up, or None.

    Raises:
        StoreUnreadable: An address or certificate that cannot be used.
    """
    unsigned = {"signature_version": UNSIGNED} if credentials == ANONYMOUS else {}
    if unsigned:
        credentials = None
    with explained(str(where)), _making:
        session = shared_session()
        region = where.region or session.region_name
        client = session.client(
            "s3",
            endpoint_url=where.endpoint,
            region_name=region or ("us-east-1" if where.endpoint else None),
            verify=where.ca,
            aws_access_key_id=credentials.access_key_id if credentials else None,
            aws_secret_access_key=credentials.secret_access_key if credentials else None,
            aws_session_token=credentials.session_token if credentials else None,
            config=Config(
                retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
                connect_timeout=10,
                read_timeout=60,
                max_pool_connections=32,
                # Our own checksum goes along as a signed header, which more servers know
                # than the trailing checksums that boto3 would add, and which makes a second
                # hash of the body for the signature needless.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                **unsigned,
                s3={"addressing_style": where.addressing, "payload_signing_enabled": False},
                tcp_keepalive=True,
            ),
        )
        guard(client, refuse)
        return client
