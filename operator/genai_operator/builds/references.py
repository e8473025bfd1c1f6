"""A build as the apiserver has it, and what it refers to: its targets, its store.

What is wrong with a target or a store is mended there: the build waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from genai_core.errors import GenAIError
from genai_core.kinds.build import BuildSpec
from genai_core.kinds.documents.reading import read_served
from genai_core.names import SourceName
from genai_core.reasons import Reason
from genai_core.sources.build_sources import BuildSource, sources_of
from genai_core.wire import REQUESTED_AT
from genai_operator.builds.build_pass import BuildPass
from genai_operator.builds.sources import SourcePlace, source_place
from genai_operator.builds.status import Outcome
from genai_operator.errors import Stalled, Waiting
from genai_operator.jobs.access import StoreAccess
from genai_operator.jobs.job_manifest import Owner
from genai_operator.kube.status.status_phase import Phase
from genai_operator.kube.times import parse_time
from genai_operator.kube.values import Json
from genai_operator.kube.watch.observed import Observed
from genai_operator.stores.open_stores import OpenStore, Stores
from genai_operator.targets.build_targets import BuildTarget, build_target

__all__ = ["Loader", "SourceAccess", "accesses_of", "begin"]


def begin(value: Json, now: datetime) -> BuildPass | Outcome:
    """What a pass works on; the outcome where its spec cannot be read."""
    meta = value["metadata"]
    try:
        spec = read_served(BuildSpec, value["spec"], where="spec")
    except GenAIError as error:
        return Outcome(Phase.STALLED, error.code, str(error))
    build = BuildPass(
        value=value,
        spec=spec,
        owner=Owner(meta["name"], meta["uid"]),
        namespace=meta["namespace"],
        generation=meta.get("generation", 0),
        requested=(meta.get("annotations") or {}).get(REQUESTED_AT, "")[:256],
        status=value.get("status") or {},
        since=now,
    )
    known = None if build.fresh else build.status.get("startedAt")
    unseen = build.status.get("observedGeneration", -1) < 0
    if known is None and (unseen or not build.fresh):  # or an operator from before the field did
        known = meta.get("creationTimestamp")
    return replace(build, since=parse_time(known)) if known is not None else build


@dataclass(frozen=True)
class SourceAccess:
    """A source of a build and how its pods reach it.

    Attributes:
        source: As the spec names it.
        place: Where it lies.
        access: To the store, and to this source.
    """

    source: BuildSource
    place: SourcePlace
    access: StoreAccess


def accesses_of(build: BuildPass, opened: OpenStore) -> dict[SourceName, SourceAccess]:
    """How the build's pods reach the store and each source, the model first.

    Raises:
        Stalled: One is no address that can be read from a cluster.
    """
    accesses = {}
    for source in sources_of(build.spec):
        place = source_place(source, opened.where)
        access = replace(
            opened.access,
            source=place.uri,
            source_claim=place.claim,
            source_secret=source.secret,
        )
        accesses[source.name] = SourceAccess(source, place, access)
    return accesses


class Loader:
    """Finds what a build refers to."""

    def __init__(self, observed: Observed, stores: Stores) -> None:
        self._observed = observed
        self._stores = stores

    def targets(self, build: BuildPass) -> list[BuildTarget]:
        """The build's targets, in its order.

        Raises:
            Waiting: One is not there, or nothing can be built for it.
        """
        targets = []
        for name in build.spec.targets:
            value = self._observed.targets.get("", name)
            if value is None:
                raise Waiting(
                    Reason.TARGET_NOT_FOUND, f"there is no GenAITarget {name}", after=60.0
                )
            try:
                targets.append(build_target(name, value))
            except Stalled as error:  # mended in the target, not in the build
                raise Waiting(
                    Reason.TARGET_NOT_READY, f"{error.message} ({error.reason})", after=60.0
                ) from error
            except GenAIError as error:
                raise Waiting(Reason.TARGET_NOT_READY, str(error), after=60.0) from error
        return targets

    async def store(self, build: BuildPass) -> OpenStore:
        """The build's store, once it was tried.

        Raises:
            Waiting: It is not there, or cannot be used.
        """
        return await self._stores.tried(build.namespace, build.spec.store.name)
