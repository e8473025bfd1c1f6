"""The store of a namespace, opened from this machine with the right credentials.

Who may read the ArtifactStore's Secret uses what stands there, else the AWS_* variables, ~/.aws or
whatever boto3 finds; `--store` names the place outright.
"""

from __future__ import annotations

import base64
import binascii
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from genai_cli.cluster.api_errors import NotAllowed, NotThere
from genai_cli.cluster.connection import Cluster, Json
from genai_cli.cluster.port_forward import reachable
from genai_cli.display.output import tell
from genai_core.errors import GenAIError, InvalidSpec
from genai_core.kinds.artifact_store import ArtifactStoreSpec
from genai_core.kinds.documents.reading import read_served
from genai_core.store.address import StoreAddress, StoreCredentials, parse_address
from genai_core.store.layered import LayeredStore
from genai_core.store.protocol import Store

__all__ = [
    "StoreOptions",
    "StorePlace",
    "blob_of",
    "named_by",
    "opened_store",
    "opened_stores",
    "place_of",
    "reaching",
]

_RECORDS, _BLOBS = "/records/", "/blobs/"
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


@dataclass(frozen=True)
class StoreOptions:
    """What the user says about the store.

    Attributes:
        store: Address that replaces the cluster's word for it.
        endpoint: How this machine reaches the server.
    """

    store: str | None = None
    endpoint: str | None = None


@dataclass(frozen=True)
class StorePlace:
    """A store as this machine reaches it.

    Attributes:
        where: With the endpoint that works from here.
        public: With the endpoint that the cluster uses.
        credentials: None = boto3's usual places.
    """

    where: StoreAddress
    public: StoreAddress
    credentials: StoreCredentials | None = None


@contextmanager
def reaching(
    cluster: Cluster, namespace: str, store: str, *, options: StoreOptions, near: str = ""
) -> Iterator[StorePlace]:
    """Where a namespace's store is, with credentials, as long as the context lasts.

    Args:
        cluster: The cluster.
        namespace: The namespace.
        store: Name of the ArtifactStore.
        options: Of the user.
        near: An address in that store that a status gives; needed where the user may not read the
            ArtifactStore.

    Raises:
        BadInput: The store, or how to reach it, is not known.
    """
    with ExitStack() as stack:
        if options.store is not None:
            where = parse_address(options.store)
            if options.endpoint:
                where = replace(where, endpoint=options.endpoint, addressing="path")
            yield StorePlace(where, where)
            return
        spec = _spec(cluster, namespace, store, needed=not near)
        if near:
            public = named_by(near)
        else:
            assert spec is not None
            public = place_of(spec, namespace)
        credentials = _credentials(cluster, namespace, spec)
        where = public
        if spec is not None and spec.ca_bundle:
            file = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".pem"))
            file.write(spec.ca_bundle)
            file.flush()
            where = replace(where, ca=file.name)
        wanted = options.endpoint or where.endpoint
        endpoint = stack.enter_context(reachable(cluster, wanted, namespace))
        if endpoint != where.endpoint:
            where = replace(where, endpoint=endpoint, addressing="path")
        yield StorePlace(where, public, credentials)


@contextmanager
def opened_store(
    cluster: Cluster, namespace: str, store: str, *, options: StoreOptions, near: str = ""
) -> Iterator[Store]:
    """The same, opened for reading; see `reaching`."""
    from genai_core.store.location import open_store

    with reaching(cluster, namespace, store, options=options, near=near) as place:
        yield open_store(str(place.where), credentials=place.credentials)


@contextmanager
def opened_stores(
    cluster: Cluster, namespace: str, store: str, *, options: StoreOptions, near: str = ""
) -> Iterator[Store]:
    """The same with the stores that it reads besides, where what a build found cached may lie.

    One of those that cannot be reached is told and left out.
    """
    with ExitStack() as stack:
        opened = opened_store(cluster, namespace, store, options=options, near=near)
        first = stack.enter_context(opened)
        # An address in place of the ArtifactStore stands for that one place.
        spec = _spec(cluster, namespace, store, needed=False) if options.store is None else None
        others: list[Store] = []
        for further in spec.read_from if spec is not None else ():
            try:
                wanted = _spec(cluster, namespace, further.name, needed=True)
                same = wanted is not None and spec is not None and wanted.endpoint == spec.endpoint
                way = StoreOptions(endpoint=options.endpoint if same else None)
                others.append(stack.enter_context(_further(cluster, namespace, further.name, way)))
            except GenAIError as error:
                tell(f"note: a further store is left out: {error}")
        yield LayeredStore(first, others) if others else first


@contextmanager
def _further(
    cluster: Cluster, namespace: str, store: str, options: StoreOptions
) -> Iterator[Store]:
    from genai_core.store.location import open_at

    with reaching(cluster, namespace, store, options=options) as place:
        yield open_at(place.where, credentials=place.credentials, read_only=True)


def place_of(spec: ArtifactStoreSpec, namespace: str) -> StoreAddress:
    """The part of a bucket that a namespace's builds use."""
    return StoreAddress(
        bucket=spec.bucket,
        prefix="/".join(part for part in (spec.prefix.strip("/"), namespace) if part),
        endpoint=spec.endpoint,
        region=spec.region,
        addressing="path" if spec.endpoint else "auto",
    )


def named_by(address: str) -> StoreAddress:
    """The store that a record's or blob's address in a status lies in.

    Raises:
        InvalidSpec: It is no such address.
    """
    where = parse_address(address)
    for folder in (_RECORDS, _BLOBS):
        head, found, _ = f"/{where.prefix}".rpartition(folder)
        if found:
            return replace(where, prefix=head.strip("/"))
    raise InvalidSpec("it is no address of a record or blob", where=address)


def blob_of(address: str) -> str:
    """The digest of a blob by its address."""
    return parse_address(address).prefix.rpartition("/")[2]


def _spec(
    cluster: Cluster, namespace: str, store: str, *, needed: bool
) -> ArtifactStoreSpec | None:
    try:
        value = cluster.get("artifactstores", store, namespace=namespace)
    except NotThere as error:
        if not needed:
            return None
        raise NotThere(
            "there is no such ArtifactStore",
            where=f"{namespace}/{store}",
            remedy="make it (see charts/genai-operator/README.md), or name one in spec.store.name",
        ) from error
    except NotAllowed:
        if needed:
            raise
        return None
    return read_served(ArtifactStoreSpec, value["spec"], where=f"ArtifactStore {store}")


def _credentials(
    cluster: Cluster, namespace: str, spec: ArtifactStoreSpec | None
) -> StoreCredentials | None:
    """The Secret's, where there is one that the user may read."""
    if spec is None or spec.secret_ref is None:
        return None
    name = spec.secret_ref.name
    try:
        secret = cluster.get("secrets", name, namespace=namespace)
    except (NotAllowed, NotThere):
        sys.stderr.write(
            f"note: the Secret {namespace}/{name} cannot be read; using your own AWS credentials\n"
        )
        return None
    return _of_secret(secret)


def _of_secret(secret: Json) -> StoreCredentials | None:
    try:
        found = {
            key: base64.b64decode(value).decode()
            for key, value in (secret.get("data") or {}).items()
            if key in _KEYS
        }
    except (binascii.Error, UnicodeDecodeError):
        return None
    if not found.get(_KEYS[0]) or not found.get(_KEYS[1]):
        return None
    return StoreCredentials(found[_KEYS[0]], found[_KEYS[1]], found.get(_KEYS[2]) or None)
