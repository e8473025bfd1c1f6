"""The server's command line in a pod, and the folders that it names. Pure."""

from __future__ import annotations

import json
import math

from genai_core.kinds.base import Resources
from genai_core.kinds.deployment import GoldenTokens, SpeculationMethod, SpeculationRef
from genai_core.quantity import amount
from genai_operator.deployments.admin_objects import ADMIN_PORT, DECLARED_FILE
from genai_operator.deployments.rendering.served_revision import Served

PORT = 8000
MIB = 1 << 20
ARTIFACT_FOLDER = "/artifact"
CACHE_FOLDER = "/cache"
CONTAINER_FOLDER = f"{ARTIFACT_FOLDER}/container"
FETCH_SOCKET = f"{ARTIFACT_FOLDER}/fetch.sock"
KEYS_FOLDER = "/keys"
TLS_FOLDER = "/tls"
TOKENS_FOLDER = "/admin"
DECLARED_FOLDER = "/declared"
METHODS = {
    SpeculationMethod.DRAFT_MODEL: "draft_model",
    SpeculationMethod.EAGLE: "eagle",
    SpeculationMethod.NGRAM: "ngram",
    SpeculationMethod.LOOKAHEAD: "lookahead",
    SpeculationMethod.SSD: "ssd",
}
"""What servers call them."""
_DRAIN_DELAY = 5
"""Seconds that a pod goes on answering after SIGTERM: until every node knows that it goes."""
_MARGIN = 5
"""Seconds of the grace period in which the process itself ends."""


def server_arguments(served: Served) -> list[str]:
    """The arguments of the server's container, defaults left to the server."""
    spec, server = served.spec, served.spec.server
    drain = max(1, spec.pods.drain_seconds - _DRAIN_DELAY - _MARGIN)
    delay = min(_DRAIN_DELAY, max(0, spec.pods.drain_seconds - 1 - drain))
    options: dict[str, object] = {
        "cache": CACHE_FOLDER,
        "host": "0.0.0.0",  # noqa: S104 - of the pod
        "port": PORT,
        "revision": served.revision,
        "model-name": server.model_name or served.name,
        "max-concurrency": server.max_concurrency,
        "context-length": server.context_length,
        "threads": server.threads or _cores(spec.resources),
        "kv-cache-mib": server.kv_cache_mi_b,
        "prefix-cache-mib": server.prefix_cache_mi_b,
        "max-adapter-rank": server.max_adapter_rank,
        "adapter-cache-mib": server.adapter_cache_mi_b,
        "drain-seconds": drain,
        "drain-delay-seconds": delay,
        "speculation": _speculation(spec.speculation),
        "api-keys-folder": KEYS_FOLDER if spec.expose.api_key_secret_ref is not None else None,
        "tls-folder": TLS_FOLDER if spec.expose.tls_secret_ref is not None else None,
        "admin-port": ADMIN_PORT,
        "admin-tokens-folder": TOKENS_FOLDER,
        "declared-adapters": f"{DECLARED_FOLDER}/{DECLARED_FILE}",
        "fetch-socket": FETCH_SOCKET if served.follows else None,
        "termination-log": "/dev/termination-log",
    }
    arguments = [CONTAINER_FOLDER]
    for name, value in options.items():
        if value is not None:
            arguments += _option(name, str(value))
    if not server.exact:
        arguments.append("--no-exact")
    for prompt in server.system_prompts:
        arguments += _option("system-prompt", prompt)
    if spec.rollout.golden_tokens is GoldenTokens.REQUIRED:
        arguments.append("--golden")
    return arguments


def _option(name: str, value: str) -> list[str]:
    """An option of the server, with a value that its user chose.

    The kubelet puts variables in, `$(NAME)`, and makes one of two `$`.
    """
    plain = value.replace("$", "$$")
    if plain.startswith("-"):  # else it reads as an option
        return [f"--{name}={plain}"]
    return [f"--{name}", plain]


def _speculation(wanted: SpeculationRef | None) -> str | None:
    """As the server's --speculation takes it."""
    if wanted is None:
        return None
    return json.dumps(
        {
            "method": METHODS[wanted.method],
            "num_speculative_tokens": wanted.num_speculative_tokens,
            "adaptive": wanted.adaptive,
        }
    )


def _cores(resources: Resources) -> int | None:
    """Of the container's limit: more threads than that would be throttled."""
    limit = resources.limits.get("cpu")
    return None if limit is None else max(1, math.ceil(amount(limit)))
