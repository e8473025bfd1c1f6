"""What the environment says; README.md lists the variables."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

__all__ = ["SecretLabel", "Settings", "read_settings"]

_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class SecretLabel(StrEnum):
    """What becomes of a Secret without the label."""

    REQUIRE = "Require"
    WARN = "Warn"


@dataclass(frozen=True)
class Settings:
    """See README.md."""

    namespaces: tuple[str, ...] = ()
    operator_namespace: str = "default"
    identity: str = "genai-operator"
    lease: bool = True
    lease_seconds: float = 15.0
    http_port: int = 8080
    workers: int = 4
    chain_tasks: int = 8
    compare_seconds: float = 30.0
    allowed_endpoints: tuple[str, ...] = ("*",)
    allowed_sources: tuple[str, ...] = ("*",)
    secret_label: SecretLabel = SecretLabel.REQUIRE
    allowed_audiences: tuple[str, ...] = ("sts.amazonaws.com",)
    allowed_sts_endpoints: tuple[str, ...] = ()
    allowed_priority_classes: tuple[str, ...] = ("*",)
    allowed_tolerations: tuple[str, ...] = ("*",)
    allowed_service_accounts: tuple[str, ...] = ("*",)
    own_audiences: frozenset[str] = frozenset()
    """Whom our own token is for: the apiserver. Read from it, not from the environment."""
    cluster_name: str = "cluster"
    collect_hours: float = 24.0
    log_level: str = "INFO"


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read GENAI_* variables.

    Raises:
        ValueError: A number that is none, or an unknown word.
    """
    namespace = environment.get("GENAI_OPERATOR_NAMESPACE", "")
    if not namespace:
        namespace = _OWN_NAMESPACE.read_text().strip() if _OWN_NAMESPACE.exists() else "default"
    return Settings(
        namespaces=_listed(environment.get("GENAI_NAMESPACES", "")),
        operator_namespace=namespace,
        identity=environment.get("GENAI_IDENTITY", "") or f"{socket.gethostname()}-{os.getpid()}",
        lease=environment.get("GENAI_LEASE", "true").lower() not in {"false", "0", "no"},
        lease_seconds=float(environment.get("GENAI_LEASE_SECONDS", "15")),
        http_port=int(environment.get("GENAI_HTTP_PORT", "8080")),
        compare_seconds=float(environment.get("GENAI_COMPARE_SECONDS", "30")),
        workers=int(environment.get("GENAI_WORKERS", "4")),
        chain_tasks=int(environment.get("GENAI_CHAIN_TASKS", "8")),
        allowed_endpoints=_listed(environment.get("GENAI_ALLOWED_ENDPOINTS", "")) or ("*",),
        allowed_sources=_listed(environment.get("GENAI_ALLOWED_SOURCES", "")) or ("*",),
        secret_label=SecretLabel(environment.get("GENAI_SECRET_LABEL", "Require")),
        allowed_audiences=_given("GENAI_ALLOWED_AUDIENCES", environment, ("sts.amazonaws.com",)),
        allowed_sts_endpoints=_given("GENAI_ALLOWED_STS_ENDPOINTS", environment, ()),
        allowed_priority_classes=_given("GENAI_ALLOWED_PRIORITY_CLASSES", environment, ("*",)),
        allowed_tolerations=_given("GENAI_ALLOWED_TOLERATIONS", environment, ("*",)),
        allowed_service_accounts=_given("GENAI_ALLOWED_SERVICE_ACCOUNTS", environment, ("*",)),
        cluster_name=environment.get("GENAI_CLUSTER_NAME", "") or "cluster",
        collect_hours=float(environment.get("GENAI_COLLECT_HOURS", "24")),
        log_level=environment.get("GENAI_LOG_LEVEL", "INFO"),
    )


def _given(name: str, environment: Mapping[str, str], default: tuple[str, ...]) -> tuple[str, ...]:
    """A list of patterns; set and empty it allows nothing."""
    text = environment.get(name)
    return default if text is None else _listed(text)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
