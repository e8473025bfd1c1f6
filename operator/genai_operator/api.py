"""A client of the apiserver, as small as the operator needs it (aiohttp).

The official client brings most of an operator's memory with it; we read a handful of kinds and
write even fewer. Every call has a time limit. Answers are plain JSON values.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias, TypedDict, Unpack

import aiohttp
import yaml

from genai_operator.metrics import API_REQUESTS, API_SECONDS

__all__ = ["MANAGER", "Api", "ApiError", "Connection", "Json", "NotLeading", "connection"]

Json: TypeAlias = dict[str, Any]

MANAGER = "genai-operator"
"""Our field manager."""

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TOKEN_SECONDS = 60.0
_JSON = "application/json"
_METADATA = f"{_JSON};as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
_PLURALS = {
    "genaibuilds": "/apis/genai-operator.dev/v1alpha1",
    "genaitargets": "/apis/genai-operator.dev/v1alpha1",
    "artifactstores": "/apis/genai-operator.dev/v1alpha1",
    "jobs": "/apis/batch/v1",
    "pods": "/api/v1",
    "secrets": "/api/v1",
    "nodes": "/api/v1",
    "events": "/api/v1",
    "leases": "/apis/coordination.k8s.io/v1",
}


class ApiError(Exception):
    """The apiserver refused.

    Attributes:
        code: HTTP status.
        reason: Its word for it, e.g. `AlreadyExists`.
        fields: Of the object, that it finds wrong. A policy that denies names none.
    """

    def __init__(
        self, code: int, reason: str, message: str, *, fields: tuple[str, ...] = ()
    ) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.fields = fields


class NotLeading(ApiError):
    """Another replica works; this one must not write."""

    def __init__(self) -> None:
        super().__init__(0, "NotLeading", "another replica works by now")


@dataclass(frozen=True)
class Connection:
    """How the apiserver is reached.

    Attributes:
        tls: With the CA and, if any, the client's certificate.
        token_file: Read again now and then: tokens of pods rotate.
    """

    server: str
    tls: ssl.SSLContext
    token: str = ""
    token_file: Path | None = None


def connection() -> Connection:
    """The pod's own service account, else what KUBECONFIG says.

    Raises:
        FileNotFoundError: Neither is there.
    """
    host = os.environ.get("KUBERNETES_SERVICE_HOST")
    if host and not os.environ.get("KUBECONFIG"):
        port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        where = f"[{host}]" if ":" in host else host
        tls = ssl.create_default_context(cafile=str(_ACCOUNT / "ca.crt"))
        return Connection(f"https://{where}:{port}", tls, token_file=_ACCOUNT / "token")
    path = Path(os.environ.get("KUBECONFIG") or Path("~/.kube/config").expanduser())
    return _of_kubeconfig(yaml.safe_load(path.read_text(encoding="utf-8")), path.parent)


def _of_kubeconfig(config: Json, folder: Path) -> Connection:
    context = _named(config["contexts"], config["current-context"])["context"]
    cluster = _named(config["clusters"], context["cluster"])["cluster"]
    user = _named(config["users"], context["user"])["user"]
    authority = _pem(cluster, "certificate-authority", folder)
    tls = ssl.create_default_context(cadata=authority.decode() if authority else None)
    certificate = _pem(user, "client-certificate", folder)
    key = _pem(user, "client-key", folder)
    if certificate and key:
        with tempfile.NamedTemporaryFile() as pair:  # ssl reads files only
            pair.write(certificate + b"\n" + key)
            pair.flush()
            tls.load_cert_chain(pair.name)
    token_file = user.get("tokenFile")
    return Connection(
        cluster["server"].rstrip("/"),
        tls,
        token=user.get("token", ""),
        token_file=Path(token_file) if token_file else None,
    )


def _named(entries: list[Json], name: str) -> Json:
    return next(entry for entry in entries if entry["name"] == name)


def _pem(entry: Json, name: str, folder: Path) -> bytes:
    if data := entry.get(f"{name}-data"):
        return base64.b64decode(data)
    return (folder / entry[name]).read_bytes() if name in entry else b""


class _How(TypedDict, total=False):
    """A request beside verb and path."""

    body: Json
    query: Mapping[str, str]
    media: str
    accept: str


class Api:
    """See the module's docstring; use as an async context.

    Args:
        to: Where it is.
        seconds: How long a call may take.
        may_write: Asked before anything but a Lease is written: a process that was frozen in the
            middle of its work must not go on with it when another one has long taken over.
    """

    def __init__(
        self,
        to: Connection,
        *,
        seconds: float = 30.0,
        may_write: Callable[[], bool] = lambda: True,
    ) -> None:
        self._to = to
        self.may_write = may_write
        self._token = to.token
        self._token_read = float("-inf")
        self._seconds = seconds
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._to.tls, limit=32),
            timeout=aiohttp.ClientTimeout(total=self._seconds, connect=10),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    @property
    def server(self) -> str:
        """The apiserver's address."""
        return self._to.server

    async def get(self, plural: str, name: str, *, namespace: str = "") -> Json | None:
        """One object; None where there is none."""
        try:
            return await self._call("GET", _path(plural, name, namespace))
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    async def served(self) -> set[str]:
        """Resources of our own group that the apiserver serves, e.g. `genaibuilds/status`."""
        answer = await self._call("GET", _PLURALS["genaibuilds"])
        return {str(entry["name"]) for entry in answer.get("resources") or ()}

    async def read(self, plural: str, pod: str, *, namespace: str, most_bytes: int) -> str | None:
        """What a pod's container wrote (`pods/log`); None where the pod is gone."""
        kind, _, part = plural.partition("/")
        path = f"{_path(kind, pod, namespace)}/{part}"
        query = {"container": "stage", "limitBytes": str(most_bytes)}
        try:
            return await self._text("GET", path, query=query)
        except ApiError as error:
            if error.code in {400, 404}:  # not started, or gone
                return None
            raise

    async def list(
        self,
        plural: str,
        *,
        namespace: str = "",
        name: str = "",
        labels: str = "",
        fresh: bool = False,
        names_only: bool = False,
    ) -> tuple[list[Json], int]:
        """All objects, and the version of the whole listing.

        Args:
            plural: Of the kind.
            namespace: Empty = all.
            name: Only the one of that name.
            labels: Selector.
            fresh: Ask etcd, not the apiserver's cache.
            names_only: Their metadata alone.
        """
        query: dict[str, str] = {} if fresh else {"resourceVersion": "0"}
        if name:
            query["fieldSelector"] = f"metadata.name={name}"
        if labels:
            query["labelSelector"] = labels
        accept = _METADATA if names_only else _JSON
        answer = await self._call("GET", _path(plural, "", namespace), query=query, accept=accept)
        return answer.get("items") or [], int(answer["metadata"].get("resourceVersion") or 0)

    async def create(self, plural: str, value: Json, *, namespace: str) -> Json:
        """Create.

        Raises:
            ApiError: Among others 409, it is there already.
        """
        self._guard(plural)
        query = {"fieldManager": MANAGER}
        return await self._call("POST", _path(plural, "", namespace), body=value, query=query)

    async def replace(self, plural: str, value: Json, *, namespace: str) -> Json:
        """Update; refused with 409 where the object changed since it was read."""
        name = value["metadata"]["name"]
        query = {"fieldManager": MANAGER}
        return await self._call("PUT", _path(plural, name, namespace), body=value, query=query)

    async def apply_status(self, plural: str, value: Json, *, namespace: str = "") -> Json:
        """Server-side apply of a status: what we no longer say is removed."""
        self._guard(plural)
        path = f"{_path(plural, value['metadata']['name'], namespace)}/status"
        return await self._call(
            "PATCH",
            path,
            body=value,
            query={"fieldManager": MANAGER, "force": "true"},
            media="application/apply-patch+yaml",
        )

    async def merge_lists(self, plural: str, name: str, value: Json, *, namespace: str) -> Json:
        """Strategic merge: entries of lists are added or dropped by their keys."""
        self._guard(plural)
        return await self._call(
            "PATCH",
            _path(plural, name, namespace),
            body=value,
            query={"fieldManager": MANAGER},
            media="application/strategic-merge-patch+json",
        )

    async def delete(
        self, plural: str, name: str, *, namespace: str, uid: str, grace: int | None = None
    ) -> bool:
        """Delete exactly that object, its children in the background; False where it is gone."""
        self._guard(plural)
        options: Json = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        try:
            await self._call("DELETE", _path(plural, name, namespace), body=options)
        except ApiError as error:
            if error.code in {404, 409}:
                return False
            raise
        return True

    def _guard(self, plural: str) -> None:
        if plural != "leases" and not self.may_write():
            raise NotLeading

    async def _call(self, verb: str, path: str, **how: Unpack[_How]) -> Json:
        found: Json = json.loads(await self._text(verb, path, **how))
        return found

    async def _text(self, verb: str, path: str, **how: Unpack[_How]) -> str:
        body = how.get("body")
        assert self._session is not None
        headers = {
            "Content-Type": how.get("media", _JSON),
            "Accept": how.get("accept", _JSON),
            "User-Agent": MANAGER,
        }
        if token := self._current_token():
            headers["Authorization"] = f"Bearer {token}"
        for _ in range(5):
            began = time.monotonic()
            async with self._session.request(
                verb,
                self._to.server + path,
                params=how.get("query"),
                data=None if body is None else json.dumps(body).encode(),
                headers=headers,
            ) as answer:
                API_REQUESTS.labels(verb=verb, code=str(answer.status)).inc()
                API_SECONDS.labels(verb=verb).observe(time.monotonic() - began)
                if answer.status == 429:
                    pause = answer.headers.get("Retry-After", "1")
                    await asyncio.sleep(min(float(pause) if pause.isdecimal() else 1.0, 10.0))
                    continue
                text = await answer.text()
                if answer.status < 400:
                    return text
                raise _refusal(answer.status, text)
        raise ApiError(429, "TooManyRequests", path)

    def _current_token(self) -> str:
        file = self._to.token_file
        if file is not None and time.monotonic() - self._token_read > _TOKEN_SECONDS:
            self._token = file.read_text(encoding="utf-8").strip()
            self._token_read = time.monotonic()
        return self._token


def _path(plural: str, name: str, namespace: str) -> str:
    place = f"/namespaces/{namespace}" if namespace else ""
    return f"{_PLURALS[plural]}{place}/{plural}" + (f"/{name}" if name else "")


def _refusal(code: int, text: str) -> ApiError:
    try:
        status = json.loads(text)
        reason, message = str(status.get("reason", "")), str(status.get("message", ""))
        causes = (status.get("details") or {}).get("causes") or ()
        fields = tuple(str(cause["field"]) for cause in causes if cause.get("field"))
    except (ValueError, AttributeError, TypeError):
        return ApiError(code, "", text[:200])
    return ApiError(code, reason, message, fields=fields)
