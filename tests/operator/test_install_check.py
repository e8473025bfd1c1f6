"""What `helm test` runs says yes to an installation that works, and names what does not."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from genai_operator.manager.install_check import run

KINDS = ("artifactstores", "genaibuilds", "genaideployments", "genaitargets")
NEW: dict[str, Any] = {"metadata": {"generation": 2}}
GROUP = "/apis/genai-operator.dev/v1alpha1"


class Cluster:
    """An apiserver and an operator, in one server."""

    def __init__(self) -> None:
        self.kinds = [name for kind in KINDS for name in (kind, f"{kind}/status")]
        self.targets: dict[str, dict[str, Any]] = {
            "cpu": {"metadata": {"generation": 2}, "status": {"observedGeneration": 2}}
        }
        self.ready = 200
        self.metrics = "genai_lease_held 1.0"
        self.asked = 0
        self.reported_at = 0

    def app(self) -> web.Application:
        async def kinds(_: web.Request) -> web.Response:
            return web.json_response({"resources": [{"name": name} for name in self.kinds]})

        async def target(request: web.Request) -> web.Response:
            self.asked += 1
            if self.asked == self.reported_at:
                self.targets["cpu"]["status"] = {"observedGeneration": 2}
            found = self.targets.get(request.match_info["name"])
            if found is None:
                return web.json_response({"reason": "NotFound", "message": "no"}, status=404)
            return web.json_response(found)

        async def readyz(_: web.Request) -> web.Response:
            return web.Response(text="starting" if self.ready != 200 else "ok", status=self.ready)

        async def metrics(_: web.Request) -> web.Response:
            return web.Response(text=self.metrics)

        app = web.Application()
        app.add_routes(
            [
                web.get(GROUP, kinds),
                web.get(f"{GROUP}/genaitargets/{{name}}", target),
                web.get("/readyz", readyz),
                web.get("/metrics", metrics),
            ]
        )
        return app


def ask(
    cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch, *, seconds: float = 0.0
) -> int:
    """Run the test against that cluster, by a kubeconfig as on a laptop."""

    async def go() -> int:
        runner = web.AppRunner(cluster.app())
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        address = runner.addresses[0]
        url = f"http://{address[0]}:{address[1]}"
        config = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": url}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
        }
        file = folder / "config"
        file.write_text(json.dumps(config))
        monkeypatch.setenv("KUBECONFIG", str(file))
        try:
            return await run(url, ("cpu",), seconds=seconds)
        finally:
            await runner.cleanup()

    return asyncio.run(go())


def test_an_installation_that_works_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(Cluster(), tmp_path, monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("ok: ") for line in lines)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ({"ready": 503}, "says 503 starting"),
        ({"metrics": "python_info 1.0"}, "lacks genai_lease_held"),
        ({"kinds": ["genaibuilds", "genaibuilds/status"]}, "artifactstores, artifactstores/status"),
        ({"targets": {}}, "there is no GenAITarget cpu"),
        ({"targets": {"cpu": NEW}}, "has not reported on GenAITarget"),
        ({"targets": {"cpu": NEW | {"status": {"observedGeneration": 1}}}}, "has not reported"),
    ],
)  # fmt: skip
def test_what_is_broken_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    broken: dict[str, Any],
    says: str,
) -> None:
    cluster = Cluster()
    for name, value in broken.items():
        setattr(cluster, name, value)
    assert ask(cluster, tmp_path, monkeypatch) == 1
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("not ok: ")]
    assert len(said) == 1
    assert says in said[0]


def test_an_operator_that_is_slow_to_report_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster()
    del cluster.targets["cpu"]["status"]
    cluster.reported_at = 3
    monkeypatch.setattr("genai_operator.manager.install_check._PAUSE_SECONDS", 0.01)
    assert ask(cluster, tmp_path, monkeypatch, seconds=10) == 0
    assert cluster.asked == 3
