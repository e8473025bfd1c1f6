"""What of a GenAIDeployment's spec cannot be served, said by its field. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from genai_core.errors import InvalidSpec
from genai_core.kinds.deployment import DeploymentSpec
from genai_core.kinds.deployment_status import ServedContainer
from genai_core.kinds.target import TargetSpec
from genai_core.names import Backend
from genai_core.reasons import Reason
from genai_operator.errors import Stalled, Waiting

__all__ = ["check_adapters", "check_name", "check_served", "check_tls", "serving_image"]

_SERVICE_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_MOST_NAME = 63


def check_name(name: str) -> None:
    """A Service bears the deployment's name, and not every object's name will do for one.

    Raises:
        Stalled: It will not.
    """
    if len(name) > _MOST_NAME or not _SERVICE_NAME.fullmatch(name):
        raise Stalled(
            InvalidSpec.code,
            f"metadata.name: its Service is called {name} too, which takes at most {_MOST_NAME} "
            "lower-case letters, digits and -, beginning with a letter",
        )


def check_served(spec: DeploymentSpec) -> None:
    """Refuse fields that nothing serves yet, rather than pass them over.

    Raises:
        Stalled: Names them.
    """
    if spec.speculation is not None and not spec.server.exact:
        raise Stalled(
            InvalidSpec.code,
            "spec.speculation: guesses need exact numbers; leave it out, or "
            "spec.server.exact: false",
        )
    fields = list(_not_yet(spec))
    if fields:
        raise Stalled(
            Reason.NOT_SERVED_YET,
            f"{', '.join(fields)}: servers in a cluster do not know it yet; leave it out",
        )


def _not_yet(spec: DeploymentSpec) -> Iterator[str]:
    for index, adapter in enumerate(spec.adapters):
        if adapter.source is not None:
            yield f"spec.adapters[{index}].source"
        if adapter.secret_ref is not None:
            yield f"spec.adapters[{index}].secretRef"


def check_adapters(
    spec: DeploymentSpec, container: ServedContainer, good: ServedContainer | None
) -> None:
    """Refuse to go from a container that carries a declared adapter to one that does not.

    Where none has served it yet, it is its own failure, and all else is served.

    Args:
        spec: Of the deployment.
        container: That would be rolled out.
        good: That was rolled out last.

    Raises:
        Stalled: Names one, and those that there are.
    """
    if good is None or good.revision == container.revision:
        return
    for index, adapter in enumerate(spec.adapters):
        lost = adapter.name in good.adapters and adapter.name not in container.adapters
        if lost and not adapter.disabled:
            there = ", ".join(container.adapters) or "none"
            raise Stalled(
                Reason.ADAPTER_NOT_FOUND,
                f"spec.adapters[{index}]: container {container.revision[:19]} carries no adapter "
                f"{adapter.name}; it has {there}",
            )


def check_tls(secret: Mapping[str, Any]) -> None:
    """A Secret of which pods are to take their certificate; they would not start without.

    Raises:
        Waiting: It lacks one of its two entries.
    """
    lacking = [name for name in ("tls.crt", "tls.key") if not (secret.get("data") or {}).get(name)]
    if lacking:
        raise Waiting(
            Reason.SECRET_INCOMPLETE,
            f"spec.expose.tlsSecretRef: Secret {secret['metadata']['name']} lacks "
            f"{' and '.join(lacking)}",
        )


def serving_image(name: str, target: TargetSpec, spec: DeploymentSpec) -> str:
    """The image that a target's containers are served with.

    Raises:
        Stalled: Nothing here serves them.
        Waiting: The target does not name one yet.
    """
    htp = target.backend is Backend.HTP
    if htp and not spec.server.emulate:
        raise Stalled(
            Reason.TARGET_NOT_SERVABLE,
            f"spec.from.target: containers for {name} run on devices; serve the cpu target, or "
            "set spec.server.emulate to try a small one in the vendor's emulator",
        )
    if target.serving_image is None:
        build = "build one with make image-serving-htp and " if htp else ""
        value = f"targets.items.{name}.servingImage" if htp else "serving.image"
        raise Waiting(
            Reason.SERVING_IMAGE_NOT_CONFIGURED,
            f"GenAITarget {name} has no image of the server; {build}set spec.servingImage by "
            f"digest (chart: {value})",
            after=60.0,
        )
    return target.serving_image
