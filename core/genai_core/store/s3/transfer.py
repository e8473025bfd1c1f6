"""Moving large blobs to and from S3 in parts, several at once, hashed on the way.

A blob's key is its digest, so a file is hashed before its first byte is sent. On the way each part
carries a CRC that the server checks: every byte is hashed once, and whatever still goes wrong is
found by whoever reads. Downloads write parts where they belong and hash them in order while later
parts are still on their way, so that nothing is handed out unverified.
"""

from __future__ import annotations

import base64
import hashlib
import os
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, NotRequired, TypedDict, TypeVar

from botocore import exceptions as boto
from urllib3.exceptions import HTTPError

from genai_core.errors import CorruptBlob, StoreUnreadable
from genai_core.files.whole_files import hash_file
from genai_core.names import Digest
from genai_core.store.s3.errors import code_of
from genai_core.store.s3.guard import CALL_SECONDS, within
from genai_core.tasks.record import Blob

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

__all__ = [
    "PART_BYTES",
    "ObjectTooLarge",
    "Small",
    "decoded",
    "download",
    "encoded",
    "hash_object",
    "read",
    "upload",
]

PART_BYTES = 16 << 20
_MOST_PARTS = 10_000
_READ_BYTES = 512 << 10
_READ_SECONDS = 60.0
"""For so many bytes: a connection slower than 8.7 kB/s is of no use for models."""
_THREADS = 8
_ATTEMPTS = 5
_BROKEN_STREAM = (
    boto.ResponseStreamingError,
    boto.IncompleteReadError,
    boto.ReadTimeoutError,
    boto.ConnectionClosedError,
    HTTPError,
    ConnectionError,
    TimeoutError,
)
_T = TypeVar("_T")


class _Which(TypedDict):
    """An object, and the tag that it must bear."""

    Bucket: str
    Key: str
    IfMatch: NotRequired[str]


def encoded(digest: Digest) -> str:
    """Return a SHA-256 as S3 writes it."""
    return base64.b64encode(bytes.fromhex(digest)).decode()


def decoded(checksum: str) -> Digest | None:
    """Return a SHA-256 that S3 wrote; None where it is none."""
    try:
        return Digest(base64.b64decode(checksum, validate=True).hex())
    except ValueError:
        return None


def _ranges(size: int) -> list[tuple[int, int]]:
    """Return (offset, length) of each part."""
    step = max(PART_BYTES, -(-size // _MOST_PARTS))
    return [(start, min(step, size - start)) for start in range(0, size, step)]


def upload(client: S3Client, path: Path, *, bucket: str, key: str, blob: Blob, check: bool) -> None:
    """Put a file in parts; an upload that fails is aborted.

    Args:
        client: boto3's S3 client.
        path: What to send.
        bucket: Where to.
        key: Where to.
        blob: The file's digest and size; the digest is noted with the object.
        check: The digest comes from elsewhere: hash the file while its parts are sent.

    Raises:
        CorruptBlob: The file has other bytes than announced; nothing is stored.
    """
    upload_id = client.create_multipart_upload(
        Bucket=bucket, Key=key, ChecksumAlgorithm="CRC32", Metadata={"sha256": blob.sha256}
    )["UploadId"]

    def send(number: int, start: int, length: int) -> CompletedPartTypeDef:
        with path.open("rb", buffering=0) as stream:
            data = os.pread(stream.fileno(), length, start)
        crc = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
        done = client.upload_part(
            Bucket=bucket,
            Key=key,
            UploadId=upload_id,
            PartNumber=number,
            Body=data,
            ChecksumCRC32=crc,
        )
        return {"PartNumber": number, "ETag": done["ETag"], "ChecksumCRC32": crc}

    try:
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="s3-put") as pool:
            futures = [
                pool.submit(send, number, start, length)
                for number, (start, length) in enumerate(_ranges(blob.size), start=1)
            ]
            try:
                if check:
                    _expect(path, blob)
                parts = list(_results(futures))
            finally:
                _cancel(futures)  # the pool waits for what it was given
        _complete(client, parts, bucket=bucket, key=key, upload_id=upload_id, blob=blob)
    except BaseException:
        with suppress(boto.BotoCoreError, boto.ClientError):
            client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)
        raise


def _expect(path: Path, blob: Blob) -> None:
    found, size = hash_file(path)
    if (found, size) != (blob.sha256, blob.size):
        raise CorruptBlob(
            f"it was announced as {blob.sha256[:12]} and is {found[:12]}", where=str(path)
        )


def _complete(
    client: S3Client,
    parts: list[CompletedPartTypeDef],
    *,
    bucket: str,
    key: str,
    upload_id: str,
    blob: Blob,
) -> None:
    """Put the parts together; asked twice, since an answer was lost, not every server agrees."""
    try:
        client.complete_multipart_upload(
            Bucket=bucket, Key=key, UploadId=upload_id, MultipartUpload={"Parts": parts}
        )
    except boto.ClientError as error:
        if code_of(error) != "NoSuchUpload":
            raise
        with suppress(boto.ClientError):
            head = client.head_object(Bucket=bucket, Key=key)
            if (head["ContentLength"], head["Metadata"].get("sha256")) == (blob.size, blob.sha256):
                return
        raise


def download(
    client: S3Client, target: BinaryIO, *, bucket: str, key: str, size: int, tag: str = ""
) -> tuple[Digest, int]:
    """Write an object to a file and return digest and size of its bytes.

    Args:
        client: boto3's S3 client.
        target: An empty file, open for reading and writing, unbuffered.
        bucket: Where from.
        key: Where from.
        size: What the record says; more bytes than that are not read but make the size wrong.
        tag: Only the object that bears it; empty = whichever stands there.

    Raises:
        ClientError: Among others, the object is not there, or not the one with that tag.
    """
    handle = target.fileno()
    which = _which(bucket, key, tag)
    if size <= PART_BYTES:
        return _retried(lambda: _one_piece(client, target, which, limit=size + 1))
    head = client.head_object(**which)
    if head["ContentLength"] != size:
        return Digest(""), head["ContentLength"]

    def receive(start: int, length: int) -> None:
        answer = client.get_object(
            Bucket=bucket,
            Key=key,
            Range=f"bytes={start}-{start + length - 1}",
            IfMatch=head["ETag"],
        )
        offset = start
        end = start + length  # whatever the server sends: one may not know ranges
        with closing(answer["Body"]) as body:
            while offset < end and (data := _next(body, min(_READ_BYTES, end - offset))):
                os.pwrite(handle, data, offset)
                offset += len(data)
        if offset != start + length:
            raise boto.IncompleteReadError(actual_bytes=offset - start, expected_bytes=length)

    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_READ_BYTES))
    ranges = _ranges(size)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="s3-get") as pool:
        futures = [
            pool.submit(_retried, lambda start=start, length=length: receive(start, length))
            for start, length in ranges
        ]
        for (start, length), _ in zip(ranges, _results(futures), strict=True):
            for offset in range(start, start + length, _READ_BYTES):
                count = os.preadv(handle, [buffer], offset)
                digest.update(buffer[: min(count, start + length - offset)])
    return Digest(digest.hexdigest()), size


def _one_piece(
    client: S3Client, target: BinaryIO, which: _Which, *, limit: int
) -> tuple[Digest, int]:
    target.seek(0)
    target.truncate()
    size = 0
    digest = hashlib.sha256()
    with closing(client.get_object(**which)["Body"]) as body:
        while size < limit and (data := _next(body, min(_READ_BYTES, limit - size))):
            target.write(data)
            digest.update(data)
            size += len(data)
    return Digest(digest.hexdigest()), size


class ObjectTooLarge(StoreUnreadable):
    """An object is larger than what is read at once.

    Attributes:
        etag: Its tag, with which it can be replaced.
    """

    etag = ""


class Small(NamedTuple):
    """A small object: its bytes, its tag, and when it was written by the server's clock."""

    data: bytes
    etag: str
    modified: datetime


def read(client: S3Client, *, bucket: str, key: str, most: int) -> Small:
    """Return a small object.

    Raises:
        TooLarge: It has more than `most` bytes. Whoever wrote it need not be whoever reads.
    """

    def get() -> Small:
        answer = client.get_object(Bucket=bucket, Key=key)
        with closing(answer["Body"]) as body:
            announced = int(answer.get("ContentLength") or 0)
            # Never without a limit: not every server announces what it sends.
            with within(CALL_SECONDS):
                data = body.read(most + 1) if announced <= most else b""
        etag = answer.get("ETag", "")
        if announced > most or len(data) > most:
            error = ObjectTooLarge(
                f"it has more than {most} bytes, which is what is read at once",
                where=f"s3://{bucket}/{key}",
                remedy="remove that object: nothing of ours is as large",
            )
            error.etag = etag
            raise error
        modified = answer.get("LastModified") or datetime.now(UTC)
        return Small(data, etag, modified.astimezone(UTC))

    return _retried(get)


def hash_object(
    client: S3Client, *, bucket: str, key: str, most: int, tag: str = ""
) -> tuple[Digest, int]:
    """Read an object without keeping it, `tag` as for `download`.

    Returns:
        Digest and size of its first `most` bytes.
    """
    which = _which(bucket, key, tag)

    def read() -> tuple[Digest, int]:
        digest, size = hashlib.sha256(), 0
        with closing(client.get_object(**which)["Body"]) as body:
            while size < most and (data := _next(body, min(_READ_BYTES, most - size))):
                digest.update(data)
                size += len(data)
        return Digest(digest.hexdigest()), size

    return _retried(read)


def _which(bucket: str, key: str, tag: str) -> _Which:
    which: _Which = {"Bucket": bucket, "Key": key}
    if tag:
        which["IfMatch"] = f'"{tag}"'
    return which


def _next(body: StreamingBody, count: int) -> bytes:
    """The next bytes of a body, which may not take for ever."""
    with within(_READ_SECONDS):
        return body.read(count)


def _retried(call: Callable[[], _T]) -> _T:
    """Repeat a read whose stream broke; botocore repeats only until the first byte."""
    for attempt in range(1, _ATTEMPTS):
        try:
            return call()
        except _BROKEN_STREAM:
            time.sleep(0.1 * 2**attempt)
    try:
        return call()
    except (HTTPError, ConnectionError, TimeoutError) as error:
        raise boto.ResponseStreamingError(error=error) from error


def _results(futures: list[Future[_T]]) -> Iterator[_T]:
    """Yield results in order; at the first failure the rest is not begun."""
    try:
        for future in futures:
            yield future.result()
    finally:
        _cancel(futures)


def _cancel(futures: list[Future[_T]]) -> None:
    for future in futures:
        future.cancel()
