"""The cluster of the tests: one for the whole run, an operator and a namespace for each module.

GENAI_TEST_CLUSTER=1        brings a cluster up and takes it down again
GENAI_TEST_CLUSTER=FOLDER   uses the one that `python -m harness up --folder FOLDER` left running
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import tenant as tenants
from harness import images, programs
from harness.cluster import Cluster
from operator_process import Operator
from tenant import Tenant

WANTED = os.environ.get("GENAI_TEST_CLUSTER", "")
IMAGE = "localhost/genai-stages:test"


def why_not() -> str:
    """Why there is no cluster for the tests; empty if there is to be one."""
    if not WANTED:
        return "make test-cluster runs them"
    lacking = programs.missing()
    return f"this machine lacks {', '.join(lacking)}" if lacking else ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """One loud line instead of many, where there is no cluster."""
    ours = [item for item in items if item.path.parent == Path(__file__).parent]
    why = why_not()
    if not ours or not why or (WANTED and os.environ.get("CI")):
        return
    text = f"{len(ours)} CLUSTER TESTS WERE NOT RUN: {why}"
    ours[0].add_marker(pytest.mark.skip(reason=text))
    config.hook.pytest_deselected(items=ours[1:])
    rest = set(ours[1:])
    items[:] = [item for item in items if item not in rest]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster with CRDs, targets, the model in S3, and the image of the stages on each node."""
    why = why_not()
    assert not why, why
    if WANTED != "1":
        found = attached(Path(WANTED))
        prepare(found)
        yield found
        return
    found = Cluster(Path(tempfile.mkdtemp(prefix="genai-cluster-")) / "run")
    try:
        found.up(2, ("stages",))
        prepare(found)
        yield found
    finally:
        found.down()


def attached(folder: Path) -> Cluster:
    """A cluster that another process brought up."""
    found = Cluster.attach(folder)
    if f"{IMAGE}" not in found.nodes[0].images():
        archive = images.project("stages")
        for node in found.nodes:
            node.load(archive)
    return found


def prepare(cluster: Cluster) -> None:
    """Install what all tests share."""
    image = [node.pin(IMAGE) for node in cluster.nodes][-1]
    chain = subprocess.run(
        [sys.executable, "-m", "genai_stages", "toolchain"],
        capture_output=True,
        text=True,
        check=True,
    )
    tenants.install(cluster, image, json.loads(chain.stdout))


@pytest.fixture(scope="module")
def operator(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """The operator as a process of this machine."""
    found = Operator(cluster, tmp_path_factory.mktemp("operator"))
    found.start()
    yield found
    found.stop()


@pytest.fixture
def tenant(cluster: Cluster) -> Iterator[Tenant]:
    """A namespace of its own, removed with what it stored."""
    found = Tenant(cluster, f"t-{uuid.uuid4().hex[:8]}")
    found.create()
    yield found
    found.delete()
