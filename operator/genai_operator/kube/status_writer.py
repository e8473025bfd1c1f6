"""Statuses are written here: only what changed, with an Event where Ready did."""

from __future__ import annotations

from datetime import UTC, datetime

from genai_core.kinds.base import API_VERSION
from genai_operator.kube.client import Api
from genai_operator.kube.conditions import condition, conditions, ready_of, same_status
from genai_operator.kube.events import post_event
from genai_operator.kube.values import Json

__all__ = ["StatusWriter"]


class StatusWriter:
    """See the module's docstring."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def report(
        self,
        plural: str,
        kind: str,
        value: Json,
        *,
        verdict: tuple[str, str, str],
        waits: bool = False,
        extra: Json,
        warning: bool | None = None,
    ) -> None:
        """Write the status if it changed, and an event if Ready did.

        Args:
            plural: Of the kind.
            kind: Of the object.
            value: The object.
            verdict: Status, reason and message of Ready.
            waits: What is not ready may become so by itself: a Secret that is to come, a server
                that does not answer for a while. Otherwise the user must act.
            extra: Further members of the status.
            warning: Whether people must be told; None: where it is not ready.
        """
        meta, previous = value["metadata"], value.get("status") or {}
        ready, reason, message = verdict
        generation = meta.get("generation", 0)
        wanted = [condition("Ready", ready, reason, message=message, generation=generation)]
        if ready != "True":
            why = "Reconciling" if waits else "Stalled"
            wanted.append(condition(why, "True", reason, message=message, generation=generation))
        status: Json = {
            "observedGeneration": generation,
            "conditions": conditions(wanted, previous.get("conditions") or (), datetime.now(UTC)),
            **extra,
        }
        if same_status(status, previous):
            return
        namespace = meta.get("namespace", "")
        place = {"name": meta["name"]} | ({"namespace": namespace} if namespace else {})
        # It comes back as an event, and that wakes the builds that wait for it.
        await self._api.apply_status(
            plural,
            {"apiVersion": API_VERSION, "kind": kind, "metadata": place, "status": status},
            namespace=namespace,
        )
        if ready_of(previous) != (ready, reason):
            loud = ready == "False" if warning is None else warning
            await post_event(self._api, value, kind, reason=reason, message=message, warning=loud)
