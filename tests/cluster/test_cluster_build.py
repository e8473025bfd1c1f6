"""Builds on a real cluster: the laptop's revisions, shared tasks, suspension, refusals."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from laptop import SMALL, TINY, TINY_MODEL, Laptop
from tenant import Tenant, revisions, s3_client, upload, wait

from genai_core.wire import REQUESTED_AT

pytestmark = pytest.mark.usefixtures("operator")


def active(tenant: Tenant) -> list[str]:
    return [job["metadata"]["name"] for job in tenant.jobs() if not job["status"].get("conditions")]


def ended(job: dict) -> bool:  # type: ignore[type-arg]
    return any(c["type"] in {"Complete", "Failed"} for c in job["status"].get("conditions", ()))


def test_a_build_gives_the_laptops_revision_and_a_second_one_needs_no_job(
    tenant: Tenant, laptop: Laptop
) -> None:
    tenant.build("first")
    status = tenant.sound("first", laptop.revisions(TINY))

    assert status["phase"] == "Ready"
    total = int(status["progress"].split("/")[1])
    assert status["progress"] == f"{total}/{total}"
    assert sum(stage.get("done", 0) for stage in status["stages"]) == total
    assert [c["type"] for c in status["conditions"]] == ["Ready", "ArtifactAvailable"]
    assert status["sources"][0]["digest"].startswith("sha256:")

    # Nothing of the user's object is touched but its status.
    meta = tenant.get("genaibuilds", "first")["metadata"]
    assert not meta.get("annotations")
    assert "finalizers" not in meta
    assert {m["subresource"] for m in _managed(tenant, "first", "genai-operator")} == {"status"}

    before = len(tenant.jobs())
    began = time.monotonic()
    tenant.build("second")
    second = tenant.wait_ready("second", 20)
    seconds = time.monotonic() - began
    assert revisions(second) == revisions(status)
    assert second["cached"] == total
    assert len(tenant.jobs()) == before
    print(f"cached: apply to Ready in {seconds:.1f} s")


def _managed(tenant: Tenant, name: str, manager: str) -> list[dict[str, str]]:
    text = tenant.cluster.kubectl(
        "-n", tenant.namespace, "get", "genaibuild", name, "--show-managed-fields", "-o", "yaml"
    )
    return [m for m in yaml.safe_load(text)["metadata"]["managedFields"] if m["manager"] == manager]


def test_two_builds_share_their_tasks_and_the_last_claim_ends_them(
    tenant: Tenant, laptop: Laptop
) -> None:
    """B25."""
    tenant.small("one")
    wait(lambda: bool(active(tenant)), 30)
    tenant.small("two")

    def shared() -> bool:
        return any(
            {o["name"] for o in job["metadata"]["ownerReferences"]} == {"one", "two"}
            for job in tenant.jobs()
            if not ended(job)
        )

    wait(shared, 60)
    assert not any(
        owner.get("controller")
        for job in tenant.jobs()
        for owner in job["metadata"]["ownerReferences"]
    )
    tenant.cluster.kubectl("-n", tenant.namespace, "delete", "genaibuild", "one", "--wait=true")
    tenant.sound("two", laptop.revisions(SMALL))
    tasks = [job["metadata"]["annotations"]["genai-operator.dev/key"] for job in tenant.jobs()]
    assert len(tasks) == len(set(tasks)), "a task ran twice"


def test_deleting_a_build_ends_its_jobs(tenant: Tenant) -> None:
    tenant.small("gone")
    wait(lambda: bool(active(tenant)), 30)
    tenant.cluster.kubectl("-n", tenant.namespace, "delete", "genaibuild", "gone", "--wait=true")
    wait(lambda: not tenant.jobs(), 30, lambda: str(active(tenant)))
    wait(lambda: not tenant.pods(), 40)


def test_a_suspended_build_ends_what_runs_and_goes_on_later(tenant: Tenant, laptop: Laptop) -> None:
    tenant.small("held")
    wait(lambda: bool(active(tenant)), 30)
    tenant.small("held", run={"suspend": True})
    status = tenant.wait_condition("held", ("Unknown", "Suspended"))
    assert [c["type"] for c in status["conditions"]] == ["Ready"]
    wait(lambda: not active(tenant), 20)
    tenant.small("held")
    tenant.sound("held", laptop.revisions(SMALL))


def test_bad_input_fails_at_once_in_the_stages_words_and_mending_it_is_enough(
    tenant: Tenant, tmp_path: Path
) -> None:
    name = f"broken-{tenant.namespace}"
    for path in TINY_MODEL.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = (tmp_path / "model.encodings").read_bytes()
    (tmp_path / "model.encodings").write_bytes(data[: len(data) // 2])
    upload(tenant.cluster, tmp_path, name=name)
    tenant.build("bad", model={"source": f"s3://models/{name}"})
    status = tenant.wait_condition("bad", ("False", "BadEncodings"), seconds=90)
    by_type = {c["type"]: c for c in status["conditions"]}
    assert by_type["Stalled"]["status"] == "True"
    assert "Reconciling" not in by_type
    assert "encodings" in by_type["Ready"]["message"]
    failed = [job for job in tenant.jobs() if job["status"].get("failed")]
    assert len(failed) == 1, "bad input was tried again"
    _its_log_outlives_its_pod(tenant, status["failures"][0])

    client = s3_client(tenant.cluster)
    client.put_object(Bucket="models", Key=f"{name}/model.encodings", Body=data)
    tenant.cluster.kubectl(
        "-n", tenant.namespace, "annotate", "genaibuild", "bad", f"{REQUESTED_AT}=now"
    )
    wait(lambda: tenant.status("bad").get("requestedAt") == "now", 60)  # what is said is of this
    tenant.wait_ready("bad")


def _its_log_outlives_its_pod(tenant: Tenant, failure: dict[str, str]) -> None:
    tenant.cluster.kubectl("-n", tenant.namespace, "delete", "pods", "--all", "--wait=true")
    assert not tenant.pods()
    address, _, query = failure["log"].partition("?")
    bucket, _, key = address.removeprefix("s3://").partition("/")
    assert tenant.cluster.s3_endpoint in query.replace("%3A", ":").replace("%2F", "/")
    text = s3_client(tenant.cluster).get_object(Bucket=bucket, Key=key)["Body"].read().decode()
    assert failure["message"].split(";")[0].partition(": ")[2][:40] in text, (failure, text)


def test_a_wrong_spec_is_refused_by_the_apiserver_or_named_in_the_status(tenant: Tenant) -> None:
    with pytest.raises(Exception, match="returned non-zero"):
        tenant.build("none", targets=[])
    with pytest.raises(Exception, match="returned non-zero"):
        tenant.build("folder", model={"source": "model"})
    tenant.build("many", targets=["sm8750"], splits={"count": 40})
    status = tenant.wait_condition("many", ("False", "InvalidSpec"), seconds=60)
    assert "spec.splits" in status["conditions"][0]["message"]
    tenant.build("unknown", targets=["sm0000"])
    tenant.wait_condition("unknown", ("Unknown", "TargetNotFound"), seconds=20)
