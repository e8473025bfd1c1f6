"""ArtifactStores: opened with the tenant's own credentials, and what was looked up in them.

A record that was found stands for a while: builds look at the same keys at every step. What is
forgotten, is looked up again; a worker finds out for itself if something was wrong after all.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genai_core.kinds.artifact_store import ArtifactStoreSpec
from genai_core.kinds.reading import read_model
from genai_core.names import Key
from genai_core.record import Record
from genai_core.store.lookup import lookup_all
from genai_core.store.protocol import Hit, RecordRef, Store
from genai_core.store.s3_location import S3Credentials, S3Location
from genai_operator.api import Api, ApiError
from genai_operator.endpoints import check_endpoint
from genai_operator.errors import Stalled, Waiting
from genai_operator.jobs import StoreAccess
from genai_operator.s3_metrics import count_requests
from genai_operator.settings import Settings

__all__ = ["Credentials", "Lookups", "OpenStore", "Stores", "credentials_of"]

_FOUND_SECONDS = 300.0
_MISSED_SECONDS = 15.0
_SECRET_SECONDS = 5.0
_THREADS = 16
_MOST_RECORDS = 20_000

ACCESS_KEY, SECRET_KEY, TOKEN = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"

Credentials = S3Credentials


def credentials_of(secret: Mapping[str, Any]) -> S3Credentials:
    """Read a Secret.

    Raises:
        Waiting: It lacks a key.
    """
    data = {k: base64.b64decode(v).decode() for k, v in (secret.get("data") or {}).items()}
    lacking = [name for name in (ACCESS_KEY, SECRET_KEY) if not data.get(name)]
    if lacking:
        name = secret["metadata"]["name"]
        raise Waiting("SecretIncomplete", f"Secret {name} lacks {' and '.join(lacking)}")
    return S3Credentials(data[ACCESS_KEY], data[SECRET_KEY], data.get(TOKEN) or None)


class Lookups:
    """What was found and missed in one store; builds on several threads share it."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self.store = store
        self._clock = clock
        self._found: dict[RecordRef, tuple[Record, float]] = {}
        self._missed: dict[RecordRef, tuple[str, float]] = {}
        self.blobs: dict[str, bytes] = {}
        """Small blobs that were read, by digest."""

    def look(
        self, refs: Collection[RecordRef], *, anew: Iterable[Key] = ()
    ) -> dict[RecordRef, Record | str]:
        """Return a record, or why there is none, for each; from the store where none is remembered.

        Args:
            refs: What to look up.
            anew: Keys whose misses do not count any more.
        """
        now, again = self._clock(), set(anew)
        answers: dict[RecordRef, Record | str] = {}
        for ref in refs:
            found = self._found.get(ref)
            missed = None if ref.key in again else self._missed.get(ref)
            entry = found if found and found[1] > now else missed
            if entry is not None and entry[1] > now:
                answers[ref] = entry[0]
        wanted = [ref for ref in refs if ref not in answers]
        if len(self._found) > _MOST_RECORDS:
            self._found.clear()
        for ref, answer in lookup_all(self.store, wanted, threads=_THREADS).items():
            if isinstance(answer, Hit):
                self._missed.pop(ref, None)
                self._found[ref] = (answer.record, now + _FOUND_SECONDS)
                answers[ref] = answer.record
            else:
                self._found.pop(ref, None)
                self._missed[ref] = (answer.reason, now + _MISSED_SECONDS)
                answers[ref] = answer.reason
        return answers

    def forget(self) -> None:
        """Nothing found so far is to be relied on."""
        self._found.clear()
        self._missed.clear()


@dataclass
class OpenStore:
    """A store that a build uses."""

    spec: ArtifactStoreSpec
    where: S3Location
    credentials: S3Credentials
    store: Store
    access: StoreAccess
    lookups: Lookups = field(init=False)

    def __post_init__(self) -> None:
        self.lookups = Lookups(self.store)


class Stores:
    """Opens stores, and keeps them open while spec and credentials stay the same."""

    def __init__(self, api: Api, settings: Settings) -> None:
        self._api = api
        self._settings = settings
        self._open: dict[tuple[str, str], tuple[object, OpenStore]] = {}
        self._secrets: dict[tuple[str, str], tuple[float, S3Credentials]] = {}
        self._certificates = Path(tempfile.mkdtemp(prefix="genai-operator-"))

    async def credentials(self, namespace: str, name: str) -> S3Credentials:
        """Read a Secret of the namespace.

        Raises:
            Waiting: It is not there, or incomplete.
        """
        known = self._secrets.get((namespace, name))
        if known is not None and known[0] > time.monotonic():
            return known[1]
        try:
            secret = await self._api.get("secrets", name, namespace=namespace)
        except ApiError as error:
            if error.code != 403:
                raise
            raise Waiting(
                "NamespaceNotEnabled",
                f"the operator may not read Secret {name} of namespace {namespace}; enable the "
                "namespace by a RoleBinding to the operator's tenant role (chart: "
                "enabledNamespaces)",
            ) from error
        if secret is None:
            raise Waiting("SecretNotFound", f"there is no Secret {name}")
        found = credentials_of(secret)
        self._secrets[namespace, name] = (time.monotonic() + _SECRET_SECONDS, found)
        return found

    async def check_endpoint(self, endpoint: str | None) -> None:
        """Refuse what is not allowed.

        Raises:
            Stalled: Says which rule.
        """
        await asyncio.to_thread(
            check_endpoint,
            endpoint,
            allowed=self._settings.allowed_endpoints,
            apiserver=self._api.server,
        )

    async def open(self, value: Mapping[str, Any]) -> OpenStore:
        """Open the store of an ArtifactStore; nothing is read from it yet.

        Raises:
            Waiting: Its Secret is not there.
            Stalled: Its spec cannot be used.
        """
        name, namespace = value["metadata"]["name"], value["metadata"]["namespace"]
        spec = read_model(ArtifactStoreSpec, value["spec"], where=f"ArtifactStore {name}")
        if spec.secret_ref is None:
            raise Stalled(
                "ServiceAccountNotSupported",
                "stores are opened with a secretRef; serviceAccountName needs a probe Job, which "
                "this version does not have",
            )
        if spec.read_from:
            raise Stalled(
                "ReadFromNotSupported",
                "spec.readFrom is read on the command line only; in a cluster this version looks "
                "into one store",
            )
        await self.check_endpoint(spec.endpoint)
        keys = await self.credentials(namespace, spec.secret_ref.name)
        stamp = (value["spec"], keys)
        known = self._open.get((namespace, name))
        if known is not None and known[0] == stamp:
            return known[1]
        opened = await asyncio.to_thread(self._make, namespace, spec, keys)
        self._open[namespace, name] = (stamp, opened)
        return opened

    def _make(self, namespace: str, spec: ArtifactStoreSpec, keys: S3Credentials) -> OpenStore:
        from genai_core.store.s3 import S3Store, shared_session

        count_requests(shared_session())
        prefix = "/".join(part for part in (spec.prefix.strip("/"), namespace) if part)
        where = S3Location(
            bucket=spec.bucket,
            prefix=prefix,
            endpoint=spec.endpoint,
            region=spec.region,
            ca=self._certificate(spec.ca_bundle),
            addressing="path" if spec.endpoint else "auto",
        )
        public = S3Location(spec.bucket, prefix, spec.endpoint, spec.region, None, where.addressing)
        assert spec.secret_ref is not None
        access = StoreAccess(
            address=str(public), secret=spec.secret_ref.name, ca=spec.ca_bundle or ""
        )
        return OpenStore(spec, where, keys, S3Store(where, credentials=keys), access)

    def _certificate(self, pem: str | None) -> str | None:
        """boto3 reads certificates from files only."""
        if not pem:
            return None
        file = self._certificates / f"{hashlib.sha256(pem.encode()).hexdigest()[:32]}.pem"
        if not file.exists():
            file.write_text(pem, encoding="utf-8")
        return str(file)
