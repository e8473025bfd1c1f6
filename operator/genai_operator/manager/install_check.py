"""`python -m genai_operator.manager.install_check`: what `helm test` runs beside an operator.

Proves by three answers that an installation works: the operator serves its port, the apiserver
serves our kinds with their status, and the operator has reported on each target that the chart
made, so its watches, its Lease and its rights are good. Needs no right but to get GenAITargets.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from functools import partial

import aiohttp

from genai_operator.kube.apiserver.api import Api, ApiError
from genai_operator.kube.apiserver.client import ApiClient
from genai_operator.kube.apiserver.connection import connection
from genai_operator.kube.apiserver.resources import RESOURCES
from genai_operator.timing import SYSTEM

__all__ = ["main"]

_SECONDS = 60.0
_PAUSE_SECONDS = 2.0
_KINDS = sorted(row.plural for row in RESOURCES.values() if row.ours)


async def _operator(url: str) -> str:
    """Why the operator does not answer; empty where it does."""
    limit = aiohttp.ClientTimeout(total=5)
    async with aiohttp.ClientSession(timeout=limit) as session:
        async with session.get(f"{url}/readyz") as answer:
            if answer.status != 200:
                return f"{url}/readyz says {answer.status} {await answer.text()}"
        async with session.get(f"{url}/metrics") as answer:
            if "genai_lease_held" not in await answer.text():
                return f"{url}/metrics lacks genai_lease_held"
    return ""


async def _kinds(api: Api) -> str:
    """Which of our kinds the apiserver lacks."""
    served = await api.served()
    lacking = [name for kind in _KINDS for name in (kind, f"{kind}/status") if name not in served]
    if not lacking:
        return ""
    return f"the apiserver does not serve {', '.join(lacking)}: install genai-operator-crds"


async def _target(api: Api, name: str) -> str:
    """Why the operator's word on a target is not there."""
    value = await api.get("genaitargets", name)
    if value is None:
        return f"there is no GenAITarget {name}"
    status = value.get("status") or {}
    if status.get("observedGeneration") != value["metadata"].get("generation"):
        return f"the operator has not reported on GenAITarget {name}"
    return ""


async def _until_well(probe: Callable[[], Awaitable[str]], deadline: float) -> str:
    """Ask again until it is well or the time is over; returns what is wrong."""
    while True:
        try:
            wrong = await probe()
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            wrong = str(error) or type(error).__name__
        if not wrong or SYSTEM.monotonic() > deadline:
            return wrong
        await SYSTEM.sleep(_PAUSE_SECONDS)


async def run(api: Api, url: str, targets: tuple[str, ...], *, seconds: float = _SECONDS) -> int:
    """Ask everything; prints a line for each answer, returns the exit code.

    Args:
        api: The apiserver.
        url: Of the operator.
        targets: Names of the targets that the chart made.
        seconds: How long a wrong answer is asked for again.
    """
    deadline = SYSTEM.monotonic() + seconds
    bad = 0
    probes: list[tuple[str, Callable[[], Awaitable[str]]]] = [
        ("the operator answers", partial(_operator, url)),
        ("the apiserver serves our kinds", partial(_kinds, api)),
        *((f"target {name} is reported on", partial(_target, api, name)) for name in targets),
    ]
    for what, probe in probes:
        wrong = await _until_well(probe, deadline)
        bad += bool(wrong)
        print(f"not ok: {what}: {wrong}" if wrong else f"ok: {what}")  # noqa: T201
    return 1 if bad else 0


async def _run_by_environment() -> int:
    url = os.environ["GENAI_URL"].rstrip("/")
    targets = tuple(filter(None, os.environ.get("GENAI_TARGETS", "").split(",")))
    async with ApiClient(connection()) as api:
        return await run(api, url, targets)


def main() -> int:
    """Entry point."""
    return asyncio.run(_run_by_environment())


if __name__ == "__main__":
    sys.exit(main())
