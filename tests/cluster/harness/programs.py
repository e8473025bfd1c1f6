"""Builds the programs of the cluster from Go modules, once: kept by content in the user's cache."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

KUBE_VERSION = "v1.34.4"
KUBE_SOURCE = Path(__file__).parents[1] / "kube"
MODULES = {
    "versitygw": "github.com/versity/versitygw/cmd/versitygw@v1.8.0",
    "coredns": "github.com/coredns/coredns@v1.15.0",
    "helm": "helm.sh/helm/v3/cmd/helm@v3.19.0",
    "kwok": "sigs.k8s.io/kwok/cmd/kwok@v0.8.0",
}
PROGRAMS = (
    "go", "gcc", "containerd", "ctr", "runc", "buildah", "debootstrap", "iptables", "ip",
    "nsenter", "kubectl",
)  # fmt: skip
ATTEMPTS = 4


def cache() -> Path:
    """Where built programs are kept."""
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = root / "genai-operator-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _go(*arguments: str, cwd: Path, environment: dict[str, str]) -> None:
    """Run go; look-ups sometimes fail for a moment, so it tries again."""
    for attempt in range(1, ATTEMPTS + 1):
        ran = subprocess.run(
            ["go", *arguments],
            cwd=cwd,
            env=os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=mod"} | environment,
            check=False,
        )
        if ran.returncode == 0:
            return
        print(f"go {arguments[0]}: attempt {attempt} of {ATTEMPTS} failed", file=sys.stderr)
    raise RuntimeError(f"go {' '.join(arguments)} failed {ATTEMPTS} times")


def kube() -> Path:
    """etcd, control plane and kubelet in one program; about four minutes the first time."""
    digest = hashlib.sha256(KUBE_VERSION.encode())
    for name in ("go.mod", "go.sum", "main.go"):
        digest.update((KUBE_SOURCE / name).read_bytes())
    program = cache() / f"kube-{digest.hexdigest()[:16]}"
    with alone("kube"):
        if not program.exists():
            _compile_kube(program)
    return program


def _compile_kube(program: Path) -> None:
    major, minor = KUBE_VERSION.removeprefix("v").split(".")[:2]
    stamp = "k8s.io/component-base/version"
    flags = (
        f"-s -w -X {stamp}.gitVersion={KUBE_VERSION}"
        f" -X {stamp}.gitMajor={major} -X {stamp}.gitMinor={minor}"
    )
    aside = program.with_suffix(".tmp")
    _go(
        "build", "-ldflags", flags, "-o", str(aside), ".",
        cwd=KUBE_SOURCE, environment={"GOFLAGS": "-mod=readonly"},
    )  # fmt: skip
    aside.replace(program)


def pinned(
    name: str, source: Path, package: str = ".", *, tags: str = "", needed: bool = False
) -> Path | None:
    """A program of a module in this repository; None where it is not built and may not be now.

    Args:
        name: Of the program.
        source: Folder with go.mod, go.sum and, where the program is ours, its source.
        package: What is built.
        tags: Of the build.
        needed: Compile it in any case: the test has a cluster, and so Go.
    """
    digest = hashlib.sha256(f"{package} {tags}".encode())
    for file in sorted([*source.glob("go.*"), *source.glob("*.go")]):
        digest.update(file.read_bytes())
    program = cache() / f"{name}-{digest.hexdigest()[:16]}"
    if not program.exists():
        if not needed and not may_build():
            return None
        with alone(name):
            if not program.exists():
                aside = program.with_suffix(".tmp")
                _go(
                    "build", "-tags", tags, "-ldflags", "-s -w", "-o", str(aside), package,
                    cwd=source, environment={"GOFLAGS": "-mod=readonly"},
                )  # fmt: skip
                aside.replace(program)
    return program


def may_build() -> bool:
    """Whether tests that need no cluster may take minutes to compile what they ask."""
    asked = os.environ.get("GENAI_TEST_GO") or os.environ.get("CI")
    return bool(asked) and shutil.which("go") is not None


def module(name: str) -> Path:
    """A ready-made program by `go install`, e.g. the S3 server."""
    path = MODULES[name]
    program = cache() / f"{name}-{path.rsplit('@', 1)[1]}"
    with alone(name):
        if not program.exists():
            folder = cache() / f"install-{name}"
            folder.mkdir(exist_ok=True)
            _go("install", path, cwd=folder, environment={"GOBIN": str(folder)})
            (folder / name).replace(program)
            shutil.rmtree(folder, ignore_errors=True)
    return program


def source(path: str) -> Path:
    """The folder of a Go module's source, such as one with CustomResourceDefinitions.

    Args:
        path: module@version.
    """
    for attempt in range(1, ATTEMPTS + 1):
        ran = subprocess.run(
            ["go", "mod", "download", "-json", path],
            cwd=cache(),
            env=os.environ | {"GOFLAGS": "-mod=mod"},
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode == 0:
            return Path(json.loads(ran.stdout)["Dir"])
        print(f"go mod download {path}: attempt {attempt} of {ATTEMPTS} failed", file=sys.stderr)
    raise RuntimeError(f"go mod download {path} failed {ATTEMPTS} times: {ran.stdout}{ran.stderr}")


@contextmanager
def alone(name: str) -> Iterator[None]:
    """No other process builds a program of that name meanwhile."""
    with (cache() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def missing() -> list[str]:
    """What this machine lacks for a cluster of its own, in words."""
    lacks = [] if os.geteuid() == 0 else ["root"]
    lacks += [f"the program {name}" for name in PROGRAMS if shutil.which(name) is None]
    if not Path("/usr/lib/cni/ptp").exists() and not Path("/opt/cni/bin/ptp").exists():
        lacks.append("the CNI plugins (package containernetworking-plugins)")
    return lacks
