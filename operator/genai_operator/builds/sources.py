"""Where a build's sources lie, as addresses that say everything, and what their buckets list.

s3://     listed by the operator where it has the credentials, read by the tenant's pods
https://  downloaded and unpacked into the store by a pod of the tenant, never by the operator
pvc://    mounted, read-only, into the pods that resolve it and read it
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from genai_core.errors import GenAIError
from genai_core.kinds.build import BuildSpec
from genai_core.names import Key
from genai_core.network.addresses import Refuse
from genai_core.reasons import Reason
from genai_core.sources.build_sources import BuildSource
from genai_core.sources.resolved import ResolveFile, resolve_file, resolve_key
from genai_core.sources.source_address import (
    is_archive,
    is_volume,
    parse_https,
    parse_pvc,
    readable_name,
)
from genai_core.store.address import StoreAddress, StoreCredentials, bucket_of
from genai_core.store.location import open_source_folder
from genai_operator.errors import Stalled

__all__ = ["SourcePlace", "list_source", "source_place"]


@dataclass(frozen=True)
class SourcePlace:
    """A source's folder.

    Attributes:
        uri: Address that says everything, endpoint included.
        bucket: Where it lies behind S3, if it does.
        claim: The PersistentVolumeClaim that it lies in, if it does.
    """

    uri: str
    bucket: StoreAddress | None = None
    claim: str = ""

    @property
    def name(self) -> str:
        """What people would call it."""
        return readable_name(self.uri)

    def file(self, path: str) -> str:
        """The address of one file; of an archive there is none, since its files are the store's."""
        if self.bucket is not None:
            return str(replace(self.bucket, prefix=f"{self.bucket.prefix}/{path}".strip("/")))
        return parse_pvc(self.uri).file(path)


def source_place(source: BuildSource, store: StoreAddress) -> SourcePlace:
    """Where a source is; a bucket without an endpoint of its own lies beside the store.

    Raises:
        Stalled: It is no address that can be read from a cluster.
    """
    text = source.address
    try:
        if is_archive(text):
            return SourcePlace(str(parse_https(text)))
        if is_volume(text):
            volume = parse_pvc(text)
            return SourcePlace(str(volume), claim=volume.claim)
        where = bucket_of(text)
        if where is not None:
            if where.endpoint is None and store.endpoint is not None:
                where = replace(where, endpoint=store.endpoint, addressing=store.addressing)
            where = replace(where, region=where.region or store.region, ca=None)
            return SourcePlace(str(where), bucket=where)
    except GenAIError as error:
        raise Stalled(error.code, f"{source.field}: {error}") from error
    raise Stalled(
        Reason.UNSUPPORTED_SOURCE,
        f"{source.field}: {text} cannot be read from a cluster; upload it and write "
        "s3://bucket/folder",
    )


def list_source(
    spec: BuildSpec,
    source: BuildSource,
    where: StoreAddress,
    credentials: StoreCredentials,
    *,
    store: StoreAddress,
    refuse: Refuse,
) -> tuple[Key, ResolveFile]:
    """List the folder; returns the key of what is to be resolved, and the question.

    Args:
        spec: The build's.
        source: Which of its sources.
        where: The folder.
        credentials: That it is read with.
        store: A folder on its endpoint is checked with its certificates.
        refuse: Addresses that nobody may be sent to.

    Raises:
        GenAIError: It cannot be listed, or there is nothing.
    """
    question = resolve_file(spec, str(where), source=source.name)
    ca = store.ca if where.endpoint == store.endpoint else None
    listing = open_source_folder(replace(where, ca=ca), credentials, refuse=refuse).list()
    return resolve_key(question, listing), question
