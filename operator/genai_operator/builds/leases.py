"""What builds of this cluster need stays in their stores: one lease for each build.

It is written before anything is looked up, settled when a build is Ready (the plan's records and
the last few revisions of its containers), and renewed at rest, also where a build is suspended or
its user must act. A model that was uploaded beside the store stays as long as a build names it,
since it may be asked to be resolved anew on any day. A build that is deleted, or whose
cluster is gone, lets it end by itself. Stores that the operator may not write get theirs by a Job.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta

from genai_core.errors import GenAIError
from genai_core.helper_jobs import LeaseFile
from genai_core.sources.build_sources import sources_of
from genai_core.store.collection.build_lease import Holder
from genai_core.store.protocol import RecordRef
from genai_core.store.upload_names import uploads_among
from genai_core.tasks.record import Record
from genai_operator.builds.build_pass import BuildPass
from genai_operator.builds.helper_jobs import BuildHelperJobs
from genai_operator.errors import Stalled, Waiting
from genai_operator.jobs.access import StoreAccess
from genai_operator.jobs.helper_jobs import question_key
from genai_operator.stores.open_stores import OpenStore
from genai_operator.targets.build_targets import BuildTarget
from genai_operator.threads import in_thread
from genai_operator.timing import SYSTEM, Timing

__all__ = ["BuildLeases"]

log = logging.getLogger("genai_operator.builds.leases")

_LOOK_SECONDS = timedelta(days=1).total_seconds()
_FIRST_SECONDS = (3600.0, 6 * 3600.0)
"""Builds at rest are not all asked about when the operator starts."""
_TOLD_DAYS = 7
"""How often a Job renews a lease."""


class BuildLeases:
    """See the module's docstring."""

    def __init__(self, cluster: str, helpers: BuildHelperJobs, *, timing: Timing = SYSTEM) -> None:
        self._timing = timing
        self._cluster = cluster
        self._helpers = helpers
        self._holders: dict[str, tuple[OpenStore, Holder]] = {}
        self._due: dict[str, float] = {}

    def name_of(self, build: BuildPass) -> str:
        """Of the build's lease: UIDs are unique over clusters."""
        return f"build-{build.owner.uid}"

    def holder_name(self, build: BuildPass) -> str:
        """Whom to ask."""
        return f"{self._cluster} {build.namespace}/{build.owner.name}"

    def keep(self, uids: Collection[str]) -> None:
        """Forget builds that are gone; their leases end by themselves."""
        for uid in self._holders.keys() - set(uids):
            del self._holders[uid]
        for uid in self._due.keys() - set(uids):
            del self._due[uid]

    def claim(self, build: BuildPass, opened: OpenStore, refs: Iterable[RecordRef]) -> None:
        """Claim records before they are looked up; in a thread. Jobs that look claim themselves."""
        holder = self._holder(build, opened)
        if holder is not None:
            holder.claim(refs, _uploads(build, opened))

    async def claim_upload(self, build: BuildPass, opened: OpenStore) -> None:
        """Claim what was uploaded beside the store for the build, before it is listed."""
        if _uploads(build, opened):
            await in_thread(self.claim, build, opened, ())

    def document(self, build: BuildPass, opened: OpenStore) -> LeaseFile:
        """What a Job has to know that writes the lease."""
        return LeaseFile(
            name=self.name_of(build),
            holder=self.holder_name(build),
            uploads=tuple(sorted(_uploads(build, opened))) or None,
        )

    async def settle(
        self,
        build: BuildPass,
        opened: OpenStore,
        refs: Iterable[RecordRef],
        *,
        containers: Mapping[str, Record],
        access: StoreAccess,
        target: BuildTarget,
    ) -> None:
        """The build is Ready."""
        built = {name: RecordRef(r.operation, r.key) for name, r in containers.items()}
        keep = opened.spec.retention.keep
        holder = self._holder(build, opened)
        if holder is not None:
            uploads = _uploads(build, opened)
            await in_thread(holder.settle, refs, built, keep=keep, uploads=uploads)
            if holder.problem:
                log.warning("no lease", extra={"build": build.owner.name, "why": holder.problem})
            return
        settled = {
            "records": tuple(sorted(map(str, refs))),
            "containers": {name: str(ref) for name, ref in built.items()},
            "keep": keep,
        }
        document = self.document(build, opened).model_copy(update=settled)
        await self._send(build, document, access=access, target=target)

    async def at_rest(
        self, build: BuildPass, opened: OpenStore, *, access: StoreAccess, target: BuildTarget
    ) -> bool:
        """Renew the lease of a build that has nothing to do.

        Returns:
            Whether there was none although the build has containers: its store was emptied, or
            somebody removes what is leased.
        """
        holder = self._holder(build, opened)
        if holder is None:
            await self._send(build, self.document(build, opened), access=access, target=target)
            return False
        stands = await in_thread(holder.renew)
        gone = not stands and bool(build.status.get("artifacts"))
        if gone:
            log.warning("its lease is gone", extra={"build": build.owner.name})
        if stands or _uploads(build, opened):
            await in_thread(self.claim, build, opened, ())
        return gone

    def rest(self, uid: str) -> float:
        """Seconds until a build at rest is to be looked after; 0: now."""
        now = self._timing.monotonic()
        due = self._due.setdefault(uid, now + random.uniform(*_FIRST_SECONDS))  # noqa: S311
        if due > now:
            return due - now
        self._due[uid] = now + _LOOK_SECONDS
        return 0.0

    def _holder(self, build: BuildPass, opened: OpenStore) -> Holder | None:
        if opened.store is None:
            return None
        known = self._holders.get(build.owner.uid)
        if known is not None and known[0] is opened:
            return known[1]
        holder = Holder(opened.store, self.name_of(build), holder=self.holder_name(build))
        self._holders[build.owner.uid] = (opened, holder)
        return holder

    async def _send(
        self, build: BuildPass, document: LeaseFile, *, access: StoreAccess, target: BuildTarget
    ) -> None:
        week = self._timing.now().toordinal() // _TOLD_DAYS
        key = question_key("lease", document.model_dump_json(), week)
        try:
            await self._helpers.ask(build, document, key, access=access, target=target)
        except (Stalled, Waiting, GenAIError) as error:
            log.warning("no lease", extra={"build": build.owner.name, "why": str(error)})


def _uploads(build: BuildPass, opened: OpenStore) -> frozenset[str]:
    """Uploads beside the build's store that its spec reads."""
    return uploads_among([source.address for source in sources_of(build.spec)], opened.where)
