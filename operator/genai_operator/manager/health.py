"""/healthz, /readyz and /metrics.

Alive means that the watches deliver: what a listing shows has come by watch too, or will within
seconds (see `kube.watch.relist`), and that comparing itself still happens.
"""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

__all__ = ["sick", "start"]

_SILENT_SECONDS = 180.0


def sick(deaf: list[str], compared_at: float, now: float) -> str:
    """Why this process should be restarted; empty if it should not."""
    if deaf:
        return f"the watch of {', '.join(deaf)} does not deliver"
    if now - compared_at > _SILENT_SECONDS:
        return f"nothing was compared with the apiserver for {now - compared_at:.0f} s"
    return ""


async def start(
    port: int, *, problem: Callable[[], str], ready: Callable[[], bool]
) -> web.AppRunner:
    """Serve; returns what is to be cleaned up at the end.

    Args:
        port: To listen on; 0 = nothing is served.
        problem: Why this process is sick now; empty if it is not.
        ready: The watches have begun.
    """

    async def healthz(_request: web.Request) -> web.Response:
        why = problem()
        return web.Response(text=why or "ok", status=500 if why else 200)

    async def readyz(_request: web.Request) -> web.Response:
        return web.Response(text="ok" if ready() else "starting", status=200 if ready() else 503)

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes(
        [web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    if port:
        await web.TCPSite(runner, port=port).start()
    return runner
