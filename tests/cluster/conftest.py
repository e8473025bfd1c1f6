"""The cluster of the tests: one for the whole run, an operator and a namespace for each module.

GENAI_TEST_CLUSTER=1        brings a cluster up and takes it down again
GENAI_TEST_CLUSTER=FOLDER   uses the one that `python -m harness up --folder FOLDER` left running
GENAI_TEST_KUBECONFIG=FILE  uses an existing cluster, see existing.py
GENAI_TEST_MINUTES=44       begins no test after so many, and says which were left out
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import existing
import pytest
import tenant as tenants
from harness import images, programs
from harness.cluster import Cluster
from laptop import Laptop
from operator_process import Operator
from tenant import Tenant
from witness import Witness

WANTED = os.environ.get("GENAI_TEST_CLUSTER", "")
MINUTES = os.environ.get("GENAI_TEST_MINUTES", "")
IMAGE = "localhost/genai-stages:test"
BEGAN = time.monotonic()


def why_not() -> str:
    """Why there is no cluster for the tests; empty if there is to be one."""
    if existing.wanted():
        lacking = existing.lacking()
    elif not WANTED:
        return "make test-cluster runs them"
    else:
        lacking = programs.missing()
    return f"this machine lacks {', '.join(lacking)}" if lacking else ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """One loud line instead of many, where there is no cluster."""
    ours = [item for item in items if item.path.parent == Path(__file__).parent]
    why = why_not()
    if not ours or not why or ((WANTED or existing.wanted()) and os.environ.get("CI")):
        return
    text = f"{len(ours)} CLUSTER TESTS WERE NOT RUN: {why}"
    ours[0].add_marker(pytest.mark.skip(reason=text))
    config.hook.pytest_deselected(items=ours[1:])
    rest = set(ours[1:])
    items[:] = [item for item in items if item not in rest]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin nothing that might not end in time."""
    del item
    if MINUTES and time.monotonic() - BEGAN > float(MINUTES) * 60:
        pytest.skip(f"NOT RUN: {MINUTES} minutes are over; make test-cluster has no such limit")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster with CRDs, targets, the model in S3, and the image of the stages on each node."""
    why = why_not()
    assert not why, why
    if existing.wanted():
        yield prepared(existing.ExistingCluster(), os.environ["GENAI_TEST_STAGES_IMAGE"])
        return
    if WANTED != "1":
        found = attached(Path(WANTED))
        yield prepared(found, pinned(found))
        return
    with tempfile.TemporaryDirectory(prefix="genai-cluster-") as folder:
        found = Cluster(Path(folder) / "run")
        try:
            found.up(2, ("stages",))
            yield prepared(found, pinned(found))
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


def pinned(cluster: Cluster) -> str:
    """Name the stages' image by its digest on every node; returns that name."""
    return [node.pin(IMAGE) for node in cluster.nodes][-1]


def prepared(cluster: Cluster, image: str) -> Cluster:
    """Install what all tests share."""
    chain = subprocess.run(
        [sys.executable, "-m", "genai_stages", "toolchain"],
        capture_output=True,
        text=True,
        check=True,
    )
    tenants.install(cluster, image, json.loads(chain.stdout))
    return cluster


@pytest.fixture
def own_cluster(cluster: Cluster) -> Cluster:
    """For tests that kill nodes and processes of the cluster: not somebody else's."""
    if not cluster.nodes:
        pytest.skip("NEEDS A CLUSTER OF ITS OWN: it kills nodes or control plane")
    return cluster


@pytest.fixture(scope="session")
def witness(cluster: Cluster) -> Iterator[Witness]:
    """Sees from outside what runs."""
    found = Witness(cluster)
    found.start()
    yield found
    found.stop()


@pytest.fixture(scope="session")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Laptop:
    """What this machine builds without a cluster."""
    return Laptop(tmp_path_factory.mktemp("laptop"))


@pytest.fixture(scope="module")
def operator(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """The operator as a process of this machine."""
    found = Operator(cluster, tmp_path_factory.mktemp("operator"))
    found.start()
    yield found
    found.stop()


@pytest.fixture
def tenants_of(cluster: Cluster, witness: Witness) -> Iterator[Callable[..., Tenant]]:
    """Makes namespaces; each is removed with what it stored, after a last look at what ran."""
    made: list[Tenant] = []

    def make(**options: str) -> Tenant:
        found = Tenant(cluster, f"t-{uuid.uuid4().hex[:8]}", witness=witness)
        made.append(found)
        found.create(**options)
        return found

    yield make
    for found in made:
        found.delete()
    for found in made:
        found.ran_apart()


@pytest.fixture
def tenant(tenants_of: Callable[..., Tenant]) -> Tenant:
    """A namespace of its own."""
    return tenants_of()
