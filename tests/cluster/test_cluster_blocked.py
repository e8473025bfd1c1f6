"""Jobs that do not start: named within seconds, mended by an edit, and no hindrance to neighbours.

What a cluster refuses (a policy, a broken webhook, a quota) is waited for, and goes on by itself.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from laptop import SMALL, SMALL_MODEL
from tenant import MODELS, Tenant, s3_client, upload, wait

pytestmark = pytest.mark.usefixtures("operator")

ZERO = "localhost/genai-stages@sha256:" + "0" * 64
NOWHERE: dict[str, Any] = {"run": {"nodeSelector": {"nope": "x"}}}
ATTEMPT = "genai-operator.dev/attempt"
BLOCKED_SECONDS = 30
"""What a build may take to say that its Job does not start."""


def message(tenant: Tenant, name: str) -> str:
    found = [c for c in tenant.status(name).get("conditions", ()) if c["type"] == "Ready"]
    return str(found[0]["message"]) if found else ""


def goes_on(tenant: Tenant) -> None:
    """A Job of the tenant's has done its work."""

    def done() -> bool:
        return any(job["status"].get("succeeded") for job in tenant.jobs())

    space = ("-n", tenant.namespace)
    wait(done, 100, lambda: tenant.cluster.kubectl(*space, "get", "gb,jobs,pods"))


def blocked(tenant: Tenant, name: str, reason: str, *words: str) -> None:
    """A build says that it is blocked, in REASON, in an Event, and what to change."""
    tenant.wait_condition(name, ("Unknown", reason), seconds=BLOCKED_SECONDS)
    wait(lambda: all(word in message(tenant, name) for word in words), 20,
         lambda: message(tenant, name))  # fmt: skip
    listed = tenant.cluster.kubectl("-n", tenant.namespace, "get", "gb", name)
    assert reason in listed
    told = [e for e in tenant.get("events") if e["involvedObject"]["name"] == name]
    assert ("Warning", reason) in {(e["type"], e["reason"]) for e in told}


def test_an_edit_reaches_a_job_that_fits_nowhere_and_a_neighbour_does_not_wait(
    tenant: Tenant,
) -> None:
    own = {"golden": {"prompts": ["mine"], "maxTokens": 1}}
    tenant.small("first", **NOWHERE, **own)
    blocked(tenant, "first", "Unschedulable", "spec.run.nodeSelector", "node affinity/selector")
    assert "claims" not in message(tenant, "first"), "the scheduler's own noise"
    tenant.small("neighbour")
    tenant.wait_ready("neighbour", 120)
    # What both need is there now; what the first alone needs still fits nowhere.
    blocked(tenant, "first", "Unschedulable", "package/")
    tenant.small("first", **own)
    tenant.wait_ready("first", 90)
    assert {job["metadata"]["labels"][ATTEMPT] for job in tenant.jobs()} == {"1"}, "it cost none"
    tenant.ran_apart()


def test_an_image_that_does_not_exist_is_named_and_the_targets_mending_reaches_the_pod(
    tenant: Tenant,
) -> None:
    good = json.loads(tenant.cluster.kubectl("get", "genaitarget", "cpu", "-o", "json"))
    name = f"bad-{tenant.namespace}"
    bad = {"apiVersion": good["apiVersion"], "kind": "GenAITarget", "metadata": {"name": name}}
    tenant.cluster.apply(bad | {"spec": good["spec"] | {"image": ZERO}})
    try:
        tenant.small("b", targets=[name])
        blocked(tenant, "b", "ImagePullFailed", "GenAITarget", "0" * 12)
        tenant.cluster.apply(bad | {"spec": good["spec"]})
        goes_on(tenant)
    finally:
        tenant.cluster.kubectl("delete", "genaitarget", name)


REGISTRY = """
import http.server, time
class Nothing(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}'
        self.send_response(200 if self.path == "/v2/" else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
    do_HEAD = do_GET
try:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 5999), Nothing)
except OSError:  # nodes that share their network share the server too
    time.sleep(100000)
server.serve_forever()
"""
"""On each node: a registry that answers, and has nothing."""


def test_target_says_itself_that_no_registry_has_its_image_until_its_spec_is_mended(
    tenant: Tenant,
) -> None:
    good = json.loads(tenant.cluster.kubectl("get", "genaitarget", "cpu", "-o", "json"))
    space, labels = f"registry-{tenant.namespace}", {"app": "registry"}
    container = {"name": "registry", "image": good["spec"]["image"],
                 "command": ["python3", "-c", REGISTRY]}  # fmt: skip
    # A namespace of its own: a tenant's may forbid the node's network.
    tenant.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": space}}, {
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": "registry", "namespace": space},
        "spec": {"selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels},
            "spec": {"hostNetwork": True, "containers": [container]}}},
    })  # fmt: skip

    def serves() -> bool:
        text = tenant.cluster.kubectl("-n", space, "get", "daemonset", "registry", "-o", "json")
        found: dict[str, int] = json.loads(text)["status"]
        return 0 < found["desiredNumberScheduled"] == found.get("numberReady", 0)

    wait(serves, 60, lambda: tenant.cluster.kubectl("-n", space, "describe", "ds,pods"))
    name = f"gone-{tenant.namespace}"
    bad = {"apiVersion": good["apiVersion"], "kind": "GenAITarget", "metadata": {"name": name}}
    image = "localhost:5999/genai-stages@sha256:" + "0" * 64
    tenant.cluster.apply(bad | {"spec": good["spec"] | {"image": image}})

    def ready() -> tuple[str, str, str]:
        text = tenant.cluster.kubectl("get", "genaitarget", name, "-o", "json")
        found = json.loads(text).get("status", {}).get("conditions", ())
        return next(
            ((c["status"], c["reason"], c["message"]) for c in found if c["type"] == "Ready"),
            ("", "", ""),
        )

    try:
        wait(lambda: ready()[0] == "True", 20)
        tenant.small("b", targets=[name])
        blocked(tenant, "b", "ImagePullFailed", "GenAITarget")
        wait(lambda: ready()[:2] == ("False", "ImagePullFailed"), 20, lambda: str(ready()))
        assert "correct spec.image" in ready()[2]
        tenant.cluster.apply(bad | {"spec": good["spec"]})
        wait(lambda: ready()[0] == "True", 20, lambda: str(ready()))
        goes_on(tenant)
    finally:
        tenant.cluster.kubectl("delete", "genaitarget", name)
        tenant.cluster.kubectl("delete", "namespace", space, "--wait=false")


def volume(tenant: Tenant, name: str, kind: str) -> None:
    """A claim, bound to a folder of the node that it runs on."""
    own = f"{name}-{tenant.namespace}"
    size = {"storage": "1Mi"}
    modes = ["ReadOnlyMany"]
    claim = {"namespace": tenant.namespace, "name": name}
    tenant.cluster.apply(
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": own}, "spec": {
            "capacity": size, "accessModes": modes, "storageClassName": "", "claimRef": claim,
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": f"/var/tmp/{own}", "type": kind}}},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": claim, "spec": {
            "resources": {"requests": size}, "accessModes": modes, "storageClassName": "",
            "volumeName": own}},
    )  # fmt: skip


def test_a_volume_that_cannot_be_mounted_and_a_folder_that_it_lacks_are_called_so(
    tenant: Tenant,
) -> None:
    volume(tenant, "broken", "Directory")  # there is none
    volume(tenant, "empty", "DirectoryOrCreate")
    try:
        tenant.small("unmounted", model={"source": "pvc://broken/model"})
        tenant.small("missing", model={"source": "pvc://empty/model"})
        blocked(tenant, "unmounted", "ContainerNotCreated", "MountVolume", "hostPath")
        tenant.wait_condition("missing", ("Unknown", "SourceNotFound"), seconds=90)
        reasons, attempts = set(), set()
        until = time.monotonic() + 40
        while time.monotonic() < until:  # it is looked at again after 15 s
            reasons.add(tenant.status("missing")["conditions"][0]["reason"])
            attempts |= {job["metadata"]["labels"][ATTEMPT] for job in tenant.jobs()}
            time.sleep(0.3)
        assert "2" in attempts
        assert reasons == {"SourceNotFound"}
    finally:
        for name in ("broken", "empty"):
            tenant.cluster.kubectl("delete", "pv", f"{name}-{tenant.namespace}", "--wait=false")


def test_a_quota_is_named_and_a_renamed_secret_reaches_the_job(tenant: Tenant) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "spec": {"hard": {"pods": "0"}}}
    tenant.cluster.apply(quota | {"metadata": {"name": "q", "namespace": tenant.namespace}})
    wait(lambda: "hard" in tenant.get("resourcequota", "q").get("status", {}), 20)
    tenant.small("b")
    blocked(tenant, "b", "NotAdmitted", "exceeded quota: q", "raise the quota")
    secret = tenant.get("secret", "s3")
    meta = {"name": "s3-b", "namespace": tenant.namespace,
            "labels": secret["metadata"].get("labels", {})}  # fmt: skip
    tenant.cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta,
                          "data": secret["data"]})  # fmt: skip
    patch = json.dumps({"spec": {"secretRef": {"name": "s3-b"}}})
    space = ("-n", tenant.namespace)
    tenant.cluster.kubectl(*space, "patch", "gas", "default", "--type=merge", "-p", patch)
    tenant.cluster.kubectl(*space, "delete", "secret/s3", "resourcequota/q")
    goes_on(tenant)


def policy(tenant: Tenant) -> tuple[dict[str, Any], ...]:
    name = f"no-jobs-{tenant.namespace}"
    group = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": name}}
    jobs = {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"],
            "resources": ["jobs"]}  # fmt: skip
    ours = {"matchLabels": {"kubernetes.io/metadata.name": tenant.namespace}}
    return (
        group | {"kind": "ValidatingAdmissionPolicy", "spec": {
            "matchConstraints": {"resourceRules": [jobs]},
            "validations": [{"expression": "'team' in object.metadata.labels",
                             "message": "every Job needs the label team"}]}},
        group | {"kind": "ValidatingAdmissionPolicyBinding", "spec": {
            "policyName": name, "validationActions": ["Deny"],
            "matchResources": {"namespaceSelector": ours}}},
    )  # fmt: skip


def webhook(tenant: Tenant) -> tuple[dict[str, Any], ...]:
    jobs = {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"],
            "resources": ["jobs"]}  # fmt: skip
    hook = {
        "name": "wh.case.example", "rules": [jobs], "failurePolicy": "Fail", "sideEffects": "None",
        "clientConfig": {"service": {"name": "nope", "namespace": tenant.namespace}},
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": tenant.namespace}},
        "admissionReviewVersions": ["v1"], "timeoutSeconds": 2,
    }  # fmt: skip
    return ({"apiVersion": "admissionregistration.k8s.io/v1",
             "kind": "ValidatingWebhookConfiguration",
             "metadata": {"name": f"wh-{tenant.namespace}"}, "webhooks": [hook]},)  # fmt: skip


@pytest.mark.parametrize(
    ("made", "words"), [(policy, "every Job needs the label team"), (webhook, "failed calling")]
)
def test_a_cluster_that_admits_no_job_is_waited_for_with_its_own_words(
    tenant: Tenant, made: Any, words: str
) -> None:
    objects = made(tenant)
    name = f"b-{made.__name__}"
    tenant.cluster.apply(*objects)
    try:
        time.sleep(2)  # until the apiserver has taken it in
        tenant.small(name, golden={"prompts": [made.__name__], "maxTokens": 1})
        blocked(tenant, name, "NotAdmitted", words)
    finally:
        for value in objects:
            tenant.cluster.kubectl("delete", value["kind"], value["metadata"]["name"])
    if made is policy:  # the other is waited for in the same way
        goes_on(tenant)


def test_a_target_that_stands_twice_and_a_list_with_a_number_twice_are_refused_at_once(
    tenant: Tenant,
) -> None:
    for spec in ({"targets": ["cpu", "cpu"]}, {"graphs": {"autoRegression": [1, 1]}}):
        text = json.dumps(tenant.manifest("twice", SMALL | spec))
        with pytest.raises(RuntimeError, match="it holds an entry twice: keep one of them"):
            tenant.cluster.kubectl("create", "-f", "-", "--dry-run=server", stdin=text)


def test_a_limit_below_the_defaults_is_kept_and_a_deadline_is_called_so(tenant: Tenant) -> None:
    limits = {"limits": {"cpu": "200m", "memory": "3Gi"}, "requests": {"memory": "512Mi"}}
    tenant.small("b", run={"resources": limits, "activeDeadlineSeconds": 1, "retries": 5},
                 golden={"prompts": ["late"], "maxTokens": 2})  # fmt: skip
    status = tenant.wait_condition("b", ("False", "DeadlineExceeded"), seconds=90)
    assert status["failures"][0]["message"].count(status["failures"][0]["task"]) == 1
    assert "activeDeadlineSeconds" in status["failures"][0]["message"]
    (job,) = tenant.jobs()[:1]
    given = job["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert (given["requests"]["cpu"], given["requests"]["memory"]) == ("200m", "512Mi")
    assert (given["limits"]["cpu"], given["limits"]["memory"]) == ("200m", "3Gi")


def test_a_source_that_is_not_there_is_called_so_and_found_when_it_comes(tenant: Tenant) -> None:
    tenant.small("nowhere", model={"source": "s3://no-such-bucket/x"})
    late = f"late-{tenant.namespace}"
    tenant.small("late", model={"source": f"s3://{MODELS}/{late}"})
    for name in ("nowhere", "late"):
        tenant.wait_condition(name, ("Unknown", "SourceNotFound"), seconds=BLOCKED_SECONDS)
    assert "no bucket no-such-bucket" in message(tenant, "nowhere")
    ready = tenant.get("artifactstore", "default")["status"]["conditions"][0]
    assert (ready["type"], ready["status"]) == ("Ready", "True")
    upload(tenant.cluster, SMALL_MODEL, name=late)
    try:
        goes_on(tenant)
    finally:
        client = s3_client(tenant.cluster)
        for item in client.list_objects_v2(Bucket=MODELS, Prefix=f"{late}/").get("Contents", ()):
            client.delete_object(Bucket=MODELS, Key=item["Key"])


def test_a_store_that_a_build_finds_closed_says_so_itself_at_once(tenant: Tenant) -> None:
    tenant.credentials("wrong")
    try:
        tenant.small("b", golden={"prompts": ["closed"], "maxTokens": 2})
        tenant.wait_condition("b", ("Unknown", "StoreNotReady"), seconds=BLOCKED_SECONDS)

        def told() -> bool:
            status = tenant.get("artifactstore", "default")["status"]
            return bool(status["conditions"][0]["status"] == "False")

        wait(told, 15, lambda: str(tenant.get("artifactstore", "default")["status"]))
    finally:
        tenant.credentials()
    goes_on(tenant)
