"""Edits and upgrades: what fits is kept, and nothing is built again unasked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.cluster import Cluster
from laptop import SMALL, SMALL_MODEL, Laptop
from operator_process import Operator
from tenant import GROUP, Tenant, revisions, upload, wait

from genai_core.wire import REQUESTED_AT

NEWER = """
import dataclasses, runpy
from genai_core import operations
rows = tuple(
    dataclasses.replace(row, code_version=row.code_version + 1) for row in operations.OPERATIONS
)
operations.OPERATIONS = rows
runpy.run_module("genai_operator", run_name="__main__")
"""
"""A later release of the operator, all of whose operations were changed."""


@pytest.fixture
def own_target(cluster: Cluster, tenant: Tenant) -> Iterator[str]:
    """Name of a target that the test may change."""
    name = f"cpu-{tenant.namespace}"
    cluster.apply(target(name, declared(cluster)))
    yield name
    cluster.kubectl("delete", "genaitarget", name)


def declared(cluster: Cluster) -> dict[str, Any]:
    """The spec of the target `cpu`."""
    found: dict[str, Any] = json.loads(cluster.kubectl("get", "genaitarget", "cpu", "-o", "json"))[
        "spec"
    ]
    return found


def target(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": GROUP, "kind": "GenAITarget", "metadata": {"name": name}, "spec": spec}


def ask(tenant: Tenant, build: str, when: str) -> None:
    """What a user does who wants a build looked at again."""
    tenant.cluster.kubectl(
        "-n", tenant.namespace, "annotate", "--overwrite", "genaibuild", build,
        f"{REQUESTED_AT}={when}",
    )  # fmt: skip
    wait(lambda: tenant.status(build).get("requestedAt") == when, 20)  # what is said is of this


def test_an_edit_keeps_what_fits_and_the_last_good_artifact_stays(
    tenant: Tenant, operator: Operator, laptop: Laptop
) -> None:
    """B19: another context length of the cpu's container leaves all but the package as it was."""
    del operator
    tenant.small("edited")
    first = tenant.sound("edited", laptop.revisions(SMALL))
    before = tenant.witness.jobs(tenant.namespace)
    other = {"graphs": {"autoRegression": [1, 32], "contextLengths": [64]}}
    tenant.small("edited", **other)
    wait(lambda: tenant.status("edited")["observedGeneration"] == 2, 20)
    during = tenant.status("edited")
    assert during["phase"] == "Building"
    assert revisions(during) == revisions(first)
    assert tenant.condition("edited", "ArtifactAvailable") == ("True", "Built")
    second = tenant.sound("edited", laptop.revisions(SMALL | other))
    assert revisions(second) != revisions(first)
    added = tenant.witness.operations(tenant.namespace, but=before)
    assert added == {"package"}

    # Back again: everything is there already.
    before = tenant.witness.jobs(tenant.namespace)
    tenant.small("edited")
    wait(lambda: tenant.status("edited")["observedGeneration"] == 3, 20)
    tenant.sound("edited", laptop.revisions(SMALL))
    assert tenant.witness.jobs(tenant.namespace) == before


def test_names_and_order_build_nothing(
    tenant: Tenant, operator: Operator, laptop: Laptop, tmp_path: Path
) -> None:
    """B18: another name, another folder, other file names, another order, other run settings.

    The new folder has to be looked into once; no stage runs.
    """
    del operator
    tenant.small("first")
    tenant.sound("first", laptop.revisions(SMALL))
    before = tenant.witness.jobs(tenant.namespace)
    for path in SMALL_MODEL.iterdir():
        name = "another.onnx" if path.suffix == ".onnx" else path.name
        (tmp_path / name).write_bytes(path.read_bytes())
    upload(tenant.cluster, tmp_path, name=f"other-{tenant.namespace}")
    spec = SMALL | {
        "model": {"source": f"s3://models/other-{tenant.namespace}"},
        "graphs": dict(reversed([("autoRegression", [32, 1]), ("contextLengths", [128])])),
        "run": {"parallelism": 3, "retries": 5},
    }
    tenant.small("second", **dict(reversed(spec.items())))
    tenant.sound("second", laptop.revisions(SMALL), seconds=60)
    assert tenant.witness.operations(tenant.namespace, but=before) <= {"resolve"}


def test_a_new_toolchain_starts_nothing_unasked(
    tenant: Tenant, operator: Operator, own_target: str
) -> None:
    del operator
    tenant.small("kept", targets=[own_target])
    before = tenant.wait_ready("kept")
    jobs = tenant.witness.jobs(tenant.namespace)
    known = declared(tenant.cluster)
    newer = known | {"toolchain": known["toolchain"] | {"numpy": "99.0"}}
    tenant.cluster.apply(target(own_target, newer))
    tenant.wait_condition("kept", ("True", "NewerToolchain"), kind="ToolchainOutdated", seconds=20)
    after = tenant.status("kept")
    assert (after["artifacts"], after["toolchain"]) == (before["artifacts"], before["toolchain"])
    assert tenant.condition("kept") == ("True", "Built")
    assert tenant.witness.jobs(tenant.namespace) == jobs

    # Asked, it begins; this image is not what its target declares, and says so.
    ask(tenant, "kept", "1")
    status = tenant.wait_condition("kept", ("False", "ToolchainMismatch"), seconds=60)
    assert tenant.witness.jobs(tenant.namespace) > jobs
    assert "numpy" in status["failures"][0]["message"]
    assert status["artifacts"] == before["artifacts"]
    assert tenant.condition("kept", "ArtifactAvailable") == ("True", "Built")

    # What failed is not tried again unasked either, when the declaration is mended.
    jobs = tenant.witness.jobs(tenant.namespace)
    tenant.cluster.apply(target(own_target, known))
    tenant.wait_condition("kept", ("True", "NewerToolchain"), kind="ToolchainOutdated", seconds=20)
    assert tenant.condition("kept") == ("False", "ToolchainMismatch")
    ask(tenant, "kept", "2")
    assert tenant.wait_ready("kept")["artifacts"] == before["artifacts"]
    assert tenant.condition("kept", "ToolchainOutdated") == ("", "")
    assert tenant.witness.jobs(tenant.namespace) == jobs


def test_the_same_tools_in_another_image_build_nothing(
    tenant: Tenant, operator: Operator, own_target: str
) -> None:
    """B19."""
    del operator
    tenant.small("same", targets=[own_target])
    before = tenant.wait_ready("same")
    jobs = tenant.witness.jobs(tenant.namespace)
    image = f"localhost/elsewhere@sha256:{'7' * 64}"
    tenant.cluster.apply(target(own_target, declared(tenant.cluster) | {"image": image}))
    ask(tenant, "same", "1")
    wait(lambda: tenant.status("same").get("requestedAt") == "1", 20)
    assert tenant.wait_ready("same", 20)["artifacts"] == before["artifacts"]
    assert tenant.condition("same", "ToolchainOutdated") == ("", "")
    assert tenant.witness.jobs(tenant.namespace) == jobs


def test_a_new_operator_starts_nothing_unasked(
    cluster: Cluster, tenant: Tenant, operator: Operator, tmp_path: Path
) -> None:
    """All its operations were changed: every key of its plans is new."""
    tenant.small("settled")
    before = tenant.wait_ready("settled")
    jobs = tenant.witness.jobs(tenant.namespace)
    operator.stop()
    newer = Operator(cluster, tmp_path, identity="newer")
    newer.program = ["-c", NEWER]
    newer.start()
    try:
        tenant.wait_condition(
            "settled", ("True", "NewerToolchain"), kind="ToolchainOutdated", seconds=20
        )
        assert tenant.condition("settled") == ("True", "Built")
        assert tenant.status("settled")["artifacts"] == before["artifacts"]
        assert tenant.witness.jobs(tenant.namespace) == jobs
        ask(tenant, "settled", "1")
        wait(lambda: tenant.witness.jobs(tenant.namespace) > jobs, 30)
        assert tenant.status("settled")["artifacts"] == before["artifacts"]
    finally:
        newer.stop()
        operator.start()
