"""The user's model behind an address, with credentials of its own where it has some.

    GENAI_SOURCE_ACCESS_KEY_ID, GENAI_SOURCE_SECRET_ACCESS_KEY, GENAI_SOURCE_SESSION_TOKEN

Without them the store's credentials are used (AWS_* variables, the pod's service account).
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from genai_core.errors import BadModel
from genai_core.store.s3_location import S3Credentials, parse_s3
from genai_core.store.s3_source import S3Source
from genai_core.task import TaskFileInput

__all__ = ["fetch_source_file", "open_source"]

_PREFIX = "GENAI_SOURCE_"


def open_source(address: str) -> S3Source:
    """Open the folder at an `s3://` address; nothing is read yet.

    Raises:
        InvalidSpec: The address cannot be read.
    """
    key = os.environ.get(f"{_PREFIX}ACCESS_KEY_ID")
    credentials = None
    if key:
        credentials = S3Credentials(
            key,
            os.environ.get(f"{_PREFIX}SECRET_ACCESS_KEY", ""),
            os.environ.get(f"{_PREFIX}SESSION_TOKEN"),
        )
    return S3Source(parse_s3(address), credentials)


def fetch_source_file(file: TaskFileInput, dest: Path) -> None:
    """Fetch one file of the source and make sure that it is still the one planned with.

    Raises:
        BadModel: It has other bytes.
    """
    assert file.path is not None
    folder, _, name = parse_s3(file.path).prefix.rpartition("/")
    source = open_source(str(replace(parse_s3(file.path), prefix=folder)))
    if source.fetch(name, dest, size=file.size) != file.sha256:
        raise BadModel(
            "it changed while the build was running",
            where=file.path,
            remedy="apply the build again",
        )
