"""Alerts and dashboards: promtool proves the rules, and every name that is read is written."""

from __future__ import annotations

import inspect
import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import programs
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from genai_operator import metrics
from genai_operator.deployments.rendering import server_pod
from genai_operator.deployments.rendering.served_revision import selector
from genai_operator.kube.status.status_phase import Phase
from genai_runtime.speculation.control import Counts
from genai_serving.metrics import AdapterLoad
from genai_serving.metrics import Metrics as ServerMetrics
from genai_serving.observer import Load

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "rules" / "genai-operator.rules.yaml"
BOARDS = ROOT / "deploy" / "dashboards"
OPERATOR, SERVING = BOARDS / "genai-operator.json", BOARDS / "genai-serving.json"
FILTERS = {
    OPERATOR: ('job=~"$job"',),
    SERVING: ('namespace=~"$namespace"', 'model_name=~"$model"'),
}
every_board = pytest.mark.parametrize("board", FILTERS, ids=lambda path: path.stem)
HERE = Path(__file__).parent
ADDED_BY_PROMETHEUS = {"job", "instance", "le", "namespace", "pod"}


@pytest.fixture(scope="module")
def promtool() -> str:
    found = programs.pinned(
        "promtool",
        HERE / "prometheus",
        "github.com/prometheus/prometheus/cmd/promtool",
        tags="remove_all_sd",
    )
    if found is None:
        pytest.skip("PROMTOOL WAS NOT RUN: `make test-health` compiles it")
    return str(found)


def run(*command: str) -> None:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def alerts() -> dict[str, str]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def panels(board: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(board.read_text())["panels"]
    return found


def queries(board: Path) -> dict[str, str]:
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in panels(board)
        for target in panel.get("targets", ())
    }


EXPRESSIONS = alerts() | queries(OPERATOR)


def written() -> dict[str, set[str]]:
    """Name of each series of the operator -> its labels."""
    found: dict[str, set[str]] = {}
    for metric in (getattr(metrics, name) for name in metrics.__all__):
        assert isinstance(metric, MetricWrapperBase)
        name, labels = metric._name, set(metric._labelnames)
        ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
        for end in ends.get(str(metric._type), [""]):
            found[name + end] = labels
    for family in REGISTRY.collect():
        if family.name.startswith("process_"):
            found |= {sample.name: set(sample.labels) for sample in family.samples}
    return found


def served() -> dict[str, set[str]]:
    """The same of a server, from what a scrape of one gets that has everything."""
    metrics = ServerMetrics("m")
    metrics.load = lambda: Load(1, 1, 0.5)
    metrics.adapters = lambda: AdapterLoad(2, {"a": "laid in"}, 7, {"a"}, ())
    metrics.guessed = lambda: Counts("ngram", drafts=1, guessed=2, accepted=1, positions=[1, 0])
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_every_name_and_label_that_is_read_is_written(where: str) -> None:
    compare(EXPRESSIONS[where], written())


@pytest.mark.parametrize("where", queries(SERVING))
def test_every_name_and_label_of_servers_that_is_read_is_written(where: str) -> None:
    compare(queries(SERVING)[where], served())


def compare(expression: str, known: dict[str, set[str]]) -> None:
    read = re.findall(r"\b((?:genai|process|up|vllm)[_:]?\w*)\b(?:\{([^}]*)\})?", expression)
    assert read
    allowed = set(ADDED_BY_PROMETHEUS)
    for name, matchers in read:
        assert name in known, f"{name} is no metric"
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
        assert labels <= known[name] | ADDED_BY_PROMETHEUS, f"{name} has no label {labels}"
        allowed |= known[name]
    for grouped in re.findall(r"\bby\s*\(([^)]*)\)", expression):
        assert {label.strip() for label in grouped.split(",")} <= allowed, grouped


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_counters_are_summed_and_what_every_replica_sees_is_not(where: str) -> None:
    """Two replicas must not show twice as many builds."""
    seen = "builds|stores|targets|jobs_active|queue_depth|watch_deaf"
    assert not re.search(rf"\bsum\b[^(]*\((?:\w+\()?genai_({seen})\b", EXPRESSIONS[where])
    for counter in re.finditer(r"(\w+)\(genai_\w+_(total|bucket|count)\b", EXPRESSIONS[where]):
        assert counter[1] in {"rate", "increase"}, counter[0]


def test_enum_values_that_are_read_are_ones_that_are_written() -> None:
    text = " ".join(EXPRESSIONS.values())
    assert set(re.findall(r'genai_builds\{state="(\w+)"', text)) <= set(Phase)
    results = re.findall(r'result=~?"([\w|]+)"', text)
    assert {word for one in results for word in one.split("|")} <= {
        "succeeded",
        "failed",
        "cached",
    }


def test_promtool_accepts_the_rules_and_each_alert_fires_when_it_should(promtool: str) -> None:
    run(promtool, "check", "rules", "--lint=all", "--lint-fatal", str(RULES))
    tests = HERE / "genai-operator.rules.test.yaml"
    run(promtool, "test", "rules", str(tests))
    for name in alerts():
        entries = [
            entry
            for test in yaml.safe_load(tests.read_text())["tests"]
            for entry in test["alert_rule_test"]
            if entry["alertname"] == name
        ]
        assert any(entry["exp_alerts"] for entry in entries), f"{name} was never seen to fire"
        assert any(not entry["exp_alerts"] for entry in entries), f"{name} was never seen silent"


def test_promtool_accepts_the_metrics_themselves(promtool: str) -> None:
    for metric in (getattr(metrics, name) for name in metrics.__all__):
        if metric._labelnames:
            metric.labels(*("any" for _ in metric._labelnames))
    shown = generate_latest().decode()
    ran = subprocess.run(
        [promtool, "check", "metrics"], input=shown, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "genai_s3_requests_total{" in shown


@every_board
def test_promtool_parses_every_query_of_a_dashboard(
    board: Path, promtool: str, tmp_path: Path
) -> None:
    variables = {
        "$__rate_interval": "5m", "$__range": "1h",
        "$job": ".+", "$namespace": ".+", "$model": ".+",
    }  # fmt: skip
    rules = []
    for number, query in enumerate(queries(board).values()):
        expression = query
        for name, value in variables.items():
            expression = expression.replace(name, value)
        assert "$" not in expression
        rules.append({"record": f"dashboard:query{number}", "expr": expression})
    file = tmp_path / "dashboard.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    run(promtool, "check", "rules", "--lint=all", "--lint-fatal", str(file))


@every_board
def test_dashboard_is_one_that_grafana_imports(board: Path) -> None:
    value = json.loads(board.read_text())
    assert value["uid"] == board.stem
    assert value["schemaVersion"] >= 36
    variables = {entry["name"] for entry in value["templating"]["list"]}
    assert variables == {"datasource"} | {
        found for filters in FILTERS[board] for found in re.findall(r"\$(\w+)", filters)
    }
    ids = [panel["id"] for panel in panels(board)]
    assert len(set(ids)) == len(ids)
    for panel in panels(board):
        assert panel["title"]
        if panel["type"] == "row":
            continue
        assert panel["type"] in {"stat", "timeseries"}
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["fieldConfig"]["defaults"]["unit"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
        for filters in FILTERS[board]:
            assert all(filters in target["expr"] for target in panel["targets"])


@every_board
def test_no_two_panels_lie_on_one_another(board: Path) -> None:
    places = [panel["gridPos"] for panel in panels(board)]
    for one, other in itertools.combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)
    assert all(place["x"] + place["w"] <= 24 for place in places)


def test_the_objects_for_kubernetes_hold_the_same() -> None:
    config = yaml.safe_load((BOARDS / "configmap.yaml").read_text())
    assert config["data"].keys() == {board.name for board in FILTERS}
    for board in FILTERS:
        assert json.loads(config["data"][board.name]) == json.loads(board.read_text())
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    rule = yaml.safe_load((RULES.with_name("prometheusrule.yaml")).read_text())
    assert rule["spec"] == yaml.safe_load(RULES.read_text())


def test_every_metric_is_on_the_dashboard() -> None:
    """What nobody looks at need not be counted; targets without an image are normal."""
    text = " ".join(EXPRESSIONS.values())
    unread = {
        metric._name for metric in (getattr(metrics, name) for name in metrics.__all__)
        if metric._name not in text
    }  # fmt: skip
    assert unread <= {"genai_targets"}


def test_every_metric_of_servers_is_on_their_dashboard() -> None:
    text = " ".join(queries(SERVING).values())
    ends = ("_created", "_sum", "_count")
    assert {name for name in served() if not name.endswith(ends) and name not in text} == set()


def test_prometheus_finds_the_pods_of_servers() -> None:
    """The monitor selects by a label, and names a port, that the operator writes."""
    monitor = yaml.safe_load((RULES.with_name("podmonitor.yaml")).read_text())["spec"]
    assert monitor["selector"]["matchLabels"].items() <= selector("any").items()
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert f'"name": "{endpoint["port"]}"' in inspect.getsource(server_pod)


def test_the_page_on_health_names_every_metric_and_alert() -> None:
    text = (ROOT / "docs" / "health.md").read_text()
    for metric in (getattr(metrics, name) for name in metrics.__all__):
        name = metric._name + ("_total" if metric._type == "counter" else "")
        rows = [line for line in text.splitlines() if re.match(rf"\|.*\b{name}\b", line)]
        assert rows, f"{name} is not in docs/health.md"
        assert all(label in rows[0] for label in metric._labelnames), rows[0]
    for alert in alerts():
        assert f"| {alert} |" in text
