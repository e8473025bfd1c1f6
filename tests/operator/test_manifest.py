"""Jobs as they are written: named by key, restricted, sized, shared only where they may be."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genai_core.errors import BadInput
from genai_core.kinds.build import Run
from genai_core.names import Digest, Key
from genai_core.sources.resolved import ResolveFile
from genai_core.tasks.task_file import unpack
from genai_operator.jobs.access import StoreAccess
from genai_operator.jobs.job_manifest import (
    JobRequest,
    Owner,
    given_memory,
    job_name,
    render,
    scope_of,
)
from genai_operator.kube.job import JobState, Link, job_view

KEY = Key("0123456789abcdef" * 4)
OWNER = Owner("tiny-llama", "uid-1")
ACCESS = StoreAccess("s3://bucket/ns?endpoint=http://s3:7070", secret="s3")
QUESTION = ResolveFile(uri="s3://models/tiny", model={"onnx": "$(HOME)$$.onnx"}, quantization={})


def request(**more: Any) -> JobRequest:
    values: dict[str, Any] = {
        "namespace": "ns", "key": KEY, "operation": "convert", "task": "convert/cpu/1_of_1",
        "document": QUESTION, "image": "r/stages@sha256:" + "1" * 64, "memory_bytes": 700 << 20,
    }  # fmt: skip
    return JobRequest(**(values | more))


def rendered(run: Run | None = None, access: StoreAccess = ACCESS, **more: Any) -> dict[str, Any]:
    return render(request(**more), OWNER, run=run or Run(), access=access)


def container(job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = job["spec"]["template"]["spec"]["containers"][0]
    return found


def env(job: dict[str, Any]) -> dict[str, Any]:
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in container(job)["env"]}


def test_a_name_fits_into_a_label_and_says_key_and_attempt() -> None:
    for operation in ("convert", "a_very_long_operation_name"):
        for attempt in (1, 2, 99):
            name = job_name(operation, KEY, "ab12cd34", attempt)
            assert len(name) <= 63
            assert KEY[:32] in name
    assert job_name("convert", KEY, "s", 2) == job_name("convert", KEY, "s") + "-2"


def test_tasks_are_shared_only_within_one_store_queue_and_priority() -> None:
    scopes = {
        scope_of("s3://a/x", Run()),
        scope_of("s3://b/x", Run()),
        scope_of("s3://a/x", Run(queue_name="q")),
        scope_of("s3://a/x", Run(priority_class_name="high")),
    }
    assert len(scopes) == 4
    assert scope_of("s3://a/x", Run(parallelism=1, retries=9)) == scope_of("s3://a/x", Run())


def test_a_pod_meets_the_restricted_standard() -> None:
    pod = rendered()["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    security = pod["containers"][0]["securityContext"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert pod["automountServiceAccountToken"] is False
    assert {kind for v in pod["volumes"] for kind in v if kind != "name"} == {"emptyDir"}
    assert all(v["emptyDir"]["sizeLimit"] for v in pod["volumes"])


def test_the_task_arrives_as_it_was_whatever_it_holds() -> None:
    text = env(rendered())["GENAI_TASK"]
    assert "$" not in text
    assert json.loads(unpack(text))["model"] == {"onnx": "$(HOME)$$.onnx"}


def test_no_secret_stands_in_a_job_and_only_ingest_gets_the_sources() -> None:
    access = StoreAccess("s3://bucket/ns", secret="s3", source_secret="models")
    plain = env(rendered(access=access))
    assert plain["AWS_SECRET_ACCESS_KEY"]["secretKeyRef"]["name"] == "s3"
    assert not [name for name in plain if name.startswith("GENAI_SOURCE_")]
    reading = env(rendered(access=access, reads_source=True))
    assert reading["GENAI_SOURCE_SECRET_ACCESS_KEY"]["secretKeyRef"]["name"] == "models"
    assert reading["GENAI_SOURCE_SESSION_TOKEN"]["secretKeyRef"]["optional"] is True


def test_a_drained_node_costs_nothing_and_every_exit_ends_the_job() -> None:
    spec = rendered()["spec"]
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["action"] == "Ignore"
    assert rule["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert spec["backoffLimit"] == 0
    assert spec["podReplacementPolicy"] == "Failed"


def test_what_a_user_asks_for_stands_in_the_pod() -> None:
    run = Run.model_validate(
        {
            "priorityClassName": "high", "queueName": "team-a", "serviceAccountName": "builder",
            "imagePullSecrets": [{"name": "pull"}], "nodeSelector": {"disk": "fast"},
            "tolerations": [{"key": "npu", "operator": "Exists"}], "topologySpread": False,
            "scratch": {"size": "50Gi", "storageClassName": "ssd"}, "activeDeadlineSeconds": 60,
            "resources": {"limits": {"memory": "2Gi", "cpu": "2"}, "requests": {"cpu": "2"}},
        }
    )  # fmt: skip
    job = rendered(run, node_selector={"arch": "x"}, memory_bytes=given_memory(run))
    pod = job["spec"]["template"]["spec"]
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert job["spec"]["suspend"] is True, "Kueue starts it"
    assert "suspend" not in rendered()["spec"]
    assert pod["priorityClassName"] == "high"
    assert pod["serviceAccountName"] == "builder"
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    assert pod["nodeSelector"] == {"arch": "x", "disk": "fast"}
    assert {"key": "npu", "operator": "Exists"} in pod["tolerations"]
    assert "topologySpreadConstraints" not in pod
    assert pod["activeDeadlineSeconds"] == 60
    claim = pod["volumes"][1]["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert claim["resources"]["requests"]["storage"] == "50Gi"
    assert container(job)["resources"] == {
        "requests": {"cpu": "2", "memory": "2048Mi", "ephemeral-storage": "256Mi"},
        "limits": {"cpu": "2", "memory": "2048Mi", "ephemeral-storage": "59392Mi"},
    }


@pytest.mark.parametrize(
    ("text", "number"),
    [("64Mi", 64 << 20), ("1.5Gi", 3 << 29), ("2G", 2_000_000_000), ("100", 100), ("1Ki", 1024)],
)
def test_memory_is_read_as_kubernetes_reads_it(text: str, number: int) -> None:
    limits = {"limits": {"memory": text}} if text != "1Ki" else {"limits": {"memory": "1024"}}
    assert given_memory(Run.model_validate({"resources": limits})) == number


def test_a_task_that_does_not_fit_is_refused_by_name() -> None:
    names = {f"f{n}": hashlib.sha256(str(n).encode()).hexdigest() for n in range(20000)}
    big = ResolveFile(uri="s3://models/x", model=names, quantization={})
    with pytest.raises(BadInput, match="convert/cpu/1_of_1"):
        rendered(document=big)


@given(st.integers(1, 50), st.integers(1, 1 << 40))
def test_what_is_rendered_is_read_back(attempt: int, memory: int) -> None:
    job = rendered(attempt=attempt, memory_bytes=memory)
    job["metadata"] |= {"uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}
    view = job_view(job)
    assert view is not None
    assert (view.key, view.attempt, view.memory_bytes) == (KEY, attempt, memory)
    assert (view.owners, view.state) == (frozenset({"uid-1"}), JobState.ACTIVE)
    assert view.scope == scope_of(ACCESS.address, Run())


def resources(**given: Any) -> dict[str, Any]:
    run = Run.model_validate({"resources": given})
    memory = given_memory(run) or 700 << 20
    found: dict[str, Any] = container(rendered(run, memory_bytes=memory, seconds=90.0))["resources"]
    return found


def test_resources_are_a_containers_own() -> None:
    assert resources() == {
        "requests": {"cpu": "1", "memory": "700Mi", "ephemeral-storage": "256Mi"},
        "limits": {"memory": "700Mi", "ephemeral-storage": "28672Mi"},
    }
    limited = resources(limits={"cpu": "200m"})
    assert limited["requests"]["cpu"] == limited["limits"]["cpu"] == "200m"
    assert resources(limits={"cpu": "4"})["requests"]["cpu"] == "1"
    given = resources(limits={"memory": "40Gi"}, requests={"memory": "512Mi"})
    assert (given["requests"]["memory"], given["limits"]["memory"]) == ("512Mi", "40960Mi")
    assert resources(requests={"memory": "512Mi"})["limits"]["memory"] == "512Mi"
    assert resources(requests={"cpu": "3"}, limits={"cpu": "4"})["requests"]["cpu"] == "3"


def test_a_deadline_of_a_chain_is_one_that_an_apiserver_takes() -> None:
    links = tuple(Link(f"t/{n}", "convert", Digest("d" * 64)) for n in range(7))
    for seconds, expected in ((60, 480), (2**30, 2**31 - 1)):
        run = Run.model_construct(**Run().__dict__ | {"active_deadline_seconds": seconds})
        pod = rendered(run, chain=links)["spec"]["template"]["spec"]
        assert pod["activeDeadlineSeconds"] == expected
    job = rendered(Run(active_deadline_seconds=60), chain=links)
    job["metadata"] |= {"uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}
    view = job_view(job)
    assert view is not None
    assert view.task_seconds == 60
