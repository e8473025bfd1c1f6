"""One of several replicas works: the one that holds a coordination.k8s.io Lease.

A holder that could not renew for two thirds of the Lease's time stops working before anybody else
may begin; clocks of different machines are never compared: a Lease counts as abandoned when it did
not change for its whole time by our own clock.
"""

from __future__ import annotations

import asyncio
import logging
import math
from datetime import datetime

import aiohttp

from genai_operator.kube.apiserver.api import Api, ApiError
from genai_operator.kube.values import Json
from genai_operator.metrics import LEASE_HELD
from genai_operator.timing import SYSTEM, Timing

__all__ = ["LeaseHolder"]

log = logging.getLogger("genai_operator.manager.leader")

NAME = "genai-operator"


class LeaseHolder:
    """See the module's docstring.

    Args:
        api: The apiserver.
        namespace: Where the Lease is.
        identity: This replica; unique.
        seconds: How long a silent holder keeps it.
        timing: The clocks.
    """

    def __init__(
        self,
        api: Api,
        *,
        namespace: str,
        identity: str,
        seconds: float = 15.0,
        timing: Timing = SYSTEM,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._identity = identity
        self._seconds = seconds
        self._timing = timing
        self._renewed = float("-inf")
        self._seen: tuple[str, float] = ("", self._clock())
        self._ours: Json | None = None

    def _clock(self) -> float:
        return self._timing.awake_or_not()

    @property
    def held(self) -> bool:
        """This replica may work."""
        return self._clock() - self._renewed < self._seconds * 2 / 3

    async def run(self) -> None:
        """Take it, keep it; returns when it was held and lost."""
        had = False
        while True:
            began = self._clock()
            try:
                if await asyncio.wait_for(self._try(), self._seconds / 3):
                    self._renewed = began
            except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
                log.warning("the Lease cannot be renewed", extra={"why": str(error)})
            LEASE_HELD.set(self.held)
            if self.held and not had:
                log.info("holding the Lease", extra={"identity": self._identity})
            if had and not self.held:
                log.error("the Lease is lost")
                return
            had = self.held
            await self._timing.sleep(self._seconds / 6)

    async def release(self) -> None:
        """Give it up, so that another replica need not wait."""
        if not self.held:
            return
        lease = await self._api.get("leases", NAME, namespace=self._namespace)
        if lease is not None and lease.get("spec", {}).get("holderIdentity") == self._identity:
            lease["spec"]["holderIdentity"] = ""
            await self._api.replace("leases", lease, namespace=self._namespace)
        self._renewed = float("-inf")

    async def _try(self) -> bool:
        lease, self._ours = self._ours, None  # as we wrote it last; refused if it changed since
        if lease is None:
            lease = await self._api.get("leases", NAME, namespace=self._namespace)
        if lease is None:
            await self._api.create("leases", self._new(), namespace=self._namespace)
            return True
        spec = lease.setdefault("spec", {})  # the chart makes it empty
        holder = spec.get("holderIdentity", "")
        version = lease["metadata"]["resourceVersion"]
        if version != self._seen[0]:
            self._seen = (version, self._clock())
        abandoned = self._clock() - self._seen[1] > spec.get("leaseDurationSeconds", self._seconds)
        if holder not in {"", self._identity} and not abandoned:
            return False
        if holder != self._identity:
            spec["leaseTransitions"] = spec.get("leaseTransitions", 0) + 1
            spec["acquireTime"] = _micro(self._timing.now())
        spec |= {
            "holderIdentity": self._identity,
            "renewTime": _micro(self._timing.now()),
            "leaseDurationSeconds": math.ceil(self._seconds),
        }
        try:
            self._ours = await self._api.replace("leases", lease, namespace=self._namespace)
        except ApiError as error:
            if error.code == 409:  # another one was quicker
                return False
            raise
        return True

    def _new(self) -> Json:
        now = _micro(self._timing.now())
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": NAME, "namespace": self._namespace},
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": math.ceil(self._seconds),
                "acquireTime": now,
                "renewTime": now,
                "leaseTransitions": 0,
            },
        }


def _micro(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
