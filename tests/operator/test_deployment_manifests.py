"""A GenAIDeployment's objects, as they are rendered."""

from __future__ import annotations

import re
from typing import Any

import pytest

from genai_core.kinds.artifact_store import WebIdentity
from genai_core.kinds.deployment import DeploymentSpec, ServedContainer
from genai_core.kinds.target import TargetSpec
from genai_operator.deployments.checks import (
    check_adapters,
    check_name,
    check_served,
    serving_image,
)
from genai_operator.deployments.manifests import Served, manifests, rendering_of, selector
from genai_operator.errors import Stalled, Waiting
from genai_operator.jobs.access import StoreAccess
from genai_runtime.speculation.config import named_config
from genai_serving.__main__ import _arguments

IMAGE = f"registry.example/serving@sha256:{'1' * 64}"
REVISION = f"sha256:{'a' * 64}"
MIB = 1 << 20


def spec_of(**given: Any) -> DeploymentSpec:
    return DeploymentSpec.model_validate({"from": {"build": "b", "target": "cpu"}, **given})


def rendered(access: StoreAccess | None = None, **given: Any) -> dict[str, dict[str, Any]]:
    served = Served(
        namespace="n", name="chat", uid="u-1", spec=spec_of(**given), revision=REVISION,
        record=f"package/{'b' * 64}", size_bytes=100 * MIB, image=IMAGE,
        access=access or StoreAccess("s3://bucket/n", "reads"), node_selector={"disk": "fast"},
    )  # fmt: skip
    return dict(manifests(served))


def pod_of(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    pod: dict[str, Any] = found["deployments"]["spec"]["template"]["spec"]
    return pod


def arguments(**given: Any) -> dict[str, str]:
    words = pod_of(rendered(**given))["containers"][0]["args"][1:]
    named = [word for word in words if word != "--golden"]
    return dict(zip(named[::2], named[1::2], strict=True))


@pytest.mark.parametrize("name", ["-x", "--golden", "$(HOME)", "a$$b", "a b"])
def test_the_server_gets_a_name_as_its_user_wrote_it(name: str) -> None:
    given = pod_of(rendered(server={"modelName": name}, adapters=[{"name": name}]))
    words = [kubelets(word) for word in given["containers"][0]["args"]]
    read = _arguments([*words, "--cache", "x"])
    assert (read.model_name, read.adapter) == (name, [name])


def kubelets(word: str) -> str:
    """What a container gets of an argument; there is a variable HOME.

    https://kubernetes.io/docs/tasks/inject-data-application/define-command-argument-container/
    """
    return re.sub(r"\$(\$|\(HOME\))", lambda m: "$" if m[1] == "$" else "/root", word)


def test_manifests_belong_to_the_deployment_and_select_its_pods() -> None:
    found = rendered()
    for plural, value in found.items():
        (owner,) = value["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == (
            "GenAIDeployment",
            "u-1",
            True,
        )
        assert value["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "genai-operator"
        assert value["metadata"]["name"] == "chat", plural
    labels = found["deployments"]["spec"]["template"]["metadata"]["labels"]
    assert selector("chat").items() <= labels.items()
    assert found["services"]["spec"]["selector"] == selector("chat")
    assert found["poddisruptionbudgets"]["spec"]["selector"]["matchLabels"] == selector("chat")
    assert found["deployments"]["spec"]["selector"]["matchLabels"] == selector("chat")


def test_pod_passes_pod_security_restricted_with_a_read_only_root() -> None:
    pod = pod_of(rendered(expose={"apiKeySecretRef": {"name": "keys"}}))
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in (*pod["initContainers"], *pod["containers"]):
        assert container["image"] == IMAGE
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    kinds = {next(key for key in volume if key != "name") for volume in pod["volumes"]}
    assert kinds == {"emptyDir", "secret"}
    assert all(v["emptyDir"]["sizeLimit"] for v in pod["volumes"] if "emptyDir" in v)


def test_the_store_is_reached_by_the_fetch_alone() -> None:
    identity = WebIdentity(role_arn="arn:r", audience="sts")
    for access in (
        StoreAccess("s3://b/n", "reads", ca="PEM"),
        StoreAccess("s3://b/n", service_account="builder", web_identity=identity),
    ):
        pod = pod_of(rendered(access))
        (fetch,), (server,) = pod["initContainers"], pod["containers"]
        assert {"GENAI_STORE"} <= {entry["name"] for entry in fetch["env"]}
        assert "env" not in server
        assert "identity" not in {mount["name"] for mount in server["volumeMounts"]}
        artifact = next(m for m in server["volumeMounts"] if m["name"] == "artifact")
        assert artifact["readOnly"] is True
        assert pod.get("serviceAccountName", "") == access.service_account
    assert fetch["args"] == [
        f"package/{'b' * 64}", "--revision", REVISION, "--into", "/artifact/container",
    ]  # fmt: skip


def test_replicas_are_those_that_whoever_scales_has_set() -> None:
    assert rendered()["deployments"]["spec"]["replicas"] == 1
    assert rendered(replicas=0)["deployments"]["spec"]["replicas"] == 0


def test_a_rollout_takes_no_pod_away_and_a_fetch_counts_as_progress() -> None:
    spec = rendered(rollout={"progressDeadlineSeconds": 60})["deployments"]["spec"]
    assert spec["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
    }
    assert spec["progressDeadlineSeconds"] == 60 + 10  # 100 MiB at 10 MiB a second
    recreated = rendered(rollout={"strategy": "Recreate"})["deployments"]["spec"]
    assert recreated["strategy"] == {"type": "Recreate"}


@pytest.mark.parametrize(("grace", "drain", "delay"), [(600, 590, 5), (8, 1, 5), (1, 1, 0)])
def test_a_pod_leaves_within_its_grace_period(grace: int, drain: int, delay: int) -> None:
    pods = {"drainSeconds": grace}
    given = arguments(pods=pods)
    assert (given["--drain-seconds"], given["--drain-delay-seconds"]) == (str(drain), str(delay))
    assert pod_of(rendered(pods=pods))["terminationGracePeriodSeconds"] == grace
    assert drain + delay <= grace


CHANGES: dict[str, Any] = {
    "from.revision": None,  # whose container is rendered is decided before
    "replicas": {"replicas": 3},
    "server.modelName": {"server": {"modelName": "m"}},
    "server.maxConcurrency": {"server": {"maxConcurrency": 3}},
    "server.contextLength": {"server": {"contextLength": 99}},
    "server.kvCacheMiB": {"server": {"kvCacheMiB": 64}},
    "server.prefixCacheMiB": {"server": {"prefixCacheMiB": 1}},
    "server.maxAdapterRank": {"server": {"maxAdapterRank": 32}},
    "server.adapterCacheMiB": {"server": {"adapterCacheMiB": 9}},
    "server.threads": {"server": {"threads": 3}},
    "adapters": {"adapters": [{"name": "c"}]},
    "speculation": {"speculation": {"method": "Ngram"}},
    "rollout.strategy": {"rollout": {"strategy": "Recreate"}},
    "rollout.maxSurge": {"rollout": {"maxSurge": 2}},
    "rollout.maxUnavailable": {"rollout": {"maxUnavailable": 1}},
    "rollout.progressDeadlineSeconds": {"rollout": {"progressDeadlineSeconds": 9}},
    "rollout.goldenTokens": {"rollout": {"goldenTokens": "Skip"}},
    "expose.port": {"expose": {"port": 80}},
    "expose.apiKeySecretRef": {"expose": {"apiKeySecretRef": {"name": "k"}}},
    "pods.nodeSelector": {"pods": {"nodeSelector": {"a": "b"}}},
    "pods.tolerations": {"pods": {"tolerations": [{"key": "a"}]}},
    "pods.topologySpread": {"pods": {"topologySpread": False}},
    "pods.priorityClassName": {"pods": {"priorityClassName": "high"}},
    "pods.serviceAccountName": {"pods": {"serviceAccountName": "x"}},
    "pods.imagePullSecrets": {"pods": {"imagePullSecrets": [{"name": "x"}]}},
    "pods.disruptionBudget": {"pods": {"disruptionBudget": {"maxUnavailable": 0}}},
    "pods.drainSeconds": {"pods": {"drainSeconds": 99}},
    "resources.requests": {"resources": {"requests": {"cpu": "2"}}},
    "resources.limits": {"resources": {"limits": {"memory": "9Gi"}}},
}


@pytest.mark.parametrize("field", [name for name, given in CHANGES.items() if given])
def test_every_field_changes_what_is_rendered(field: str) -> None:
    assert rendered(**CHANGES[field]) != rendered()


def test_rendering_tells_pods_of_one_spec_from_those_of_another() -> None:
    def of(**given: Any) -> str:
        return rendering_of(list(rendered(**given).items()))

    assert of() == of(replicas=3) == of(expose={"port": 80})
    assert of() != of(server={"threads": 2})


@pytest.mark.parametrize("method", ["DraftModel", "Ngram", "Lookahead"])
def test_speculation_is_written_as_the_server_reads_it(method: str) -> None:
    wanted = {"method": method, "numSpeculativeTokens": 2, "adaptive": False}
    found = named_config(arguments(speculation=wanted)["--speculation"])
    assert (found.num_speculative_tokens, found.adaptive) == (2, False)
    assert found.names == ({"DraftModel": "draft_model"}.get(method, method.lower()),)


def test_threads_follow_the_limit_of_the_processor() -> None:
    assert "--threads" not in arguments()
    assert arguments(resources={"limits": {"cpu": "1500m"}})["--threads"] == "2"
    assert arguments(resources={"limits": {"cpu": "4"}}, server={"threads": 1})["--threads"] == "1"


def test_memory_is_sized_from_the_container_and_given_is_given() -> None:
    def memory(**resources: Any) -> tuple[str, str]:
        found = pod_of(rendered(resources=resources))["containers"][0]["resources"]
        return found["requests"]["memory"], found["limits"]["memory"]

    assert memory() == ("1836Mi", "1836Mi")  # 3 x 100 + 1024 + 512
    wide = rendered(server={"adapterCacheMiB": 300})
    (server,) = pod_of(wide)["containers"]
    assert server["resources"]["limits"]["memory"] == "2136Mi"
    assert memory(limits={"memory": "4Gi"}) == ("4Gi", "4Gi")
    assert memory(requests={"memory": "3Gi"}) == ("3Gi", "3Gi")
    assert memory(requests={"memory": "1Gi"}, limits={"memory": "2Gi"}) == ("1Gi", "2Gi")


NOT_YET: dict[str, Any] = {
    "spec.server.systemPrompts": {"server": {"systemPrompts": ["x"]}},
    "spec.speculation.method Ssd": {"speculation": {"method": "Ssd"}},
    "spec.adapters[0].source": {"adapters": [{"name": "a", "source": "s3://a/b"}]},
}


@pytest.mark.parametrize("field", NOT_YET)
def test_check_served_names_the_field_when_nothing_serves_it(field: str) -> None:
    check_served(spec_of())
    with pytest.raises(Stalled) as caught:
        check_served(spec_of(**NOT_YET[field]))
    assert caught.value.reason == "NotServedYet"
    assert field in caught.value.message


@pytest.mark.parametrize("name", ["1abc", "a.b", "a" * 64, "a-"])
def test_check_name_refuses_what_no_service_can_be_called(name: str) -> None:
    check_name("chat-7b")
    with pytest.raises(Stalled, match=r"metadata\.name"):
        check_name(name)


def test_serving_image_says_what_a_target_lacks() -> None:
    cpu = TargetSpec.model_validate({"backend": "Cpu"})
    with pytest.raises(Waiting, match=r"serving\.image") as waits:
        serving_image("cpu", cpu, spec_of())
    assert waits.value.reason == "ServingImageNotConfigured"
    assert serving_image("cpu", cpu.model_copy(update={"serving_image": IMAGE}), spec_of()) == IMAGE
    htp = TargetSpec.model_validate({"backend": "Htp", "chipset": "SM8750"})
    with pytest.raises(Stalled) as stalls:
        serving_image("sm8750", htp, spec_of())
    assert stalls.value.reason == "TargetNotServable"
    with pytest.raises(Waiting, match="make image-serving-htp"):
        serving_image("sm8750", htp, spec_of(server={"emulate": True}))


def test_check_adapters_names_those_that_the_container_has() -> None:
    container = ServedContainer(
        revision=REVISION, record="package/x", adapters={"c": f"sha256:{'0' * 64}"}
    )
    check_adapters(spec_of(adapters=[{"name": "c"}]), container)
    with pytest.raises(Stalled, match=r"spec\.adapters\[0\].* no adapter d; it has c"):
        check_adapters(spec_of(adapters=[{"name": "d"}]), container)
