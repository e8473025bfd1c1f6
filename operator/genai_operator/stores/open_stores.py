"""ArtifactStores: opened with the tenant's own credentials, or known by what its Jobs tell.

A store with a Secret is read by the operator: it looks records up, writes leases, lists sources. Of
a store with a service account it sees no credentials; Jobs under that account do all of this and
say what they found. Stores in readFrom are looked into after the store itself and never written.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from genai_core.errors import GenAIError
from genai_core.kinds.artifact_store import ArtifactStoreSpec
from genai_core.kinds.documents.reading import read_served
from genai_core.reasons import Reason
from genai_core.store.address import StoreAddress, StoreCredentials
from genai_core.store.layered import LayeredStore
from genai_core.store.protocol import Store
from genai_operator.errors import Stalled, Waiting
from genai_operator.jobs.access import ReadAccess, StoreAccess, check_certificates
from genai_operator.kube.apiserver.api import Api
from genai_operator.kube.apiserver.projection import PARTIAL
from genai_operator.kube.status.conditions import condition_of
from genai_operator.policy import Policy
from genai_operator.settings import Settings
from genai_operator.stores.endpoints import Peers, check_endpoint
from genai_operator.stores.lookups import Answers, Lookups, ToldLookups
from genai_operator.stores.s3_metrics import count_requests
from genai_operator.stores.tenant_secrets import Secrets
from genai_operator.threads import in_thread
from genai_operator.timing import SYSTEM, Timing

__all__ = ["Credentials", "OpenStore", "Stores", "credentials_of"]

ACCESS_KEY, SECRET_KEY, TOKEN = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"

Credentials = StoreCredentials


def credentials_of(secret: Mapping[str, Any]) -> StoreCredentials:
    """Read a Secret.

    Raises:
        Waiting: It lacks a key.
    """
    data = {k: base64.b64decode(v).decode() for k, v in (secret.get("data") or {}).items()}
    lacking = [name for name in (ACCESS_KEY, SECRET_KEY) if not data.get(name)]
    if lacking:
        name = secret["metadata"]["name"]
        raise Waiting(Reason.SECRET_INCOMPLETE, f"Secret {name} lacks {' and '.join(lacking)}")
    return StoreCredentials(data[ACCESS_KEY], data[SECRET_KEY], data.get(TOKEN) or None)


@dataclass
class OpenStore:
    """A store that a build uses.

    Attributes:
        where: Its place; with the file of its certificates.
        credentials: None where only Jobs of a service account may use it.
        store: Likewise.
        access: What a pod is given.
        told: Holds what Jobs tell, where the operator may not look itself.
    """

    spec: ArtifactStoreSpec
    where: StoreAddress
    credentials: StoreCredentials | None
    store: Store | None
    access: StoreAccess
    timing: Timing = SYSTEM
    lookups: Answers = field(init=False)
    told: ToldLookups | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.store is not None:
            self.lookups = Lookups(self.store, timing=self.timing)
        else:
            self.lookups = self.told = ToldLookups(self.access.address)


@dataclass(frozen=True)
class _Reader:
    """A store of readFrom."""

    spec: ArtifactStoreSpec
    keys: StoreCredentials | None


FindStore = Callable[[str, str], Mapping[str, Any] | None]
"""Namespace and name -> the ArtifactStore."""


class Stores:
    """Opens stores, and keeps them open while spec and credentials stay the same."""

    def __init__(
        self,
        api: Api,
        settings: Settings,
        find: FindStore = lambda _space, _name: None,
        *,
        timing: Timing = SYSTEM,
    ) -> None:
        self._api = api
        self._settings = settings
        self._find = find
        self._open: dict[tuple[str, str], tuple[object, OpenStore]] = {}
        self.policy = Policy(settings)
        self._timing = timing
        self.secrets = Secrets(api, self.policy, timing=timing)

    @cached_property
    def _certificates(self) -> Path:
        """A folder that goes with this object, since boto3 reads certificates from files only."""
        folder = Path(tempfile.mkdtemp(prefix="genai-operator-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder

    @property
    def cluster_name(self) -> str:
        """How leases name this cluster."""
        return self._settings.cluster_name

    @cached_property
    def peers(self) -> Peers:
        """Judges where clients were connected to."""
        return Peers(self._api.server)

    async def credentials(self, namespace: str, name: str) -> StoreCredentials:
        """Read a Secret of the namespace.

        Raises:
            Waiting: See `Secrets.get`; or it is incomplete.
        """
        return credentials_of(await self.secrets.get(namespace, name))

    def keep(self, places: Collection[tuple[str, str]]) -> None:
        """Forget stores that are gone, by (namespace, name)."""
        for place in self._open.keys() - set(places):
            del self._open[place]
        self.secrets.tidy()

    async def check_endpoint(
        self, endpoint: str | None, *, allowed: Sequence[str] | None = None
    ) -> None:
        """Refuse what is not allowed.

        Args:
            endpoint: A URL; None: AWS.
            allowed: Patterns; None: those of S3 servers.

        Raises:
            Stalled: Says which rule.
        """
        await in_thread(
            check_endpoint,
            endpoint,
            allowed=self._settings.allowed_endpoints if allowed is None else allowed,
            apiserver=self._api.server,
        )

    async def open(self, value: Mapping[str, Any]) -> OpenStore:
        """Open the store of an ArtifactStore; nothing is read from it yet.

        Raises:
            Waiting: A Secret, or a store of readFrom, is not there.
            Stalled: Its spec cannot be used.
        """
        name, namespace = value["metadata"]["name"], value["metadata"]["namespace"]
        spec, keys = await self._spec(value)
        readers = [await self._reader(namespace, spec, ref.name) for ref in spec.read_from]
        stamp = (spec, keys, readers)
        known = self._open.get((namespace, name))
        if known is not None and known[0] == stamp:
            return known[1]
        opened = await in_thread(self._make, namespace, spec, keys, readers=readers)
        self._open[namespace, name] = (stamp, opened)
        return opened

    async def tried(self, namespace: str, name: str) -> OpenStore:
        """Open a store that a build or a deployment names, once it was tried.

        Raises:
            Waiting: It is not there, or cannot be used.
        """
        value = self._find(namespace, name)
        if value is None:
            raise Waiting(Reason.STORE_NOT_READY, f"there is no ArtifactStore {name}", after=60.0)
        try:
            opened = await self.open(value)
        except (Stalled, Waiting, GenAIError) as error:  # mended in the store, not in its user
            raise Waiting(Reason.STORE_NOT_READY, f"ArtifactStore {name}: {error}") from error
        status = value.get("status") or {}
        tried = condition_of(status, "Ready")
        if tried is None or status.get("observedGeneration") != value["metadata"]["generation"]:
            raise Waiting(Reason.PROGRESSING, f"ArtifactStore {name} is being tried", after=30.0)
        if tried["status"] != "True":
            raise Waiting(
                Reason.STORE_NOT_READY,
                f"ArtifactStore {name} is not ready ({tried['reason']}): {tried['message']}",
                after=30.0,
            )
        return opened

    async def _spec(
        self, value: Mapping[str, Any]
    ) -> tuple[ArtifactStoreSpec, StoreCredentials | None]:
        name, namespace = value["metadata"]["name"], value["metadata"]["namespace"]
        if PARTIAL in value:
            listed, _ = await self._api.list(
                "artifactstores", namespace=namespace, name=name, fresh=True
            )
            value = listed[0] if listed else value
        spec = read_served(ArtifactStoreSpec, value["spec"], where=f"ArtifactStore {name}")
        await self.check_endpoint(spec.endpoint)
        if spec.secret_ref is None:
            await self._check_identity(spec)
            return spec, None
        return spec, await self.credentials(namespace, spec.secret_ref.name)

    async def _check_identity(self, spec: ArtifactStoreSpec) -> None:
        assert spec.service_account_name is not None  # the schema saw to it
        self.policy.check_account("spec.serviceAccountName", spec.service_account_name)
        if spec.web_identity is None:
            return
        self.policy.check_audience(spec.web_identity)
        try:
            await self.check_endpoint(
                spec.web_identity.sts_endpoint, allowed=self._settings.allowed_sts_endpoints
            )
        except Stalled as error:
            raise Stalled(
                error.reason,
                f"spec.webIdentity.stsEndpoint: {error.message} (chart: "
                "operator.allowedStsEndpoints)",
            ) from error

    async def _reader(self, namespace: str, first: ArtifactStoreSpec, name: str) -> _Reader:
        """A store that is looked into besides; its own readFrom counts for nothing here."""
        value = self._find(namespace, name)
        if value is None:
            raise Waiting(
                Reason.READ_FROM_NOT_FOUND, f"spec.readFrom: there is no ArtifactStore {name}"
            )
        try:
            spec, keys = await self._spec(value)
        except Stalled as error:
            raise Stalled(error.reason, f"spec.readFrom: {name}: {error.message}") from error
        except Waiting as error:
            raise Waiting(error.reason, f"spec.readFrom: {name}: {error.message}") from error
        if keys is None and spec.service_account_name != first.service_account_name:
            raise Stalled(
                Reason.READ_FROM_NOT_READABLE,
                f"spec.readFrom: {name} is read by the service account "
                f"{spec.service_account_name}, and a pod has one: use that here too, or a Secret",
            )
        return _Reader(spec, keys)

    def _make(
        self,
        namespace: str,
        spec: ArtifactStoreSpec,
        keys: StoreCredentials | None,
        *,
        readers: Sequence[_Reader],
    ) -> OpenStore:
        where = self._place(namespace, spec)
        access = StoreAccess(
            address=str(replace(where, ca=None)),
            secret=spec.secret_ref.name if spec.secret_ref else "",
            service_account=spec.service_account_name or "",
            ca=spec.ca_bundle or "",
            web_identity=spec.web_identity,
            read_from=tuple(
                ReadAccess(
                    address=str(replace(self._place(namespace, reader.spec), ca=None)),
                    secret=reader.spec.secret_ref.name if reader.spec.secret_ref else "",
                    ca=reader.spec.ca_bundle or "",
                )
                for reader in readers
            ),
            source_hosts=self._settings.allowed_sources,
        )
        check_certificates(access)
        store: Store | None = None
        if keys is not None:
            others = [
                self._s3(self._place(namespace, reader.spec), reader.keys, read_only=True)
                for reader in readers
            ]
            first = self._s3(where, keys)
            store = LayeredStore(first, others) if others else first
        return OpenStore(spec, where, keys, store, access, self._timing)

    def _s3(
        self, where: StoreAddress, keys: StoreCredentials | None, *, read_only: bool = False
    ) -> Store:
        from genai_core.store.location import open_at
        from genai_core.store.s3.client import shared_session

        count_requests(shared_session())
        assert keys is not None  # _reader saw to it
        return open_at(where, credentials=keys, read_only=read_only, refuse=self.peers.refuse)

    def _place(self, namespace: str, spec: ArtifactStoreSpec) -> StoreAddress:
        return StoreAddress(
            bucket=spec.bucket,
            prefix="/".join(part for part in (spec.prefix.strip("/"), namespace) if part),
            endpoint=spec.endpoint,
            region=spec.region,
            ca=self._certificate(spec.ca_bundle),
            addressing="path" if spec.endpoint else "auto",
        )

    def _certificate(self, pem: str | None) -> str | None:
        """boto3 reads certificates from files only."""
        if not pem:
            return None
        file = self._certificates / f"{hashlib.sha256(pem.encode()).hexdigest()[:32]}.pem"
        if not file.exists():
            file.write_text(pem, encoding="utf-8")
        return str(file)
