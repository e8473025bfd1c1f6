"""A GenAIDeployment's objects, as they are rendered."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from genai_core.kinds.artifact_store import WebIdentity
from genai_core.kinds.deployment import DeploymentSpec
from genai_core.kinds.deployment_status import ServedContainer
from genai_core.kinds.target import TargetSpec
from genai_operator.deployments.checks import (
    check_adapters,
    check_name,
    check_served,
    serving_image,
)
from genai_operator.deployments.declared import (
    Declaration,
    PodReport,
    adapter_statuses,
    declaration,
    read_report,
)
from genai_operator.deployments.rendering.manifests import manifests, rendering_of
from genai_operator.deployments.rendering.served_revision import Served, selector
from genai_operator.errors import Stalled, Waiting
from genai_operator.jobs.access import StoreAccess
from genai_runtime.speculation.config import named_config
from genai_serving.__main__ import _arguments
from genai_serving.api.admin_port.declaration import DeclareBody

IMAGE = f"registry.example/serving@sha256:{'1' * 64}"
REVISION = f"sha256:{'a' * 64}"
MIB = 1 << 20


def spec_of(**given: Any) -> DeploymentSpec:
    return DeploymentSpec.model_validate({"from": {"build": "b", "target": "cpu"}, **given})


def served_of(access: StoreAccess | None = None, **given: Any) -> Served:
    return Served(
        namespace="n", name="chat", uid="u-1", spec=spec_of(**given), revision=REVISION,
        record=f"package/{'b' * 64}", size_bytes=100 * MIB, image=IMAGE,
        access=access or StoreAccess("s3://bucket/n", "reads"), node_selector={"disk": "fast"},
    )  # fmt: skip


def rendered(access: StoreAccess | None = None, **given: Any) -> dict[str, dict[str, Any]]:
    return dict(manifests(served_of(access, **given)))


def pod_of(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    pod: dict[str, Any] = found["deployments"]["spec"]["template"]["spec"]
    return pod


def arguments(**given: Any) -> dict[str, str]:
    words = pod_of(rendered(**given))["containers"][0]["args"][1:]
    named = [word for word in words if word != "--golden"]
    return dict(zip(named[::2], named[1::2], strict=True))


@pytest.mark.parametrize("name", ["-x", "--golden", "$(HOME)", "a$$b", "a b"])
def test_the_server_gets_a_name_as_its_user_wrote_it(name: str) -> None:
    given = pod_of(rendered(server={"modelName": name}))
    words = [kubelets(word) for word in given["containers"][0]["args"]]
    read = _arguments([*words, "--cache", "x"])
    assert read.model_name == name


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
        name = {"configmaps": "chat-adapters"}.get(plural, "chat")
        assert value["metadata"]["name"] == name, plural
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
    assert kinds == {"emptyDir", "secret", "configMap"}
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


def test_a_sidecar_holds_the_stores_keys_and_never_the_server() -> None:
    served = served_of()
    pod = pod_of(dict(manifests(replace(served, follows=True))))
    plain = pod_of(dict(manifests(served)))
    fetch, sidecar = pod["initContainers"]
    (server,) = pod["containers"]
    assert (sidecar["name"], sidecar["restartPolicy"]) == ("adapters", "Always")
    assert sidecar["env"] == fetch["env"]
    assert "env" not in server
    assert sidecar["securityContext"] == fetch["securityContext"]
    socket = server["args"][server["args"].index("--fetch-socket") + 1]
    assert sidecar["args"][sidecar["args"].index("--socket") + 1] == socket
    most = int(sidecar["args"][-1])
    sizes = [mib(pod["volumes"][0]) - mib(plain["volumes"][0])]
    assert sizes == [most // MIB], "what it may fetch has room beside the container"


def mib(volume: dict[str, Any]) -> int:
    return int(volume["emptyDir"]["sizeLimit"].removesuffix("Mi"))


def test_tls_is_what_probes_and_the_service_speak() -> None:
    found = rendered(expose={"tlsSecretRef": {"name": "cert"}})
    (server,) = pod_of(found)["containers"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server[probe]["httpGet"]["scheme"] == "HTTPS"
    assert {"name": "tls", "mountPath": "/tls", "readOnly": True} in server["volumeMounts"]
    assert arguments(expose={"tlsSecretRef": {"name": "cert"}})["--tls-folder"] == "/tls"
    assert found["services"]["spec"]["ports"][0]["name"] == "https"
    plain = pod_of(rendered())["containers"][0]["readinessProbe"]["httpGet"]
    assert "scheme" not in plain


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
    "server.exact": {"server": {"exact": False}},
    "server.systemPrompts": {"server": {"systemPrompts": ["Be brief."]}},
    "server.threads": {"server": {"threads": 3}},
    "server.adminTokenSecretRef": {"server": {"adminTokenSecretRef": {"name": "t"}}},
    "expose.networkPolicy": {"expose": {"networkPolicy": False}},
    "speculation": {"speculation": {"method": "Ngram"}},
    "rollout.strategy": {"rollout": {"strategy": "Recreate"}},
    "rollout.maxSurge": {"rollout": {"maxSurge": 2}},
    "rollout.maxUnavailable": {"rollout": {"maxUnavailable": 1}},
    "rollout.progressDeadlineSeconds": {"rollout": {"progressDeadlineSeconds": 9}},
    "rollout.goldenTokens": {"rollout": {"goldenTokens": "Skip"}},
    "expose.port": {"expose": {"port": 80}},
    "expose.tlsSecretRef": {"expose": {"tlsSecretRef": {"name": "t"}}},
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


def test_system_prompts_reach_the_server_as_they_were_written() -> None:
    prompts = ["Answer in $(WORDS).", "--brief\nand kind"]
    given = rendered(server={"systemPrompts": prompts})
    (server,) = pod_of(given)["containers"]
    told = server["args"][server["args"].index("--system-prompt") :][:3]
    assert told == ["--system-prompt", "Answer in $$(WORDS).", "--system-prompt=--brief\nand kind"]


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
    "spec.adapters[0].source": {"adapters": [{"name": "a", "source": "s3://a/b"}]},
}


@pytest.mark.parametrize("field", NOT_YET)
def test_check_served_names_the_field_when_nothing_serves_it(field: str) -> None:
    check_served(spec_of())
    with pytest.raises(Stalled) as caught:
        check_served(spec_of(**NOT_YET[field]))
    assert caught.value.reason == "NotServedYet"
    assert field in caught.value.message


def test_check_served_refuses_speculation_without_exact_numbers() -> None:
    check_served(spec_of(server={"exact": False}))
    with pytest.raises(Stalled, match=r"spec\.server\.exact: false") as caught:
        check_served(spec_of(server={"exact": False}, speculation={"method": "Ngram"}))
    assert caught.value.reason == "InvalidSpec"


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


def test_check_adapters_refuses_a_container_that_lacks_what_is_served() -> None:
    container = ServedContainer(
        revision=REVISION, record="package/x", adapters={"c": f"sha256:{'0' * 64}"}
    )
    good = container.model_copy(
        update={"revision": f"sha256:{'c' * 64}", "adapters": container.adapters | {"d": REVISION}}
    )
    check_adapters(spec_of(adapters=[{"name": "c"}, {"name": "x"}]), container, good)
    check_adapters(spec_of(adapters=[{"name": "d", "disabled": True}]), container, good)
    check_adapters(spec_of(adapters=[{"name": "d"}]), container, None)
    with pytest.raises(Stalled, match=r"spec\.adapters\[0\].* no adapter d; it has c"):
        check_adapters(spec_of(adapters=[{"name": "d"}]), container, good)


def declared_of(container: ServedContainer, *adapters: dict[str, Any]) -> Declaration:
    found = declaration(spec_of(adapters=list(adapters)), container)
    assert found is not None
    return found


CARRYING = ServedContainer(
    revision=REVISION,
    record="package/x",
    adapters={"c": f"sha256:{'0' * 64}", "d": f"sha256:{'1' * 64}"},
)


def test_adapters_change_no_pod_and_stand_in_the_file_that_pods_read() -> None:
    def of(*adapters: dict[str, Any]) -> list[tuple[str, Any]]:
        served = Served(
            namespace="n", name="chat", uid="u-1", spec=spec_of(adapters=list(adapters)),
            revision=REVISION, record=f"package/{'b' * 64}", size_bytes=MIB, image=IMAGE,
            access=StoreAccess("s3://bucket/n", "reads"),
            declared=declared_of(CARRYING, *adapters),
        )  # fmt: skip
        return manifests(served)

    every, one = of(), of({"name": "c"}, {"name": "d", "disabled": True})
    assert rendering_of(every) == rendering_of(one)
    assert dict(every)["deployments"] == dict(one)["deployments"]
    told = json.loads(dict(one)["configmaps"]["data"]["adapters.json"])
    assert told == {"adapters": [{"lora_name": "c", "lora_path": "c"}]}
    DeclareBody.model_validate(told)
    mounts = {
        mount["name"]: mount["mountPath"]
        for mount in pod_of(dict(one))["containers"][0]["volumeMounts"]
    }
    given = arguments()
    assert given["--declared-adapters"] == f"{mounts['declared']}/adapters.json"
    assert given["--admin-tokens-folder"] == mounts["admin"]


def test_declaration_is_none_when_nothing_is_known_of_the_container() -> None:
    assert declaration(spec_of(), CARRYING.model_copy(update={"adapters": {}})) is None
    unknown = declared_of(CARRYING.model_copy(update={"adapters": {}}), {"name": "c"})
    assert (unknown.paths, unknown.digests, unknown.missing) == ({"c": "c"}, {}, {})
    assert set(declared_of(CARRYING).paths) == {"c", "d"}


def test_only_the_operator_reaches_the_admin_port() -> None:
    spec = rendered()["networkpolicies"]["spec"]
    assert spec["podSelector"]["matchLabels"] == selector("chat")
    api, admin = spec["ingress"]
    assert api == {"ports": [{"port": "http", "protocol": "TCP"}]}
    assert admin["ports"] == [{"port": int(arguments()["--admin-port"]), "protocol": "TCP"}]
    (peer,) = admin["from"]
    assert set(peer) == {"namespaceSelector", "podSelector"}, "both at once, in one peer"
    # Nothing may be deleted: a policy that confines nobody stands in for none.
    assert rendered(expose={"networkPolicy": False})["networkpolicies"]["spec"]["ingress"] == [{}]


def reports(*pods: dict[str, tuple[str, str]]) -> list[PodReport]:
    """Of each pod: name -> digest and reason."""
    return [
        read_report(
            {
                "adapters": [
                    {"name": name, "digest": digest, "state": "Failed", "reason": reason}
                    if reason
                    else {"name": name, "digest": digest, "state": "Loaded"}
                    for name, (digest, reason) in pod.items()
                ]
            }
        )
        for pod in pods
    ]


def test_adapters_are_counted_from_what_pods_report() -> None:
    zero, one = CARRYING.adapters.values()
    wanted = declared_of(CARRYING, {"name": "c"}, {"name": "d"}, {"name": "lost"})
    both = {"c": (zero, ""), "d": (one, "")}
    c, d, lost = adapter_statuses(wanted, reports(both, {"c": (zero, "")}), 2)
    assert (c.state, c.loaded, c.digest) == ("Loaded", "2/2", zero)
    assert (d.state, d.loaded) == ("Loading", "1/2")
    assert (lost.state, lost.loaded) == ("Failed", "0/2")
    assert "carries no adapter lost; it has c, d" in lost.reason
    # Another content under the name is not the one that is declared.
    stale = {"c": (one, ""), "d": (one, "no room")}
    c, d, _ = adapter_statuses(wanted, reports(both, stale), 2)
    assert (c.state, c.loaded) == ("Loading", "1/2")
    assert (d.state, d.loaded, d.reason) == ("Failed", "1/2", "no room")


@pytest.mark.parametrize("said", [None, [], {}, {"adapters": 3}, {"adapters": [3]}])
def test_read_report_refuses_what_is_none(said: Any) -> None:
    with pytest.raises(ValueError, match="does not list"):
        read_report(said)
