"""Statuses of what builds refer to: is a store usable, can anything be built for a target."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

from genai_core.errors import BadInput, GenAIError
from genai_core.kinds.base import API_VERSION
from genai_core.kinds.reading import read_model
from genai_core.kinds.target import TargetSpec
from genai_operator.api import Api, Json
from genai_operator.apply import Applier
from genai_operator.errors import Stalled, Waiting
from genai_operator.observed import Observed
from genai_operator.status import condition, conditions, ready_of, same_status
from genai_operator.stores import Stores
from genai_operator.targets import target_problem

__all__ = ["References"]

log = logging.getLogger("genai_operator.references")

_AGAIN_READY = 300.0
_AGAIN_UNREADY = 5.0


class References:
    """Works on ArtifactStores and GenAITargets."""

    def __init__(self, api: Api, observed: Observed, stores: Stores) -> None:
        self._api = api
        self._observed = observed
        self._stores = stores
        self._applier = Applier(api, observed)

    async def store(self, namespace: str, name: str) -> float | None:
        """Try a store: write, write twice under a condition, read."""
        value = self._observed.stores.get(namespace, name)
        if value is None or "deletionTimestamp" in value["metadata"]:
            return None
        extra: Json = {}
        waits = False
        try:
            opened = await self._stores.open(value)
            able = await asyncio.to_thread(opened.store.probe)
        except (Stalled, Waiting) as error:
            ready, reason, message = "False", error.reason, error.message
            waits = isinstance(error, Waiting)
        except GenAIError as error:
            ready, reason, message = "False", error.code, str(error)
            waits = not isinstance(error, BadInput)
        else:
            ready, reason, message = "True", "Ready", f"{opened.access.address} can be written"
            extra = {"capabilities": {"conditionalWrites": able.conditional_create}}
            if not able.conditional_create:
                message += "; it has no conditional writes: of two writers the last may win"
        await self._report(
            "artifactstores",
            "ArtifactStore",
            value,
            verdict=(ready, reason, message),
            waits=waits,
            extra=extra,
        )
        return _AGAIN_READY if ready == "True" else _AGAIN_UNREADY

    async def target(self, name: str) -> float | None:
        """Say whether anything can be built for a target."""
        value = self._observed.targets.get("", name)
        if value is None or "deletionTimestamp" in value["metadata"]:
            return None
        try:
            problem = target_problem(read_model(TargetSpec, value["spec"], where="spec"))
        except GenAIError as error:
            problem = (error.code, str(error))
        verdict = ("False", *problem) if problem else ("True", "Ready", "its image is declared")
        await self._report("genaitargets", "GenAITarget", value, verdict=verdict, extra={})
        return None

    async def _report(
        self,
        plural: str,
        kind: str,
        value: Json,
        *,
        verdict: tuple[str, str, str],
        waits: bool = False,
        extra: Json,
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
        """
        meta, previous = value["metadata"], value.get("status") or {}
        ready, reason, message = verdict
        generation = meta.get("generation", 0)
        wanted = [condition("Ready", ready, reason, message=message, generation=generation)]
        if ready == "False":
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
            await self._applier.event(
                value, kind, reason=reason, message=message, warning=ready == "False"
            )
