"""Installed by Helm: it builds what the laptop builds, may do what it needs and nothing else,
and upgrades and removal leave builds alone.

Tests here stand in the order of an installation's life and share one.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator
from typing import Any

import account
import existing
import pytest
from charted import NAMESPACE, RELEASE, Account, Charts
from harness.cluster import Cluster
from laptop import TINY, Laptop
from tenant import Tenant, revisions, wait
from witness import Witness

_PROBE = """
import json, os, socket, ssl, urllib.error, urllib.request
found = {"uid": os.getuid(), "token": os.path.exists("/var/run/secrets/kubernetes.io")}
status = dict(line.split(":\\t") for line in open("/proc/self/status") if ":\\t" in line)
found |= {name: status[name].strip() for name in ("CapEff", "NoNewPrivs", "Seccomp")}
try:
    open("/code/x", "w")
    found["root"] = "written"
except OSError as error:
    found["root"] = error.strerror
address = os.environ["KUBERNETES_SERVICE_HOST"] + ":" + os.environ["KUBERNETES_SERVICE_PORT"]
def ask(path, data=None):
    request = urllib.request.Request(f"https://{address}{path}", data=data)
    request.add_header("Content-Type", "application/json")
    try:
        context = ssl._create_unverified_context()
        return urllib.request.urlopen(request, context=context, timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code
space = "/api/v1/namespaces/" + os.environ["PROBE_NAMESPACE"]
found["secret"] = ask(space + "/secrets/s3")
found["pods"] = ask(space + "/pods")
found["create"] = ask(space + "/pods", b"{}")
print(json.dumps(found))
"""
"""Run in a pod that is a stage's in everything but its command."""


class Installed:
    """The charts, a team that is enabled and one that is not."""

    def __init__(self, cluster: Cluster, charts: Charts, teams: tuple[Tenant, Tenant]) -> None:
        self.cluster = cluster
        self.charts = charts
        self.team, self.other = teams
        self.notes = ""


def saved(cluster: Cluster) -> list[dict[str, Any]]:
    """The targets that the cluster's tests share."""
    listed = json.loads(cluster.kubectl("get", "genaitargets", "-o", "json"))["items"]
    kept = ("apiVersion", "kind", "spec")
    return [
        {name: value[name] for name in kept} | {"metadata": {"name": value["metadata"]["name"]}}
        for value in listed
    ]


def leaving(cluster: Cluster) -> list[str]:
    """Namespaces of earlier tests that are not gone yet."""
    listed = json.loads(cluster.kubectl("get", "namespaces", "-o", "json"))["items"]
    return [
        value["metadata"]["name"] for value in listed if "deletionTimestamp" in value["metadata"]
    ]


@pytest.fixture(scope="module")
def installed(
    cluster: Cluster, witness: Witness, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installed]:
    """`helm install` of both charts with this code's images."""
    if existing.wanted() and not os.environ.get("GENAI_TEST_OPERATOR_IMAGE"):
        pytest.skip("NOT INSTALLED BY HELM: GENAI_TEST_OPERATOR_IMAGE does not name an image")
    targets = saved(cluster)
    charts = Charts(cluster, tmp_path_factory.mktemp("helm"))
    teams = tuple(Tenant(cluster, f"t-{uuid.uuid4().hex[:8]}", witness=witness) for _ in range(2))
    found = Installed(cluster, charts, (teams[0], teams[1]))
    # Their stores would be asked for secrets that this operator may not read: refusals are counted.
    wait(lambda: not leaving(cluster), 120, lambda: str(leaving(cluster)))
    try:
        found.team.create()
        found.notes = charts.install(enabledNamespaces=[found.team.namespace])
        yield found
    finally:
        charts.uninstall()
        for team in teams:
            team.delete()
        cluster.kubectl("delete", "namespace", NAMESPACE, "--timeout=60s", check=False)
        cluster.apply(*targets)


@pytest.fixture(scope="module")
def built(installed: Installed) -> Installed:
    """With one build of tiny-llama that is Ready."""
    installed.team.build("shipped")
    installed.team.wait_ready("shipped")
    return installed


def ended(charts: Charts) -> list[str]:
    """How each object of `helm test` ended; the last one is the pod."""
    said = charts.helm("test", RELEASE, "--timeout", "120s")
    return [line.split()[1] for line in said.splitlines() if line.startswith("Phase:")]


def test_helm_test_passes_and_targets_say_how_they_stand(installed: Installed) -> None:
    assert ended(installed.charts) == ["Succeeded"] * 4
    assert f"Builds run in: {installed.team.namespace}" in installed.notes
    listed = json.loads(installed.cluster.kubectl("get", "genaitargets", "-o", "json"))["items"]
    ready = {
        value["metadata"]["name"]: [
            c["status"] for c in value["status"]["conditions"] if c["type"] == "Ready"
        ]
        for value in listed
    }
    wanted = ("cpu", "sc8380xp", "sm8550", "sm8650", "sm8750", "sm8850")
    assert ready == {name: ["True"] for name in wanted}


def test_a_build_gets_the_laptops_revision(built: Installed, laptop: Laptop) -> None:
    assert revisions(built.team.status("shipped")) == laptop.revisions(TINY)
    built.team.whole()
    reasons = {
        e["reason"] for e in built.team.get("events") if e["involvedObject"]["kind"] == "GenAIBuild"
    }
    assert {"Progressing", "Built"} <= reasons
    assert built.charts.metric("genai_api_requests_total") > 0
    assert built.charts.metric('genai_api_requests_total{code="403"') == 0


def test_a_namespace_that_is_not_enabled_is_told_so(built: Installed) -> None:
    built.other.create()
    built.other.build("elsewhere")

    def reason() -> str:
        status = built.other.get("artifactstores", "default").get("status") or {}
        ready = [c for c in status.get("conditions", ()) if c["type"] == "Ready"]
        return str(ready[0]["reason"]) if ready else ""

    wait(lambda: reason() == "NamespaceNotEnabled", 30, reason)
    wait(lambda: bool(built.other.condition("elsewhere")[1]), 30)
    assert built.other.condition("elsewhere")[0] != "True"
    assert not built.other.jobs()


@pytest.fixture(scope="module")
def operators(built: Installed) -> Account:
    """The operator's own token."""
    found = Account(built.cluster, NAMESPACE, RELEASE)
    assert found.subject == f"system:serviceaccount:{NAMESPACE}:{RELEASE}"
    return found


OURS, RBAC = "/apis/genai-operator.dev/v1alpha1", "/apis/rbac.authorization.k8s.io/v1"
TEAM, OTHER, OWN = "namespaces/{team}", "namespaces/{other}", f"namespaces/{NAMESPACE}"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
LEASES = "/apis/coordination.k8s.io/v1/namespaces"


def test_the_operators_token_opens_what_it_needs(built: Installed, operators: Account) -> None:
    space = built.team.namespace
    for path in (
        f"/api/v1/namespaces/{space}/secrets/s3",
        f"{OURS}/genaibuilds",
        f"{OURS}/genaitargets",
        "/api/v1/pods",
        f"{LEASES}/{NAMESPACE}/leases/genai-operator",
    ):
        code, said = operators.ask("GET", path)
        assert code == 200, said


_SPEC: dict[str, Any] = {"spec": {"run": {"suspend": True}}}
_LABEL: dict[str, Any] = {"metadata": {"labels": {"a": "b"}}}
_POD_SPEC = {"restartPolicy": "Never", "containers": [{"name": "c", "image": "localhost/pause:1"}]}
_ANY: dict[str, Any] = {"metadata": {"name": "stranger"}, "spec": _POD_SPEC}
_JOB = {"metadata": {"name": "stranger"}, "spec": {"template": {"spec": _POD_SPEC}}}
_SUBJECT = {"kind": "ServiceAccount", "name": RELEASE, "namespace": NAMESPACE}


def _binding(role: str) -> dict[str, Any]:
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}
    return {"metadata": {"name": "stranger"}, "subjects": [_SUBJECT], "roleRef": reference}


DENIED: dict[str, tuple[str, str, Any]] = {
    "read a Secret where it is not enabled": ("GET", f"/api/v1/{OTHER}/secrets/s3", None),
    "read a Secret of its own namespace": ("GET", f"/api/v1/{OWN}/secrets/any", None),
    "list Secrets where it is enabled": ("GET", f"/api/v1/{TEAM}/secrets", None),
    "list all Secrets": ("GET", "/api/v1/secrets", None),
    "watch Secrets": ("GET", f"/api/v1/{TEAM}/secrets?watch=true", None),
    "change a Secret": ("PATCH", f"/api/v1/{TEAM}/secrets/s3", _LABEL),
    "delete a Secret": ("DELETE", f"/api/v1/{TEAM}/secrets/s3", None),
    "make a Secret where it is not enabled": ("POST", f"/api/v1/{OTHER}/secrets", _ANY),
    "make a Secret beside itself": ("POST", f"/api/v1/{OWN}/secrets", _ANY),
    "delete a ConfigMap": ("DELETE", f"/api/v1/{TEAM}/configmaps/any", None),
    "make a ConfigMap where it is not enabled": ("POST", f"/api/v1/{OTHER}/configmaps", _ANY),
    "delete a NetworkPolicy": (
        "DELETE", f"/apis/networking.k8s.io/v1/{TEAM}/networkpolicies/any", None,
    ),
    "change a NetworkPolicy where it is not enabled": (
        "PATCH", f"/apis/networking.k8s.io/v1/{OTHER}/networkpolicies/any", _LABEL,
    ),
    "make a build": ("POST", f"{OURS}/{TEAM}/genaibuilds", _ANY),
    "change a build's spec": ("PATCH", f"{OURS}/{TEAM}/genaibuilds/shipped", _SPEC),
    "label a build": ("PATCH", f"{OURS}/{TEAM}/genaibuilds/shipped", _LABEL),
    "replace a build": ("PUT", f"{OURS}/{TEAM}/genaibuilds/shipped", _ANY),
    "delete a build": ("DELETE", f"{OURS}/{TEAM}/genaibuilds/shipped", None),
    "delete all builds": ("DELETE", f"{OURS}/{TEAM}/genaibuilds", None),
    "change a store": ("PATCH", f"{OURS}/{TEAM}/artifactstores/default", _LABEL),
    "change a target": ("PATCH", f"{OURS}/genaitargets/cpu", _LABEL),
    "delete a target": ("DELETE", f"{OURS}/genaitargets/cpu", None),
    "make a pod": ("POST", f"/api/v1/{TEAM}/pods", _ANY),
    "make a Job where it is not enabled": ("POST", f"/apis/batch/v1/{OTHER}/jobs", _JOB),
    "make a Job beside itself": ("POST", f"/apis/batch/v1/{OWN}/jobs", _JOB),
    "delete a Job where it is not enabled": ("DELETE", f"/apis/batch/v1/{OTHER}/jobs/any", None),
    "delete a pod where it is not enabled": ("DELETE", f"/api/v1/{OTHER}/pods/any", None),
    "make a Deployment where it is not enabled": (
        "POST", f"/apis/apps/v1/{OTHER}/deployments", _ANY,
    ),
    "change a Deployment where it is not enabled": (
        "PATCH", f"/apis/apps/v1/{OTHER}/deployments/any", _LABEL,
    ),
    "delete a Deployment": ("DELETE", f"/apis/apps/v1/{TEAM}/deployments/any", None),
    "make a Service where it is not enabled": ("POST", f"/api/v1/{OTHER}/services", _ANY),
    "list Services": ("GET", f"/api/v1/{TEAM}/services", None),
    "delete a Service": ("DELETE", f"/api/v1/{TEAM}/services/any", None),
    "delete a budget": ("DELETE", f"/apis/policy/v1/{TEAM}/poddisruptionbudgets/any", None),
    "make a budget beside itself": (
        "POST", f"/apis/policy/v1/{OWN}/poddisruptionbudgets", _ANY,
    ),
    "make a DaemonSet": ("POST", f"/apis/apps/v1/{TEAM}/daemonsets", _ANY),
    "run a command in a pod": ("POST", f"/api/v1/{TEAM}/pods/any/exec?command=id", {}),
    "attach to a pod": ("POST", f"/api/v1/{TEAM}/pods/any/attach", {}),
    "forward a pod's port": ("POST", f"/api/v1/{TEAM}/pods/any/portforward", {}),
    "debug a pod": ("PATCH", f"/api/v1/{TEAM}/pods/any/ephemeralcontainers", _LABEL),
    "read a log where it is not enabled": ("GET", f"/api/v1/{OTHER}/pods/any/log", None),
    "read a log beside itself": ("GET", f"/api/v1/{OWN}/pods/any/log", None),
    "read ConfigMaps": ("GET", f"/api/v1/{TEAM}/configmaps", None),
    "read all events": ("GET", "/api/v1/events", None),
    "list nodes": ("GET", "/api/v1/nodes", None),
    "change a node": ("PATCH", "/api/v1/nodes/{node}", _LABEL),
    "delete a node": ("DELETE", "/api/v1/nodes/{node}", None),
    "reach a kubelet": ("GET", "/api/v1/nodes/{node}/proxy/pods", None),
    "list namespaces": ("GET", "/api/v1/namespaces", None),
    "change a namespace": ("PATCH", f"/api/v1/{TEAM}", _LABEL),
    "make a Role": ("POST", f"{RBAC}/{TEAM}/roles", {"metadata": {"name": "stranger"}}),
    "enable a namespace": ("POST", f"{RBAC}/{OTHER}/rolebindings", _binding(f"{RELEASE}-tenant")),
    "widen its own role": ("PATCH", f"{RBAC}/clusterroles/{RELEASE}-tenant", _LABEL),
    "become administrator": ("POST", f"{RBAC}/clusterrolebindings", _binding("cluster-admin")),
    "get another account's token": (
        "POST", f"/api/v1/{TEAM}/serviceaccounts/default/token", {"spec": {}},
    ),
    "change a CRD": (
        "PATCH", f"{CRDS}/genaibuilds.genai-operator.dev", _LABEL,
    ),
    "change its own Deployment": ("PATCH", f"/apis/apps/v1/{OWN}/deployments/{RELEASE}", _LABEL),
    "read another Lease": ("GET", f"{LEASES}/kube-system/leases/kube-scheduler", None),
    "read a neighbour's Lease": ("GET", f"{LEASES}/{NAMESPACE}/leases/other", None),
    "delete its Lease": ("DELETE", f"{LEASES}/{NAMESPACE}/leases/genai-operator", None),
}  # fmt: skip


@pytest.mark.parametrize("what", DENIED)
def test_the_operator_may_not(what: str, built: Installed, operators: Account) -> None:
    method, path, body = DENIED[what]
    node = json.loads(built.cluster.kubectl("get", "nodes", "-o", "json"))["items"][0]
    place = path.format(
        team=built.team.namespace, other=built.other.namespace, node=node["metadata"]["name"]
    )
    code, said = operators.ask(method, place, body)
    assert code == 403, said
    assert operators.subject in json.loads(said)["message"]


def test_the_operator_may_not_act_as_somebody_else(built: Installed, operators: Account) -> None:
    code, said = operators.ask("GET", "/api/v1/secrets", Impersonate_User="system:admin")
    assert code == 403
    assert "impersonate" in said


def test_a_stages_pod_has_no_token_and_nothing_else_to_do_harm_with(built: Installed) -> None:
    job = next(job for job in built.team.jobs() if job["status"].get("succeeded"))
    spec = job["spec"]["template"]["spec"]
    space = built.team.namespace
    container = spec["containers"][0] | {"command": ["python3", "-c", _PROBE], "args": []}
    container["env"] = [{"name": "PROBE_NAMESPACE", "value": space}]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "probe", "namespace": space},
        "spec": spec | {"containers": [container]},
    }
    built.cluster.apply(pod)

    def phase() -> str:
        return str((built.team.get("pods", "probe").get("status") or {}).get("phase", ""))

    wait(lambda: phase() in {"Succeeded", "Failed"}, 60, phase)
    said = built.cluster.kubectl("-n", space, "logs", "probe")
    found = json.loads(said)
    assert found == {
        "uid": 65532,
        "token": False,
        "CapEff": "0000000000000000",
        "NoNewPrivs": "1",
        "Seccomp": "2",
        "root": "Read-only file system",
        "secret": found["secret"],
        "pods": found["pods"],
        "create": found["create"],
    }
    # Nobody: unknown (401) where anonymous requests are off, forbidden (403) where they are on.
    assert {found["secret"], found["pods"], found["create"]} <= {401, 403}


def uids(tenant: Tenant) -> set[str]:
    return {job["metadata"]["uid"] for job in tenant.jobs()}


def new_leader(charts: Charts, before: list[str]) -> None:
    """Wait until a replica that was not there before works, and has worked for a while."""
    wait(lambda: bool(charts.holder()) and charts.holder() not in before, 60, charts.holder)
    time.sleep(3)


def test_an_upgrade_starts_no_job(built: Installed) -> None:
    before, pods = uids(built.team), built.charts.pods()
    status = built.team.status("shipped")
    built.charts.upgrade(podAnnotations={"upgraded": "once"})
    new_leader(built.charts, pods)
    assert uids(built.team) <= before
    assert built.team.condition("shipped", "ToolchainOutdated") == ("", "")
    assert built.team.status("shipped")["artifacts"] == status["artifacts"]


def test_images_with_other_libraries_are_only_announced(built: Installed) -> None:
    before = uids(built.team)
    stages = built.charts.values["stages"]
    built.charts.upgrade(stages=stages | {"toolchain": {"numpy": "9.9.9"}})
    built.team.wait_condition(
        "shipped", ("True", "NewerToolchain"), kind="ToolchainOutdated", seconds=30
    )
    assert built.team.condition("shipped") == ("True", "Built")
    assert uids(built.team) <= before
    built.charts.upgrade(stages=stages)
    built.team.wait_condition("shipped", ("", ""), kind="ToolchainOutdated", seconds=30)


def test_another_replica_takes_over(built: Installed) -> None:
    first = built.charts.holder()
    assert first in built.charts.pods()
    built.cluster.kubectl("-n", NAMESPACE, "delete", "pod", first, "--grace-period=0", "--force")
    new_leader(built.charts, [first, ""])
    built.team.build("afterwards")
    built.team.wait_ready("afterwards", 60)


def test_an_operator_of_one_namespace_needs_no_rights_elsewhere(built: Installed) -> None:
    pods = built.charts.pods()
    team = built.team.namespace
    built.charts.upgrade(watchNamespaces=[team], enabledNamespaces=[])
    new_leader(built.charts, pods)
    account = Account(built.cluster, NAMESPACE, RELEASE)
    for denied in (f"{OURS}/genaibuilds", "/api/v1/pods", "/api/v1/nodes/node1"):
        assert account.ask("GET", denied)[0] == 403, denied
    built.team.small("narrow")
    built.team.wait_ready("narrow", 120)
    assert ended(built.charts) == ["Succeeded"] * 4
    built.other.small("unseen")
    time.sleep(3)
    assert not built.other.status("unseen").get("conditions")


def test_removal_leaves_the_kinds_and_the_builds(built: Installed) -> None:
    artifacts = built.team.status("shipped")["artifacts"]
    built.charts.uninstall()
    wait(lambda: not built.charts.pods(), 60, lambda: " ".join(built.charts.pods()))
    assert built.team.status("shipped")["artifacts"] == artifacts
    assert not built.cluster.kubectl("-n", NAMESPACE, "get", "leases", "-o", "name")
    kinds = built.cluster.kubectl("get", "crd", "-o", "name")
    for plural in ("genaibuilds", "genaideployments", "genaitargets", "artifactstores"):
        assert f"/{plural}.genai-operator.dev" in kinds
    for left in ("clusterroles", "clusterrolebindings"):
        names = built.cluster.kubectl("get", left, "-o", "name").split()
        assert not [name for name in names if "genai" in name and account.NAME not in name], names
