"""The operator as people install it: by the charts, with the images of this code."""

from __future__ import annotations

import base64
import json
import os
import ssl
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml
from harness import images, programs, services
from harness.cluster import Cluster

ROOT = Path(__file__).parents[2]
NAMESPACE = "genai-system"
RELEASE = "genai-operator"
OPERATOR_IMAGE = "localhost/genai-operator:test"


def operator_image(cluster: Cluster) -> str:
    """Name by digest of the operator's image, once every node has it."""
    if given := os.environ.get("GENAI_TEST_OPERATOR_IMAGE"):
        return given
    archive = images.project("operator")
    for node in cluster.nodes:
        node.load(archive)
    return [node.pin(OPERATOR_IMAGE) for node in cluster.nodes][-1]


def stages_image(cluster: Cluster) -> str:
    """Name by digest of the stages' image, as the tests' targets have it."""
    return cluster.kubectl("get", "genaitarget", "cpu", "-o", "jsonpath={.spec.image}")


class Charts:
    """Both charts in one cluster."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self._folder = folder
        self.values: dict[str, Any] = {}
        self._helm = programs.module("helm")

    def helm(self, *arguments: str, check: bool = True) -> str:
        """Run helm in the operator's namespace."""
        ran = subprocess.run(
            [str(self._helm), *arguments, "--namespace", NAMESPACE],
            env=os.environ
            | {"KUBECONFIG": str(self.cluster.admin)}
            | {f"HELM_{name}_HOME": str(self._folder) for name in ("CACHE", "CONFIG", "DATA")},
            capture_output=True,
            text=True,
            check=False,
        )
        if check and ran.returncode:
            raise RuntimeError(f"helm {' '.join(arguments[:3])}: {ran.stderr}{self.state()}")
        return ran.stdout + ran.stderr

    def install(self, **values: Any) -> str:
        """The kinds, then the operator; returns the notes.

        The tests' cluster has kinds and targets already, so these are taken over.
        """
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        meta = {"name": NAMESPACE, "labels": labels}
        self.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": meta})
        self.helm(
            "install", f"{RELEASE}-crds", str(ROOT / f"charts/{RELEASE}-crds"), "--take-ownership"
        )
        stages = dict(
            zip(("repository", "digest"), stages_image(self.cluster).split("@"), strict=True)
        )
        operator = operator_image(self.cluster).split("@")
        self.values = {
            "image": {"repository": operator[0], "digest": operator[1]},
            "stages": {"image": stages, "htpImage": stages},
            "operator": {"leaseSeconds": 6},
            # Not enforced by the tests' own network, but the apiserver reads the policies.
            "networkPolicy": {"enabled": True, "storePorts": [443, services.S3_PORT]},
        } | values
        return self.helm(
            "install", RELEASE, str(ROOT / f"charts/{RELEASE}"), "-f", self._file(),
            "--take-ownership", "--wait", "--timeout", "120s",
        )  # fmt: skip

    def upgrade(self, **values: Any) -> str:
        """With other values than at the install; returns when every pod is a new one and Ready."""
        self.values |= values
        return self.helm(
            "upgrade", RELEASE, str(ROOT / f"charts/{RELEASE}"), "-f", self._file(),
            "--wait", "--timeout", "120s",
        )  # fmt: skip

    def uninstall(self) -> None:
        """Both charts."""
        self.helm("uninstall", RELEASE, "--wait", check=False)
        self.helm("uninstall", f"{RELEASE}-crds", "--wait", check=False)

    def holder(self) -> str:
        """Which pod holds the Lease."""
        return self.cluster.kubectl(
            "-n", NAMESPACE, "get", "lease", "genai-operator", "-o",
            "jsonpath={.spec.holderIdentity}",
        )  # fmt: skip

    def pods(self) -> list[str]:
        """Names of the operator's pods."""
        listed = self.cluster.kubectl(
            "-n", NAMESPACE, "get", "pods", "-l", "app.kubernetes.io/component=operator",
            "-o", "jsonpath={.items[*].metadata.name}",
        )  # fmt: skip
        return listed.split()

    def metric(self, name: str) -> float:
        """The sum of a metric's series over the operator's pods."""
        total = 0.0
        for pod in self.pods():
            path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}:8080/proxy/metrics"
            for line in self.cluster.kubectl("get", "--raw", path).splitlines():
                if line.startswith(name):
                    total += float(line.rsplit(" ", 1)[1])
        return total

    def state(self) -> str:
        """What stands in the operator's namespace, for people who read a failure."""
        return self.cluster.kubectl(
            "-n", NAMESPACE, "get", "pods,events", "-o", "wide", check=False
        ) + self.cluster.kubectl(
            "-n", NAMESPACE, "logs", "-l", "app.kubernetes.io/component=operator", "--tail=30",
            check=False,
        )  # fmt: skip

    def _file(self) -> str:
        path = self._folder / "values.yaml"
        path.write_text(yaml.safe_dump(self.values))
        return str(path)


class Account:
    """A service account's own token, and nothing else, against the apiserver."""

    def __init__(self, cluster: Cluster, namespace: str, name: str) -> None:
        config = yaml.safe_load(cluster.admin.read_text())["clusters"][0]["cluster"]
        token = cluster.kubectl("-n", namespace, "create", "token", name, "--duration=15m").strip()
        held = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
        self.subject = str(held["sub"])
        self._token = token
        self._server = config["server"].rstrip("/")
        data = config.get("certificate-authority-data")
        self._tls = ssl.create_default_context(
            cadata=base64.b64decode(data).decode() if data else None,
            cafile=None
            if data
            else str(Path(cluster.admin.parent, config["certificate-authority"])),
        )

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        """One request, as the account; HTTP status and the answer."""
        kind = "merge-patch+json" if method == "PATCH" else "json"
        request = urllib.request.Request(
            self._server + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {self._token}",
                "Content-Type": f"application/{kind}",
            }
            | {name.replace("_", "-"): value for name, value in headers.items()},
        )
        try:
            with urllib.request.urlopen(request, context=self._tls, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
