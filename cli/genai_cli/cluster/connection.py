"""The apiserver as the commands use it: plain JSON values over the kubernetes client's connection.

The client library reads kubeconfigs, runs credential plugins, renews tokens and makes the TLS
context; its models of every kind of Kubernetes are not used, so a kind costs one line here. It is
imported when a command needs it and not before: that alone takes half a second.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlencode

from genai_cli.cluster.api_errors import (
    ClusterUnavailable,
    NoCluster,
    NotAllowed,
    NotThere,
    refusal,
)
from genai_core.files.deep_json import read_json
from genai_core.files.home import expanded
from genai_core.kinds.base import API_VERSION

__all__ = ["FIELD_MANAGER", "Access", "Cluster", "Json", "connect"]

Json: TypeAlias = dict[str, Any]

FIELD_MANAGER = "genai-cli"

_OURS = f"/apis/{API_VERSION}"
_KINDS = {
    "genaibuilds": _OURS,
    "genaideployments": _OURS,
    "genaitargets": _OURS,
    "artifactstores": _OURS,
    "jobs": "/apis/batch/v1",
    "pods": "/api/v1",
    "secrets": "/api/v1",
    "services": "/api/v1",
    "nodes": "/api/v1",
    "namespaces": "/api/v1",
}
_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_SECONDS = (5.0, 30.0)
"""To connect, to answer."""


@dataclass(frozen=True)
class Access:
    """Which cluster, and where in it, as options say.

    Attributes:
        kubeconfig: A file; None = KUBECONFIG, else ~/.kube/config, else the pod's own account.
        context: Of the kubeconfig; None = its current one.
        namespace: None = the context's, else `default`.
    """

    kubeconfig: Path | None = None
    context: str | None = None
    namespace: str | None = None


def connect(access: Access) -> Cluster:
    """Read the configuration; nothing is sent yet.

    Raises:
        NoCluster: There is none, or it cannot be used.
    """
    from kubernetes import client
    from kubernetes import config as untyped
    from kubernetes.config.config_exception import ConfigException
    from yaml import YAMLError

    config: Any = untyped
    given = access.kubeconfig or os.environ.get("KUBECONFIG")
    path = str(given or expanded("~/.kube/config"))
    if access.kubeconfig is not None and not access.kubeconfig.is_file():
        raise NoCluster("there is no such file", where=path, remedy="correct --kubeconfig")
    settings = client.Configuration()
    try:
        if _in_a_pod(path) and not given and access.context is None:
            config.load_incluster_config(client_configuration=settings)
            namespace = _POD_NAMESPACE.read_text(encoding="utf-8").strip()
            return Cluster(settings, name="in-cluster", namespace=access.namespace or namespace)
        contexts, current = config.list_kube_config_contexts(config_file=path)
        names = [entry["name"] for entry in contexts]
        if access.context is not None and access.context not in names:
            raise NoCluster(
                "there is no such context",
                where=f"--context {access.context}",
                remedy=f"use {', '.join(sorted(names)[:8]) or 'a kubeconfig that has one'}",
            )
        config.load_kube_config(path, context=access.context, client_configuration=settings)
    except ConfigException as error:
        raise _unconfigured(path, str(error), given=bool(given)) from error
    except (YAMLError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise NoCluster(
            f"it cannot be read: {' '.join(str(error).split())[:200]}",
            where=path,
            remedy="correct the kubeconfig, or name another one with --kubeconfig",
        ) from error
    name = access.context or current["name"]
    used = next(entry for entry in contexts if entry["name"] == name)["context"]
    return Cluster(
        settings, name=name, namespace=access.namespace or used.get("namespace") or "default"
    )


def _in_a_pod(path: str) -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ and not Path(path).is_file()


def _unconfigured(path: str, why: str, *, given: bool) -> NoCluster:
    if "Invalid kube-config file. No configuration found" in why or not any(
        Path(part).is_file() for part in path.split(os.pathsep)
    ):
        return NoCluster(
            "there is no kubeconfig",
            where=path,
            remedy="correct KUBECONFIG" if given else "set KUBECONFIG, or give --kubeconfig",
        )
    return NoCluster(
        " ".join(why.split())[:300],
        where=path,
        remedy="choose a context with --context, or correct the kubeconfig",
    )


class Cluster:
    """See the module's docstring; safe for several threads.

    Attributes:
        name: Of the context.
        namespace: That commands mean unless they name another one.
    """

    def __init__(self, settings: Any, *, name: str, namespace: str) -> None:
        self._settings = settings
        self.name = name
        self.namespace = namespace

    @property
    def server(self) -> str:
        """The apiserver's URL."""
        return str(self._settings.host).rstrip("/")

    @cached_property
    def _client(self) -> Any:
        from kubernetes import client

        return client.ApiClient(self._settings)

    def get(self, plural: str, name: str, *, namespace: str = "") -> Json:
        """One object.

        Raises:
            NotThere: There is none.
        """
        return self._json("GET", _path(plural, name, namespace))

    def find(self, plural: str, name: str, *, namespace: str = "") -> Json | None:
        """One object; None where there is none, or the user may not look."""
        try:
            return self.get(plural, name, namespace=namespace)
        except (NotThere, NotAllowed):
            return None

    def list(self, plural: str, *, namespace: str = "", labels: str = "") -> list[Json]:
        """All objects; of all namespaces where none is given. From the apiserver's own memory."""
        query = {"resourceVersion": "0"} | ({"labelSelector": labels} if labels else {})
        found = self._json("GET", _path(plural, "", namespace), query=query)
        return found.get("items") or []

    def apply(self, plural: str, body: Json, *, namespace: str, force: bool = False) -> Json:
        """Server-side apply in the name of the command line.

        Raises:
            Refused: The spec is wrong, or another tool owns what would be changed.
        """
        return self._json(
            "PATCH",
            _path(plural, body["metadata"]["name"], namespace),
            query={"fieldManager": FIELD_MANAGER, "force": str(force).lower()},
            body=json.dumps(body).encode(),
            media="application/apply-patch+yaml",
        )

    def log(
        self, pod: str, *, namespace: str, follow: bool = False, since: datetime | None = None
    ) -> Iterator[str]:
        """The lines of a pod's log; with `follow` until its container ends."""
        query = {"follow": str(follow).lower()}
        if since is not None:
            query["sinceTime"] = since.isoformat(timespec="seconds")
        path = f"{_path('pods', pod, namespace)}/log?{urlencode(query)}"
        with self._answer("GET", path, seconds=None if follow else _SECONDS[1]) as answer:
            rest = b""
            for data in answer.stream(65536, decode_content=True):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    yield line.decode(errors="replace")
            if rest:
                yield rest.decode(errors="replace")

    def forward(self, pod: str, port: int, *, namespace: str) -> Any:
        """A socket that ends at a port of a pod.

        Raises:
            NotAllowed: The user lacks `create` on `pods/portforward`.
        """
        from kubernetes import client
        from kubernetes.client.exceptions import ApiException
        from kubernetes.stream import portforward

        # stream.portforward swaps a method of its client: never that of the shared one.
        core = client.CoreV1Api(client.ApiClient(self._settings))
        try:
            opened = portforward(
                core.connect_get_namespaced_pod_portforward, pod, namespace, ports=str(port)
            )
        except ApiException as error:
            found = re.search(r"Handshake status (\d+)", str(error.reason))
            status = int(found[1]) if found else int(error.status or 500)
            path = f"{_path('pods', pod, namespace)}/portforward"
            raise refusal(
                status, str(error.reason).encode(), path=path, server=self.server
            ) from error
        return opened.socket(port)

    def _json(
        self,
        verb: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        media: str = "application/json",
    ) -> Json:
        whole = f"{path}?{urlencode(query)}" if query else path
        with self._answer(verb, whole, body=body, media=media) as answer:
            try:
                found: Json = read_json(answer.read(decode_content=True))
            except ValueError as error:
                raise NoCluster(
                    "it answers, but not as an apiserver does",
                    where=self.server,
                    remedy="correct the server in the kubeconfig, or log in to what is before it",
                ) from error
            return found

    @contextmanager
    def _answer(
        self,
        verb: str,
        path: str,
        *,
        body: bytes | None = None,
        media: str = "application/json",
        seconds: float | None = _SECONDS[1],
    ) -> Iterator[Any]:
        from urllib3 import Timeout
        from urllib3.exceptions import HTTPError

        headers = {"Content-Type": media, "Accept": "application/json, */*", "User-Agent": "genai"}
        for entry in self._client.configuration.auth_settings().values():
            headers[entry["key"]] = entry["value"]
        try:
            answer = self._client.rest_client.pool_manager.request(
                verb,
                self.server + path,
                body=body,
                headers=headers,
                timeout=Timeout(connect=_SECONDS[0], read=seconds),
                preload_content=False,
                retries=2 if verb == "GET" else False,
            )
            try:
                if answer.status >= 400:
                    raise refusal(answer.status, answer.read(), path=path, server=self.server)
                yield answer
            finally:
                answer.release_conn() if answer.isclosed() else answer.close()
        except HTTPError as error:
            raise ClusterUnavailable(
                f"it does not answer: {_why(error)}",
                where=f"{self.server} (context {self.name})",
                remedy="is the cluster up, and is this the right context?",
            ) from error


def _why(error: Exception) -> str:
    """The innermost cause, without the objects' names that urllib3 puts before it."""
    cause = getattr(error, "reason", None) or error
    text = re.sub(r"^(<[^>]*>|\w+\([^)]*\)): ", "", " ".join(str(cause).split()))
    return text[:200]


def _path(plural: str, name: str, namespace: str) -> str:
    place = f"/namespaces/{namespace}" if namespace else ""
    return f"{_KINDS[plural]}{place}/{plural}" + (f"/{name}" if name else "")
