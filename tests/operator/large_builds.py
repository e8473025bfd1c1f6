"""What the operator's watches and listings cost in memory when builds are as large as they can be.

Started as a program of its own, it prints that as JSON: resident memory is the process's alone.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import cache
from typing import Any

import kopf
from aiohttp import web

from genai_core.memory import peak_resident_bytes
from genai_operator.kube.apiserver.client import ApiClient
from genai_operator.kube.apiserver.connection import Connection
from genai_operator.kube.apiserver.projection import plural_of
from genai_operator.manager import handlers
from genai_operator.manager.controller import Controller
from genai_operator.settings import Settings

GROUP = "/apis/genai-operator.dev/v1alpha1"
MIB = 1 << 20


def a_build(name: str, **more: Any) -> dict[str, Any]:
    return {
        "apiVersion": "genai-operator.dev/v1alpha1",
        "kind": "GenAIBuild",
        "metadata": {
            "name": name,
            "namespace": "any",
            "uid": f"u-{name}",
            "generation": 1,
            "resourceVersion": "5",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            **more,
        },
        "spec": {"model": {"source": "s3://b/m"}, "targets": ["cpu"], "store": {"name": "own"}},
        "status": {"observedGeneration": -1},
    }


LARGE = {
    "annotations": {"note": "y" * 250_000, "genai-operator.dev/requestedAt": "now"},
    "labels": {f"l{number}": "" for number in range(60_000)},
    "managedFields": [{"fieldsV1": {f"f:{number}": {} for number in range(20_000)}}],
}


class ByteListings:
    """Sends listings and watches as bytes, which no fake of an apiserver would hold so large.

    Whatever is put into `lines` comes as one watch event.
    """

    def __init__(self, pages: Callable[[str], Iterable[bytes]]) -> None:
        self.pages = pages
        self.lines: asyncio.Queue[bytes] = asyncio.Queue()
        self.listed: list[str] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        plural = plural_of(request.path)
        if plural is None:
            return await self._discovery(request)
        stream = web.StreamResponse(headers={"Content-Type": "application/json"})
        await stream.prepare(request)
        if request.query.get("watch") == "true":
            while plural == "genaibuilds":
                await stream.write(await self.lines.get())
            await asyncio.sleep(60)
            return stream
        self.listed.append(plural)
        await stream.write(b'{"apiVersion":"x/v1","items":[')
        for number, item in enumerate(self.pages(plural)):
            await stream.write(b"," + item if number else item)
        await stream.write(b'],"kind":"XList","metadata":{"resourceVersion":"9"}}')
        return stream

    async def _discovery(self, request: web.Request) -> web.Response:
        names = {"/api/v1": ["pods", "namespaces"], "/apis/batch/v1": ["jobs"]}
        names[GROUP] = ["genaibuilds", "artifactstores", "genaitargets", "genaideployments"]
        if request.path in names:
            resources = [
                {
                    "name": name,
                    "kind": name.title(),
                    "singularName": name[:-1],
                    "namespaced": name != "genaitargets",
                    "verbs": ["list", "watch", "patch", "get"],
                }
                for name in names[request.path]
            ]
            return web.json_response({"resources": resources})
        if request.path == "/apis":
            groups = [
                {
                    "name": name,
                    "versions": [{"version": version}],
                    "preferredVersion": {"version": version},
                }
                for name, version in (("batch", "v1"), ("genai-operator.dev", "v1alpha1"))
            ]
            return web.json_response({"groups": groups})
        if request.path == "/api":
            return web.json_response({"versions": ["v1"]})
        return web.json_response({"message": "no"}, status=404)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Connection]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        try:
            yield Connection(f"http://127.0.0.1:{port}", ssl.create_default_context())
        finally:
            await runner.cleanup()


@asynccontextmanager
async def watching(server: ByteListings) -> AsyncIterator[Controller]:
    """kopf itself, as the operator starts it, beside a controller that does not work."""
    async with server.serving() as to, ApiClient(to) as api:
        handlers.connection = lambda: to  # type: ignore[attr-defined]
        controller = Controller(api, Settings())
        task = asyncio.create_task(
            kopf.operator(
                registry=handlers.registry_of(controller), standalone=True, clusterwide=True
            )
        )
        try:
            yield controller
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def until(true: Callable[[], bool]) -> None:
    for _ in range(200):
        if true():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it does not come")


@cache
def _large() -> bytes:
    value = a_build("NAME", **LARGE)
    value["spec"]["x"] = [[]] * 100_000
    return json.dumps(value).encode()


def large(name: str) -> bytes:
    """A build of 1.7 MB, as one could be before its spec had a schema."""
    return _large().replace(b"NAME", name.encode())


async def main(count: int) -> None:
    """List, watch and list again."""
    names = [f"b{number}" for number in range(count)]
    server = ByteListings(lambda plural: (large(n) for n in names if plural == "genaibuilds"))
    large("")
    before = peak_resident_bytes()
    async with watching(server) as controller:
        await until(lambda: len(controller.observed.builds) == count)
        for name in names:
            await server.lines.put(b'{"type": "ADDED", "object": ' + large(f"w{name}") + b"}\n")
            await until(server.lines.empty)
        await until(lambda: len(controller.observed.builds) == 2 * count)
        watched = len(controller.observed.builds)
        await controller.relister.compare()  # finds those gone that were only watched
        told = {
            "builds": [watched, len(controller.observed.builds)],
            "listings": server.listed.count("genaibuilds"),
            "peakMiB": (peak_resident_bytes() - before) >> 20,
        }
    print(json.dumps(told))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
