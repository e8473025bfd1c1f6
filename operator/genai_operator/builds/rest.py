"""A build at rest: nothing is done unasked but to keep its lease alive.

A lease that is gone tells that the store was emptied: then the build is looked through again, so
that nobody is told for long of containers that are gone.
"""

from __future__ import annotations

import logging

from genai_core.errors import GenAIError
from genai_core.names import MODEL
from genai_operator.builds.build_pass import BuildPass
from genai_operator.builds.leases import BuildLeases
from genai_operator.builds.references import Loader, accesses_of
from genai_operator.builds.reporter import Reporter
from genai_operator.builds.status import Outcome
from genai_operator.errors import Stalled, Waiting
from genai_operator.kube.status.conditions import condition_of
from genai_operator.kube.status.status_phase import Phase
from genai_operator.targets.build_targets import toolchain_digest

__all__ = ["Rest"]

log = logging.getLogger("genai_operator.builds.rest")


class Rest:
    """See the module's docstring."""

    def __init__(self, loader: Loader, leases: BuildLeases, reporter: Reporter) -> None:
        self._loader = loader
        self._leases = leases
        self._reporter = reporter
        self._doubted: set[str] = set()

    def keep(self, uids: set[str]) -> None:
        """Forget builds that are gone."""
        self._doubted.intersection_update(uids)

    async def holds(self, build: BuildPass) -> bool:
        """Whether nothing is to be done unasked; shows a toolchain that is not the current one.

        A build that is Ready rests. So does one whose tasks failed when the toolchain, or the
        operator itself, has changed since: with other keys all of it would begin anew. One whose
        lease was gone is looked through once: its containers may be gone as well.
        """
        ready = condition_of(build.status, "Ready")
        if build.fresh or build.spec.run.suspend or ready is None:
            return False
        good: bool = ready["status"] == "True"
        if not good and not (ready["status"] == "False" and build.status.get("failures")):
            return False
        try:
            now = toolchain_digest(self._loader.targets(build))
        except (Stalled, Waiting, GenAIError):
            return good
        outdated = build.status.get("toolchain", now) != now
        if not good and not outdated:
            return False
        if build.owner.uid in self._doubted and not outdated:
            self._doubted.discard(build.owner.uid)
            return False
        if outdated != (condition_of(build.status, "ToolchainOutdated") is not None):
            outcome = Outcome(
                Phase.READY if good else Phase.STALLED,
                ready["reason"],
                ready["message"],
                outdated="operations or libraries have other versions by now" if outdated else "",
                notes=build.status.get("plan", ()),
                warnings=build.status.get("warnings", ()),
                requested_at=build.requested,
            )
            await self._reporter.report(build.value, outcome)
        return True

    async def renewed(self, build: BuildPass) -> float:
        """Keep its lease alive; returns after how many seconds that is wanted again."""
        wait = self._leases.rest(build.owner.uid)
        if wait > 0:
            return wait
        try:
            targets, opened = self._loader.targets(build), await self._loader.store(build)
            access = accesses_of(build, opened)[MODEL].access
            if await self._leases.at_rest(build, opened, access=access, target=targets[0]):
                self._doubted.add(build.owner.uid)
                return 0.0
        except (Stalled, Waiting, GenAIError) as error:
            log.warning("no lease", extra={"build": build.owner.name, "why": str(error)})
        return self._leases.rest(build.owner.uid)
