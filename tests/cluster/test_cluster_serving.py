"""A GenAIDeployment on a real cluster: from a build to answers, through rollouts that go well and
rollouts that do not, with a client that never stops.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import existing
import pytest
from harness.cluster import Cluster
from operator_process import Operator
from servers import certificate
from serving_image import pinned
from talking import Talking
from tenant import BUCKET, GROUP, ROOT, Tenant, upload, wait
from witness import Witness

from genai_core.canonical import digest_json
from genai_core.container.manifest import GOLDEN_FILE, MANIFEST_FILE, read_manifest
from genai_core.names import Key
from genai_core.store.address import StoreAddress, StoreCredentials
from genai_core.store.s3.s3_store import S3Store
from genai_core.tasks.record import Output

pytestmark = pytest.mark.usefixtures("operator")

EXAMPLES = ROOT / "examples" / "tiny-llama"
TARGET = "served"


@pytest.fixture(scope="module")
def operator(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """The operator where pods are reached: it declares adapters to them."""
    found = Operator(cluster, tmp_path_factory.mktemp("operator"), inside=True)
    found.start()
    yield found
    found.stop()


@pytest.fixture(scope="module")
def image(cluster: Cluster) -> str:
    return pinned(cluster)


@pytest.fixture(scope="module")
def room(cluster: Cluster, witness: Witness, image: str) -> Iterator[Tenant]:
    """A namespace, and a target whose containers are served."""
    cpu = json.loads(cluster.kubectl("get", "genaitarget", "cpu", "-o", "json"))["spec"]
    target = {"apiVersion": GROUP, "kind": "GenAITarget", "metadata": {"name": TARGET}}
    cluster.apply(target | {"spec": cpu | {"servingImage": image}})
    found = Tenant(cluster, f"t-{uuid.uuid4().hex[:8]}", witness=witness)
    found.create()
    yield found
    found.delete()
    cluster.kubectl("delete", "genaitarget", TARGET, "--wait=false")


def deploy(room: Tenant, **spec: Any) -> None:
    value = room.manifest("chat", SPEC | spec)
    room.cluster.apply(value | {"kind": "GenAIDeployment"})


SPEC: dict[str, Any] = {
    "from": {"build": "tiny", "target": TARGET},
    "replicas": 2,
    "server": {"threads": 1, "maxConcurrency": 4},
    "pods": {"drainSeconds": 60},
    "resources": {"requests": {"cpu": "100m"}},
}


ADAPTERS = ("c-headers", "uppercase")
FOLDERS = {"c-headers": "c-headers-r8", "uppercase": "uppercase-r16"}
LORA = {"adapters": [{"name": name, "source": f"s3://models/{name}"} for name in ADAPTERS]}


def status(room: Tenant) -> dict[str, Any]:
    found: dict[str, Any] = room.get("genaideployments", "chat").get("status") or {}
    return found


def told(room: Tenant) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in status(room).get("conditions", ())}


def reach(room: Tenant, wanted: tuple[str, str], seconds: float = 240) -> dict[str, Any]:
    """Wait until Ready has a status and a reason."""
    state = ("get", "gd,deploy,pods,events", "-o", "wide")

    def say() -> str:
        listed = room.cluster.kubectl("-n", room.namespace, *state, check=False)
        return f"{json.dumps(status(room), indent=1)}\n{listed}"

    wait(lambda: told(room).get("Ready") == wanted, seconds, say)
    return status(room)


def servers(room: Tenant) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = room.get("pods", labels="genai-operator.dev/deployment=chat")
    return found


@pytest.fixture(scope="module")
def serving(room: Tenant, image: str) -> Tenant:
    """Two pods of the first build, and clients that ask them from now on."""
    deploy(room)
    reach(room, ("Unknown", "BuildNotFound"), 30)
    for name in ADAPTERS:
        upload(room.cluster, EXAMPLES / "adapters" / FOLDERS[name], name=name)
    room.build("tiny", targets=[TARGET], lora=LORA)
    reach(room, ("Unknown", "BuildNotReady"), 60)
    room.wait_ready("tiny")
    reach(room, ("True", "Serving"))
    room.talking = Talking(room, image, host=f"chat.{room.namespace}.svc", model="chat")  # type: ignore[attr-defined]
    wait(lambda: asked(room) > 10, 60)
    return room


def asked(room: Tenant) -> int:
    """Answers that the clients got; none of them may have been refused one."""
    counts, refused = room.talking.told()  # type: ignore[attr-defined]
    assert not refused, refused
    assert not counts["failed"]
    return int(counts["ok"])


def still_answers(room: Tenant) -> None:
    before = asked(room)
    wait(lambda: asked(room) > before + 10, 60)


def test_a_deployment_serves_what_its_build_made(serving: Tenant) -> None:
    found = status(serving)
    made = serving.status("tiny")["artifacts"][0]["revision"]
    assert found["revision"] == {"current": made, "target": made, "lastGood": made}
    assert found["readyReplicas"] == 2
    assert found["url"] == f"http://chat.{serving.namespace}.svc:8000/v1"
    assert told(serving)["Available"] == ("True", "PodsReady")
    wide = serving.cluster.kubectl("-n", serving.namespace, "get", "gd", "-o", "wide").splitlines()
    assert wide[0].split() == [
        "NAME", "READY", "REASON", "REPLICAS", "URL", "AGE", "BUILD", "TARGET", "REVISION",
    ]  # fmt: skip
    assert made in wide[1]
    pod = servers(serving)[0]["spec"]
    assert pod["automountServiceAccountToken"] is False
    (server,) = pod["containers"]
    assert not [entry for entry in server.get("env", ()) if entry["name"].startswith("AWS_")]
    (log,) = {
        line
        for line in serving.cluster.kubectl(
            "-n", serving.namespace, "logs", servers(serving)[0]["metadata"]["name"]
        ).splitlines()
        if "golden" in line
    }
    assert log == "96 golden tokens are as recorded"  # of the base and of each adapter
    before = {pod["metadata"]["uid"] for pod in servers(serving)}
    deploy(serving)  # again, as it is
    still_answers(serving)
    assert {pod["metadata"]["uid"] for pod in servers(serving)} == before


def adapters(room: Tenant) -> dict[str, tuple[str, str]]:
    return {a["name"]: (a["state"], a["loaded"]) for a in status(room).get("adapters", ())}


def models(room: Tenant) -> set[tuple[str, ...]]:
    """What each pod lists; adapters come back in the order in which they were loaded."""
    found = set()
    for pod in servers(room):
        proxied = f"/api/v1/namespaces/{room.namespace}/pods/{pod['metadata']['name']}:8000/proxy"
        listed = json.loads(room.cluster.kubectl("get", "--raw", f"{proxied}/v1/models"))["data"]
        found.add(tuple(sorted(model["id"] for model in listed)))
    return found


def test_adapters_of_the_spec_reach_pods_that_run(serving: Tenant) -> None:
    space = ("-n", serving.namespace)
    assert adapters(serving) == dict.fromkeys(ADAPTERS, ("Loaded", "2/2"))
    assert models(serving) == {tuple(sorted(("chat", *ADAPTERS)))}
    before = {pod["metadata"]["uid"] for pod in servers(serving)}
    deploy(serving, adapters=[{"name": "uppercase"}, {"name": "c-headers", "disabled": True}])
    wait(lambda: adapters(serving) == {"uppercase": ("Loaded", "2/2")}, 20)
    assert models(serving) == {("chat", "uppercase")}
    # A pod that comes later has them before its first request.
    gone = servers(serving)[0]["metadata"]
    serving.cluster.kubectl(*space, "delete", "pod", gone["name"], "--wait=false")
    wait(lambda: gone["uid"] not in {p["metadata"]["uid"] for p in servers(serving)}, 90)
    reach(serving, ("True", "Serving"), 60)
    assert models(serving) == {("chat", "uppercase")}
    (new,) = [p for p in servers(serving) if p["metadata"]["uid"] not in before]
    log = serving.cluster.kubectl(*space, "logs", new["metadata"]["name"], "-c", "server")
    assert "is not served" not in log
    # One that cannot be had is named, and harms nobody.
    deploy(serving, adapters=[{"name": "uppercase"}, {"name": "typo"}])
    found = reach(serving, ("False", "AdapterFailed"), 20)
    assert "carries no adapter typo; it has c-headers, uppercase" in found["adapters"][1]["reason"]
    assert adapters(serving) == {"uppercase": ("Loaded", "2/2"), "typo": ("Failed", "0/2")}
    still_answers(serving)
    after = {pod["metadata"]["uid"] for pod in servers(serving)}
    deploy(serving)
    reach(serving, ("True", "Serving"), 20)
    assert models(serving) == {tuple(sorted(("chat", *ADAPTERS)))}
    assert {pod["metadata"]["uid"] for pod in servers(serving)} == after, "no pod started anew"
    policy = serving.get("networkpolicies", "chat")["spec"]
    assert policy["ingress"][1]["ports"] == [{"port": 8001, "protocol": "TCP"}]
    secret = serving.get("secrets", "chat-admin")
    assert [owner["kind"] for owner in secret["metadata"]["ownerReferences"]] == ["GenAIDeployment"]


MORE = {"adapters": [*LORA["adapters"], {"name": "more", "source": "s3://models/uppercase"}]}


def test_a_revision_with_other_adapters_reaches_pods_that_run(serving: Tenant) -> None:
    space = ("-n", serving.namespace)
    first = status(serving)["revision"]["current"]
    before = {pod["metadata"]["uid"] for pod in servers(serving)}
    serving.build("tiny", targets=[TARGET], lora=MORE)
    wait(lambda: status(serving)["revision"]["lastGood"] != first, 120, lambda: str(told(serving)))
    found = reach(serving, ("True", "Serving"), 30)
    made = serving.status("tiny")["artifacts"][0]["revision"]
    assert found["revision"] == {"current": made, "target": made, "lastGood": made}
    assert adapters(serving) == dict.fromkeys((*ADAPTERS, "more"), ("Loaded", "2/2"))
    wanted = {tuple(sorted(("chat", *ADAPTERS, "more")))}
    assert models(serving) == wanted
    assert {pod["metadata"]["uid"] for pod in servers(serving)} == before, "no pod started anew"
    still_answers(serving)
    # A pod that comes later is started with the container that the others were started with, and
    # goes over before its first request.
    gone = servers(serving)[0]["metadata"]
    serving.cluster.kubectl(*space, "delete", "pod", gone["name"], "--wait=false")
    wait(lambda: gone["uid"] not in {p["metadata"]["uid"] for p in servers(serving)}, 90)
    reach(serving, ("True", "Serving"), 60)
    assert models(serving) == wanted
    (new,) = [p for p in servers(serving) if p["metadata"]["uid"] not in before]
    log = serving.cluster.kubectl(*space, "logs", new["metadata"]["name"], "-c", "server")
    words = f"adapters and use cases are those of {made[:19]}"
    assert log.index(words) < log.index(" on http://"), log
    still_answers(serving)


def test_another_build_rolls_out_without_a_refused_request(
    serving: Tenant, operator: Operator
) -> None:
    """The old pods serve adapters of a revision that they were not started with, and the operator
    is killed when the first new pod is there."""
    first = status(serving)["revision"]["current"]
    graphs = {"autoRegression": [1, 32], "contextLengths": [128]}
    before = {pod["metadata"]["uid"] for pod in servers(serving)}
    serving.build("tiny", targets=[TARGET], graphs=graphs, lora=LORA)
    wait(lambda: any(p["metadata"]["uid"] not in before for p in servers(serving)), 240)
    operator.kill()
    operator.start()
    wait(lambda: status(serving)["revision"]["lastGood"] != first, 300, lambda: str(told(serving)))
    found = reach(serving, ("True", "Serving"))
    assert found["revision"]["current"] == serving.status("tiny")["artifacts"][0]["revision"]
    still_answers(serving)
    wait(lambda: len(servers(serving)) == 2, 90)
    assert asked(serving)


def test_a_pod_that_goes_is_replaced_without_a_refused_request(serving: Tenant) -> None:
    gone = servers(serving)[0]["metadata"]
    serving.cluster.kubectl("-n", serving.namespace, "delete", "pod", gone["name"], "--wait=false")

    def back() -> bool:
        uids = {p["metadata"]["uid"] for p in servers(serving)}
        return gone["uid"] not in uids and told(serving)["Ready"] == ("True", "Serving")

    wait(back, 120, lambda: str(told(serving)))
    still_answers(serving)


def test_a_spec_that_does_not_fit_fails_and_the_old_pods_go_on(serving: Tenant) -> None:
    deploy(serving, resources={"requests": {"cpu": "100m"}, "limits": {"memory": "24Mi"}})
    found = reach(serving, ("False", "RolloutFailed"))
    assert told(serving)["Stalled"] == ("True", "RolloutFailed")
    assert told(serving)["Available"] == ("True", "PodsReady")
    (ready,) = [c for c in found["conditions"] if c["type"] == "Ready"]
    assert "memory" in ready["message"], ready
    still_answers(serving)
    deploy(serving)
    reach(serving, ("True", "Serving"))


def forged(room: Tenant) -> str:
    """A container in the store that answers otherwise than it recorded; its revision."""
    where = StoreAddress(BUCKET, room.namespace, room.cluster.s3_endpoint, addressing="path")
    store = S3Store(where, credentials=StoreCredentials(*room.cluster.s3_keys))
    record = status(room)["containers"][0]["record"]
    stored = store.get_record("package", Key(record.partition("/")[2]))
    assert stored is not None
    outputs = dict(stored.record.outputs)
    golden = json.loads(store.read_blob(outputs[GOLDEN_FILE]))
    golden["prompts"][0]["tokens"][0] += 1
    golden["prompts"][0]["margins"][0] = 9.0
    kept = json.loads(store.read_blob(outputs[MANIFEST_FILE]))
    kept["model"]["forged"] = True
    manifest = read_manifest(json.dumps(kept | {"base": None})).with_base()
    for name, data in (
        (GOLDEN_FILE, json.dumps(golden).encode()),
        (MANIFEST_FILE, manifest.to_bytes()),
    ):
        blob = store.put_bytes(data)
        outputs[name] = Output(sha256=blob.sha256, size=blob.size)
    revision = manifest.revision()
    store.commit(
        stored.record.model_copy(
            update={
                "key": Key(digest_json({"forged": room.namespace})),
                "outputs": outputs,
                "facts": dict(stored.record.facts) | {"revision": revision},
                "created_at": datetime.now(UTC),
            }
        )
    )
    return revision


def test_a_revision_that_answers_otherwise_is_rolled_back_by_itself(serving: Tenant) -> None:
    good = status(serving)["revision"]["lastGood"]
    wrong = forged(serving)
    deploy(serving, **{"from": SPEC["from"] | {"revision": wrong}})
    found = reach(serving, ("False", "RolloutFailed"))
    assert "GoldenMismatch" in found["conditions"][0]["message"]
    wait(lambda: len(servers(serving)) == 2, 120, lambda: str(told(serving)))
    found = status(serving)
    assert found["rejected"][0]["revision"] == wrong
    assert found["revision"]["current"] == good
    assert told(serving)["Stalled"] == ("True", "RolloutFailed")
    assert told(serving)["Available"] == ("True", "PodsReady")
    still_answers(serving)
    deploy(serving)
    found = reach(serving, ("True", "Serving"))
    assert "rejected" not in found


@pytest.mark.long  # half a minute in which the kubelet backs off
def test_a_pod_waits_for_a_store_that_is_gone_and_the_others_answer(serving: Tenant) -> None:
    if existing.wanted():
        pytest.skip("the S3 server is not ours to stop")
    cluster = serving.cluster
    cluster.processes.kill("s3")
    try:
        cluster.kubectl("-n", serving.namespace, "scale", "gd", "chat", "--replicas=3")

        def failed() -> list[str]:
            """What the fetch of a pod said at its end."""
            parts = [
                part.get("state", {}) | part.get("lastState", {})
                for pod in servers(serving)
                for part in pod["status"].get("initContainerStatuses", ())
            ]
            ended = [state["terminated"] for state in parts if "terminated" in state]
            return [one["message"] for one in ended if one["exitCode"]]

        wait(
            lambda: bool(failed()),
            120,
            lambda: json.dumps(servers(serving)[-1]["status"], indent=1),
        )
        assert '"StoreNotReady"' in failed()[0]
        ready, reason = told(serving)["Ready"]
        assert (ready, reason in {"Progressing", "StoreNotReady"}) == ("Unknown", True), reason
        still_answers(serving)
    finally:
        cluster.processes.restart("s3")
    reach(serving, ("True", "Serving"), 180)
    wait(lambda: status(serving).get("readyReplicas") == 3, 60)
    cluster.kubectl("-n", serving.namespace, "scale", "gd", "chat", "--replicas=2")
    wait(lambda: len(servers(serving)) == 2, 90)
    still_answers(serving)


def test_all_pods_killed_at_once_are_told_and_come_back_as_they_were(serving: Tenant) -> None:
    """No node takes a pod in until it was seen that there is none."""
    space, nodes = ("-n", serving.namespace), serving.get("nodes")
    before = models(serving), status(serving)["revision"]
    asked(serving)
    serving.cluster.kubectl(*space, "delete", "pod", "client", "--wait=true")
    for node in nodes:
        serving.cluster.kubectl("cordon", node["metadata"]["name"])
    try:
        label = "genai-operator.dev/deployment=chat"
        serving.cluster.kubectl(
            *space, "delete", "pods", "-l", label, "--force", "--grace-period=0"
        )
        found = reach(serving, ("False", "NoPodReady"), 60)
        assert told(serving)["Available"] == ("False", "NoPodReady")
        assert not found.get("readyReplicas")
        assert {loaded for _, loaded in adapters(serving).values()} == {"0/2"}
    finally:
        for node in nodes:
            serving.cluster.kubectl("uncordon", node["metadata"]["name"])
    reach(serving, ("True", "Serving"), 120)
    assert (models(serving), status(serving)["revision"]) == before


def test_pods_speak_tls_with_a_certificate_of_a_secret(serving: Tenant, tmp_path: Path) -> None:
    space, name = ("-n", serving.namespace), f"chat.{serving.namespace}.svc"
    cert, key = certificate(tmp_path, "127.0.0.1")
    files = ("--cert", str(cert), "--key", str(key))
    serving.cluster.kubectl(*space, "create", "secret", "tls", "cert", *files)
    serving.cluster.kubectl(*space, "label", "secret", "cert", "genai-operator.dev/use=true")
    deploy(serving, expose={"tlsSecretRef": {"name": "cert"}}, rollout={"maxSurge": 2})
    wait(lambda: status(serving).get("url") == f"https://{name}:8000/v1", 90)
    found = reach(serving, ("True", "Serving"), 120)
    assert found["readyReplicas"] == 2
    wait(lambda: len(servers(serving)) == 2, 120)  # those without TLS are gone
    pod = servers(serving)[0]["metadata"]["name"]
    proxied = f"/api/v1/namespaces/{serving.namespace}/pods/https:{pod}:8000/proxy/v1/models"
    assert "chat" in serving.cluster.kubectl("get", "--raw", proxied)
    # The certificate itself, as a client inside the cluster is shown it.
    script = "import ssl; print(ssl.get_server_certificate(('127.0.0.1', 8000), timeout=30))"
    shown = serving.cluster.kubectl(
        *space, "exec", pod, "-c", "server", "--", "python3", "-c", script
    )
    assert shown.split() == cert.read_text().split()


def test_it_is_scaled_and_goes_with_all_that_is_its_own(serving: Tenant) -> None:
    space = ("-n", serving.namespace)
    serving.cluster.kubectl(*space, "scale", "gd", "chat", "--replicas=1")
    wait(lambda: status(serving).get("readyReplicas") == 1, 60)
    serving.cluster.kubectl(*space, "delete", "genaibuild", "tiny", "--wait=true")
    found = reach(serving, ("True", "Serving"), 60)
    wait(lambda: "is gone" in status(serving)["conditions"][0]["message"], 30, lambda: str(found))
    serving.cluster.kubectl(*space, "delete", "gd", "chat", "--wait=true")
    kinds = "deployments,services,poddisruptionbudgets,pods,replicasets,networkpolicies"

    def left() -> str:
        return serving.cluster.kubectl(*space, "get", kinds, "-o", "name")

    wait(lambda: not left(), 90, left)
