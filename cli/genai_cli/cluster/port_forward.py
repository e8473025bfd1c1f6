"""A way from this machine to an S3 server that only pods can reach.

An endpoint like http://minio.storage.svc:9000 is a Service's name. Where this machine cannot
resolve it, a port of this machine is opened, to this machine alone, and every connection to it is
carried through the apiserver to a pod behind the Service, as `kubectl port-forward` does.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from genai_cli.cluster.api_errors import NotThere
from genai_cli.cluster.connection import Cluster, Json
from genai_core.errors import BadInput, GenAIError

__all__ = ["reachable", "service_of"]

_CHUNK = 256 << 10
_PORTS = {"http": 80, "https": 443}


@contextmanager
def reachable(cluster: Cluster, endpoint: str | None, namespace: str) -> Iterator[str | None]:
    """The endpoint as this machine reaches it, as long as the context lasts.

    Args:
        cluster: Whose Services count.
        endpoint: URL; None = AWS.
        namespace: Of the store: a name without a namespace is a Service there.

    Raises:
        BadInput: It is a Service, and no pod of it can be reached.
    """
    place = service_of(endpoint, namespace) if endpoint else None
    if endpoint is None or place is None or _resolves(endpoint):
        yield endpoint
        return
    parts = urlsplit(endpoint)
    host = str(parts.hostname)
    pod, port = _pod_behind(cluster, place, parts.port or _PORTS.get(parts.scheme, 80))
    with (
        _listening(lambda: cluster.forward(pod, port, namespace=place[0])) as local,
        _standing_for(host),
    ):
        yield f"{parts.scheme}://{host}:{local}"


def service_of(endpoint: str, namespace: str) -> tuple[str, str] | None:
    """Namespace and name of the Service that an endpoint can stand for; None: it is none."""
    host = urlsplit(endpoint).hostname or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return None
    parts = host.removesuffix(".").removesuffix(".cluster.local").split(".")
    if parts[-1] == "svc" and len(parts) == 3:
        parts.pop()
    if len(parts) > 2 or not parts[0] or parts[0] == "localhost":
        return None
    return (parts[1] if len(parts) == 2 else namespace, parts[0])


def _resolves(endpoint: str) -> bool:
    try:
        return bool(socket.getaddrinfo(urlsplit(endpoint).hostname, None))
    except OSError:
        return False


@contextmanager
def _standing_for(host: str) -> Iterator[None]:
    """Let a name mean this machine, for this process: certificates are checked against names."""
    resolve = socket.getaddrinfo

    def here(name: Any, *rest: Any, **more: Any) -> Any:
        return resolve("127.0.0.1" if name == host else name, *rest, **more)

    socket.getaddrinfo = here  # type: ignore[assignment]
    try:
        yield
    finally:
        socket.getaddrinfo = resolve


def _pod_behind(cluster: Cluster, place: tuple[str, str], port: int) -> tuple[str, int]:
    """A ready pod of a Service, and its port."""
    namespace, name = place
    where = f"Service {namespace}/{name}"
    remedy = "give an address that this machine reaches with --endpoint"
    try:
        service = cluster.get("services", name, namespace=namespace)
    except NotThere as error:
        raise BadInput(
            "this machine cannot resolve the store's endpoint, and there is no such Service",
            where=where,
            remedy=remedy,
        ) from error
    wanted = next((p for p in service["spec"].get("ports") or () if p["port"] == port), None)
    selector: Mapping[str, str] = service["spec"].get("selector") or {}
    if wanted is None or not selector:
        lacks = "no pods of its own" if wanted is not None else f"no port {port}"
        raise BadInput(f"it has {lacks}", where=where, remedy=remedy)
    labels = ",".join(f"{key}={value}" for key, value in sorted(selector.items()))
    for pod in cluster.list("pods", namespace=namespace, labels=labels):
        if _is_ready(pod):
            return pod["metadata"]["name"], _port(pod, wanted.get("targetPort", port))
    raise GenAIError("none of its pods is ready", where=where, remedy="try again")


def _is_ready(pod: Json) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _port(pod: Json, target: int | str) -> int:
    """A port by number, or by the name that a container gives it."""
    if isinstance(target, int) or target.isdigit():
        return int(target)
    for container in pod["spec"]["containers"]:
        for port in container.get("ports") or ():
            if port.get("name") == target:
                return int(port["containerPort"])
    raise BadInput(
        f"its pods have no port named {target}",
        where=f"pod {pod['metadata']['name']}",
        remedy="correct the Service, or give --endpoint",
    )


@contextmanager
def _listening(opened: Callable[[], Any]) -> Iterator[int]:
    """Carry every connection to a port of this machine into one that `opened` makes.

    Yields:
        The port.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        threading.Thread(target=_accept, args=(server, opened), daemon=True).start()
        yield int(server.getsockname()[1])


def _accept(server: socket.socket, opened: Callable[[], Any]) -> None:
    with contextlib.suppress(OSError):  # closed: whoever needed it has ended
        while True:
            near, _ = server.accept()
            threading.Thread(target=_carry, args=(near, opened), daemon=True).start()


def _carry(near: socket.socket, opened: Callable[[], Any]) -> None:
    try:
        far = opened()
    except GenAIError:
        near.close()  # whoever connected sees a broken connection and says so
        return
    back = threading.Thread(target=_copy, args=(far, near), daemon=True)
    back.start()
    _copy(near, far)
    back.join()


def _copy(source: Any, target: Any) -> None:
    """Bytes from one to the other until one of them ends; then both are at their end."""
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
