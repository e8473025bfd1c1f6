"""Deleted Jobs whose pods no watch has told of: the apiserver is asked before they are forgotten.

Jobs and pods come by different watches, and the pods' may lag behind for any time. A pod that no
watch has told of may run the Job's tasks: they must not begin again beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp

from genai_core.wire import JOB_NAME
from genai_operator.kube.apiserver.api import Api, ApiError
from genai_operator.kube.job import JobView
from genai_operator.kube.watch.observed import Observed

__all__ = ["TerminatingJobs"]

log = logging.getLogger("genai_operator.jobs.terminating")

_LOOK_SECONDS = 0.5
_MOST_NAMES = 50
"""In one selector: it is a part of the request's address."""


class TerminatingJobs:
    """See the module's docstring.

    Args:
        api: The apiserver.
        observed: The watch cache.
        take_pod: Told of each pod that is there.
        left: Told of each Job that has none.
    """

    def __init__(
        self,
        api: Api,
        observed: Observed,
        *,
        take_pod: Callable[[Mapping[str, Any]], None],
        left: Callable[[JobView], None],
    ) -> None:
        self._api = api
        self._observed = observed
        self._take_pod = take_pod
        self._left = left

    async def run(self) -> None:
        """Ask whenever there is something to ask, until cancelled."""
        while True:
            await self._observed.timing.sleep(_LOOK_SECONDS)
            try:
                await self.look()
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                log.warning("pods not listed", extra={"why": str(error)})
            except Exception:
                log.exception("pods not listed")

    async def look(self) -> None:
        """Ask for the pods of Jobs that were deleted a while ago and had none that was seen."""
        by_namespace: dict[str, list[JobView]] = {}
        for job in self._observed.doubtful():
            by_namespace.setdefault(job.namespace, []).append(job)
        for namespace, jobs in by_namespace.items():
            for first in range(0, len(jobs), _MOST_NAMES):
                some = jobs[first : first + _MOST_NAMES]
                names = ",".join(sorted({job.name for job in some}))
                pods, _ = await self._api.list(
                    "pods", namespace=namespace, labels=f"{JOB_NAME} in ({names})", fresh=True
                )
                for pod in pods:
                    self._take_pod(pod)
                for job in some:
                    if self._observed.settle(job.uid):
                        self._left(job)
