"""A pass over an ArtifactStore: it is tried, its status written, and once a day it is cleaned."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from genai_core.errors import BadInput, GenAIError
from genai_core.helper_jobs import CollectFile, ProbeFile
from genai_core.reasons import Reason
from genai_operator.errors import Stalled, Waiting
from genai_operator.jobs.applier import Applier
from genai_operator.jobs.helper_jobs import HelperJobs, question_key
from genai_operator.jobs.job_manifest import Owner
from genai_operator.kube.apiserver.api import Api
from genai_operator.kube.status.conditions import ready_of
from genai_operator.kube.status.status_writer import StatusWriter, plain_status
from genai_operator.kube.times import parse_time, rfc3339
from genai_operator.kube.values import Json
from genai_operator.kube.watch.kinds import Ref
from genai_operator.kube.watch.observed import Observed
from genai_operator.steps import DONE, Done, Result, Wait, run_steps
from genai_operator.stores.open_stores import OpenStore, Stores
from genai_operator.targets.build_targets import BuildTarget, build_target
from genai_operator.threads import in_thread

__all__ = ["StoreReconciler"]

log = logging.getLogger("genai_operator.stores.reconciler")

_AGAIN_READY = 300.0
_AGAIN_UNREADY = 5.0
_AGAIN_HANGING = 60.0
_SHARE = 4.0
_DOUBT_SECONDS = 10.0
_AGAIN_TOLD = 3600.0
"""Where each look takes a Job."""
_COUNTS = (
    *("recordsDeleted", "recordsKept", "uploadsDeleted", "uploadsKept"),
    *("bytesDeleted", "bytesKept", "bytesOlder", "refused"),
)


@dataclass
class StoreContext:
    """What the steps of a pass have found out.

    Attributes:
        value: The ArtifactStore.
        opened: Its client.
        conditional_writes: Of two writers of one object the first wins.
        collected: When it was cleaned last, and what went.
    """

    value: Json
    opened: OpenStore | None = None
    conditional_writes: bool = True
    collected: Json | None = None

    @property
    def store(self) -> OpenStore:
        """Its client, once it is open."""
        assert self.opened is not None
        return self.opened


class StoreReconciler:
    """See the module's docstring."""

    def __init__(
        self,
        api: Api,
        observed: Observed,
        stores: Stores,
        *,
        collect_seconds: float = 0.0,
        wake: Callable[[Ref], None] = lambda _ref: None,
    ) -> None:
        self._wake = wake
        self._observed = observed
        self._stores = stores
        self._helpers = HelperJobs(api, observed, Applier(api, observed))
        self._writer = StatusWriter(api, "artifactstores", "ArtifactStore", timing=observed.timing)
        self._collect_seconds = collect_seconds
        self._tried: dict[tuple[str, str], float] = {}
        self._doubted: set[tuple[str, str]] = set()

    def doubt(self, namespace: str, name: str) -> None:
        """Somebody has met a fault of a store: it is tried, unless it was a moment ago."""
        last = self._tried.get((namespace, name), float("-inf"))
        if self._observed.timing.monotonic() - last < _DOUBT_SECONDS:
            return
        self._doubted.add((namespace, name))
        self._wake(Ref("artifactstores", namespace, name))

    async def reconcile(self, namespace: str, name: str) -> float | None:
        """Try a store (write, write twice under a condition, read) and have it cleaned."""
        value = self._observed.stores.get(namespace, name)
        if value is None or "deletionTimestamp" in value["metadata"]:
            return None
        began = self._tried[namespace, name] = self._observed.timing.monotonic()
        context = StoreContext(value)
        result = await run_steps(context, (self._open, self._try, self._clean), meaning=_meaning)
        stands = value.get("status") or {}
        known = stands.get("observedGeneration") == value["metadata"].get("generation")
        if isinstance(result, Wait) and result.works and known and ready_of(stands)[0] == "True":
            return _AGAIN_UNREADY  # a Job tries it once more: what is known stays
        good = isinstance(result, Done)
        members: Json = {}
        if good:
            members["capabilities"] = {"conditionalWrites": context.conditional_writes}
            if context.collected:
                members["collected"] = context.collected
        status = plain_status(result, value, self._observed.timing.now(), waits="False", **members)
        loud = not (good and context.conditional_writes) and ready_of(status)[0] != "Unknown"
        await self._writer.write(value, status, warning=loud)
        if good:
            again = _AGAIN_READY if context.store.store is not None else _AGAIN_TOLD
            return min(again, self._collect_seconds or again)
        if isinstance(result, Wait) and result.works:
            return _AGAIN_UNREADY
        # One that hangs until it fails must not keep the workers from other tenants' objects.
        hung = self._observed.timing.monotonic() - began
        return min(max(_AGAIN_UNREADY, _SHARE * hung), _AGAIN_HANGING)

    async def _open(self, context: StoreContext) -> Result:
        """Its spec can be used, its Secrets are there."""
        context.opened = await self._stores.open(context.value)
        return DONE

    async def _try(self, context: StoreContext) -> Result:
        """Write, write twice under a condition, read: by the operator, or by a Job."""
        opened = context.store
        if opened.store is not None:
            able = (await in_thread(opened.store.probe)).conditional_create
        else:
            told = await self._probed(context.value, opened)
            if told is None:
                stands = await self._helpers.waiting(context.value["metadata"]["namespace"])
                return Wait(stands.reason, stands.message("a Job tries it"), works=True)
            able = told
        context.conditional_writes = able
        return DONE

    async def _clean(self, context: StoreContext) -> Result:
        """Once a day what nobody needs is removed, by a Job."""
        context.collected = await self._collected(context.value, context.store)
        message = f"{context.store.access.address} can be written"
        if not context.conditional_writes:
            message += "; it has no conditional writes: of two writers the last may win"
        return Done(message=message)

    async def _probed(self, value: Json, opened: OpenStore) -> bool | None:
        """What a Job under the store's service account found; None while it is at it."""
        meta = value["metadata"]
        ending = await self._helpers.of_object(
            meta["namespace"],
            ProbeFile(),
            question_key("probe", meta["uid"], meta["generation"], opened.access),
            owner=Owner(meta["name"], meta["uid"], "ArtifactStore"),
            access=opened.access,
            target=self._any_target(),
            anew=(meta["namespace"], meta["name"]) in self._doubted,
        )
        self._doubted.discard((meta["namespace"], meta["name"]))
        if ending is None:
            return None
        facts = ending.message.get("facts")
        return bool(isinstance(facts, dict) and facts.get("conditionalWrites"))

    def _any_target(self) -> BuildTarget:
        """A target whose image can run helper Jobs.

        Raises:
            Waiting: There is none.
        """
        for value in self._observed.targets:
            try:
                return build_target(value["metadata"]["name"], value)
            except (Stalled, GenAIError):
                continue
        raise Waiting(Reason.NO_IMAGE, "there is no GenAITarget with an image of the stages")

    async def _collected(self, value: Json, opened: OpenStore) -> Json | None:
        """Have the store cleaned once a day by a Job in its namespace; returns the last outcome."""
        meta, status = value["metadata"], value.get("status") or {}
        last: Json | None = status.get("collected")
        if not self._collect_seconds:
            return last
        now = self._observed.timing.now()
        since = parse_time(last["at"] if last else meta["creationTimestamp"])
        if (now - since).total_seconds() < self._collect_seconds:
            return last
        try:
            ending = await self._helpers.of_object(
                meta["namespace"],
                CollectFile(grace_days=opened.spec.retention.grace_days),
                question_key("collect", meta["uid"], last["at"] if last else ""),
                owner=Owner(meta["name"], meta["uid"], "ArtifactStore"),
                access=replace(opened.access, read_from=()),
                target=self._any_target(),
            )
        except (Stalled, Waiting) as error:
            log.warning("not cleaned", extra={"store": meta["name"], "why": error.message})
            return last
        facts = ending.message.get("facts") if ending is not None else None
        if not isinstance(facts, dict):
            return last
        counts = {name: int(facts.get(name, 0)) for name in _COUNTS}
        return {"at": rfc3339(now), **counts}

    def tidy(self) -> None:
        """Forget what is known of Jobs that are gone."""
        self._helpers.keep({job.uid for job in self._observed.jobs})
        places = set(self._observed.stores.places())
        self._tried = {place: at for place, at in self._tried.items() if place in places}
        self._doubted &= places


def _meaning(error: GenAIError) -> Stalled | Waiting:
    """Of a fault of the store itself: only what its spec says is its user's to mend."""
    if isinstance(error, BadInput):
        return Stalled(error.code, str(error))
    return Waiting(error.code, str(error))
