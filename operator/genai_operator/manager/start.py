"""Start and end of the process: watch, hold the Lease, work, until a signal or a loss."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from dataclasses import replace

import kopf

from genai_operator.kube.apiserver.client import ApiClient
from genai_operator.kube.apiserver.connection import audiences, connection
from genai_operator.manager import health
from genai_operator.manager.controller import Controller
from genai_operator.manager.handlers import registry_of
from genai_operator.manager.json_log import set_up
from genai_operator.manager.leader import LeaseHolder
from genai_operator.metrics import LEASE_HELD
from genai_operator.settings import Settings, read_settings
from genai_operator.timing import SYSTEM

__all__ = ["main", "run"]

log = logging.getLogger("genai_operator")

_GIVE_UP_SECONDS = 3.0


async def run(settings: Settings) -> int:
    """Run until a signal, or until the Lease or kopf is lost; returns the exit code."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    to = connection()
    settings = replace(settings, own_audiences=audiences(to))
    async with ApiClient(to) as api:
        controller = Controller(api, settings)
        lease = LeaseHolder(
            api,
            namespace=settings.operator_namespace,
            identity=settings.identity,
            seconds=settings.lease_seconds,
        )
        if settings.lease:
            api.may_write = lambda: lease.held
        watching = asyncio.Event()
        server = await health.start(
            settings.http_port,
            problem=lambda: health.sick(
                controller.relister.deaf, controller.relister.compared_at, SYSTEM.monotonic()
            ),
            ready=watching.is_set,
        )
        watch = asyncio.create_task(
            kopf.operator(
                registry=registry_of(controller),
                standalone=True,
                clusterwide=not settings.namespaces,
                namespaces=settings.namespaces,
                stop_flag=stop,
                ready_flag=watching,
            ),
            name="watch",
        )
        work = asyncio.create_task(
            controller.run(lambda: lease.held or not settings.lease), name="work"
        )
        tasks = [watch, work, asyncio.create_task(stop.wait(), name="stop")]
        if settings.lease:
            tasks.append(asyncio.create_task(lease.run(), name="lease"))
        else:
            LEASE_HELD.set(1)  # alone, and at work
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        asked = stop.is_set()
        for task in ended:
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("%s ended", task.get_name(), exc_info=error)
        stop.set()
        work.cancel()
        try:
            await asyncio.wait_for(lease.release(), _GIVE_UP_SECONDS)
        except Exception as error:  # noqa: BLE001 - another replica then waits a little longer
            log.warning("the Lease was not given up", extra={"why": str(error)})
        await asyncio.wait([watch], timeout=_GIVE_UP_SECONDS)
        for task in tasks:
            task.cancel()
        await server.cleanup()
    return 0 if asked else 1


def main() -> int:
    """Entry point."""
    try:
        settings = read_settings()
    except ValueError as error:
        print(f"genai-operator: {error}", file=sys.stderr)  # noqa: T201
        return 2
    set_up(settings.log_level)
    # kopf asks for the user's name, and a container's user has none.
    os.environ.setdefault("LOGNAME", "genai-operator")
    return asyncio.run(run(settings))
