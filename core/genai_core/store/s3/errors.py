"""What a failed S3 call means to the user: try again, act, or nothing is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from botocore import exceptions as boto

from genai_core.errors import CorruptBlob, GenAIError, NoSpace, StoreUnavailable, StoreUnreadable
from genai_core.network.addresses import AddressRefused
from genai_core.store.protocol import AccessDenied
from genai_core.store.s3.guard import AnswerTooLarge, CallTooLong, Redirected

__all__ = [
    "NoSuchBucket",
    "code_of",
    "explained",
    "is_absent",
    "is_bare",
    "is_conflict",
    "is_precondition",
    "is_unsupported",
    "suppress_denied",
]

_ABSENT = {"404", "NoSuchKey", "NotFound"}
_FULL = {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "EntityTooLarge"}
_WRONG_BYTES = {"BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"}
_PASSING = {
    *("SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "InternalError"),
    "NoSuchUpload",  # a gc took it for left behind; from its beginning it goes
}
_ENDED = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"}
"""Credentials for a while whose time is over; AWS answers 400, others 403."""
_PASSING_CONNECTIONS = (
    boto.EndpointConnectionError,
    boto.ConnectionClosedError,
    boto.ConnectTimeoutError,
    boto.ReadTimeoutError,
    boto.ResponseStreamingError,
    boto.IncompleteReadError,
    boto.HTTPClientError,
)
_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.ProfileNotFound,
    boto.TokenRetrievalError,
)


class NoSuchBucket(StoreUnreadable):
    """The bucket is not there."""


def code_of(error: boto.ClientError) -> str:
    """Return the server's code for what went wrong, e.g. `NoSuchKey`."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: boto.ClientError) -> int:
    meta: Mapping[str, Any] = error.response.get("ResponseMetadata", {})
    return int(meta.get("HTTPStatusCode", 0))


def is_absent(error: boto.ClientError) -> bool:
    """Tell whether the object is not there (as opposed to its bucket, or the user)."""
    return code_of(error) in _ABSENT


def is_bare(error: boto.ClientError) -> bool:
    """Tell whether the user is refused without a reason: an answer to HEAD has no body."""
    return code_of(error) in {"400", "401", "403"}


def is_precondition(error: boto.ClientError) -> bool:
    """Tell whether If-None-Match or If-Match refused the write."""
    return _status(error) == 412


def is_conflict(error: boto.ClientError) -> bool:
    """Tell whether another conditional write of the same key was under way (AWS: 409)."""
    return code_of(error) == "ConditionalRequestConflict"


def is_unsupported(error: boto.ClientError) -> bool:
    """Tell whether the server does not know conditional writes and says so."""
    return _status(error) == 501 or code_of(error) == "NotImplemented"


@contextmanager
def suppress_denied() -> Iterator[None]:
    """Leave undone what the user may not do."""
    try:
        yield
    except boto.ClientError as error:
        if _status(error) != 403:
            raise


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn botocore's errors into ours.

    Raises:
        StoreUnavailable: Throttled, a server's fault, no connection, or none of this in time,
            after all retries.
        StoreUnreadable: Credentials, permissions, certificates, bucket.
        NoSpace: The server has no room.
        CorruptBlob: The bytes sent do not have the digest announced.
    """
    try:
        yield
    except boto.ClientError as error:
        raise _of_answer(error, where) from error
    except boto.SSLError as error:
        if "EOF occurred" in str(error):
            # Cut off in the middle, as by a server that refuses before it has read everything.
            raise StoreUnavailable(
                f"it broke the connection off ({error})",
                where=where,
                remedy="see that the server runs, and that these credentials may do this",
            ) from error
        raise StoreUnreadable(
            f"its certificate is not accepted ({error})",
            where=where,
            remedy="name the CA's file with ca= in the address, or with the store's caBundle",
        ) from error
    except _CREDENTIALS as error:
        raise StoreUnreadable(
            str(error), where=where, remedy="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    except _PASSING_CONNECTIONS as error:
        inner = error.kwargs.get("error")
        if isinstance(inner, AddressRefused):
            raise StoreUnreadable(
                f"its endpoint must not be used: {inner}",
                where=where,
                remedy="name an S3 server's own address",
            ) from error
        raise StoreUnavailable(
            f"it does not answer ({error})",
            where=where,
            remedy="see that the server runs, and that it can be reached from here",
        ) from error
    except CallTooLong as error:
        raise StoreUnavailable(
            str(error),
            where=where,
            remedy="see that the server runs, and that it can be reached from here",
        ) from error
    except (ValueError, KeyError, OverflowError) as error:
        # What boto3 and we make of a header or a field that is missing, or is no number or date.
        raise StoreUnreadable(
            f"its answer is none of an S3 server ({type(error).__name__}: {str(error)[:200]})",
            where=where,
            remedy="name an S3 server's own address",
        ) from error
    except Redirected as error:
        raise StoreUnreadable(
            f"it redirects to {error.host or 'another address'}, which is not followed",
            where=where,
            remedy=f"write endpoint={error.host} if that is the server"
            if error.host
            else "name the server's own address as endpoint, and the bucket's region",
        ) from error
    except AnswerTooLarge as error:
        raise StoreUnreadable(
            str(error), where=where, remedy="name an S3 server's own address"
        ) from error
    except boto.BotoCoreError as error:
        raise StoreUnreadable(
            str(error), where=where, remedy="correct the store's address"
        ) from error


def _of_answer(error: boto.ClientError, where: str) -> GenAIError:
    code, status = code_of(error), _status(error)
    message = f"{code}: {error.response.get('Error', {}).get('Message', '')}".rstrip(": ")
    if code in _FULL or status == 507:
        return NoSpace(message, where=where, remedy="make room in the bucket")
    if status == 501:
        return StoreUnreadable(
            message, where=where, remedy="use a server that has this function of S3"
        )
    if code in _WRONG_BYTES:
        return CorruptBlob("the server received other bytes than were announced", where=where)
    if status >= 500 or status in {409, 412, 429} or code in _PASSING:
        return StoreUnavailable(message, where=where)
    if code == "NoSuchBucket":
        return NoSuchBucket(
            "there is no such bucket", where=where, remedy="create it, or correct the address"
        )
    if code == "RequestTimeTooSkewed":
        return StoreUnreadable(
            "its clock and this machine's are too far apart",
            where=where,
            remedy="set this machine's clock",
        )
    if code in _ENDED:
        return AccessDenied(
            f"its credentials are no longer valid ({message})",
            where=where,
            remedy="get new ones (AWS_SESSION_TOKEN belongs to them)",
        )
    if status in {401, 403, 404}:
        return AccessDenied(
            f"access is denied ({message})",
            where=where,
            remedy="check the credentials, and that they may get, put, delete and list there",
        )
    return StoreUnreadable(message, where=where, remedy="correct the store's address")
