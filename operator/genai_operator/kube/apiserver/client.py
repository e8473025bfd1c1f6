"""A client of the apiserver, as small as the operator needs it (aiohttp).

The official client brings most of an operator's memory with it; we read a handful of kinds and
write even fewer. Every call has a time limit. Answers are plain JSON values.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Self, TypedDict, TypeVar, Unpack

import aiohttp

from genai_core.files.deep_json import read_json
from genai_core.wire import STAGE_CONTAINER
from genai_operator.kube.apiserver.api import MANAGER, ApiError, NotLeading
from genai_operator.kube.apiserver.connection import Connection
from genai_operator.kube.apiserver.resources import RESOURCES
from genai_operator.kube.apiserver.session import lean_session
from genai_operator.kube.values import Json
from genai_operator.metrics import API_REQUESTS, API_SECONDS
from genai_operator.timing import SYSTEM, Timing

__all__ = ["ApiClient"]

T = TypeVar("T")

_PIECE = 64 << 10
_LISTING_SECONDS = 300.0
_MOST_BYTES = (16 << 20) + 4096
"""Of an answer that is no listing; the apiserver takes no object of more than three."""
_JSON = "application/json"
_METADATA = f"{_JSON};as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"


class _How(TypedDict, total=False):
    """A request beside verb and path."""

    body: Json
    query: Mapping[str, str]
    media: str
    accept: str
    seconds: float


class ApiClient:
    """See the module's docstring; use as an async context.

    Args:
        to: Where it is.
        seconds: How long a call may take.
        may_write: Asked before anything but a Lease is written: a process that was frozen in the
            middle of its work must not go on with it when another one has long taken over.
        timing: The clocks.
    """

    def __init__(
        self,
        to: Connection,
        *,
        seconds: float = 30.0,
        may_write: Callable[[], bool] = lambda: True,
        timing: Timing = SYSTEM,
    ) -> None:
        self._to = to
        self.may_write = may_write
        self._seconds = seconds
        self._timing = timing
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = lean_session(
            self._to,
            limit=32,
            timing=self._timing,
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
        answer = await self._call("GET", RESOURCES["genaibuilds"].path)
        return {str(entry["name"]) for entry in answer.get("resources") or ()}

    async def read(self, plural: str, pod: str, *, namespace: str, most_bytes: int) -> str | None:
        """What a pod's container wrote (`pods/log`); None where the pod is gone."""
        kind, _, part = plural.partition("/")
        path = f"{_path(kind, pod, namespace)}/{part}"
        query = {"container": STAGE_CONTAINER, "limitBytes": str(most_bytes)}
        try:
            return await self._send("GET", path, _text, query=query)
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
        about: str = "",
        most: int = 0,
        fresh: bool = False,
        names_only: bool = False,
    ) -> tuple[list[Json], int]:
        """All objects, projected, and the version of the whole listing; one by its name is whole.

        Args:
            plural: Of the kind.
            namespace: Empty = all.
            name: Only the one of that name.
            labels: Selector.
            about: Of events: only those about the object with that UID.
            most: So many at most; 0: all.
            fresh: Ask etcd, not the apiserver's cache.
            names_only: Their metadata alone.
        """
        query: dict[str, str] = {} if fresh else {"resourceVersion": "0"}
        if name:
            query["fieldSelector"] = f"metadata.name={name}"
        if about:
            query["fieldSelector"] = f"involvedObject.uid={about}"
        if most:
            query["limit"] = str(most)
            query.pop("resourceVersion", None)  # from its cache the apiserver gives all
        if labels:
            query["labelSelector"] = labels
        accept = _METADATA if names_only else _JSON
        place = _path(plural, "", namespace)
        # Others' objects may be hundreds of MB, and our share of a processor small.
        answer = await self._send(
            "GET", place, _json, query=query, accept=accept, seconds=_LISTING_SECONDS
        )
        return answer["items"], int(answer["metadata"].get("resourceVersion") or 0)

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

    async def apply(self, plural: str, value: Json, *, namespace: str) -> Json:
        """Server-side apply of an object of ours; it is created where it is not there."""
        self._guard(plural)
        return await self._call(
            "PATCH",
            _path(plural, value["metadata"]["name"], namespace),
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
        value: Json = read_json(await self._send(verb, path, _text, **how))
        return value

    async def _send(
        self,
        verb: str,
        path: str,
        read: Callable[[aiohttp.ClientResponse], Awaitable[T]],
        **how: Unpack[_How],
    ) -> T:
        body = how.get("body")
        assert self._session is not None
        headers = {
            "Content-Type": how.get("media", _JSON),
            "Accept": how.get("accept", _JSON),
            "User-Agent": MANAGER,
        }
        for _ in range(5):
            began = self._timing.monotonic()
            async with self._session.request(
                verb,
                self._to.server + path,
                params=how.get("query"),
                data=None if body is None else json.dumps(body).encode(),
                headers=headers,
                timeout=aiohttp.ClientTimeout(
                    total=how.get("seconds", self._seconds), connect=10, sock_read=self._seconds
                ),
            ) as answer:
                API_REQUESTS.labels(verb=verb, code=str(answer.status)).inc()
                API_SECONDS.labels(verb=verb).observe(self._timing.monotonic() - began)
                if answer.status == 429:
                    pause = answer.headers.get("Retry-After", "1")
                    await self._timing.sleep(min(float(pause) if pause.isdecimal() else 1.0, 10.0))
                    continue
                if answer.status < 400:
                    return await read(answer)
                raise _refusal(answer.status, await _text(answer))
        raise ApiError(429, "TooManyRequests", path)


async def _json(answer: aiohttp.ClientResponse) -> Json:
    listing: Json = await answer.json()
    return listing


async def _text(answer: aiohttp.ClientResponse) -> str:
    text = bytearray()
    async for piece in answer.content.iter_chunked(_PIECE):
        text += piece
        if len(text) > _MOST_BYTES:
            raise ApiError(answer.status, "TooLarge", f"{answer.url.path} answers without end")
    return text.decode("utf-8", "replace")


def _path(plural: str, name: str, namespace: str) -> str:
    place = f"/namespaces/{namespace}" if namespace else ""
    return f"{RESOURCES[plural].path}{place}/{plural}" + (f"/{name}" if name else "")


def _refusal(code: int, text: str) -> ApiError:
    try:
        status = json.loads(text)
        reason, message = str(status.get("reason", "")), str(status.get("message", ""))
        causes = (status.get("details") or {}).get("causes") or ()
        fields = tuple(str(cause["field"]) for cause in causes if cause.get("field"))
    except (ValueError, AttributeError, TypeError):
        return ApiError(code, "", text[:200])
    return ApiError(code, reason, message, fields=fields)
