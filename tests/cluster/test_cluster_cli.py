"""The command line against a real cluster: what a user types from a model's folder to a container.

Every command is a process with a kubeconfig, as on a laptop. Who reads a store through a pod does
so because the Service's name means nothing on this machine.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import numpy as np
import pytest
import yaml
from laptop import SMALL, SMALL_MODEL, TINY, TINY_MODEL, Laptop
from safetensors.numpy import load_file, save_file
from tenant import Tenant, wait

from genai_cli.testing import Ran, environment

pytestmark = pytest.mark.usefixtures("operator")

RELAY = """
import asyncio
async def copy(source, target):
    while data := await source.read(65536):
        target.write(data)
        await target.drain()
    target.close()
async def carry(source, target):
    far = await asyncio.open_connection(HOST, PORT)
    await asyncio.gather(copy(source, far[1]), copy(far[0], target), return_exceptions=True)
async def main():
    async with await asyncio.start_server(carry, "0.0.0.0", 9000) as server:
        await server.serve_forever()
asyncio.run(main())
"""


class User:
    """Somebody with `genai`, a home and a kubeconfig."""

    def __init__(self, tenant: Tenant, folder: Path) -> None:
        self.tenant = tenant
        self.folder = folder
        self.env = environment(folder) | {"KUBECONFIG": str(tenant.cluster.admin)}

    def command(self, *arguments: str) -> list[str]:
        """A command in the tenant's namespace."""
        place = ["-n", self.tenant.namespace]
        return [sys.executable, "-m", "genai_cli", *arguments, *place]

    def __call__(self, *arguments: str, env: dict[str, str] | None = None) -> Ran:
        """Run a command to its end."""
        ran = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.env | (env or {}),
            capture_output=True,
            text=True,
            check=False,
            timeout=420,
        )
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    def ok(self, *arguments: str) -> Ran:
        """Run it; it must succeed."""
        ran = self(*arguments)
        assert ran.code == 0, f"{arguments}: {ran.err[-3000:]}"
        return ran

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Run it beside the test."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def write(self, name: str, model: Path = SMALL_MODEL, **changes: Any) -> dict[str, Any]:
        """Write `<name>.yaml`, which builds a folder of this machine for the cpu; the spec."""
        known = TINY if model.parent.name == TINY_MODEL.parent.name else SMALL
        spec = known | {"model": {"source": str(model)}} | changes
        document = {
            "apiVersion": "genai-operator.dev/v1alpha1",
            "kind": "GenAIBuild",
            "metadata": {"name": name},
            "spec": spec,
        }
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(document))
        return spec


@pytest.fixture
def user(tenant: Tenant, tmp_path: Path) -> User:
    return User(tenant, tmp_path)


def sources(tenant: Tenant) -> list[str]:
    return sorted(tenant.objects("sources/"))


@contextmanager
def dashboard(user: User) -> Iterator[Callable[[str], str]]:
    """`genai dashboard` beside the test: what a browser gets for a path."""
    process = user.start("dashboard", "--port", "0")
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        cookies = urllib.request.HTTPCookieProcessor()
        browser = urllib.request.build_opener(cookies)
        browser.open(address, timeout=30).close()

        def page(path: str) -> str:
            with browser.open(urljoin(address, path), timeout=30) as answer:
                return str(answer.read().decode())

        yield page
    finally:
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 0, told


def test_from_a_models_folder_to_a_container_that_runs(
    user: User, tenant: Tenant, laptop: Laptop
) -> None:
    spec = user.write("tiny", TINY_MODEL)
    began = time.monotonic()
    built = user.ok("build", "-f", "tiny.yaml", "--remote", "--json")
    print(f"build --remote: {time.monotonic() - began:.1f} s")
    value = built.json
    revision = value["containers"]["cpu"]["revision"]
    expected = laptop.revisions(spec | {"model": {"source": "s3://models/tiny-llama"}})
    assert revision == expected["cpu"]
    assert value["tasks"]["run"] == value["tasks"]["total"] > 0
    assert value["peakMemoryBytes"] > 0
    started = [line.split()[1] for line in built.err.splitlines() if line.startswith("start ")]
    assert len(started) == len(set(started)), built.err
    assert "ingest" in started

    # What was applied: the user's words, with the folder's address and its digest.
    value = tenant.get("genaibuilds", "tiny")
    source = value["spec"]["model"]
    digest = source["digest"].removeprefix("sha256:")
    assert source["source"] == f"s3://genai/{tenant.namespace}/sources/sha256-{digest}"
    assert {name.rsplit("/", 1)[1] for name in sources(tenant)} == {
        p.name for p in TINY_MODEL.iterdir()
    }

    # Again: nothing is sent, nothing runs, nothing of the object changes.
    again = user.ok("build", "-f", "tiny.yaml", "--remote", "--json")
    assert "9 files there already" in again.err
    assert again.json["tasks"] == {
        "total": value_of(built, "total"),
        "run": 0,
        "cached": value_of(built, "total"),
        "failed": 0,
    }
    assert again.json["containers"]["cpu"]["changed"] is False
    assert tenant.get("genaibuilds", "tiny")["metadata"]["generation"] == 1

    shown = user.ok("status", "tiny", "--json").json
    assert (shown["phase"], shown["containers"]["cpu"]["revision"]) == ("Ready", revision)
    assert "tiny" in user.ok("status").out
    with dashboard(user) as page:
        shown_tasks = f"{value_of(built, 'total')}/{value_of(built, 'total')} tasks"
        assert shown_tasks in page("/")
        assert revision in page(f"/build/{tenant.namespace}/tiny")
        assert "may not" not in page("/")

    # Logs of finished tasks: from pods while there are any, then from the store.
    assert "ingest" in user.ok("logs", "tiny").out
    tenant.cluster.kubectl("-n", tenant.namespace, "delete", "jobs", "--all", "--wait=true")
    wait(lambda: not tenant.pods(), 60)
    assert "took" in user.ok("logs", "tiny", "ingest").out

    pulled = user.ok("pull", "tiny", "--target", "cpu", "-o", "here", "--json").json
    assert pulled["revision"] == revision
    ran = subprocess.run(
        [*user.command()[:3], "run", "here", "--prompt", "def __init__(self, ", "--json"],
        cwd=user.folder, env=user.env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    golden = json.loads((user.folder / "here/golden.json").read_text())
    (prompt,) = [p for p in golden["prompts"] if p["prompt"] == "def __init__(self, "]
    tokens = json.loads(ran.stdout)["tokens"]
    assert tokens[: len(prompt["tokens"])] == prompt["tokens"][: len(tokens)]

    # A flipped byte does not stay.
    data = bytearray((user.folder / "here/model.data").read_bytes())
    data[1000] ^= 1
    (user.folder / "here/model.data").write_bytes(data)
    assert user.ok("pull", "tiny", "-o", "here", "--json").json["changed"] is True
    assert (user.folder / "here/model.data").read_bytes() != bytes(data)


def value_of(ran: Ran, name: str) -> int:
    found = ran.json["tasks"][name]
    assert isinstance(found, int)
    return found


def test_a_running_build_is_seen_followed_and_left(user: User, tenant: Tenant) -> None:
    user.write("seen", TINY_MODEL, golden={"prompts": ["import re\n"], "maxTokens": 3})
    building = user.start("build", "-f", "seen.yaml", "--remote")
    running: list[dict[str, Any]] = []

    def runs() -> bool:
        ran = user("status", "seen", "--json")
        running[:] = ran.json["running"] if ran.code == 0 else []
        return any(task["state"] == "running" for task in running)

    wait(runs, 90)
    nodes = {node["metadata"]["name"] for node in tenant.get("nodes")}
    assert {task["node"] for task in running if task["state"] == "running"} <= nodes
    following = user.start("logs", "seen", "--follow")
    top = user.ok("top", "--json").json
    assert sum(node["tasks"] for node in top["nodes"]) == len(top["tasks"])
    assert all(task["cpuMillis"] >= 250 for task in top["tasks"])

    building.send_signal(signal.SIGINT)  # leaves the build alone
    _, err = building.communicate(timeout=60)
    assert building.returncode == 130
    assert "goes on in the cluster" in err
    assert "genai status seen" in err
    tenant.wait_ready("seen")
    said, err = following.communicate(timeout=60)
    assert following.returncode == 0, err
    assert all(line.startswith("[") for line in said.splitlines() if line), said
    assert "package" in said or "ingest" in said


def test_bad_input_is_exit_code_2_with_the_stages_words_and_mending_it_is_enough(
    user: User, tmp_path: Path
) -> None:
    broken = tmp_path / "tiny-llama" / "model"
    broken.mkdir(parents=True)
    for path in TINY_MODEL.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    whole = (broken / "model.encodings").read_bytes()
    (broken / "model.encodings").write_bytes(whole[: len(whole) // 2])
    user.write("bad", broken)
    ran = user("build", "-f", "bad.yaml", "--remote", "--json")
    assert ran.code == 2, ran.err
    assert ran.json["error"]["code"] == "BadEncodings"
    assert ran.json["failures"][0]["task"] == "ingest"
    assert "Traceback" not in ran.err

    # Its log outlives its pod: this one is read from the store's address alone.
    address = ran.json["failures"][0]["log"]
    assert "/blobs/" in address
    assert "encodings" in user.ok("logs", "bad", "ingest").out

    # The same broken model again is tried again, since it was asked for again.
    again = user("build", "-f", "bad.yaml", "--remote")
    assert again.code == 2
    assert "9 files there already" in again.err
    (broken / "model.encodings").write_bytes(whole)
    mended = user.ok("build", "-f", "bad.yaml", "--remote", "--detach")
    assert "genai status bad" in mended.out
    user.tenant.wait_ready("bad")


def test_what_cannot_work_is_refused_before_anything_is_sent(user: User, tenant: Tenant) -> None:
    user.write("none", targets=["sm0000"])
    ran = user("build", "-f", "none.yaml", "--remote")
    assert (ran.code, len(ran.errors)) == (2, 1)
    assert "no GenAITarget sm0000" in ran.err
    user.write("stores", store={"name": "elsewhere"})
    ran = user("build", "-f", "stores.yaml", "--remote")
    assert ran.code == 2
    assert "no such ArtifactStore" in ran.err
    user.write("bare")
    other = user("build", "-f", "bare.yaml", "--remote", "--context", "nope")
    assert other.code == 2
    assert sources(tenant) == []
    missing = subprocess.run(
        [*user.command()[:3], "build", "-f", "bare.yaml", "--remote", "-n", "nowhere"],
        cwd=user.folder, env=user.env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert missing.returncode == 2
    assert "nowhere" in missing.stderr


def test_another_tools_fields_are_taken_over_only_when_told_to(user: User, tenant: Tenant) -> None:
    tenant.small("shared", run={"suspend": True})  # by the tests' own manager
    changed = tenant.manifest("shared", SMALL | {"run": {"suspend": True}, "splits": {"count": 1}})
    (user.folder / "shared.yaml").write_text(yaml.safe_dump(changed))
    ran = user("build", "-f", "shared.yaml", "--remote")
    assert ran.code == 2
    assert "genai-tests set spec.splits.count" in ran.err
    assert "--force" in ran.err
    forced = user("build", "-f", "shared.yaml", "--remote", "--force")
    assert forced.code == 1, "a suspended build was called built"
    assert "suspend" in forced.err


def test_a_store_that_only_pods_reach_is_reached_through_one(
    user: User, tenant: Tenant, tenants_of: Callable[..., Tenant]
) -> None:
    """A relay in a pod stands for an S3 server in the cluster, its Service for the endpoint."""
    storage = tenants_of()
    at = urlsplit(tenant.cluster.s3_endpoint)
    target = tenant.get("genaitargets", "cpu")
    labels = {"app": "relay"}
    code = RELAY.replace("HOST", repr(at.hostname)).replace("PORT", str(at.port))
    container = {
        "name": "relay",
        "image": target["spec"]["image"],
        "command": ["python", "-c", code],
        "ports": [{"name": "s3", "containerPort": 9000}],
        "readinessProbe": {"tcpSocket": {"port": 9000}, "periodSeconds": 1},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    meta = {"name": "relay", "namespace": storage.namespace}
    tenant.cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": meta | {"labels": labels},
            "spec": {"containers": [container]},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": meta,
            "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": "s3"}]},
        },
    )
    name = f"http://relay.{storage.namespace}.svc"
    storage.cluster.kubectl(
        "-n", storage.namespace, "wait", "--for=condition=Ready", "pod/relay", "--timeout=90s"
    )
    user.write("near")
    user.ok("build", "-f", "near.yaml", "--remote", "--endpoint", name)
    assert any(name.endswith("/model.onnx") for name in sources(tenant))
    pulled = user.ok("pull", "near", "-o", "near", "--endpoint", name, "--json").json
    assert pulled["revision"].startswith("sha256:")
    assert (user.folder / "near/model.onnx").stat().st_size > 5_000
    nobody = user("pull", "near", "-o", "x", "--endpoint", f"http://gone.{storage.namespace}.svc")
    assert nobody.code == 2
    assert "no such Service" in nobody.err


def test_a_user_without_the_secret_uses_his_own_credentials(user: User, tenant: Tenant) -> None:
    user.write("mine")
    user.ok("build", "-f", "mine.yaml", "--remote")
    account = "reader"
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": account, "namespace": tenant.namespace},
        "rules": [
            {"apiGroups": ["genai-operator.dev"], "resources": ["genaibuilds"], "verbs": ["get"]}
        ],
    }
    subject = {"kind": "ServiceAccount", "name": account, "namespace": tenant.namespace}
    tenant.cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": account, "namespace": tenant.namespace},
        },
        role,
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": role["metadata"],
            "subjects": [subject],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account},
        },
    )
    token = tenant.cluster.kubectl("-n", tenant.namespace, "create", "token", account).strip()
    config = yaml.safe_load(tenant.cluster.admin.read_text())
    for entry in config["users"]:
        entry["user"] = {"token": token}
    (user.folder / "config").write_text(yaml.safe_dump(config))
    command = ("pull", "mine", "-o", "mine", "--kubeconfig", str(user.folder / "config"), "--json")
    denied = user(*command)
    assert denied.code == 2
    assert "AWS_ACCESS_KEY_ID" in denied.err
    access, secret = tenant.cluster.s3_keys
    keys = {"AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret}
    assert user(*command, env=keys).json["changed"] is True
    refused = user("status", "--kubeconfig", str(user.folder / "config"))
    assert refused.code == 2
    assert "cannot list" in refused.err


def test_adapters_and_a_draft_are_uploaded_and_resolved_and_a_changed_one_alone_is_built_again(
    user: User, tenant: Tenant, laptop: Laptop
) -> None:
    adapters = TINY_MODEL.parent / "adapters"
    mine = shutil.copytree(adapters / "uppercase-r16", user.folder / "mine")
    lora: dict[str, Any] = {
        "adapters": [
            {"name": "c-headers", "source": str(adapters / "c-headers-r8")},
            {"name": "uppercase", "source": str(mine)},
        ],
        "useCases": [{"name": "both", "adapters": [{"name": "c-headers", "alpha": "0.5"},
                                                   {"name": "uppercase"}]}],
    }  # fmt: skip

    draft = [{"method": "DraftModel", "source": str(TINY_MODEL.parent / "draft")}]

    def build() -> dict[str, Any]:
        spec = user.write("adapted", TINY_MODEL, lora=lora, speculation=draft)
        built: dict[str, Any] = user.ok("build", "-f", "adapted.yaml", "--remote", "--json").json
        expected = laptop.revisions(spec | {"model": {"source": "s3://models/tiny-llama"}})
        assert built["containers"]["cpu"]["revision"] == expected["cpu"]
        return built

    build()
    status = tenant.status("adapted")
    assert [source["name"] for source in status["sources"]] == [
        "model",
        "adapter:c-headers",
        "adapter:uppercase",
        "draft",
    ]
    places = {source["digest"] for source in status["sources"]}
    assert {
        f"sha256:{name.split('sha256-')[1].split('/')[0]}" for name in sources(tenant)
    } == places

    weights = load_file(mine / "adapter_model.safetensors")
    half = {name: array * np.float32(0.5) for name, array in weights.items()}
    save_file(half, mine / "adapter_model.safetensors")
    lora["adapters"][1] = {
        "name": "uppercase",
        "source": str(shutil.copytree(mine, user.folder / "new")),
    }
    assert build()["tasks"]["run"] == 2, "its import and the package"

    user.ok("pull", "adapted", "--target", "cpu", "-o", "here")
    told = ["run", "here", "--prompt", "THIS SOFTWARE IS", "--max-tokens", "8", "--json"]
    seen = set()
    for worn in ([], ["--adapter", "uppercase"], ["--use-case", "both"]):
        ran = subprocess.run(
            [*user.command()[:3], *told, *worn],
            cwd=user.folder, env=user.env, capture_output=True, text=True, check=True,
        )  # fmt: skip
        seen.add(tuple(json.loads(ran.stdout)["tokens"]))
    assert len(seen) == 3
