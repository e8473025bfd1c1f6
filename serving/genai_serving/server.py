"""Opens a container and serves it until told to end."""

from __future__ import annotations

import asyncio
import math
import signal
import time
from collections.abc import Callable
from functools import partial

import uvicorn

from genai_core.errors import StoreUnavailable
from genai_serving.adapters.administration import AdminServer
from genai_serving.adapters.later import fetch_by
from genai_serving.adapters.sources import AdapterSources
from genai_serving.adapters.start import HeldAdapters
from genai_serving.api.admin_port.admin import AdapterAdmin
from genai_serving.api.admin_port.declaration import Declarations, declare
from genai_serving.api.admin_port.local_names import is_loopback
from genai_serving.api.api_keys import ApiKeys
from genai_serving.api.app import admin_application, application
from genai_serving.connections import Connections, room_for
from genai_serving.draining import DrainingServer
from genai_serving.scheduler import mebibytes
from genai_serving.start.listeners import admin_port, bound
from genai_serving.start.opening import load_container, open_server
from genai_serving.start.options import AdminOptions, Options
from genai_serving.tls import Certificate, bound_handshakes

_CONNECTIONS = 1024
_MARGIN = 64
"""Connections beyond those whose requests may run or wait: some are always on their way."""


def serve(options: Options, *, say: Callable[[str], None]) -> int:
    """Serve until SIGTERM or SIGINT; running answers are finished first.

    Args:
        options: See there.
        say: Gets what a person wants to read.

    Returns:
        The exit code.

    Raises:
        BadInput: The container cannot be served with these options.
        OSError: The address is taken.
    """
    began = time.monotonic()
    certificate = None if options.tls is None else Certificate(options.tls)
    listener = bound(options.host, options.port)
    container, files = load_container(options)
    if options.admin is not None:
        admin_listener = admin_port(options, options.admin, container)
    opened = open_server(options, container, files, say=say)
    engine, model, limits = opened.engine, opened.model, opened.service.limits

    wanted = max(_CONNECTIONS, limits.sequences + limits.waiting + _MARGIN)
    connections = Connections(room_for(wanted, say=say))

    async def shut_down() -> None:
        await asyncio.to_thread(engine.close, seconds=options.drain_seconds)

    config = uvicorn.Config(
        application(
            opened.service,
            opened.metrics,
            api_keys=ApiKeys(options.api_keys, options.keys_folder),
            on_shutdown=shut_down,
            draining=lambda: server.draining,
            crowded=lambda: connections.crowded,
            local=is_loopback(listener.getsockname()[0]),
        ),
        http=connections.protocol,  # type: ignore[arg-type]
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_keep_alive=math.ceil(connections.patience.idle),
        timeout_graceful_shutdown=max(1, int(options.drain_seconds)),
    )
    if certificate is not None:
        config.load()
        config.ssl = certificate.context
    host, port = listener.getsockname()[:2]
    server = DrainingServer(config, delay=options.drain_delay_seconds)
    # uvicorn takes signals over while it runs and sends them again at its end: they must not end
    # this process before uvicorn is there, nor behind it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))

    async def run() -> None:
        beside: list[asyncio.Future[None]] = []
        if certificate is not None:
            bound_handshakes(asyncio.get_running_loop())
            following = asyncio.ensure_future(certificate.follow(say))
        if options.admin is not None:
            fetch = options.admin.fetch
            sources = AdapterSources(
                container, options.admin.folder, None if fetch is None else partial(fetch_by, fetch)
            )
            changing = AdapterAdmin(engine, model.adapters, sources, model.name)
            declarations = _declarations(options, options.admin)
            await _lay_in(declarations, changing, say)
            admin = AdminServer(admin_application(changing, options.admin.tokens, declarations))
            beside.append(asyncio.ensure_future(admin.run_on(admin_listener)))
        await asyncio.to_thread(opened.prompts.read, engine, model, say)
        running = asyncio.ensure_future(server.serve(sockets=[listener]))
        while not (server.started or running.done()):  # noqa: ASYNC110 - uvicorn has no event
            await asyncio.sleep(0.005)
        if not server.should_exit:
            scheme = "http" if certificate is None else "https"
            say(
                f"{model.name} ({model.revision[:19]}) on {scheme}://{host}:{port}, ready in "
                f"{time.monotonic() - began:.1f} s: {limits.sequences} answers at once, "
                f"{mebibytes(limits.cache_bytes)} MiB of cache, context {model.context_length}"
                f"{_told(opened.held)}"
            )
            if model.emulated:
                say("it runs in the vendor's emulator, on this processor: slow, for trying out")
            elif not model.exact:
                say("not exact: an answer's last bits depend on what is computed beside it")
            elif not model.steadiness.all:
                say(
                    "here an answer's last bits depend on what is computed beside it, so nothing "
                    "is kept of one prompt for another"
                )
            if options.admin is not None:
                say(f"adapters come and go on port {admin_listener.getsockname()[1]}")
        await running
        if certificate is not None:
            following.cancel()
        if options.admin is not None:
            admin.should_exit = True
        await asyncio.gather(*beside)

    try:
        asyncio.run(run())
    finally:
        engine.close()
    say("ended")
    return 0


def _told(held: HeldAdapters | None) -> str:
    """What adapters take, as a person reads it; nothing where there are none."""
    if held is None:
        return ""
    taken = mebibytes(held.room.most_bytes)
    return f", {taken} MiB for adapters (a pass holds {held.room.columns} ranks)"


def _declarations(options: Options, admin: AdminOptions) -> Declarations | None:
    if admin.declared is None:
        return None
    return Declarations(admin.declared, options.cache / "declared.json")


async def _lay_in(
    declarations: Declarations | None, admin: AdapterAdmin, say: Callable[[str], None]
) -> None:
    """Serve the declared adapters before the first request comes.

    Raises:
        BadInput: The file is no declaration.
        StoreUnavailable: They are another revision's, which cannot be had now: names would be
            answered with what they do not stand for any more.
    """
    declared = declarations.read() if declarations is not None else None
    if declared is None:
        return
    standing = await declare(admin, declared)
    if standing.problem:
        raise StoreUnavailable(standing.problem, where="declared adapters")
    for adapter in standing.adapters:
        if "reason" in adapter:
            say(f"adapter {adapter['name']} is not served: {adapter['reason']}")
    if standing.revision != admin.own.revision:
        say(f"adapters and use cases are those of {standing.revision[:19]}")
