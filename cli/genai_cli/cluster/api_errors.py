"""What an apiserver's refusal means to whoever typed the command.

GenAIError
BadInput             2
NoCluster            no kubeconfig, no such context, no credentials
NotAllowed           401, 403
NotThere             404: an object, a namespace, the CRDs
Refused              400, 422: what was sent; 409: fields that another tool owns
ClusterUnavailable   1  no answer, 429, 5xx
"""

from __future__ import annotations

import json
import re
from typing import Any

from genai_core.errors import BadInput, GenAIError
from genai_core.wire import GROUP

__all__ = ["ClusterUnavailable", "NoCluster", "NotAllowed", "NotThere", "Refused", "refusal"]

_INSTALL = "install them: helm install genai-operator-crds charts/genai-operator-crds"


class NoCluster(BadInput):
    """Which cluster, or who asks, is not said."""

    code = "NoCluster"


class NotAllowed(BadInput):
    """The cluster knows the user or not, and refuses."""

    code = "NotAllowed"


class NotThere(BadInput):
    """There is no such thing in the cluster."""

    code = "NotThere"


class Refused(BadInput):
    """The apiserver does not take what was sent."""

    code = "Refused"


class ClusterUnavailable(GenAIError):
    """The apiserver does not answer now."""

    code = "ClusterUnavailable"


def refusal(status: int, body: bytes, *, path: str, server: str) -> GenAIError:
    """The error for an answer.

    Args:
        status: HTTP.
        body: Of the answer: a Status object, or plain text.
        path: That was asked.
        server: The apiserver's URL.
    """
    answer = _status_of(body)
    message = " ".join(str(answer.get("message") or body.decode(errors="replace")).split())[:600]
    if status == 404:
        return _not_there(answer, message, path)
    if status == 401:
        return NotAllowed(
            "it does not accept these credentials",
            where=server,
            remedy="log in again, or name another context with --context",
        )
    if status == 403:
        if "being terminated" in message or "exceeded quota" in message:
            return Refused(message, where=server, remedy="wait, or use another namespace")
        return NotAllowed(
            message,
            where=server,
            remedy="ask whoever runs the cluster for that right, or name another namespace with -n",
        )
    if status == 409:
        return Refused(
            _conflict(message),
            where=server,
            remedy="change it with the tool that owns these fields, or take them over with --force",
        )
    if status in {400, 413, 415, 422}:
        return Refused(_invalid(answer, message), where=server, remedy="correct the spec")
    return ClusterUnavailable(f"it answers {status}: {message}", where=server, remedy="try again")


def _status_of(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _not_there(answer: dict[str, Any], message: str, path: str) -> NotThere:
    details = answer.get("details") or {}
    name, kind = details.get("name", ""), details.get("kind", "")
    if not name and f"/apis/{GROUP}/" in path:
        return NotThere(
            f"the kinds of {GROUP} are not installed in this cluster", where=GROUP, remedy=_INSTALL
        )
    if kind == "namespaces":
        return NotThere(
            "there is no such namespace", where=f"namespace {name}", remedy="correct -n, or make it"
        )
    return NotThere(
        f"there is no {name}" if name else message,
        where=kind or path,
        remedy=f"see kubectl get {kind} -A" if kind else "is this the right cluster?",
    )


def _conflict(message: str) -> str:
    owners = re.findall(r'conflicts? with "([^"]+)"', message)
    fields = re.findall(r"(?<=[ -])\.(spec\.[A-Za-z0-9_.\[\]]+)", message)
    if not owners:
        return message
    what = ", ".join(dict.fromkeys(fields)) or "fields of it"
    return f"{', '.join(dict.fromkeys(owners))} set {what}"


def _invalid(answer: dict[str, Any], message: str) -> str:
    causes = (answer.get("details") or {}).get("causes") or []
    said = [f"{c.get('field', '')}: {c.get('message', '')}".strip(": ") for c in causes]
    return " ".join("; ".join(said).split())[:600] or message
