"""Compares the watch cache with listings, repairs it, and names watches that deliver nothing.

A listing holds metadata alone. An object that only the listing holds is given a moment, since its
event may be on the way. Then it is listed by its name: of most kinds the operator may list objects
and not get them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import aiohttp

from genai_operator.kube.apiserver.api import Api, ApiError
from genai_operator.kube.apiserver.resources import watched
from genai_operator.kube.values import Json
from genai_operator.kube.watch.cache import Cache
from genai_operator.metrics import WATCH_COMPARED, WATCH_DEAF, WATCH_EVENT, WATCH_MISSED
from genai_operator.timing import SYSTEM, Timing

__all__ = ["Relister"]

log = logging.getLogger("genai_operator.kube.watch.relist")

_SETTLE_SECONDS = 5.0
_DEAF_AFTER = 3
"""So many comparisons found something missing since a watch delivered anything."""


class Receiver(Protocol):
    """Takes in what no watch has told."""

    def take(self, plural: str, kind: str | None, value: Mapping[str, Any]) -> None:
        """It is there."""
        ...

    def vanished(self, plural: str, namespace: str, name: str, *, uid: str) -> None:
        """It is gone."""
        ...


class Relister:
    """See the module's docstring.

    Args:
        api: The apiserver.
        caches: Plural of each watched resource -> what is known of its objects.
        receiver: Told what is missing in it.
        namespaces: That are watched; none: all.
        timing: The clocks.
    """

    def __init__(
        self,
        api: Api,
        caches: Mapping[str, Cache[Any]],
        receiver: Receiver,
        *,
        namespaces: Sequence[str],
        timing: Timing = SYSTEM,
    ) -> None:
        self._api = api
        self._timing = timing
        self._receiver = receiver
        self._namespaces = namespaces
        self._caches = caches
        self._missed: dict[str, int] = {}
        self.compared_at = self._timing.monotonic()

    @property
    def deaf(self) -> list[str]:
        """Kinds whose watch does not deliver."""
        return [plural for plural, count in self._missed.items() if count >= _DEAF_AFTER]

    def heard(self, plural: str) -> None:
        """A watch has delivered something."""
        WATCH_EVENT.labels(kind=plural).set_to_current_time()
        self._missed.pop(plural, None)
        WATCH_DEAF.labels(kind=plural).set(0)

    async def run(self, seconds: float) -> None:
        """Compare now and then, until cancelled."""
        while True:
            await self._timing.sleep(seconds)
            try:
                await self.compare(settle=_SETTLE_SECONDS)
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                log.warning("comparing failed", extra={"why": str(error)})
            except Exception:
                log.exception("comparing failed")

    async def compare(self, *, settle: float = 0.0) -> None:
        """Compare the watch cache with a listing, and mend it.

        Args:
            settle: Seconds that a watch is given to deliver what the listing shows; 0 at the
                start, when nothing can have been delivered yet.
        """
        listings: list[tuple[str, Cache[Any], list[Json], int]] = []
        for row in watched():
            values: list[Json] = []
            oldest = None
            for namespace in (self._namespaces if row.namespaced else ()) or ("",):
                items, version = await self._api.list(
                    row.plural, namespace=namespace, labels=row.selector, names_only=settle > 0
                )
                values += items
                oldest = version if oldest is None else min(oldest, version)
            listings.append((row.plural, self._caches[row.plural], values, oldest or 0))
        if settle:
            await self._timing.sleep(settle)
        for plural, kept, values, version in listings:
            await self._mend(plural, kept, values, version=version, counts=settle > 0)
        self.compared_at = self._timing.monotonic()
        WATCH_COMPARED.set_to_current_time()

    async def _mend(
        self, plural: str, kept: Cache[Any], values: list[Json], *, version: int, counts: bool
    ) -> None:
        newer, gone = kept.missed(values)
        listed = {(v["metadata"].get("namespace", ""), v["metadata"]["name"]): v for v in values}
        missed = 0
        for namespace, name in newer:
            missed += 1
            whole = [listed[namespace, name]]
            if counts:  # then its metadata alone was listed
                whole, _ = await self._api.list(plural, namespace=namespace, name=name, fresh=True)
            for value in whole:
                self._receiver.take(plural, None, value)
        for namespace, name, uid in gone:
            entry = kept.entry(namespace, name)
            # What was made after the listing is not in it.
            if entry is None or entry.uid != uid or entry.version > version:
                continue
            missed += 1
            self._receiver.vanished(plural, namespace, name, uid=uid)
        if counts:
            WATCH_MISSED.labels(kind=plural).inc(missed)
            # Nothing missed proves nothing: our own writes are known without any watch, and where
            # nothing happens there is nothing to miss. Only what a watch delivers clears it.
            self._missed[plural] = self._missed.get(plural, 0) + bool(missed)
            WATCH_DEAF.labels(kind=plural).set(plural in self.deaf)
