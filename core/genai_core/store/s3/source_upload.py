"""Uploads a model's folder beside a store, under its digest; files that are there are not sent.

Files are named by their roles, not by the names that a user gave them, so the same content makes
the same folder. Nothing is ever replaced: an object with the right size and digest stays, and an
upload that broke off left no object (S3 shows whole objects only).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from genai_core.canonical import digest_bytes
from genai_core.errors import BadModel, CorruptBlob
from genai_core.files.whole_files import explain
from genai_core.sources.source_files import SourceFacts, SourceFile
from genai_core.store.address import StoreAddress, StoreCredentials
from genai_core.store.s3 import transfer
from genai_core.store.s3.client import new_client
from genai_core.store.s3.errors import explained
from genai_core.store.s3.objects import S3Objects
from genai_core.store.upload_names import SOURCES, upload_name
from genai_core.tasks.record import Blob

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["SourceUpload"]


class SourceUpload:
    """See the module's docstring.

    Args:
        store: The place whose `sources/` gets the folder.
        facts: The model.
        credentials: None = from the environment.
    """

    def __init__(
        self,
        store: StoreAddress,
        facts: SourceFacts,
        *,
        credentials: StoreCredentials | None = None,
    ) -> None:
        self.name = upload_name(facts.digest)
        self.where = replace(store, prefix=f"{store.prefix}/{SOURCES}/{self.name}".strip("/"))
        self.files: Mapping[str, SourceFile] = facts.files
        self._credentials = credentials
        self._objects = S3Objects(
            lambda: self._client, store.bucket, prefix=self.where.prefix, location=str(self.where)
        )

    @cached_property
    def _client(self) -> S3Client:
        return new_client(self.where, self._credentials)

    def missing(self) -> list[str]:
        """Roles of the files that are not there yet.

        Raises:
            GenAIError: The bucket cannot be read.
        """
        return [role for role, file in self.files.items() if not self._stands(role, file)]

    def _stands(self, role: str, file: SourceFile) -> bool:
        head = self._objects.head(role)
        return head is not None and head.size == file.size and head.digest == file.sha256

    def send(self, role: str) -> None:
        """Put one file.

        Raises:
            BadModel: It changed since it was hashed.
            GenAIError: The bucket cannot be written.
        """
        file = self.files[role]
        try:
            if file.size > transfer.PART_BYTES:
                self._in_parts(role, file)
            else:
                self._at_once(role, file)
        except OSError as error:
            raise explain(error, file.path) from error

    def _at_once(self, role: str, file: SourceFile) -> None:
        data = file.path.read_bytes()
        if digest_bytes(data) != file.sha256:
            raise _changed(file.path)
        self._objects.put(role, data, metadata={"sha256": file.sha256})

    def _in_parts(self, role: str, file: SourceFile) -> None:
        if file.path.stat().st_size != file.size:
            raise _changed(file.path)
        try:
            with explained(str(self.where)):
                transfer.upload(
                    self._client,
                    file.path,
                    bucket=self.where.bucket,
                    key=self._objects.key(role),
                    blob=Blob(sha256=file.sha256, size=file.size),
                    check=True,
                )
        except CorruptBlob as error:
            if error.where != str(file.path):
                raise
            raise _changed(file.path) from error


def _changed(path: Path) -> BadModel:
    return BadModel(
        "it changed while it was sent", where=str(path), remedy="run the same command again"
    )
