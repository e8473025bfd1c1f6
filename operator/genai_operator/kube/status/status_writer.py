"""The one writer of statuses: only what changed is written, and what that means is an Event.

A status has no precondition: where the object was deleted and made anew meanwhile, what was written
is taken back, since it rested on the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from enum import Enum
from typing import Any

from genai_core.kinds.base import API_VERSION
from genai_operator.kube.apiserver.api import Api
from genai_operator.kube.status.conditions import conditions, ready_of, same_status, summary
from genai_operator.kube.status.events import post_event
from genai_operator.kube.values import Json
from genai_operator.steps import Result
from genai_operator.timing import SYSTEM, Timing

__all__ = ["StatusWriter", "Written", "plain_status"]


class Written(Enum):
    """What became of a status that was to be written."""

    NOT = "not"
    """It stands there already, or its object is gone."""
    AS_BEFORE = "as before"
    """It says more, or less; the object stands as before."""
    OTHERWISE = "otherwise"
    """The object stands otherwise: there is an Event."""


class StatusWriter:
    """Writes statuses of one kind.

    Args:
        api: The apiserver.
        plural: Of the kind.
        kind: Its name.
        keep: Takes in each object as the apiserver has it after a write.
        stands: Of a status, what an Event tells a change of.
        timing: The clocks.
    """

    def __init__(
        self,
        api: Api,
        plural: str,
        kind: str,
        *,
        keep: Callable[[Json], object] = lambda _value: None,
        stands: Callable[[Mapping[str, Any]], object] = ready_of,
        timing: Timing = SYSTEM,
    ) -> None:
        self._api = api
        self._plural = plural
        self._kind = kind
        self._keep = keep
        self._stands = stands
        self._timing = timing

    async def write(self, value: Json, status: Json, *, warning: bool) -> Written:
        """Write a status if it says something else, and an Event if the object stands otherwise.

        Args:
            value: The object.
            status: All of it; what is not in it is removed.
            warning: Whether people must be told, if there is an Event.

        Returns:
            What became of it.
        """
        meta, previous = value["metadata"], value.get("status") or {}
        if same_status(status, previous):
            return Written.NOT
        written = await self._apply(meta, status)
        if written["metadata"]["uid"] != meta["uid"]:
            await self._apply(meta, {})
            return Written.NOT
        if self._stands(previous) == self._stands(status):
            return Written.AS_BEFORE
        ready = next(entry for entry in status["conditions"] if entry["type"] == "Ready")
        await self.event(value, ready["reason"], ready["message"], warning=warning)
        return Written.OTHERWISE

    async def event(self, value: Json, reason: str, message: str, *, warning: bool = False) -> None:
        """Post an Event of an object."""
        await post_event(
            self._api,
            value,
            self._kind,
            reason=reason,
            message=message,
            now=self._timing.now(),
            warning=warning,
        )

    async def _apply(self, meta: Mapping[str, Any], status: Json) -> Json:
        namespace = meta.get("namespace", "")
        place = {"name": meta["name"]} | ({"namespace": namespace} if namespace else {})
        body = {
            "apiVersion": API_VERSION,
            "kind": self._kind,
            "metadata": place,
            "status": status,
        }
        # It comes back as an event, and that wakes those who wait for it.
        written = await self._api.apply_status(self._plural, body, namespace=namespace)
        self._keep(written)
        return written


def plain_status(
    result: Result,
    value: Mapping[str, Any],
    now: datetime,
    *,
    waits: str = "Unknown",
    **members: Any,
) -> Json:
    """The status of a kind that has conditions and little else. Pure.

    Args:
        result: What a pass came to.
        value: The object.
        now: The time.
        waits: See `summary`.
        members: Further members.
    """
    meta, previous = value["metadata"], value.get("status") or {}
    generation = meta.get("generation", 0)
    wanted = summary(result, generation=generation, waits=waits)
    return {
        "observedGeneration": generation,
        "conditions": conditions(wanted, previous.get("conditions") or (), now),
        **members,
    }
