"""Where Jobs run and when: nodes, taints, priority, parallelism, time to live, a queue's admission.

Read from pods on a real cluster. Kueue itself is not there; what it does to a Job is done by hand:
it takes `suspend` off when there is quota, and puts it on again to take the turn back.
"""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
from freezing import hold, send
from harness.cluster import Cluster
from tenant import Tenant, wait
from witness import Witness

pytestmark = pytest.mark.usefixtures("operator")

QUEUE = {"queueName": "team-a"}
NOTE = "genai-operator.dev/task"
ATTEMPT = "genai-operator.dev/attempt"


def nodes_of(tenant: Tenant) -> set[str]:
    return {pod["spec"]["nodeName"] for pod in tenant.pods() if pod["spec"].get("nodeName")}


def ended(job: dict[str, Any]) -> bool:
    return any(c["type"] in {"Complete", "Failed"} for c in job["status"].get("conditions", ()))


def suspend(tenant: Tenant, job: dict[str, Any], *, on: bool) -> None:
    patch = json.dumps({"spec": {"suspend": on}})
    name = job["metadata"]["name"]
    tenant.cluster.kubectl("-n", tenant.namespace, "patch", "job", name, "-p", patch)


def evict(tenant: Tenant, job: dict[str, Any]) -> None:
    """Take the turn of a Job at work back, and let the Job controller see how its pod ends.

    Else the pod is mostly gone before the controller looks again, and a Job that fails because its
    pod was told to stop is seen once in a hundred times.
    """
    held = hold(tenant, task=job["metadata"]["annotations"][NOTE])  # or it may be done already
    note = {"op": "add", "path": "/metadata/finalizers/-", "value": "tests.genai-operator.dev/keep"}
    change(tenant, held["name"], note)
    suspend(tenant, job, on=True)
    wait(lambda: "deletionTimestamp" in tenant.get("pod", held["name"])["metadata"], 40)
    send(held, signal.SIGTERM)  # the kubelet's is lost where the stage did not listen yet
    wait(lambda: tenant.get("pod", held["name"])["status"]["phase"] == "Failed", 40)

    def seen() -> bool:
        status = tenant.get("job", held["job"])["status"]
        return not status.get("terminating") and not status.get("active")

    wait(seen, 40, lambda: json.dumps(tenant.get("job", held["job"]), indent=1))
    change(tenant, held["name"], {"op": "remove", "path": "/metadata/finalizers"})


def change(tenant: Tenant, pod: str, operation: dict[str, str]) -> None:
    patch = json.dumps([operation])
    tenant.cluster.kubectl("-n", tenant.namespace, "patch", "pod", pod, "--type=json", "-p", patch)


def test_tasks_are_spread_over_the_nodes_and_kept_to_the_parallelism(
    tenant: Tenant, witness: Witness
) -> None:
    htp = {"targets": ["cpu"], "quantization": {"gaps": "Float", "cpuPrecision": "Float"}}
    for number in range(3):  # three builds whose packages differ, so that there is much to spread
        golden = {"prompts": ["a" * (1 + number)], "maxTokens": 1}
        tenant.small(f"spread-{number}", **htp, golden=golden, run={"parallelism": 1})
    for number in range(3):
        tenant.wait_ready(f"spread-{number}")
    pods = tenant.pods()
    spread = pods[0]["spec"]["topologySpreadConstraints"][0]
    assert (spread["topologyKey"], spread["maxSkew"]) == ("kubernetes.io/hostname", 1)
    assert nodes_of(tenant) == {"node1", "node2"}
    assert witness.most_at_once(tenant.namespace) <= 3, "one at a time of each build"


def test_a_build_runs_where_and_as_its_user_says(cluster: Cluster, tenant: Tenant) -> None:
    name = f"urgent-{tenant.namespace}"
    cluster.apply(
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": name},
            "value": 1000,
        }
    )
    run = {
        "nodeSelector": {"kubernetes.io/hostname": "node2"},
        "tolerations": [{"key": "npu", "operator": "Exists", "effect": "NoSchedule"}],
        "priorityClassName": name,
        "imagePullSecrets": [{"name": "registry"}],
        "topologySpread": False,
        "ttlSecondsAfterFinished": 5,
        "scratch": {"size": "1Gi"},
        "resources": {"requests": {"cpu": "100m"}, "limits": {"memory": "1500Mi"}},
    }
    tenant.small("placed", run=run)
    wait(lambda: bool(tenant.pods()), 60)
    pod = tenant.pods()[0]["spec"]
    assert pod["priority"] == 1000
    assert {"name": "registry"} in pod["imagePullSecrets"]
    assert "npu" in {t.get("key") for t in pod["tolerations"]}
    assert "topologySpreadConstraints" not in pod
    (stage,) = pod["containers"]
    assert stage["resources"] == {
        "requests": {"cpu": "100m", "memory": "1500Mi", "ephemeral-storage": "256Mi"},
        "limits": {"memory": "1500Mi", "ephemeral-storage": "9Gi"},
    }
    scratch = next(v for v in pod["volumes"] if v["name"] == "scratch")
    assert scratch["emptyDir"] == {"sizeLimit": "1Gi"}
    tenant.wait_ready("placed")
    assert nodes_of(tenant) <= {"node2"}
    wait(lambda: not tenant.jobs(), 60, lambda: str(len(tenant.jobs())))
    cluster.kubectl("delete", "priorityclass", name)


def test_a_build_that_fits_nowhere_says_what_it_waits_for(tenant: Tenant) -> None:
    tenant.small("homeless", run={"nodeSelector": {"disk": "none-such"}})

    status = tenant.wait_condition("homeless", ("Unknown", "Unschedulable"), seconds=30)
    assert status["phase"] == "Waiting"
    assert "spec.run.nodeSelector" in status["conditions"][0]["message"]


@pytest.mark.usefixtures("own_cluster")
def test_a_queue_admits_evicts_and_admits_again(tenant: Tenant) -> None:
    tenant.small("queued", run=QUEUE)
    tenant.wait_condition("queued", ("Unknown", "WaitingForAdmission"), seconds=60)
    (first,) = tenant.jobs()
    assert first["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert first["spec"]["suspend"] is True
    assert not tenant.pods()
    message = tenant.status("queued")["conditions"][0]["message"]
    assert "waits to be admitted by its queue" in message

    suspend(tenant, first, on=False)
    evicted = False

    def admitted() -> bool:
        nonlocal evicted
        for job in tenant.jobs():
            task = job["metadata"]["annotations"][NOTE]
            if not job["spec"].get("suspend") or ended(job):
                continue
            suspend(tenant, job, on=False)
            if not evicted and task == "ingest":
                evicted = True
                evict(tenant, job)
                tenant.wait_condition("queued", ("Unknown", "WaitingForAdmission"))
        return tenant.condition("queued") == ("True", "Built")

    wait(admitted, 240, lambda: json.dumps(tenant.status("queued"), indent=1))
    assert evicted
    again = [job for job in tenant.jobs() if job["metadata"]["labels"][ATTEMPT] != "1"]
    assert not again, "losing a turn is no failure: " + json.dumps(again, indent=1)
    tenant.whole()
