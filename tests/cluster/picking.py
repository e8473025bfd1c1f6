"""The endpoint picker of Gateway API's Inference Extension, beside a cluster."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import yaml
from harness import programs
from harness.cluster import Cluster

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "tests" / "health" / "picker"
EXAMPLE = ROOT / "examples" / "access" / "inferencepool.yaml"
PICKER = "sigs.k8s.io/gateway-api-inference-extension/cmd/epp"
PORT = 9002


class Picker:
    """One picker with the example's configuration, in the cluster's network.

    Args:
        cluster: Whose pods it chooses among.
        folder: For its configuration and log.
        namespace: Of its InferencePool `chat`.
    """

    def __init__(self, cluster: Cluster, folder: Path, *, namespace: str) -> None:
        self._cluster, self._folder, self._namespace = cluster, folder, namespace
        (config,) = (
            document["data"]["config.yaml"]
            for document in yaml.safe_load_all(EXAMPLE.read_text())
            if document["kind"] == "ConfigMap"
        )
        (folder / "config.yaml").write_text(config)

    def start(self) -> None:
        """Begin; `ask` waits for it."""
        program = programs.pinned("epp", MODULE, PICKER, needed=True)
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *self._cluster.network.prefix, str(program), "--pool-name=chat",
                    f"--pool-namespace={self._namespace}", f"--grpc-port={PORT}",
                    f"--config-file={self._folder}/config.yaml", "--tracing=false",
                    "--secure-serving=false", "--metrics-endpoint-auth=false",
                    "--enable-pprof=false",
                ],
                stdout=log,
                stderr=log,
                env=os.environ | {"KUBECONFIG": str(self._cluster.admin)},
            )  # fmt: skip

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(30)

    def ask(self, *models: str) -> list[str]:
        """Where it sends a request of each model: address:port, or what it says instead."""
        program = programs.pinned("ask-picker", MODULE, needed=True)
        ran = subprocess.run(
            [*self._cluster.network.prefix, str(program), f"127.0.0.1:{PORT}", *models],
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode:
            return [ran.stderr]
        return [line.partition(" ")[2] for line in ran.stdout.splitlines()]

    def log(self) -> str:
        """The end of what it wrote."""
        return (self._folder / "log").read_text(errors="replace")[-4000:]
