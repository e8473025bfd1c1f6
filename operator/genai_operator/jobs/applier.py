"""Everything that is written to the apiserver beside statuses: Jobs, claims, events."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from genai_core.kinds.build import Run
from genai_core.reasons import Reason
from genai_core.wire import ENDING, TASK
from genai_operator.errors import Stalled, Waiting, not_enabled
from genai_operator.jobs.access import StoreAccess
from genai_operator.jobs.holds import NOT_ADMITTED
from genai_operator.jobs.job_manifest import (
    JobRequest,
    Owner,
    job_name,
    owner_reference,
    render,
    scope_of,
)
from genai_operator.jobs.renewal import Renewal
from genai_operator.kube.apiserver.api import Api, ApiError
from genai_operator.kube.job import JobView, job_view
from genai_operator.kube.pod import PodView, ending_note
from genai_operator.kube.status.events import post_event
from genai_operator.kube.values import Json
from genai_operator.kube.watch.observed import Observed

__all__ = ["Applier"]

log = logging.getLogger("genai_operator.jobs.applier")

_KEPT_SECONDS = 30.0
_REFUSED_SECONDS = (15.0, 60.0)


@dataclass(frozen=True)
class _Turn:
    """A name that one claimant may use next."""

    uid: str
    number: int
    until: float


class Applier:
    """See the module's docstring; what it writes is in the watch cache at once."""

    def __init__(self, api: Api, observed: Observed) -> None:
        self._api = api
        self._observed = observed
        self._turns: dict[tuple[str, str], _Turn] = {}

    async def create(
        self, request: JobRequest, owner: Owner, *, run: Run, access: StoreAccess
    ) -> bool:
        """Create a Job, or claim the one of that name.

        Returns:
            Whether it was there, and has to be looked at once more.

        Raises:
            Waiting: A quota is used up, the namespace is not enabled, the cluster does not admit
                the Job, or its name is not free yet.
            Stalled: The apiserver finds fields of the Job wrong.
        """
        scope = scope_of(access.address, run)
        name = job_name(request.operation, request.key, scope, request.attempt)
        turn = self._turns.get((request.namespace, name))
        kept = turn is not None and turn.until > self._observed.timing.monotonic()
        others = kept and turn is not None and turn.uid != owner.uid
        if others or self._observed.is_leaving(request.namespace, name):
            raise Waiting(Reason.PROGRESSING, "an earlier Job is being removed", after=1.0)
        known = self._observed.jobs.get(request.namespace, name)
        if known is not None:
            # Made since the build was looked at. The apiserver may be rid of it already and take
            # the name again, but its pod then runs for as long as its grace allows.
            if known.deleting:
                raise Waiting(Reason.PROGRESSING, "an earlier Job is being removed", after=1.0)
            await self.claim(known, owner)
            return True
        number = turn.number if turn is not None and kept else 0
        manifest = render(request, owner, run=run, access=access, turn=number)
        try:
            created = await self._api.create("jobs", manifest, namespace=request.namespace)
        except ApiError as error:
            return await self._refused(error, manifest, owner)
        self._turns.pop((request.namespace, name), None)
        self._keep(created)
        log.info("job created", extra={"job": manifest["metadata"]["name"], "task": request.task})
        return False

    async def _refused(self, error: ApiError, manifest: Json, owner: Owner) -> bool:
        meta = manifest["metadata"]
        if error.code == 409 and error.reason == "AlreadyExists":
            there = await self._api.get("jobs", meta["name"], namespace=meta["namespace"])
            if there is None or "deletionTimestamp" in there["metadata"]:
                raise Waiting(Reason.PROGRESSING, "an earlier Job is being removed", after=1.0)
            view = job_view(there)
            if view is None:
                raise Waiting(
                    Reason.JOB_NAME_TAKEN,
                    f"a Job {meta['name']} is there that the operator did not make: delete it",
                    after=30.0,
                )
            self._keep(there)
            await self.claim(view, owner)
            return True
        if error.code == 403 and "quota" in error.message:
            raise Waiting(Reason.QUOTA_EXCEEDED, error.message, after=15.0) from error
        if error.code == 403 and "cannot create resource" in error.message:  # RBAC's words
            raise not_enabled("run Jobs", meta["namespace"]) from error
        denied = "admission webhook" in error.message or "denied request" in error.message
        if error.code == 422 and error.fields and not denied:
            raise Stalled(Reason.JOB_REFUSED, error.message) from error
        if error.code in {400, 403, 422} or (error.code >= 500 and error.reason):
            # A policy, a webhook that is broken: whoever runs the cluster mends that, not the user.
            task = meta["annotations"][TASK]
            message = f"the cluster does not admit the Job of {task}: {error.message}"
            soon, late = _REFUSED_SECONDS
            raise Waiting(NOT_ADMITTED, message, after=soon, most=late) from error
        raise error

    async def claim(self, job: JobView, owner: Owner) -> bool:
        """Add a claim; nothing where it stands, or the Job is gone.

        Returns:
            Whether there was none. Whatever became of the Job before was told to others only.
        """
        if owner.uid in job.owners:
            return False
        await self._patch_owners(job, owner_reference(owner))
        return True

    async def release(self, job: JobView, uid: str) -> None:
        """Drop a claim; the Job ends with the last one."""
        known = self._observed.jobs.get(job.namespace, job.name)
        if known is None or known.uid != job.uid or uid not in known.owners:
            return
        if known.owners == {uid}:  # by now: another build may have joined since it was looked at
            await self.delete(known)
            return
        await self._patch_owners(known, {"$patch": "delete", "uid": uid})

    async def renew(self, found: Renewal, owner: Owner) -> None:
        """Take a Job away that never started, so that this claimant writes it anew.

        Its name is kept for the claimant for a while: the others, woken as well, would write it as
        it was.
        """
        job = found.job
        now = self._observed.timing.monotonic()
        self._turns = {place: turn for place, turn in self._turns.items() if turn.until > now}
        self._turns[job.namespace, job.name] = _Turn(owner.uid, found.turn, now + _KEPT_SECONDS)
        log.info("job written anew", extra={"job": job.name, "task": job.task})
        await self.delete(job)

    async def note_ending(self, job: JobView, pod: PodView) -> None:
        """Write on a failed Job how its pod ended: that must be known when the pod is gone."""
        await self._patch(job, {"annotations": {ENDING: ending_note(pod)}})

    async def _patch_owners(self, job: JobView, entry: Json) -> None:
        await self._patch(job, {"ownerReferences": [entry]})

    async def _patch(self, job: JobView, meta: Json) -> None:
        patch = {"metadata": {"uid": job.uid, **meta}}
        try:
            changed = await self._api.merge_lists("jobs", job.name, patch, namespace=job.namespace)
        except ApiError as error:
            # To another Job of that name the apiserver says that its UID cannot be changed.
            if error.code == 404 or "metadata.uid" in error.fields:
                self._observed.delete(job)
                return
            if error.code == 409:
                return
            raise
        self._keep(changed)

    async def delete(self, job: JobView) -> None:
        """End a Job and its pods."""
        await self._api.delete("jobs", job.name, namespace=job.namespace, uid=job.uid)
        self._observed.delete(job)
        log.info("job deleted", extra={"job": job.name, "task": job.task})

    def _keep(self, value: Json) -> None:
        view = job_view(value)
        if view is None:
            return
        known = self._observed.jobs.get(view.namespace, view.name)
        if known is None or known.uid != view.uid:
            self._observed.jobs.put(value, view)
            return
        # Whatever else changed meanwhile is the watch's to tell: that wakes who waits for it.
        ours = replace(known, owners=view.owners, noted=view.noted)
        self._observed.jobs.amend(view.namespace, view.name, ours)

    async def event(
        self, value: Json, kind: str, *, reason: str, message: str, warning: bool = False
    ) -> None:
        """Post an Event of an object of ours; see `post_event`."""
        now = self._observed.timing.now()
        await post_event(
            self._api, value, kind, reason=reason, message=message, now=now, warning=warning
        )
