"""A real Prometheus in a cluster; it finds pods as the Prometheus operator would have it do."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.parse
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from harness import programs
from harness.cluster import Cluster

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "rules"
PORT = 9090
SERVED = "genai-serving"
"""Job of the servers, as the PodMonitor's name is; the operator's job is its own."""


def _pods(monitor: dict[str, Any], kubeconfig: Path) -> dict[str, Any]:
    """The scrape configuration that the Prometheus operator makes of a PodMonitor."""
    (endpoint,) = monitor["podMetricsEndpoints"]
    relabel: list[dict[str, Any]] = [
        {
            "source_labels": [
                "__meta_kubernetes_pod_label_" + label.translate(str.maketrans("./-", "___"))
            ],
            "regex": value,
            "action": "keep",
        }
        for label, value in monitor["selector"]["matchLabels"].items()
    ]
    kept = {
        "source_labels": ["__meta_kubernetes_pod_container_port_name"],
        "regex": endpoint["port"],
        "action": "keep",
    }
    named = [
        {"source_labels": [f"__meta_kubernetes_{label}"], "target_label": target}
        for label, target in (("namespace", "namespace"), ("pod_name", "pod"))
    ]
    return {
        "job_name": SERVED,
        "metrics_path": endpoint["path"],
        "scheme": endpoint.get("scheme", "http"),
        "kubernetes_sd_configs": [{"role": "pod", "kubeconfig_file": str(kubeconfig)}],
        "relabel_configs": [*relabel, kept, *named],
    }


class Prometheus:
    """One server, in the cluster's network.

    Args:
        cluster: Whose pods are found.
        folder: For its data, configuration and log.
        operator: host:port of the operator's metrics.
    """

    def __init__(self, cluster: Cluster, folder: Path, *, operator: str) -> None:
        self._cluster, self._folder = cluster, folder
        self._url = f"http://{cluster.network.address}:{PORT}"
        monitor = yaml.safe_load((RULES / "podmonitor.yaml").read_text())["spec"]
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES / "genai-operator.rules.yaml")],
            "scrape_configs": [
                {"job_name": "genai-operator", "static_configs": [{"targets": [operator]}]},
                _pods(monitor, cluster.admin),
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))

    def start(self) -> None:
        """Start it and wait until it answers."""
        program = programs.pinned(
            "prometheus",
            ROOT / "tests" / "health" / "prometheus",
            "github.com/prometheus/prometheus/cmd/prometheus",
            tags="remove_all_sd,enable_kubernetes_sd",
            needed=True,
        )
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *self._cluster.network.prefix,
                    str(program),
                    f"--config.file={self._folder}/prometheus.yml",
                    f"--storage.tsdb.path={self._folder}/data",
                    f"--web.listen-address={self._cluster.network.address}:{PORT}",
                ],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 60
        while not self._ready():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.2)

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(30)

    def log(self) -> str:
        """The end of what it wrote."""
        return (self._folder / "log").read_text(errors="replace")[-4000:]

    def values(self, query: str) -> list[float]:
        """One number a series of an instant query's answer."""
        answer = self._ask("query", query=query)
        return [float(series["value"][1]) for series in answer["result"]]

    def course(self, query: str, *, seconds: float) -> list[float]:
        """Every number of every series over the last seconds, as a panel draws them."""
        now = datetime.now(UTC).timestamp()
        span = {"start": str(now - seconds), "end": str(now), "step": "2"}
        answer = self._ask("query_range", query=query, **span)
        return [float(value) for series in answer["result"] for _, value in series["values"]]

    def targets(self) -> dict[str, list[str]]:
        """Health of each target, by job."""
        found: dict[str, list[str]] = {}
        for target in self._ask("targets")["activeTargets"]:
            found.setdefault(target["labels"]["job"], []).append(target["health"])
        return found

    def rules(self) -> dict[str, str]:
        """Each alert -> `ok`, or what is wrong with its evaluation."""
        return {
            rule["name"]: rule.get("lastError") or rule["health"]
            for group in self._ask("rules")["groups"]
            for rule in group["rules"]
        }

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=5):
                return True
        except OSError:
            return False

    def _ask(self, what: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self._url}/api/v1/{what}?{query}", timeout=30) as answer:
            return json.load(answer)["data"]
