"""How the apiserver is reached: from a pod, or with a kubeconfig."""

from __future__ import annotations

import base64
import json
import os
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from genai_operator.kube.values import Json

__all__ = ["Connection", "audiences", "connection"]


_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


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


def audiences(to: Connection) -> frozenset[str]:
    """Whom our own token is for, as it says itself; nothing where it is no JWT."""
    token = to.token_file.read_text(encoding="utf-8") if to.token_file else to.token
    try:
        body = token.split(".")[1]
        found = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))["aud"]
    except (IndexError, KeyError, TypeError, ValueError):
        return frozenset()
    return frozenset([found] if isinstance(found, str) else map(str, found))


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
