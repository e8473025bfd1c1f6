"""Events: what happened to an object, for people."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import aiohttp

from genai_core.kinds.base import API_VERSION
from genai_core.redaction import hidden_queries, plain
from genai_operator.kube.apiserver.api import MANAGER, Api, ApiError
from genai_operator.kube.status.conditions import MOST_MESSAGE
from genai_operator.kube.times import rfc3339

__all__ = ["post_event"]

log = logging.getLogger("genai_operator.kube.status.events")


async def post_event(
    api: Api,
    value: Mapping[str, Any],
    kind: str,
    *,
    reason: str,
    message: str,
    now: datetime,
    warning: bool = False,
    version: str = API_VERSION,
) -> None:
    """Post an Event; an event that cannot be posted is not worth a failure.

    Args:
        api: The apiserver.
        value: The object.
        kind: Of the object.
        reason: One word of a small set.
        message: For people.
        now: The time.
        warning: They should act.
        version: apiVersion of the object.
    """
    meta = value["metadata"]
    time = rfc3339(now)
    namespace = meta.get("namespace") or "default"
    body = {
        "metadata": {
            "name": f"{meta['name'][:200]}.{int(now.timestamp() * 1e6):x}",
            "namespace": namespace,
        },
        "involvedObject": {
            "apiVersion": version,
            "kind": kind,
            "name": meta["name"],
            "namespace": meta.get("namespace", ""),
            "uid": meta["uid"],
        },
        "reason": str(reason),
        "message": plain(" ".join(hidden_queries(message).split()))[:MOST_MESSAGE] or reason,
        "type": "Warning" if warning else "Normal",
        "source": {"component": MANAGER},
        "reportingComponent": MANAGER,
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }
    try:
        await api.create("events", body, namespace=namespace)
    except (ApiError, aiohttp.ClientError, TimeoutError) as error:
        log.warning("an event was not posted", extra={"reason": reason, "why": str(error)})
