"""The charts, rendered by helm where there is one; the kustomize base needs none."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import programs

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "genai-operator"
Objects = list[dict[str, Any]]


@pytest.fixture(scope="session")
def helm() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs helm; skips loudly where there is none and none may be built."""
    name = f"helm-{programs.MODULES['helm'].rsplit('@', 1)[1]}"
    cached = programs.cache() / name
    program = shutil.which("helm") or (str(cached) if cached.exists() else "")
    if not program and programs.may_build():
        program = str(programs.module("helm"))
    if not program:
        pytest.skip("THE CHART WAS NOT RENDERED: no helm on PATH, and the cluster tests built none")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="session")
def rendered(helm: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., Objects]:
    """Objects of the chart with some values, each written as for `--set-json`."""

    def render(*values: str) -> Objects:
        sets = [word for value in values for word in ("--set-json", value)]
        ran = helm(
            "template", "genai-operator", str(CHART), "-n", "genai-system",
            "--kube-version", "1.34.0", *sets,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        return [value for value in yaml.safe_load_all(ran.stdout) if value]

    return render


@pytest.fixture(scope="session")
def base() -> Objects:
    """The kustomize base: the chart with its defaults."""
    text = (ROOT / "deploy" / "kustomize" / "base" / "operator.yaml").read_text(encoding="utf-8")
    return [value for value in yaml.safe_load_all(text) if value]
