"""Rules of an apiserver that the operator relies on, for the fake and for a real one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from genai_core.wire import GROUP, VERSION
from genai_operator.kube.apiserver.api import Api, ApiError
from genai_operator.kube.values import Json

Rule = Callable[[Api, str], Coroutine[Any, Any, None]]
UNSEEN = {"observedGeneration": -1, "cached": 0}
"""The status of an object of ours that nobody has looked at."""


def lease(name: str, holder: str = "a", **meta: Any) -> Json:
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, **meta},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": 9},
    }


def budget(name: str, most: int = 1, **meta: Any) -> Json:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": name, **meta},
        "spec": {"maxUnavailable": most, "selector": {"matchLabels": {"app": name}}},
    }


def job(name: str, **meta: Any) -> Json:
    """One that a queue has not admitted: no pod is made of it."""
    container = {"name": "stage", "image": "none/none"}
    pod = {"spec": {"containers": [container], "restartPolicy": "Never"}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, **meta},
        "spec": {"suspend": True, "template": pod},
    }


def reference(name: str, uid: str) -> Json:
    """To a build, as its owner."""
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "GenAIBuild", "name": name, "uid": uid}


def build(name: str) -> Json:
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "GenAIBuild",
        "metadata": {"name": name},
        "spec": {"model": {"source": "s3://models/x"}, "targets": ["cpu"]},
    }


def status(name: str, **members: Any) -> Json:
    value = build(name)
    del value["spec"]
    return {**value, "status": members}


def meta(value: Json, *names: str) -> list[Any]:
    return [value["metadata"][name] for name in names]


async def refused(code: int, reason: str, asked: Awaitable[Any], *fields: str) -> None:
    with pytest.raises(ApiError) as raised:
        await asked
    assert (raised.value.code, raised.value.reason) == (code, reason), str(raised.value)
    assert set(fields) <= set(raised.value.fields)


async def create_refuses_a_name_that_is_taken(api: Api, n: str) -> None:
    made = await api.create("leases", lease("taken"), namespace=n)
    assert made["metadata"]["uid"]
    assert await api.get("leases", "taken", namespace=n) == made
    await refused(409, "AlreadyExists", api.create("leases", lease("taken"), namespace=n))
    assert await api.get("leases", "none", namespace=n) is None


async def create_refuses_names_and_labels_that_no_object_has(api: Api, n: str) -> None:
    asked = api.create("leases", lease("Upper"), namespace=n)
    await refused(422, "Invalid", asked, "metadata.name")
    asked = api.create("leases", lease("long", labels={"a": "x" * 64}), namespace=n)
    await refused(422, "Invalid", asked, "metadata.labels")
    anonymous = lease("orphan", ownerReferences=[reference("first", "")])
    await refused(422, "Invalid", api.create("leases", anonymous, namespace=n))
    two = [reference(name, name) | {"controller": True} for name in ("first", "second")]
    await refused(
        422, "Invalid", api.create("leases", lease("two", ownerReferences=two), namespace=n)
    )


async def create_leaves_the_status_out_and_fills_in_the_kinds_own(api: Api, n: str) -> None:
    value = {**build("s"), "status": {"phase": "Ready"}}
    made = await api.create("genaibuilds", value, namespace=n)
    assert made["status"] == UNSEEN
    assert made["metadata"]["generation"] == 1


async def replace_refuses_what_was_read_before_another_write(api: Api, n: str) -> None:
    first = await api.create("leases", lease("held"), namespace=n)
    first["spec"]["holderIdentity"] = "b"
    second = await api.replace("leases", first, namespace=n)
    assert second["spec"]["holderIdentity"] == "b"
    assert int(second["metadata"]["resourceVersion"]) > int(first["metadata"]["resourceVersion"])
    await refused(409, "Conflict", api.replace("leases", first, namespace=n))
    await refused(
        *(422, "Invalid", api.replace("leases", lease("held"), namespace=n)),
        "metadata.resourceVersion",
    )
    gone = await api.replace("leases", lease("gone", resourceVersion="1"), namespace=n)
    assert await api.get("leases", "gone", namespace=n) == gone, "an update makes a Lease"


async def apply_removes_what_it_says_no_more_and_leaves_the_rest(api: Api, n: str) -> None:
    one = budget("b", labels={"a": "1", "b": "2"})
    made = await api.apply("poddisruptionbudgets", one, namespace=n)
    other = await api.merge_lists(
        "poddisruptionbudgets", "b", {"metadata": {"annotations": {"theirs": "x"}}}, namespace=n
    )
    assert meta(other, "uid", "generation") == meta(made, "uid", "generation")
    less = budget("b", 2, labels={"b": "2"})
    changed = await api.apply("poddisruptionbudgets", less, namespace=n)
    assert changed["metadata"]["labels"] == {"b": "2"}
    assert changed["metadata"]["annotations"] == {"theirs": "x"}
    assert changed["spec"]["maxUnavailable"] == 2
    assert changed["metadata"]["generation"] == made["metadata"]["generation"] + 1


async def apply_refuses_another_object_of_that_name(api: Api, n: str) -> None:
    await api.apply("poddisruptionbudgets", budget("own"), namespace=n)
    asked = api.apply("poddisruptionbudgets", budget("own", uid="another"), namespace=n)
    await refused(422, "Invalid", asked, "metadata.uid")
    asked = api.apply("poddisruptionbudgets", budget("none", uid="another"), namespace=n)
    await refused(409, "Conflict", asked)


async def apply_makes_no_version_when_nothing_changes(api: Api, n: str) -> None:
    # Of a kind that no controller writes to: a budget's own writes its status.
    made = await api.apply("leases", lease("same"), namespace=n)
    again = await api.apply("leases", lease("same"), namespace=n)
    assert meta(again, "resourceVersion") == meta(made, "resourceVersion")


async def apply_status_replaces_what_was_said_and_changes_no_generation(api: Api, n: str) -> None:
    await refused(
        *(404, "NotFound", api.apply_status("genaibuilds", status("no"), namespace=n)),
    )
    made = await api.create("genaibuilds", build("stands"), namespace=n)
    first = status("stands", phase="Building", progress="1/5")
    written = await api.apply_status("genaibuilds", first, namespace=n)
    assert written["status"] == {**UNSEEN, "phase": "Building", "progress": "1/5"}
    again = await api.apply_status("genaibuilds", first, namespace=n)
    assert meta(again, "resourceVersion") == meta(written, "resourceVersion")
    last = status("stands", phase="Ready")
    written = await api.apply_status("genaibuilds", last, namespace=n)
    assert written["status"] == {**UNSEEN, "phase": "Ready"}
    assert meta(written, "uid", "generation") == meta(made, "uid", "generation")
    assert written["spec"] == made["spec"]


async def owner(api: Api, n: str, name: str) -> Json:
    """A reference to a build that is there: a garbage collector deletes what has no other owner."""
    made = await api.create("genaibuilds", build(name), namespace=n)
    return reference(name, made["metadata"]["uid"])


async def merge_lists_adds_and_drops_owners_of_exactly_that_object(api: Api, n: str) -> None:
    first, second = await owner(api, n, "owner-1"), await owner(api, n, "owner-2")
    made = await api.create("jobs", job("shared", ownerReferences=[first]), namespace=n)
    uid = made["metadata"]["uid"]

    async def merge(uid: str, **members: Any) -> Json:
        patch = {"metadata": {"uid": uid, **members}}
        return await api.merge_lists("jobs", "shared", patch, namespace=n)

    joined = await merge(uid, ownerReferences=[second], annotations={"x/y": "1"})
    assert {owner["uid"] for owner in joined["metadata"]["ownerReferences"]} == {
        first["uid"],
        second["uid"],
    }
    left = await merge(uid, ownerReferences=[{"$patch": "delete", "uid": first["uid"]}])
    assert left["metadata"]["ownerReferences"] == [second]
    assert left["metadata"]["annotations"]["x/y"] == "1"
    bare = await merge(uid, annotations={"x/y": None})
    assert "x/y" not in bare["metadata"].get("annotations", {})
    await refused(422, "Invalid", merge("another"), "metadata.uid")
    patch = {"metadata": {"uid": uid}}
    await refused(404, "NotFound", api.merge_lists("jobs", "none", patch, namespace=n))


async def delete_takes_exactly_that_object(api: Api, n: str) -> None:
    made = await api.create("jobs", job("goes"), namespace=n)
    assert not await api.delete("jobs", "goes", namespace=n, uid="another")
    assert await api.get("jobs", "goes", namespace=n) is not None
    assert await api.delete("jobs", "goes", namespace=n, uid=made["metadata"]["uid"])
    assert await api.get("jobs", "goes", namespace=n) is None
    assert not await api.delete("jobs", "goes", namespace=n, uid=made["metadata"]["uid"])


async def list_selects_by_labels_name_and_number(api: Api, n: str) -> None:
    for name in ("x", "y", "z"):
        await api.create("jobs", job(f"l-{name}", labels={"set": name, "all": "1"}), namespace=n)

    async def names(**how: Any) -> list[str]:
        found, version = await api.list("jobs", namespace=n, fresh=True, **how)
        assert version > 0
        return [value["metadata"]["name"] for value in found]

    assert await names(labels="all=1") == ["l-x", "l-y", "l-z"]
    assert await names(labels="set in (x, z)") == ["l-x", "l-z"]
    assert await names(labels="set=none") == []
    assert await names(name="l-y") == ["l-y"]
    assert await names(labels="all=1", most=2) == ["l-x", "l-y"]
    (bare,), _ = await api.list("jobs", namespace=n, name="l-x", names_only=True, fresh=True)
    assert not bare.get("spec")


RULES: tuple[Rule, ...] = (
    create_refuses_a_name_that_is_taken,
    create_refuses_names_and_labels_that_no_object_has,
    create_leaves_the_status_out_and_fills_in_the_kinds_own,
    replace_refuses_what_was_read_before_another_write,
    apply_removes_what_it_says_no_more_and_leaves_the_rest,
    apply_refuses_another_object_of_that_name,
    apply_makes_no_version_when_nothing_changes,
    apply_status_replaces_what_was_said_and_changes_no_generation,
    merge_lists_adds_and_drops_owners_of_exactly_that_object,
    delete_takes_exactly_that_object,
    list_selects_by_labels_name_and_number,
)
