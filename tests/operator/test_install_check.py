"""What `helm test` runs says yes to an installation that works, and names what does not."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from fake_apiserver import FakeApiserver

from genai_operator.kube.values import Json
from genai_operator.manager.install_check import run

NEW: Json = {"metadata": {"name": "cpu", "generation": 2}}
REPORTED: Json = NEW | {"status": {"observedGeneration": 2}}


@dataclass
class Installation:
    """An apiserver with a target, and an operator's port."""

    target: Json | None = field(default_factory=lambda: REPORTED)
    kinds: list[str] | None = None
    ready: int = 200
    metrics: str = "genai_lease_held 1.0"
    api: FakeApiserver = field(default_factory=FakeApiserver)

    def check(self, *, seconds: float = 0.0) -> int:
        """The exit code of what `helm test` runs."""
        if self.target is not None:
            self.api.put("genaitargets", self.target)
        if self.kinds is not None:
            self.api.kinds = self.kinds
        return asyncio.run(self._checked(seconds))

    async def _checked(self, seconds: float) -> int:
        async def readyz(_: web.Request) -> web.Response:
            return web.Response(text="starting" if self.ready != 200 else "ok", status=self.ready)

        async def metrics(_: web.Request) -> web.Response:
            return web.Response(text=self.metrics)

        app = web.Application()
        app.add_routes([web.get("/readyz", readyz), web.get("/metrics", metrics)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        try:
            return await run(self.api, f"http://{host}:{port}", ("cpu",), seconds=seconds)
        finally:
            await runner.cleanup()


def test_run_passes_when_an_installation_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert Installation().check() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("ok: ") for line in lines)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ({"ready": 503}, "says 503 starting"),
        ({"metrics": "python_info 1.0"}, "lacks genai_lease_held"),
        ({"kinds": ["genaibuilds"]}, "artifactstores, artifactstores/status"),
        ({"target": None}, "there is no GenAITarget cpu"),
        ({"target": NEW}, "has not reported on GenAITarget"),
        ({"target": NEW | {"status": {"observedGeneration": 1}}}, "has not reported"),
    ],
)
def test_run_names_what_is_broken(
    capsys: pytest.CaptureFixture[str], broken: dict[str, Any], says: str
) -> None:
    assert Installation(**broken).check() == 1
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("not ok: ")]
    assert len(said) == 1
    assert says in said[0]


class LateReport(FakeApiserver):
    """An operator reports on the target while it is asked for the third time."""

    async def get(self, plural: str, name: str, *, namespace: str = "") -> Json | None:
        """Also of what is reported meanwhile."""
        if len(self.asked("get", plural)) == 2:
            self.put(plural, REPORTED)
        return await super().get(plural, name, namespace=namespace)


def test_run_waits_when_an_operator_is_slow_to_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genai_operator.manager.install_check._PAUSE_SECONDS", 0.01)
    installation = Installation(target=NEW, api=LateReport())
    assert installation.check(seconds=10) == 0
    assert len(installation.api.asked("get", "genaitargets")) == 3
