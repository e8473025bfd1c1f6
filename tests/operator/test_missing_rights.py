"""What the apiserver forbids is said in words, waited for, and never taken for something else."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from fake_apiserver import FakeApiserver

from genai_core.kinds.artifact_store import ArtifactStoreSpec
from genai_core.kinds.build import Run
from genai_core.names import Key
from genai_operator.backoff import Backoff
from genai_operator.errors import Stalled, Waiting
from genai_operator.jobs.access import StoreAccess
from genai_operator.jobs.applier import Applier
from genai_operator.jobs.job_manifest import JobRequest, Owner
from genai_operator.kube.apiserver.api import ApiError
from genai_operator.kube.apiserver.client import _refusal
from genai_operator.kube.watch.observed import Observed
from genai_operator.manager.controller import Controller
from genai_operator.settings import Settings
from genai_operator.steps import Wait
from genai_operator.stores.open_stores import Stores

RBAC = (
    'jobs.batch is forbidden: User "system:serviceaccount:genai-system:genai-operator" cannot '
    'create resource "jobs" in API group "batch" in the namespace "team-b"'
)
QUOTA = 'jobs.batch "x" is forbidden: exceeded quota: jobs, requested: count/jobs.batch=1'
DENIED = (
    'jobs.batch "x" is forbidden: ValidatingAdmissionPolicy "p" with binding "p" denied request: '
    "every Job needs the label team"
)
HOOK = 'admission webhook "wh.example" denied the request: spec.template: no label team'
BROKEN = 'Internal error occurred: failed calling webhook "wh.example": service "nope" not found'
FIELD = 'Job.batch "x" is invalid: spec.template.spec.tolerations[0].operator: Unsupported value'
WRONG = ({"field": "spec.template.spec.tolerations[0].operator", "message": "Unsupported value"},)


def answered(code: int, reason: str, message: str, causes: Any = ()) -> ApiError:
    """As the apiserver writes it."""
    status = {"reason": reason, "message": message, "details": {"causes": list(causes)}}
    return _refusal(code, json.dumps(status))


def forbidding(error: str | ApiError, code: int = 403) -> FakeApiserver:
    """An apiserver that answers every read and create with one error."""
    api = FakeApiserver()
    refusal = error if isinstance(error, ApiError) else ApiError(code, "Forbidden", error)
    for verb in ("get", "create"):
        api.refuse(refusal, verb=verb)
    return api


def test_a_secret_that_may_not_be_read_names_the_namespace_to_enable() -> None:
    stores = Stores(forbidding("no"), Settings())
    with pytest.raises(Waiting) as raised:
        asyncio.run(stores.credentials("team-b", "s3"))
    assert raised.value.reason == "NamespaceNotEnabled"
    assert "Secret s3 in namespace team-b" in raised.value.message
    assert "enabledNamespaces" in raised.value.message


def test_another_refusal_of_a_secret_is_no_word_about_rights() -> None:
    stores = Stores(forbidding("etcd is away", 500), Settings())
    with pytest.raises(ApiError):
        asyncio.run(stores.credentials("team-b", "s3"))


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (answered(403, "Forbidden", RBAC), Waiting, "NamespaceNotEnabled"),
        (answered(403, "Forbidden", QUOTA), Waiting, "QuotaExceeded"),
        (answered(422, "Invalid", DENIED, [{"message": DENIED}]), Waiting, "NotAdmitted"),
        (answered(403, "Forbidden", DENIED), Waiting, "NotAdmitted"),
        (answered(422, "Invalid", HOOK, WRONG), Waiting, "NotAdmitted"),
        (answered(400, "BadRequest", HOOK), Waiting, "NotAdmitted"),
        (answered(500, "InternalError", BROKEN), Waiting, "NotAdmitted"),
        (answered(504, "Timeout", BROKEN), Waiting, "NotAdmitted"),
        (answered(422, "Invalid", FIELD, WRONG), Stalled, "JobRefused"),
    ],
)
def test_a_refused_job_is_the_users_fault_only_when_its_own_fields_are_wrong(
    error: ApiError, kind: type[Waiting | Stalled], reason: str
) -> None:
    with pytest.raises(kind) as raised:
        create(error)
    refused = raised.value
    assert isinstance(refused, kind)
    assert refused.reason == reason
    if reason == "NotAdmitted":
        assert error.message in refused.message, "the apiserver's own sentence"
        assert "ingest" in refused.message


def create(error: ApiError) -> None:
    request = JobRequest(
        namespace="team-b", key=Key("ab" * 32), operation="ingest", task="ingest",
        document=ArtifactStoreSpec.model_validate({"bucket": "abc", "secretRef": {"name": "s"}}),
        image="i@sha256:" + "0" * 64, memory_bytes=1 << 20,
    )  # fmt: skip
    applier = Applier(forbidding(error), Observed())
    access = StoreAccess(address="s3://b/p", secret="s3")
    asyncio.run(applier.create(request, Owner("b", "u"), run=Run(), access=access))


def test_an_apiserver_that_says_nothing_of_its_own_is_no_refusal() -> None:
    with pytest.raises(ApiError, match="bad gateway"):
        create(_refusal(502, "<html>bad gateway</html>"))
    assert _refusal(422, '{"details": {"causes": [1]}}').code == 422


def test_backoff_grows_while_the_reason_stays() -> None:
    backoff, denied = Backoff(), Wait("NotAdmitted", "", after=15.0, most=60.0)
    assert [backoff.after("u", denied) for _ in range(4)] == [15, 30, 60, 60]
    assert backoff.after("u", Wait("StoreNotReady", "", after=5.0)) == 5
    assert [backoff.after("u", Wait("StoreNotReady", "", after=5.0)) for _ in "ab"] == [5, 5]
    assert backoff.after("u", denied) == 15
    assert backoff.after("v", denied) == 15
    backoff.after("v", denied)
    backoff.forget("u")
    backoff.keep({"v"})
    assert [backoff.after(uid, denied) for uid in "uv"] == [15, 60]


@pytest.mark.parametrize(("code", "given_up"), [(403, False), (404, True)])
def test_a_pod_is_given_up_only_if_its_node_is_known_to_be_gone(code: int, given_up: bool) -> None:
    api = FakeApiserver() if code == 404 else forbidding("no", code)
    controller = Controller(api, Settings())
    pod = SimpleNamespace(
        namespace="n", name="p", uid="u", job="j", node="node1", phase="Running", deleting=True
    )
    meta = {"namespace": "n", "name": "p", "uid": "u", "resourceVersion": "1"}
    controller.observed.pods.put({"metadata": meta}, pod)  # type: ignore[arg-type]
    asyncio.run(controller.upkeep.clear())
    assert api.asked("get", "nodes")
    assert bool(api.asked("delete", "pods")) is given_up
