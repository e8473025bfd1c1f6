"""`genai serve` in a process of its own."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from genai_cli.testing import Program, environment


def pod_command(home: Path, *arguments: str | Path) -> list[str]:
    """What a pod runs."""
    cache = ["--cache", str(home / ".cache" / "genai-operator" / "serving")]
    return [sys.executable, "-m", "genai_serving", *map(str, arguments), *cache, "--port", "0"]


class Served:
    """A server process.

    Args:
        home: Its user's.
        arguments: Of the command.
        pod: Started as in a pod, without the command line.
        env: More of the environment.
    """

    def __init__(self, home: Path, *arguments: str | Path, pod: bool = False, **env: str) -> None:
        self.process = subprocess.Popen(
            pod_command(home, *arguments)
            if pod
            else Program(home).command("serve", *arguments, "--port", "0"),
            cwd=home,
            env=environment(home) | env,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stderr is not None
        lines, found = [], None
        while found is None:
            lines.append(self.process.stderr.readline())
            assert lines[-1], f"it ended: {lines}"
            found = re.search(r"https?://127\.0\.0\.1:(\d+)", lines[-1])
        self.line, self.lines = lines[-1], lines
        self.port = int(found[1])

    def post(self, path: str, body: dict[str, Any], **headers: str) -> tuple[int, bytes]:
        return self._send("POST", path, json.dumps(body), headers)

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        return self._send("GET", path, None, headers)

    def _send(
        self, method: str, path: str, body: str | None, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            raw = answer.read()
            return answer.status, raw
        finally:
            connection.close()

    def stop(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGTERM)
        try:
            _, told = self.process.communicate(timeout=60)
        finally:
            self.process.kill()
        return self.process.returncode, told


def answer(served: Served, prompt: str, most: int = 24, **given: Any) -> dict[str, Any]:
    """The first choice of a completion, greedy where nothing else is said."""
    body = {"prompt": prompt, "max_tokens": most, "temperature": 0, "return_token_ids": True}
    status, raw = served.post("/v1/completions", body | given)
    assert status == 200, raw
    choice: dict[str, Any] = json.loads(raw)["choices"][0]
    return choice
