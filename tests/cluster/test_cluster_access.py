"""The examples of access and scaling, held against the real kinds and a real endpoint picker."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import existing
import external_metrics
import pytest
import yaml
from harness import programs
from harness.cluster import Cluster
from operator_process import Operator
from picking import Picker
from servers import certificate
from serving_image import pinned
from tenant import GROUP, ROOT, Tenant, upload, wait
from witness import Witness

EXAMPLES = sorted((ROOT / "examples" / "access").glob("*.yaml"))
KINDS = {
    "sigs.k8s.io/gateway-api@v1.6.3": "config/crd/standard",
    "sigs.k8s.io/gateway-api-inference-extension@v1.4.0": "config/crd/bases",
    "github.com/kedacore/keda/v2@v2.21.0": "config/crd/bases",
}
"""Modules that publish kinds -> where in them. Apache-2.0, read from the module cache."""
ADAPTERS = {"c-headers": "c-headers-r8", "uppercase": "uppercase-r16"}
TARGET = "reached"


@pytest.fixture(scope="module")
def kinds(cluster: Cluster) -> Iterator[None]:
    """The real CustomResourceDefinitions, for as long as they are asked."""
    if existing.wanted():
        pytest.skip("NEEDS A CLUSTER OF ITS OWN: it installs and removes kinds")
    folders = [str(programs.source(module) / folder) for module, folder in KINDS.items()]
    files = [argument for folder in folders for argument in ("-f", folder)]
    cluster.kubectl("apply", "--server-side", *files)
    cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    yield
    cluster.kubectl("delete", "--wait=false", *files)


def dry_run(cluster: Cluster, text: str) -> str:
    """What the apiserver says to a manifest, applied for real but for the writing."""
    arguments = ("--server-side", "--dry-run=server", "--validate=strict", "-f", "-")
    return cluster.kubectl("-n", "default", "apply", *arguments, stdin=text)


@pytest.mark.usefixtures("kinds")
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_apiserver_takes_every_object_of_an_example(cluster: Cluster, example: Path) -> None:
    said = dry_run(cluster, example.read_text())
    documents = list(yaml.safe_load_all(example.read_text()))
    assert said.count("serverside-applied (server dry run)") == len(documents)


@pytest.mark.usefixtures("kinds")
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_apiserver_refuses_an_example_when_a_field_is_misspelt(
    cluster: Cluster, example: Path
) -> None:
    """Or the test above would show nothing."""
    document = next(yaml.safe_load_all(example.read_text()))
    document["spec"]["misspelt"] = 1
    with pytest.raises(RuntimeError, match="misspelt"):
        dry_run(cluster, json.dumps(document))


@pytest.fixture(scope="module")
def operator(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    found = Operator(cluster, tmp_path_factory.mktemp("operator"), inside=True)
    found.start()
    yield found
    found.stop()


def served(*, slots: int = 4) -> dict[str, Any]:
    """A deployment's spec without replicas."""
    return {
        "from": {"build": "tiny-llama", "target": TARGET},
        "server": {"threads": 1, "maxConcurrency": slots},
        "resources": {"requests": {"cpu": "100m"}},
    }


@pytest.fixture(scope="module")
def room(cluster: Cluster, witness: Witness, operator: Operator, kinds: None) -> Iterator[Tenant]:
    """Two servers of a build with two adapters, and the pool that finds them."""
    image = pinned(cluster)
    cpu = json.loads(cluster.kubectl("get", "genaitarget", "cpu", "-o", "json"))["spec"]
    target = {"apiVersion": GROUP, "kind": "GenAITarget", "metadata": {"name": TARGET}}
    cluster.apply(target | {"spec": cpu | {"servingImage": image}})
    found = Tenant(cluster, f"t-{uuid.uuid4().hex[:8]}", witness=witness)
    found.create()
    for name, folder in ADAPTERS.items():
        upload(cluster, ROOT / "examples" / "tiny-llama" / "adapters" / folder, name=name)
    adapters = [{"name": name, "source": f"s3://models/{name}"} for name in ADAPTERS]
    found.build("tiny-llama", targets=[TARGET], lora={"adapters": adapters})
    found.wait_ready("tiny-llama")
    cluster.apply(found.manifest("chat", served() | {"replicas": 2}) | {"kind": "GenAIDeployment"})
    arguments = ("-n", found.namespace, "wait", "gd/chat", "--for=condition=Ready")
    cluster.kubectl(*arguments, "--timeout=240s")
    example = ROOT / "examples" / "access" / "inferencepool.yaml"
    (pool,) = (
        document
        for document in yaml.safe_load_all(example.read_text())
        if document["kind"] == "InferencePool"
    )
    pool["metadata"]["namespace"] = found.namespace
    cluster.apply(pool)
    yield found
    found.delete()
    cluster.kubectl("delete", "genaitarget", TARGET, "--wait=false")


@pytest.mark.long
def test_a_picker_sends_requests_where_their_adapter_runs(
    cluster: Cluster, room: Tenant, tmp_path: Path
) -> None:
    """With the example's configuration; each pod is kept busy with an adapter of its own."""
    addresses = pod_addresses(cluster, room, "chat")
    assert len(addresses) == 2
    busy = dict(zip(ADAPTERS, addresses, strict=True))
    picker = Picker(cluster, tmp_path, namespace=room.namespace)
    picker.start()
    clients = [keep_busy(cluster, ip, name) for name, ip in busy.items() for _ in range(4)]
    try:
        wait(lambda: ":8000" in picker.ask("chat")[0], 60, picker.log)
        counts = {name: Counter(picker.ask(*[name] * 30)) for name in busy}
    finally:
        for client in clients:
            client.terminate()
            client.wait(30)
        picker.stop()
    print(f"chosen: {counts}")
    for name, ip in busy.items():
        assert set(counts[name]) <= {f"{ip}:8000" for ip in addresses}
        assert counts[name][f"{ip}:8000"] > 20, counts


@pytest.mark.long
def test_an_autoscaler_and_an_applied_manifest_keep_out_of_each_others_way(
    cluster: Cluster, room: Tenant, tmp_path: Path
) -> None:
    """A real HPA writes /scale by what our /metrics say; the manifest without replicas stands."""
    manifest = room.manifest("scaled", served(slots=1)) | {"kind": "GenAIDeployment"}
    cluster.apply(manifest)
    space = ("-n", room.namespace)
    cluster.kubectl(*space, "wait", "gd/scaled", "--for=condition=Ready", "--timeout=240s")
    (address,) = pod_addresses(cluster, room, "scaled")
    host = cluster.network.address
    listening = (host, 6553, certificate(tmp_path, host))
    api = external_metrics.started(cluster.network.prefix, *listening, [f"{address}:8000"])
    cluster.apply(*external_metrics.objects(*listening[:2]))
    scaler = yaml.safe_load((ROOT / "examples" / "access" / "hpa.yaml").read_text())
    scaler["metadata"] = {"name": "scaled", "namespace": room.namespace}
    scaler["spec"]["scaleTargetRef"]["name"] = "scaled"
    scaler["spec"]["maxReplicas"] = 2
    cluster.apply(scaler)
    clients = [keep_busy(cluster, address, "scaled") for _ in range(8)]
    try:
        wait(
            lambda: room.get("genaideployments", "scaled")["status"].get("readyReplicas") == 2,
            240,
            lambda: cluster.kubectl(*space, "describe", "hpa", "scaled"),
        )
    finally:
        # First: a namespace does not end while an API does not answer.
        cluster.kubectl("delete", "apiservice", f"v1beta1.{external_metrics.GROUP}")
        for process in [*clients, api]:
            process.terminate()
            process.wait(30)
    read = (*space, "get", "gd", "scaled", "-o", "json", "--show-managed-fields")
    before = json.loads(cluster.kubectl(*read))
    owners = {
        field["manager"]: field.get("subresource")
        for field in before["metadata"]["managedFields"]
        if "f:replicas" in field["fieldsV1"].get("f:spec", {})
    }
    assert set(owners.values()) <= {"scale"}, owners
    cluster.apply(manifest)
    after = room.get("genaideployments", "scaled")
    assert after["spec"] == before["spec"]
    assert after["spec"]["replicas"] == 2
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    cluster.kubectl(*space, "delete", "hpa/scaled", "gd/scaled", "--wait=false")


def pod_addresses(cluster: Cluster, room: Tenant, name: str) -> list[str]:
    """Of the servers of a deployment."""
    arguments = ("get", "pods", "-l", f"genai-operator.dev/deployment={name}", "-o", "json")
    pods = json.loads(cluster.kubectl("-n", room.namespace, *arguments))["items"]
    return [pod["status"]["podIP"] for pod in pods]


_LOOP = """
import json, sys, urllib.request
body = {"model": sys.argv[2], "prompt": "int main(", "max_tokens": 200, "ignore_eos": True}
while True:
    request = urllib.request.Request(f"http://{sys.argv[1]}:8000/v1/completions",
        json.dumps(body).encode(), {"Content-Type": "application/json"})
    urllib.request.urlopen(request).read()
"""


def keep_busy(cluster: Cluster, ip: str, adapter: str) -> subprocess.Popen[bytes]:
    """A client of one pod and one adapter, until it is ended."""
    return subprocess.Popen([*cluster.network.prefix, "python3", "-c", _LOOP, ip, adapter])
