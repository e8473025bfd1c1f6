"""Where a build's model lies, as an address that says everything, and what its bucket lists."""

from __future__ import annotations

from dataclasses import replace

from genai_core.errors import GenAIError
from genai_core.kinds.build import BuildSpec
from genai_core.names import Key
from genai_core.resolved import ResolveFile, resolve_file, resolve_key
from genai_core.store.s3_location import S3Credentials, S3Location, parse_s3
from genai_core.store.s3_source import S3Source
from genai_operator.errors import Stalled

__all__ = ["file_address", "list_source", "source_location"]


def source_location(spec: BuildSpec, store: S3Location) -> S3Location:
    """The model's folder; without an endpoint of its own it lies beside the store.

    Raises:
        Stalled: It is no address that can be read from a cluster.
    """
    text = spec.model.source
    if not text.startswith("s3://"):
        raise Stalled(
            "UnsupportedSource",
            f"spec.model.source: {text} cannot be read from a cluster; upload the model and "
            "write s3://bucket/folder",
        )
    try:
        where = parse_s3(text)
    except GenAIError as error:
        raise Stalled(error.code, str(error)) from error
    if where.endpoint is None and store.endpoint is not None:
        where = replace(where, endpoint=store.endpoint, addressing=store.addressing)
    return replace(where, region=where.region or store.region, ca=None)


def list_source(
    spec: BuildSpec, where: S3Location, credentials: S3Credentials, *, ca: str | None
) -> tuple[Key, ResolveFile]:
    """List the folder; returns the key of what is to be resolved, and the question.

    Raises:
        GenAIError: It cannot be listed, or there is nothing.
    """
    question = resolve_file(spec, str(where))
    listing = S3Source(replace(where, ca=ca), credentials).list()
    return resolve_key(question, listing), question


def file_address(folder: S3Location, path: str) -> str:
    """The address of one file."""
    return str(replace(folder, prefix=f"{folder.prefix}/{path}".strip("/")))
