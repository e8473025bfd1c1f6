"""A model's folder in a bucket: listed, hashed and fetched, never written.

The listing's sizes and tags tell whether anything changed without reading a byte; a digest is
taken from the server where it keeps one, else from the bytes as they stream by.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from botocore.exceptions import ClientError

from genai_core.errors import BadModel, SourceChanging, SourceNotFound
from genai_core.files.whole_files import explain
from genai_core.names import Digest
from genai_core.network.addresses import Refuse
from genai_core.sources.resolved import ListedFile
from genai_core.store.address import StoreAddress, StoreCredentials
from genai_core.store.s3 import transfer
from genai_core.store.s3.client import new_client
from genai_core.store.s3.errors import NoSuchBucket, explained, is_absent, is_bare, is_precondition
from genai_core.store.s3.objects import S3Objects

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["S3Source"]

_MOST_FILES = 10_000
"""Of a model; as many as of an archive."""
_LISTING_SECONDS = 120.0
_LARGEST_OBJECT = 50 << 40
"""S3 allows 50 TB."""
_OTHER = -1
"""No size: what stands there now is not what was asked for."""


class S3Source:
    """See the module's docstring.

    Args:
        where: Its prefix is the model's folder.
        credentials: None = from the environment.
        refuse: As for `new_client`.
    """

    def __init__(
        self,
        where: StoreAddress,
        credentials: StoreCredentials | None = None,
        *,
        refuse: Refuse | None = None,
    ) -> None:
        self._refuse = refuse
        self.where = where
        self._credentials = credentials
        self._objects = S3Objects(
            lambda: self._client, where.bucket, prefix=where.prefix, location=str(where)
        )

    @cached_property
    def _client(self) -> S3Client:
        return new_client(self.where, self._credentials, refuse=self._refuse)

    def list(self) -> dict[str, ListedFile]:
        """Relative path -> size and tag of every object in the folder.

        Raises:
            SourceNotFound: There is none, or no such bucket.
            StoreUnreadable: There are more than a model has.
            GenAIError: The bucket cannot be read.
        """
        found: dict[str, ListedFile] = {}
        with self._bucket_is_there():
            for file in self._objects.list(most=_MOST_FILES, seconds=_LISTING_SECONDS):
                if not 0 <= file.size <= _LARGEST_OBJECT:
                    raise BadModel(
                        f"{file.name[:200]!r} has {file.size} bytes, which no object has",
                        where=str(self.where),
                        remedy="name an S3 server's own address",
                    )
                if file.name and not file.name.endswith("/"):
                    found[file.name] = ListedFile(size=file.size, tag=file.tag)
        if not found:
            raise SourceNotFound(
                "there is nothing",
                where=str(self.where),
                remedy="upload the model, or correct spec.model.source",
            )
        return found

    @contextmanager
    def _bucket_is_there(self) -> Iterator[None]:
        try:
            yield
        except NoSuchBucket as error:
            raise SourceNotFound(
                f"there is no bucket {self.where.bucket}",
                where=str(self.where),
                remedy="create it, or correct spec.model.source",
            ) from error

    def digest(self, name: str, *, tag: str) -> Digest:
        """The SHA-256 of an object: the server's word for it, else of its bytes.

        Raises:
            SourceChanging: It is not the one that was listed with this tag.
        """
        head = self._objects.head(name)
        if head is None or (tag and head.tag != tag):
            raise self._changed_since_listed(name)
        if head.digest is not None:
            return head.digest
        with explained(str(self.where)):
            try:
                digest, size = transfer.hash_object(
                    self._client,
                    bucket=self.where.bucket,
                    key=self._objects.key(name),
                    most=head.size + 1,
                    tag=head.tag,
                )
            except ClientError as error:
                if is_precondition(error) or is_absent(error):
                    raise self._changed_since_listed(name) from error
                raise
        if size != head.size:
            raise self._changed_since_listed(name)
        return digest

    def noted(self, name: str) -> Digest | None:
        """The SHA-256 that the server keeps for an object, or that its sender noted."""
        head = self._objects.head(name)
        return head.digest if head is not None else None

    def fetch(self, name: str, dest: Path, *, size: int, tag: str = "") -> Digest:
        """Write an object to a file; returns the digest of its bytes.

        Raises:
            BadModel: It is not there any more, or has another size, and no tag was given.
            SourceChanging: It is not the one that was listed with this tag.
            NoSpace: No room.
        """
        key = self._objects.key(name)
        try:
            with explained(str(self.where)), dest.open("w+b", buffering=0) as stream:
                try:
                    found, length = transfer.download(
                        self._client,
                        cast("BinaryIO", stream),
                        bucket=self.where.bucket,
                        key=key,
                        size=size,
                        tag=tag,
                    )
                except ClientError as error:
                    if is_bare(error):
                        self._objects.head(name)  # raises with the reason
                    if not (is_absent(error) or is_precondition(error)):
                        raise
                    found, length = Digest(""), _OTHER
        except OSError as error:
            raise explain(error, dest, need=size) from error
        if length == size:
            return found
        if tag:
            raise self._changed_since_listed(name)
        how = "it is another" if length == _OTHER else f"it has {length} bytes, not {size}"
        raise BadModel(
            f"{how}: it changed while the build was running",
            where=self._address_of(name),
            remedy="apply the build again",
        )

    def _address_of(self, name: str) -> str:
        return str(replace(self.where, prefix=self._objects.key(name)))

    def _changed_since_listed(self, name: str) -> SourceChanging:
        """Somebody is at it: the next look may find it whole."""
        return SourceChanging(
            "it changed while the source was read",
            where=self._address_of(name),
            remedy="have one version of the model below an address, and read it again",
        )
