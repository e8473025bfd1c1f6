"""Passes over a GenAIDeployment: it waits, serves, follows its build, and goes back by itself."""

from __future__ import annotations

import copy
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from deployment_room import NEWER, READY, REPLICA_SET, WRONG, A, B, C, Room

from genai_core.canonical import digest_bytes
from genai_core.names import Key
from genai_core.store.collection.collect import collect
from genai_core.store.directory.directory_store import DirectoryStore
from genai_operator.deployments.containers import Revisions, look_up
from genai_operator.errors import Waiting
from genai_operator.kube.apiserver.api import ApiError
from genai_operator.timing import Timing


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path / "store")


def test_a_deployment_waits_for_its_build_and_serves_when_it_is_there(room: Room) -> None:
    room.go()
    assert room.ready == ("Unknown", "BuildNotFound")
    room.build(phase="Building")
    room.go()
    assert room.ready == ("Unknown", "BuildNotReady")
    assert not room.objects
    room.build(A)
    room.go()
    assert room.ready == ("Unknown", "Progressing")
    assert {plural for plural, _ in room.objects} == {
        "deployments", "services", "poddisruptionbudgets", "networkpolicies", "configmaps",
        "secrets",
    }  # fmt: skip
    assert "StoreWritable" in room.events
    room.observe(ready=2, replicas=2)
    room.pods(READY, READY)
    room.go()
    assert room.ready == ("True", "Serving")
    assert room.status["revision"] == {"current": A, "target": A, "lastGood": A}
    assert room.status["url"] == "http://chat.n.svc:8000/v1"
    assert room.status["readyReplicas"] == 2
    assert room.events.count("Serving") == 1


def test_a_deployment_follows_its_build_and_a_pinned_revision_stays(room: Room) -> None:
    room.build(A)
    room.serve()
    room.build(B)
    room.go()
    assert room.applied == B
    assert room.status["revision"] == {"current": A, "target": B, "lastGood": A}
    room.spec = {**room.spec, "from": {**room.spec["from"], "revision": A}}
    room.generation += 1
    room.go()
    assert room.applied == A


def test_a_store_that_the_build_does_not_write_into_is_named(room: Room) -> None:
    room.build(A)
    room.spec = {**room.spec, "store": {"name": "other"}}
    room.go()
    assert room.ready == ("False", "InvalidSpec")
    assert "and other is named here" in room.status["conditions"][0]["message"]


def test_a_pinned_revision_is_found_in_the_store_when_no_status_names_it(room: Room) -> None:
    room.artifact(C)
    room.build(A)
    room.spec = {**room.spec, "from": {**room.spec["from"], "revision": C}}
    room.go()
    assert room.applied == C
    room.spec = {**room.spec, "from": {**room.spec["from"], "revision": f"sha256:{'d' * 64}"}}
    room.generation += 1
    room.go()
    assert room.ready == ("Unknown", "ContainerNotFound")
    assert room.applied == C, "what stands is left as it is"


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (b'{"adapters": {' + b",".join(b'"a%d":0' % n for n in range(9000)) + b"}}", "8000"),
        (b" " * (1 << 20) + b"{}", "has 1048578 bytes"),
        (b'{"adapters": {' + b",".join(b'"a%d":0' % n for n in range(2000)) + b"}}", "2000 values"),
        (
            json.dumps(
                {
                    "adapters": {
                        f"a{n}": {"file": "model.onnx", "sha256": "0" * 64, "rank": 1, "linears": 1}
                        for n in range(65)
                    }
                }
            ).encode(),
            "65 adapters are more",
        ),
    ],
    ids=["values", "bytes", "faults", "adapters"],
)
def test_a_tenants_index_of_adapters_is_read_within_bounds(
    room: Room, index: bytes, words: str
) -> None:
    """2.3 MB of empty entries took the operator, which has 512 MiB for everybody, 900 MiB."""
    artifact = room.artifact(C, index)
    room.build(A)
    room.spec = {**room.spec, "from": {**room.spec["from"], "revision": C}}
    room.go()
    assert artifact["revision"] == C
    assert room.ready[0] != "True"
    (message,) = [c["message"] for c in room.status["conditions"] if c["type"] == "Ready"]
    assert words in message


def test_a_wrong_revision_is_rolled_back_and_not_tried_again(room: Room) -> None:
    room.build(A)
    room.serve()
    room.build(B)
    room.go()
    room.observe(ready=2, replicas=3)
    room.pods(WRONG)
    room.go()
    assert room.ready == ("False", "RolloutFailed")
    assert "3 of 32 differ" in room.message
    assert {c["type"] for c in room.status["conditions"]} == {"Ready", "Stalled", "Available"}
    room.go()
    assert room.applied == A
    room.observe(ready=2, replicas=2)
    room.pods(READY, READY)
    for _ in range(3):
        room.go()
        assert room.ready == ("False", "RolloutFailed")
        assert room.applied == A
    assert "was rolled back" in room.message
    room.spec = {**room.spec, "replicas": 3}  # an autoscaler asks for nothing new
    room.generation += 1
    room.go()
    assert room.applied == A
    assert room.status["rejected"][0]["revision"] == B
    # Until the user asks again, or the build makes another one.
    room.annotations = {"genai-operator.dev/requestedAt": "now"}
    room.go()
    assert room.applied == B
    assert "rejected" not in room.status


FORGED = [
    {"ownerReferences": []},
    {"ownerReferences": [REPLICA_SET | {"kind": "Job"}]},
    {"ownerReferences": [REPLICA_SET | {"controller": False}]},
    {"ownerReferences": [REPLICA_SET | {"name": "other-7f6457586c"}]},
]


@pytest.mark.parametrize("metadata", FORGED, ids=["nobody", "a Job", "no controller", "another"])
def test_a_pod_with_our_labels_that_no_deployment_made_counts_for_nothing(
    room: Room, metadata: dict[str, Any]
) -> None:
    """A copy for debugging has them, and whoever may make pods may write them."""
    room.build(A)
    room.serve()
    room.build(B)
    room.go()
    room.observe(ready=2, replicas=3)
    room.pods(WRONG | {"metadata": metadata})
    room.go()
    assert room.ready == ("Unknown", "Progressing"), "its end is no word about the rollout"
    room.observe(ready=2, replicas=2)
    room.pods(*[READY | {"metadata": metadata}] * 5)
    room.go()
    assert room.ready == ("Unknown", "Progressing"), "none of the deployment's own answers"
    assert room.status["revision"]["lastGood"] == A


def test_a_revision_that_no_pod_has_run_is_not_what_is_gone_back_to(room: Room) -> None:
    room.build(A)
    room.serve()
    room.spec = {**room.spec, "replicas": 0}
    room.go()
    room.observe(ready=0, replicas=0)
    room.pods()
    room.build(B)
    room.go()
    room.observe(ready=0, replicas=0)
    room.go()
    assert room.ready == ("True", "ScaledToZero")
    assert room.status["revision"] == {"target": B, "lastGood": A}
    room.spec = {**room.spec, "replicas": 2}
    room.go()
    room.observe(ready=0, replicas=2)
    room.pods(WRONG)
    room.go()
    assert room.ready == ("False", "RolloutFailed")
    room.go()
    assert room.applied == A


def test_a_wrong_revision_stays_beside_the_old_pods_when_nobody_wants_it_back(room: Room) -> None:
    room.spec["rollout"] = {"autoRollback": False}
    room.build(A)
    room.serve()
    room.build(B)
    room.go()
    room.observe(ready=2, replicas=3)
    room.pods(WRONG)
    for _ in range(2):
        room.go()
        assert room.ready == ("False", "RolloutFailed")
        assert room.applied == B
    assert "2 pods of an earlier one go on answering" in room.message


def test_what_serves_goes_on_when_the_build_or_the_store_is_gone(room: Room) -> None:
    room.build(A)
    room.serve()
    room.store_down = True
    room.go()
    assert room.ready == ("True", "Serving")
    assert "nothing can be changed now" in room.message
    room.store_down = False
    view = room.observed.builds.get("n", "tiny")
    assert view is not None
    room.observed.builds.drop("n", "tiny", view.uid)
    room.spec = {**room.spec, "replicas": 3}
    room.generation += 1
    room.go()
    assert room.applied == A
    assert room.objects["deployments", "chat"]["spec"]["replicas"] == 3
    room.observe(ready=2, replicas=2)
    room.go()
    room.spec = {**room.spec, "replicas": 2}
    room.go()
    room.observe(ready=2, replicas=2)
    room.go()
    assert room.ready == ("True", "Serving")
    assert "GenAIBuild tiny is gone" in room.message


def test_what_is_served_is_leased_and_gc_keeps_it(room: Room) -> None:
    room.build(A)
    room.serve()
    room.build(B)
    room.go()  # B comes, A is what it would go back to
    (lease,) = room.store.list_leases()
    assert {ref.key for ref in lease.records} == {
        Key(digest_bytes(revision.encode())) for revision in (A, B)
    }
    room.artifact(C)
    collect(room.store, grace=timedelta(0), now=room.store.now() + timedelta(seconds=5))
    kept = {ref.key for ref in room.store.list_records("package")}
    assert kept == {ref.key for ref in lease.records}, "C is nobody's"


def test_an_upgrade_alone_rolls_nothing(room: Room) -> None:
    room.build(A)
    room.serve()
    before = copy.deepcopy(room.objects)
    room.target(NEWER)
    room.go()
    assert room.objects == before
    assert "ServerOutdated" in {c["type"] for c in room.status["conditions"]}
    room.annotations = {"genai-operator.dev/requestedAt": "now"}
    room.go()
    pod = room.objects["deployments", "chat"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == NEWER
    assert "ServerOutdated" not in {c["type"] for c in room.status["conditions"]}


def test_pods_hold_the_keys_that_only_read_when_the_store_names_some(room: Room) -> None:
    room.secret_ref |= {"readSecretRef": {"name": "reads"}}
    room.build(A)
    room.go()
    pod = room.objects["deployments", "chat"]["spec"]["template"]["spec"]
    secrets = {
        entry["valueFrom"]["secretKeyRef"]["name"]
        for entry in pod["initContainers"][0]["env"]
        if "valueFrom" in entry
    }
    assert secrets == {"reads"}
    assert "StoreWritable" not in room.events


def test_an_object_of_somebody_else_is_never_taken(room: Room) -> None:
    room.objects["services", "chat"] = {"metadata": {"name": "chat", "uid": "theirs"}}
    room.build(A)
    room.go()
    assert room.ready == ("False", "NameTaken")
    assert room.objects["services", "chat"] == {"metadata": {"name": "chat", "uid": "theirs"}}
    # No watch tells that it is removed, as the message asks for: it is looked at again.
    del room.objects["services", "chat"]
    assert room.go() is not None
    assert room.ready == ("Unknown", "Progressing")


@pytest.mark.parametrize(
    "meta",
    [
        {"ownerReferences": [{"kind": "GenAIDeployment", "name": "chat", "uid": "earlier"}]},
        {"deletionTimestamp": "2026-01-01T00:00:00Z"},
    ],
)
def test_what_an_earlier_deployment_of_the_name_leaves_is_waited_for(
    room: Room, meta: dict[str, Any]
) -> None:
    """Deleted and made anew, it comes before the garbage collector: that is nobody's fault."""
    left = {"metadata": {"name": "chat", "uid": "old", **meta}}
    room.objects["services", "chat"] = left
    room.build(A)
    after = room.go()
    assert room.ready == ("Unknown", "NameTaken")
    assert "not removed yet" in room.message
    assert after is not None
    assert after <= 5
    assert room.objects == {("services", "chat"): left}


def test_a_stall_is_looked_at_again_though_nothing_tells_of_it(room: Room) -> None:
    room.objects["services", "chat"] = {"metadata": {"name": "chat", "uid": "theirs"}}
    room.build(A)
    after = room.go()
    assert after is not None
    assert after <= 60


def test_a_store_is_looked_through_once_for_all_who_pin_what_is_not_there(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    now, reads = 0.0, []
    read = store.get_record

    def counted(operation: str, key: Key) -> Any:
        reads.append(key)
        return read(operation, key)

    store.get_record = counted  # type: ignore[method-assign]
    room = Room(tmp_path)
    room.store = store
    for number in range(9):
        room.artifact(f"sha256:{number:064x}")
    revisions = Revisions(timing=Timing(monotonic=lambda: now))
    for number in range(100):
        with pytest.raises(Waiting, match="holds no container"):
            look_up(store, f"sha256:{number + 99:064x}", None, revisions)
    assert len(reads) == 9
    room.artifact(f"sha256:{99:064x}")
    now += 60
    assert look_up(store, f"sha256:{99:064x}", None, revisions).revision == f"sha256:{99:064x}"
    assert look_up(store, f"sha256:{3:064x}", None, revisions).revision == f"sha256:{3:064x}"


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (ApiError(403, "Forbidden", "x cannot patch resource"), ("Unknown", "NamespaceNotEnabled")),
        (ApiError(403, "Forbidden", "exceeded quota: q"), ("Unknown", "QuotaExceeded")),
        (ApiError(422, "Invalid", "bad", fields=("spec.x",)), ("False", "Refused")),
        (ApiError(400, "", "admission webhook says no"), ("Unknown", "NotAdmitted")),
    ],
)
def test_a_refusal_is_said_in_the_apiservers_words(
    room: Room, error: ApiError, verdict: tuple[str, str]
) -> None:
    room.refuses = error
    room.build(A)
    room.go()
    assert room.ready == verdict


def test_a_field_that_nothing_serves_stalls_and_what_serves_goes_on(room: Room) -> None:
    room.build(A)
    room.serve()
    room.spec = {**room.spec, "adapters": [{"name": "a", "source": "s3://a/b"}]}
    room.generation += 1
    room.go()
    assert room.ready == ("False", "NotServedYet")
    assert "spec.adapters[0].source" in room.message
    assert room.status["revision"]["current"] == A
    assert ("Available", "True") in {(c["type"], c["status"]) for c in room.status["conditions"]}


def test_all_pods_gone_is_not_ready_and_comes_back(room: Room) -> None:
    room.build(A)
    room.serve()
    room.observe(ready=0, replicas=2)
    room.pods({"phase": "Running"}, {"phase": "Pending"})
    room.go()
    assert room.ready == ("False", "NoPodReady")
    assert {c["type"] for c in room.status["conditions"]} >= {"Reconciling"}
    room.observe(ready=2, replicas=2)
    room.pods(READY, READY)
    room.go()
    assert room.ready == ("True", "Serving")
