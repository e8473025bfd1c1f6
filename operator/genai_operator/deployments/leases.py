"""What a deployment serves, and would go back to, stays in its store: a lease of its own.

It outlives the build: a container whose build is deleted goes on being served and fetched. A store
that the operator may not write gets it by a helper Job, once a week.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

from genai_core.errors import GenAIError
from genai_core.helper_jobs import LeaseFile
from genai_core.kinds.deployment_status import ServedContainer
from genai_core.names import Key
from genai_core.store.collection.build_lease import Holder
from genai_core.store.protocol import RecordRef
from genai_operator.errors import Stalled, Waiting
from genai_operator.jobs.helper_jobs import HelperJobs, question_key
from genai_operator.jobs.job_manifest import Owner
from genai_operator.stores.open_stores import OpenStore
from genai_operator.targets.build_targets import BuildTarget
from genai_operator.threads import in_thread
from genai_operator.timing import SYSTEM, Timing

__all__ = ["DeploymentLeases"]

log = logging.getLogger("genai_operator.deployments.leases")

_TOLD_DAYS = 7


class DeploymentLeases:
    """See the module's docstring."""

    def __init__(self, cluster: str, helpers: HelperJobs, *, timing: Timing = SYSTEM) -> None:
        self._cluster = cluster
        self._timing = timing
        self._helpers = helpers
        self._holders: dict[str, tuple[OpenStore, Holder]] = {}
        self._told: dict[str, Key] = {}

    def keep(self, uids: Collection[str]) -> None:
        """Forget deployments that are gone; their leases end by themselves."""
        for uid in self._holders.keys() - set(uids):
            del self._holders[uid]
        for uid in self._told.keys() - set(uids):
            del self._told[uid]

    async def settle(
        self,
        namespace: str,
        owner: Owner,
        opened: OpenStore,
        containers: Iterable[ServedContainer],
        *,
        target: BuildTarget | None,
    ) -> None:
        """Claim these containers, and nothing beside them.

        Args:
            namespace: Of the deployment.
            owner: The deployment.
            opened: Its store.
            containers: That are to stay.
            target: Whose image helper Jobs run in; None: there is none.

        Raises:
            StoreUnavailable: The store does not answer.
        """
        records = sorted({container.record for container in containers})
        if not records:
            return
        name = f"deployment-{owner.uid}"
        holder_name = f"{self._cluster} {namespace}/deployment {owner.name}"
        if opened.store is not None:
            known = self._holders.get(owner.uid)
            if known is None or known[0] is not opened:
                known = (opened, Holder(opened.store, name, holder=holder_name))
                self._holders[owner.uid] = known
            refs = [RecordRef("package", Key(record.partition("/")[2])) for record in records]
            await in_thread(known[1].settle, refs, {})
            if known[1].problem:
                log.warning("no lease", extra={"deployment": owner.name, "why": known[1].problem})
            return
        if target is not None:
            document = LeaseFile(name=name, holder=holder_name, records=tuple(records))
            await self._send(namespace, owner, opened, document, target=target)

    async def _send(
        self,
        namespace: str,
        owner: Owner,
        opened: OpenStore,
        document: LeaseFile,
        *,
        target: BuildTarget,
    ) -> None:
        week = self._timing.now().toordinal() // _TOLD_DAYS
        key = question_key("lease", document.model_dump_json(), week)
        if self._told.get(owner.uid) == key:
            return
        try:
            ending = await self._helpers.of_object(
                namespace, document, key, owner=owner, access=opened.access, target=target
            )
        except (Stalled, Waiting, GenAIError) as error:
            log.warning("no lease", extra={"deployment": owner.name, "why": str(error)})
            return
        if ending is not None:
            self._told[owner.uid] = key
