"""What the apiserver forbids is said in words, waited for, and never taken for something else."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from genai_core.kinds.artifact_store import ArtifactStoreSpec
from genai_core.kinds.build import Run
from genai_core.names import Key
from genai_operator.api import ApiError
from genai_operator.apply import Applier
from genai_operator.controller import Controller
from genai_operator.errors import Stalled, Waiting
from genai_operator.jobs import JobRequest, Owner, StoreAccess
from genai_operator.observed import Observed
from genai_operator.settings import Settings
from genai_operator.stores import Stores

RBAC = (
    'jobs.batch is forbidden: User "system:serviceaccount:genai-system:genai-operator" cannot '
    'create resource "jobs" in API group "batch" in the namespace "team-b"'
)
QUOTA = 'jobs.batch "x" is forbidden: exceeded quota: jobs, requested: count/jobs.batch=1'
SECURITY = 'pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true'


class Forbidding:
    """An apiserver that answers everything with one error, and notes what was asked."""

    server = "https://127.0.0.1"

    def __init__(self, message: str, code: int = 403) -> None:
        self.error = ApiError(code, "Forbidden", message)
        self.asked: list[tuple[str, str]] = []

    async def get(self, plural: str, name: str, *, namespace: str = "") -> Any:
        self.asked.append(("get", plural))
        raise self.error

    async def create(self, plural: str, value: Any, *, namespace: str) -> Any:
        self.asked.append(("create", plural))
        raise self.error

    async def delete(self, plural: str, name: str, **_: Any) -> bool:
        self.asked.append(("delete", plural))
        return True


def test_a_secret_that_may_not_be_read_names_the_namespace_to_enable() -> None:
    stores = Stores(Forbidding("no"), Settings())  # type: ignore[arg-type]
    with pytest.raises(Waiting) as raised:
        asyncio.run(stores.credentials("team-b", "s3"))
    assert raised.value.reason == "NamespaceNotEnabled"
    assert "Secret s3 in namespace team-b" in raised.value.message
    assert "enabledNamespaces" in raised.value.message


def test_another_refusal_of_a_secret_is_no_word_about_rights() -> None:
    stores = Stores(Forbidding("etcd is away", 500), Settings())  # type: ignore[arg-type]
    with pytest.raises(ApiError):
        asyncio.run(stores.credentials("team-b", "s3"))


@pytest.mark.parametrize(
    ("message", "kind", "reason"),
    [
        (RBAC, Waiting, "NamespaceNotEnabled"),
        (QUOTA, Waiting, "QuotaExceeded"),
        (SECURITY, Stalled, "JobRefused"),
    ],
)
def test_three_things_that_forbid_a_job_are_told_apart(
    message: str, kind: type[Waiting | Stalled], reason: str
) -> None:
    request = JobRequest(
        namespace="team-b", key=Key("ab" * 32), operation="ingest", task="ingest",
        document=ArtifactStoreSpec.model_validate({"bucket": "abc", "secretRef": {"name": "s"}}),
        image="i@sha256:" + "0" * 64, memory_bytes=1 << 20,
    )  # fmt: skip
    applier = Applier(Forbidding(message), Observed())  # type: ignore[arg-type]
    access = StoreAccess(address="s3://b/p", secret="s3")
    with pytest.raises(kind) as raised:
        asyncio.run(applier.create(request, Owner("b", "u"), run=Run(), access=access))
    assert raised.value.reason == reason


@pytest.mark.parametrize(("code", "given_up"), [(403, False), (404, True)])
def test_a_pod_is_given_up_only_if_its_node_is_known_to_be_gone(code: int, given_up: bool) -> None:
    api = Forbidding("no", code)
    if code == 404:

        async def nothing(plural: str, name: str, *, namespace: str = "") -> None:
            api.asked.append(("get", plural))

        api.get = nothing  # type: ignore[method-assign]
    controller = Controller(api, Settings())  # type: ignore[arg-type]
    pod = SimpleNamespace(
        namespace="n", name="p", uid="u", job="j", node="node1", phase="Running", deleting=True
    )
    meta = {"namespace": "n", "name": "p", "uid": "u", "resourceVersion": "1"}
    controller.observed.pods.put({"metadata": meta}, pod)  # type: ignore[arg-type]
    asyncio.run(controller.upkeep.clear())
    assert ("get", "nodes") in api.asked
    assert (("delete", "pods") in api.asked) is given_up
