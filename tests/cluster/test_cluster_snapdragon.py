"""Builds for a Snapdragon on a real cluster: many tasks at once, the laptop's bytes.

The image must have the vendor's wheel; the harness builds it so.
"""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
from freezing import hold, send
from harness.cluster import Cluster
from laptop import SMALL, TINY, Laptop
from operator_process import Operator
from tenant import GROUP, Tenant, revisions, wait

from genai_core.wire import REQUESTED_AT

pytestmark = pytest.mark.usefixtures("operator")

HTP: dict[str, Any] = {"targets": ["sm8750"], "quantization": {"gaps": "Float"}}


def counts(status: dict[str, Any], member: str = "done") -> dict[str, int]:
    """Operation -> tasks."""
    return {s["operation"]: s[member] for s in status["stages"] if s.get(member)}


def declare(cluster: Cluster, name: str, **chip: Any) -> None:
    """A target like sm8750 for another chip."""
    image, toolchain = (
        cluster.kubectl("get", "genaitarget", "sm8750", "-o", f"jsonpath={{.spec.{member}}}")
        for member in ("image", "toolchain")
    )
    spec = {"backend": "Htp", "image": image, "toolchain": json.loads(toolchain), **chip}
    cluster.apply(
        {"apiVersion": GROUP, "kind": "GenAITarget", "metadata": {"name": name}, "spec": spec}
    )


def test_the_example_fans_out_and_gives_the_laptops_revision(
    tenant: Tenant, laptop: Laptop
) -> None:
    """B2; B17: a chip by its numbers; B18: another name, nothing to do."""
    spec = TINY | {"targets": ["sm8750"], "run": {"parallelism": 4}}
    tenant.build("example", **spec)
    status = tenant.sound("example", laptop.revisions(spec), seconds=900)
    done = counts(status)
    assert done.pop("fidelity", 1) == 1
    assert done == {
        "ingest": 1, "arcl": 2, "transform": 6, "convert": 6, "compile": 3, "package": 1,
    }  # fmt: skip
    assert status["artifacts"][0]["verified"] == "Emulator"
    at_once = tenant.witness.most_at_once(tenant.namespace)
    print(f"{at_once} stages at once, {len(tenant.witness.jobs(tenant.namespace))} Jobs")
    assert 3 <= at_once <= 4

    jobs = tenant.witness.jobs(tenant.namespace)
    tenant.build("renamed", **spec)
    tenant.sound("renamed", laptop.revisions(spec), seconds=20)
    assert tenant.witness.jobs(tenant.namespace) == jobs

    name = f"numbers-{tenant.namespace}"
    declare(tenant.cluster, name, dspArch="v79", socModel=69)
    try:
        tenant.build("numbers", **(spec | {"targets": [name]}))
        tenant.wait_ready("numbers")
        made = tenant.witness.operations(tenant.namespace, but=jobs)
        assert made <= {"package"}, "the binaries are the same"
    finally:
        tenant.cluster.kubectl("delete", "genaitarget", name)


def test_an_unknown_chip_is_refused_before_any_job(tenant: Tenant) -> None:
    """B17."""
    name = f"banana-{tenant.namespace}"
    declare(tenant.cluster, name, chipset="BANANA")
    try:
        tenant.small("fruit", **(HTP | {"targets": [name]}))
        wait(lambda: "BANANA" in str(tenant.status("fruit").get("conditions")), 20)
        assert tenant.condition("fruit")[0] != "True"
        target = tenant.cluster.kubectl("get", "genaitarget", name, "-o", "yaml")
        assert "BANANA" in target.partition("status:")[2]
        assert not tenant.jobs()
    finally:
        tenant.cluster.kubectl("delete", "genaitarget", name)


def test_a_split_that_fails_keeps_the_others_and_is_cured_alone(
    own_cluster: Cluster, tenant: Tenant, laptop: Laptop
) -> None:
    """B22; then B19: another chip, another AR."""
    expected = laptop.revisions(SMALL | HTP)
    once = HTP | {"run": {"retries": 0}}
    tenant.small("halved", **once)
    task = "compile/sm8750/2_of_2"
    send(hold(tenant, task=task, seconds=420), signal.SIGTERM)
    status = tenant.wait_condition("halved", ("False", "Interrupted"), seconds=240)
    assert [failure["task"] for failure in status["failures"]] == [task]
    assert status["failures"][0]["reason"] == "Interrupted"
    assert status["failures"][0]["log"].startswith("s3://")
    assert len(tenant.objects("records/compile/")) == 1, "the other split stands"
    tenant.whole()

    before = tenant.witness.jobs(tenant.namespace)
    tenant.cluster.kubectl(
        "-n", tenant.namespace, "annotate", "genaibuild", "halved", f"{REQUESTED_AT}=1"
    )
    wait(lambda: tenant.condition("halved")[0] == "Unknown", 20)
    tenant.sound("halved", expected)
    made = tenant.witness.operations(tenant.namespace, but=before)
    assert made <= {"compile", "fidelity", "package"}
    assert len(tenant.objects("records/compile/")) == 2

    name = f"other-{tenant.namespace}"
    declare(own_cluster, name, chipset="SM8650")
    try:
        tenant.small("other-chip", **(once | {"targets": [name]}))
        done = counts(tenant.wait_ready("other-chip"))
        assert "compile" in done
        assert "package" in done
        assert not {"ingest", "arcl", "transform"} & set(done)
    finally:
        own_cluster.kubectl("delete", "genaitarget", name)


def test_one_more_ar_runs_what_is_its_own(
    tenant: Tenant, operator: Operator, laptop: Laptop
) -> None:
    """B19."""
    del operator
    tenant.small("wider", **HTP)
    tenant.wait_ready("wider")
    graphs = {"autoRegression": [1, 16, 32], "contextLengths": [128]}
    tenant.small("wider", **HTP, graphs=graphs)
    wait(lambda: tenant.status("wider").get("observedGeneration") == 2, 20)
    status = tenant.sound("wider", laptop.revisions(SMALL | HTP | {"graphs": graphs}))
    done = counts(status)
    assert revisions(status)
    assert (done["arcl"], done["transform"], done["convert"], done["compile"]) == (1, 2, 2, 2)
