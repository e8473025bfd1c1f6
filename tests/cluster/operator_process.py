"""The operator as a process of this machine: started, killed, asked for its metrics."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import account
import existing
import yaml
from harness.cluster import Cluster


class Operator:
    """One replica.

    Args:
        cluster: The cluster.
        folder: For its log.
        identity: Its name.
        inside: Run in the network of a cluster of our own, as a pod does: pods are reached there.
    """

    def __init__(
        self, cluster: Cluster, folder: Path, *, identity: str = "one", inside: bool = False
    ) -> None:
        self.cluster = cluster
        self.identity = identity
        self.log = folder / f"operator-{identity}.log"
        self.kubeconfig = folder / f"operator-{identity}.kubeconfig"
        self.port = _free_port()
        self.program = ["-m", "genai_operator"]
        within = inside and not existing.wanted()
        self._prefix = cluster.network.prefix if within else ()
        self._host = cluster.network.address if within else "127.0.0.1"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, **environment: str) -> None:
        """Start it and wait until its watches have begun."""
        self.spawn(**environment)
        self.wait_ready()

    def spawn(self, **environment: str) -> None:
        """Start it, with the rights that are shipped."""
        if not self.kubeconfig.exists():
            self.kubeconfig.write_text(yaml.safe_dump(account.kubeconfig(self.cluster)))
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._prefix, sys.executable, *self.program],
                stdout=log,
                stderr=log,
                env=os.environ
                | {
                    "KUBECONFIG": str(self.kubeconfig),
                    "GENAI_HTTP_PORT": str(self.port),
                    "GENAI_IDENTITY": self.identity,
                    "GENAI_LEASE_SECONDS": "6",
                    "GENAI_ALLOWED_AUDIENCES": "genai-test-*",
                    "GENAI_ALLOWED_STS_ENDPOINTS": "*",
                }
                | environment,
            )

    def wait_ready(self) -> None:
        """Wait until its watches have begun."""
        assert self._process is not None
        deadline = time.monotonic() + 60
        while self.ask("readyz") != "ok":
            assert self._process.poll() is None, self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.1)

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """SIGTERM; it must end by itself."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(20)

    def pause(self, *, on: bool) -> None:
        """SIGSTOP or SIGCONT: a replica that hangs."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP if on else signal.SIGCONT)

    def ended(self) -> int | None:
        """Its exit code, once it has ended."""
        assert self._process is not None
        return self._process.poll()

    @property
    def address(self) -> str:
        """host:port of its metrics and health."""
        return f"{self._host}:{self.port}"

    @property
    def _url(self) -> str:
        return f"http://{self.address}"

    def ask(self, path: str) -> str:
        """What it answers on its HTTP port; empty where it does not."""
        try:
            with urllib.request.urlopen(f"{self._url}/{path}", timeout=5) as got:
                text: str = got.read().decode()
                return text
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return ""

    def sickness(self) -> str:
        """Why its liveness probe fails; empty where it does not."""
        try:
            with urllib.request.urlopen(f"{self._url}/healthz", timeout=5):
                return ""
        except urllib.error.HTTPError as error:
            text: str = error.read().decode()
            return text

    def metric(self, name: str) -> float:
        """The sum of a metric's series, or the one series named with its labels."""
        rows = [line.rsplit(" ", 1) for line in self.ask("metrics").splitlines()]
        return sum(float(value) for series, value in rows if name in {series, series.split("{")[0]})

    def memory_mb(self) -> float:
        """Resident memory."""
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        line = next(row for row in status.splitlines() if row.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    def text(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-6000:]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
