"""Every panel of the dashboards has data from a real Prometheus that scrapes a real cluster."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import existing
import pytest
from harness.cluster import Cluster
from operator_process import Operator
from scraping import SERVED, Prometheus
from serving_image import pinned
from talking import Talking
from tenant import GROUP, ROOT, Tenant, upload, wait
from witness import Witness

pytestmark = pytest.mark.usefixtures("operator")

BOARDS = ROOT / "deploy" / "dashboards"
TARGET = "watched"
FILLED_IN = {
    "$__rate_interval": "1m",
    "$__range": "10m",
    "$job": ".*",
    "$namespace": ".*",
    "$model": ".*",
}
"""What Grafana puts into a query for a scrape every second, with all of each filter chosen."""


@pytest.fixture(scope="module")
def operator(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    if existing.wanted():
        pytest.skip("NEEDS A CLUSTER OF ITS OWN: Prometheus runs in its network")
    found = Operator(cluster, tmp_path_factory.mktemp("operator"), inside=True)
    found.start()
    yield found
    found.stop()


@pytest.fixture(scope="module")
def prometheus(
    cluster: Cluster, operator: Operator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    found = Prometheus(cluster, tmp_path_factory.mktemp("prometheus"), operator=operator.address)
    found.start()
    yield found
    found.stop()


@pytest.fixture(scope="module")
def room(cluster: Cluster, witness: Witness, prometheus: Prometheus) -> Iterator[Tenant]:
    """A build, then another like it, then two servers of it with an adapter and with guesses."""
    image = pinned(cluster)
    cpu = json.loads(cluster.kubectl("get", "genaitarget", "cpu", "-o", "json"))["spec"]
    target = {"apiVersion": GROUP, "kind": "GenAITarget", "metadata": {"name": TARGET}}
    cluster.apply(target | {"spec": cpu | {"servingImage": image}})
    found = Tenant(cluster, f"t-{uuid.uuid4().hex[:8]}", witness=witness)
    found.create()
    adapter = ROOT / "examples" / "tiny-llama" / "adapters" / "c-headers-r8"
    upload(cluster, adapter, name="c-headers")
    lora = {"adapters": [{"name": "c-headers", "source": "s3://models/c-headers"}]}
    wait(lambda: prometheus.values("genai_lease_held") == [1], 60, prometheus.log)
    for name in ("first", "second"):
        found.build(name, targets=[TARGET], lora=lora)
        found.wait_ready(name)
    deployment = found.manifest("chat", SERVING) | {"kind": "GenAIDeployment"}
    cluster.apply(deployment)
    wait(lambda: ready(found), 240, lambda: json.dumps(found.get("genaideployments", "chat")))
    for name, model in (("client", "chat"), ("adapted", "c-headers")):
        Talking(found, image, host=f"chat.{found.namespace}.svc", model=model, name=name)
    yield found
    found.delete()
    cluster.kubectl("delete", "genaitarget", TARGET, "--wait=false")


SERVING: dict[str, Any] = {
    "from": {"build": "first", "target": TARGET},
    "replicas": 2,
    "server": {"threads": 1, "maxConcurrency": 4},
    "speculation": {"method": "Ngram"},
    "adapters": [{"name": "c-headers"}],
    "resources": {"requests": {"cpu": "100m"}},
}


def ready(room: Tenant) -> bool:
    conditions = (room.get("genaideployments", "chat").get("status") or {}).get("conditions", ())
    return {c["type"]: c["status"] for c in conditions}.get("Ready") == "True"


def queries(panel: dict[str, Any]) -> Iterator[str]:
    """A panel's queries, filled in."""
    for target in panel.get("targets", ()):
        query = target["expr"]
        for variable, value in FILLED_IN.items():
            query = query.replace(variable, value)
        yield query


def drawn(prometheus: Prometheus, panel: dict[str, Any], query: str) -> list[float]:
    """The numbers that Grafana gets: of now, or of the last ten minutes where it draws a course."""
    if panel["type"] == "timeseries":
        return prometheus.course(query, seconds=600)
    return prometheus.values(query)


def silent(prometheus: Prometheus, board: Path) -> set[str]:
    """Panels with a query that has no number to show."""
    return {
        panel["title"]
        for panel in json.loads(board.read_text())["panels"]
        for query in queries(panel)
        if not any(map(math.isfinite, drawn(prometheus, panel, query)))
    }


@pytest.mark.usefixtures("room")
def test_prometheus_finds_the_servers_by_the_pod_monitor(prometheus: Prometheus) -> None:
    wait(
        lambda: prometheus.targets() == {SERVED: ["up", "up"], "genai-operator": ["up"]},
        30,
        lambda: str(prometheus.targets()),
    )


@pytest.mark.usefixtures("room")
@pytest.mark.parametrize("board", sorted(BOARDS.glob("*.json")), ids=lambda path: path.stem)
def test_every_panel_has_data(prometheus: Prometheus, board: Path) -> None:
    wait(
        lambda: not silent(prometheus, board),
        90,
        lambda: f"without data: {sorted(silent(prometheus, board))}",
    )


@pytest.mark.usefixtures("room")
def test_counts_of_the_operators_board_are_those_of_the_cluster(prometheus: Prometheus) -> None:
    """Not only some number: the right one."""
    assert prometheus.values("max(genai_stores{ready='False'})") == [0]
    (built,) = prometheus.values("sum(genai_builds_ended_total{reason='Built'})")
    assert built == 2
    (increase,) = prometheus.values("sum(increase(genai_builds_ended_total{reason='Built'}[10m]))")
    assert 1.5 < increase < 2.5, "the first of a kind is seen too"


@pytest.mark.usefixtures("room")
def test_every_alert_is_evaluated(prometheus: Prometheus) -> None:
    wait(
        lambda: set(prometheus.rules().values()) == {"ok"},
        30,
        lambda: str(prometheus.rules()),
    )
