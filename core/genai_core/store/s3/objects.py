"""The objects below one prefix of a bucket: get, put on condition, head, list, delete, probe.

Everything here speaks of names relative to the prefix and raises errors of ours; what the objects
mean is `s3`'s business.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from botocore.exceptions import ClientError

from genai_core.canonical import digest_bytes, is_digest
from genai_core.errors import GenAIError, StoreUnavailable, StoreUnreadable
from genai_core.names import Digest
from genai_core.store.protocol import Capabilities
from genai_core.store.s3 import transfer
from genai_core.store.s3.errors import (
    explained,
    is_absent,
    is_bare,
    is_conflict,
    is_precondition,
    is_unsupported,
    suppress_denied,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["Listed", "ObjectHead", "S3Objects"]

_MOST_NAMES = 2_000_000
"""Of a listing; 12 GB of them would be a bucket's, not a store's."""
_LISTING_SECONDS = 1800.0
_UNVERSIONED = "null"
"""The version of what is written and removed where versioning is suspended."""
_NO_TAG = '"00000000000000000000000000000000"'


@dataclass(frozen=True)
class ObjectHead:
    """What a server says about an object.

    Attributes:
        digest: The SHA-256 that the server keeps, or that was noted by whoever sent it in parts.
        tag: The server's, as in a listing.
        answered: The answer's own date, which may be that of a proxy; see `S3Objects.age`.
    """

    size: int
    digest: Digest | None
    tag: str
    modified: datetime
    answered: datetime


class Listed(NamedTuple):
    """An object of a listing: its name below the folder, and what the server says of it."""

    name: str
    size: int
    modified: datetime
    tag: str


class S3Objects:
    """See the module's docstring.

    Args:
        client: Makes boto3's S3 client with the first request.
        bucket: Its name.
        prefix: Without slashes at its ends; may be empty.
        location: How errors name the store.
    """

    def __init__(
        self, client: Callable[[], S3Client], bucket: str, *, prefix: str, location: str
    ) -> None:
        self._make_client = client
        self.bucket = bucket
        self.prefix = prefix
        self.location = location
        self._reachable = False
        self._behind: timedelta | None = None

    @property
    def client(self) -> S3Client:
        """boto3's client."""
        return self._make_client()

    def key(self, name: str) -> str:
        """Return an object's whole key."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def head(self, name: str) -> ObjectHead | None:
        """Ask for size, checksum and time; None where there is no such object."""
        with explained(self.location):
            try:
                answer = self.client.head_object(
                    Bucket=self.bucket, Key=self.key(name), ChecksumMode="ENABLED"
                )
            except ClientError as error:
                # An answer to HEAD has no body: a missing object, bucket and user are the same bare
                # 404, an ended token and a wrong clock a bare 400 or 403. GET tells them apart;
                # that the bucket is there need not be asked twice.
                if is_bare(error) or (is_absent(error) and not self._reachable):
                    with suppress(transfer.ObjectTooLarge):
                        self.get(name, most=0)
                if not is_absent(error):
                    raise
                return None
            self._reachable = True
            modified = answer["LastModified"].astimezone(UTC)
            answered = _date(answer) or datetime.now(UTC)
            # Sent in parts: the server's checksum is one of checksums, and what we noted counts.
            in_parts = "-" in answer["ETag"] or answer.get("ChecksumType") == "COMPOSITE"
            checksum = None if in_parts else answer.get("ChecksumSHA256")
            digest = _kept_digest(checksum, answer.get("Metadata", {}))
            tag = answer["ETag"].strip('"')
            return ObjectHead(answer["ContentLength"], digest, tag, modified, answered)

    def age(self, head: ObjectHead) -> timedelta:
        """How long an object had stood when it was asked for, by the clock that noted its time."""
        return head.answered + self._dates_behind() - head.modified

    def get(self, name: str, *, most: int) -> transfer.Small | None:
        """Return a small object; None where there is none.

        Raises:
            TooLarge: It has more than `most` bytes.
        """
        with explained(self.location):
            found: transfer.Small | None = None
            try:
                found = transfer.read(
                    self.client, bucket=self.bucket, key=self.key(name), most=most
                )
            except ClientError as error:
                if not is_absent(error):
                    raise
        self._reachable = True
        return found

    def now(self, *, writable: bool) -> datetime:
        """When an object that is written now counts as written.

        An answer's date may be that of a proxy, whose clock says nothing about the times that the
        server notes. So an object is written, once, to see how far they are apart.

        Args:
            writable: An object may be written; else, and where the server refuses it, the date of
                an answer has to do, or this machine's time where there is none.
        """
        behind = self._dates_behind() if writable else self._behind or timedelta()
        return self._answered_at() + behind

    def _dates_behind(self) -> timedelta:
        """How far the dates of answers are behind the times that the server notes; tried once."""
        if self._behind is None:
            date = self._answered_at()
            try:
                self._behind = self._noted_now() - date
            except StoreUnreadable:
                self._behind = timedelta()
        return self._behind

    def _answered_at(self) -> datetime:
        """The date of an answer, or this machine's time where there is none."""
        return _date(self._first_below("sweeps/")) or datetime.now(UTC)

    def _noted_now(self) -> datetime:
        """The time that the server notes with an object of this moment."""
        name = f"probe/{secrets.token_hex(16)}"
        try:
            self.put(name, b"now")
            head = self.head(name)
            if head is None:
                raise self._unlike_s3("it does not return what was written")
            return head.modified
        finally:
            with suppress(GenAIError):
                self.delete(name)

    def _first_below(self, name: str) -> Mapping[str, Any]:
        """A listing of at most one object whose name begins so."""
        with explained(self.location):
            return self.client.list_objects_v2(Bucket=self.bucket, Prefix=self.key(name), MaxKeys=1)

    def _unlike_s3(self, message: str) -> StoreUnreadable:
        remedy = "use a server that shows a write to the next reader"
        if "//" in self.prefix:
            remedy = "write its prefix without an empty part (//)"
        return StoreUnreadable(message, where=self.location, remedy=remedy)

    def put(
        self,
        name: str,
        data: bytes,
        *,
        only_new: bool = False,
        replaces: str | None = None,
        metadata: dict[str, str] | None = None,
    ) -> bool:
        """Put a small object.

        Args:
            name: Its name.
            data: Its bytes; the server checks their SHA-256.
            only_new: Only where nothing stands (If-None-Match).
            replaces: Only in place of what bears this tag (If-Match).
            metadata: Noted with it.

        Returns:
            False where the condition refused it.
        """
        condition: dict[str, str] = {"IfNoneMatch": "*"} if only_new else {}
        if replaces is not None:
            condition["IfMatch"] = replaces
        with explained(self.location):
            try:
                self.client.put_object(
                    Bucket=self.bucket,
                    Key=self.key(name),
                    Body=data,
                    ChecksumSHA256=transfer.encoded(digest_bytes(data)),
                    Metadata=metadata or {},
                    **condition,  # type: ignore[arg-type]
                )
            except ClientError as error:
                gone = replaces is not None and is_absent(error)
                if gone or ((is_precondition(error) or is_conflict(error)) and condition):
                    return False
                raise
        return True

    def delete(self, name: str) -> bool:
        """Remove an object; no error where there is none.

        Returns:
            Whether its bytes are gone: a bucket that keeps versions puts a marker before them.
        """
        with explained(self.location):
            answer = self.client.delete_object(Bucket=self.bucket, Key=self.key(name))
        return not answer.get("DeleteMarker") or answer.get("VersionId") == _UNVERSIONED

    def list(
        self, folder: str = "", *, most: int = _MOST_NAMES, seconds: float = _LISTING_SECONDS
    ) -> Iterator[Listed]:
        """Yield all objects in a folder, in order of their names.

        Args:
            folder: Its name; empty = everything.
            most: Of the objects; a server may go on for ever.
            seconds: That the whole listing may take.

        Raises:
            StoreUnreadable: There are more.
            StoreUnavailable: It takes longer.
        """
        start = self.key(f"{folder}/") if folder else f"{self.prefix}/".lstrip("/")
        pages = self.client.get_paginator("list_objects_v2")
        count, until = 0, time.monotonic() + seconds
        with explained(self.location):
            for number, page in enumerate(pages.paginate(Bucket=self.bucket, Prefix=start)):
                for item in page.get("Contents", ()):
                    count += 1
                    if count > most:
                        break
                    yield Listed(
                        item["Key"].removeprefix(start),
                        item["Size"],
                        item["LastModified"].astimezone(UTC),
                        item.get("ETag", "").strip('"'),
                    )
                # A page without names, again and again, is no listing either.
                if count > most or number > most // 100 + 100:
                    raise StoreUnreadable(
                        f"{folder or 'it'} holds more than {most} objects",
                        where=self.location,
                        remedy="remove what is not ours",
                    )
                if time.monotonic() > until:
                    raise StoreUnavailable(
                        f"listing {folder or 'it'} takes longer than {seconds:.0f} s",
                        where=self.location,
                    )

    def abort_uploads(self, folder: str, before: datetime, *, dry_run: bool) -> int:
        """Abort the uploads in parts that began before a time; return how many.

        Where tenants share a bucket they may not list them, since S3 cannot limit that to a prefix:
        then the bucket's own lifecycle rule has to clear them away, and this is 0.
        """
        count = 0
        pages = self.client.get_paginator("list_multipart_uploads")
        with explained(self.location), suppress_denied():
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.key(f"{folder}/")):
                for upload in page.get("Uploads", ()):
                    if upload["Initiated"].astimezone(UTC) >= before:
                        continue
                    with suppress_denied():
                        if not dry_run:
                            self.client.abort_multipart_upload(
                                Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                            )
                        count += 1
        return count

    def probe(self) -> Capabilities:
        """Create twice, replace with a wrong tag, read back, ask for the checksum, delete.

        Raises:
            StoreUnreadable: It cannot be written, or returns other bytes.
        """
        name = f"probe/{secrets.token_hex(16)}"
        try:
            self.put(name, b"1")
            create = self._refuses(name, only_new=True)
            replace = self._refuses(name, replaces=_NO_TAG)
            self.put(name, b"3")
            found, head = self.get(name, most=1), self.head(name)
            if found is None or found.data != b"3" or head is None:
                raise self._unlike_s3("it does not return what was written")
            # gc and builds find each other by listings. Servers that keep objects as files may
            # take `a//b` for `a/b` where they write, and not where they list.
            if not self._first_below(name).get("Contents"):
                raise self._unlike_s3("it does not list what was written")
            return Capabilities(create, replace, checksums=head.digest is not None)
        finally:
            with suppress(GenAIError):
                self.delete(name)

    def _refuses(self, name: str, *, only_new: bool = False, replaces: str | None = None) -> bool:
        """Tell whether the server refuses a write whose condition does not hold."""
        try:
            return not self.put(name, b"2", only_new=only_new, replaces=replaces)
        except StoreUnreadable as error:  # it says itself that it does not know the condition
            if isinstance(error.__cause__, ClientError) and is_unsupported(error.__cause__):
                return False
            raise


def _date(answer: Mapping[str, Any]) -> datetime | None:
    """The server's clock at the time of an answer; None where it does not tell."""
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    try:
        return parsedate_to_datetime(date).astimezone(UTC) if date else None
    except (ValueError, OverflowError):
        return None


def _kept_digest(checksum: str | None, metadata: dict[str, str]) -> Digest | None:
    if checksum:
        return transfer.decoded(checksum)
    noted = metadata.get("sha256", "")
    return Digest(noted) if is_digest(noted) else None
