"""The table of kinds: whom a change of the watch cache wakes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from fake_apiserver import FakeApiserver

from genai_operator.kube.apiserver.resources import RESOURCES, watched
from genai_operator.kube.values import asked_of
from genai_operator.kube.watch.cache import Cache
from genai_operator.kube.watch.kinds import Change, Kind, KindIntake, Ref
from genai_operator.manager.controller import Controller
from genai_operator.settings import Settings

PASSES: list[str] = []


class Reconciler:
    """Of a kind that exists in this test alone."""

    async def reconcile(self, namespace: str, name: str) -> float | None:
        PASSES.append(f"{namespace}/{name}")
        return None

    def tidy(self) -> None:
        pass


def thing(name: str, generation: int = 1, uid: str = "", **status: Any) -> dict[str, Any]:
    meta = {"namespace": "n", "name": name, "uid": uid or name, "generation": generation,
            "resourceVersion": "1"}  # fmt: skip
    return {"metadata": meta, "spec": {}, "status": status}


def kind(**woken_by: Any) -> Kind[Any]:
    def view(value: Mapping[str, Any]) -> Mapping[str, Any]:
        return value

    return Kind("things", Cache(), view=view, asked=asked_of, reconciler=Reconciler(),
                woken_by=woken_by)  # fmt: skip


def woken(row: Kind[Any], changes: list[Change[Any]]) -> list[Ref]:
    return [ref for change in changes for ref in row.woken(change)]


def test_controller_takes_in_every_resource_that_is_watched() -> None:
    controller = Controller(FakeApiserver(), Settings())
    assert set(controller._intakes) == {row.plural for row in watched()}
    for row in controller.kinds.values():
        assert set(row.woken_by) <= set(controller._intakes), "it would never hear of that"
        assert RESOURCES[row.plural].ours


def test_woken_names_an_object_when_its_user_asks_for_something_else_alone() -> None:
    row = kind()
    intake = KindIntake(row)
    assert woken(row, intake.take(thing("a"), deleted=False)) == [Ref("things", "n", "a")]
    assert woken(row, intake.take(thing("a", phase="Ready"), deleted=False)) == []
    assert woken(row, intake.take(thing("a", 2), deleted=False)) == [Ref("things", "n", "a")]
    assert woken(row, intake.take(thing("a", 2), deleted=True)) == []
    assert row.cache.get("n", "a") is None


def test_woken_names_those_whom_a_change_of_another_resource_concerns() -> None:
    row = kind(pods=lambda change: [("n", change.value)])
    assert woken(row, [Change("pods", ("n", "p"), None, "b")]) == [Ref("things", "n", "b")]
    assert woken(row, [Change("pods", ("n", "p"), "b", None)]) == [Ref("things", "n", "b")]
    assert woken(row, [Change("jobs", ("n", "p"), None, "b")]) == []


def test_take_keeps_an_object_that_was_made_anew_when_its_predecessor_is_told_to_be_gone() -> None:
    row = kind()
    intake = KindIntake(row)
    intake.take(thing("a", uid="new"), deleted=False)
    changes = intake.take(thing("a", uid="old"), deleted=True)
    assert [change.now for change in changes] == [thing("a", uid="new")]
    assert woken(row, changes) == []


@pytest.mark.parametrize(("ready", "wakes"), [("False", True), ("True", False)])
def test_store_wakes_its_builds_when_its_readiness_changed(ready: str, wakes: bool) -> None:
    controller = Controller(FakeApiserver(), Settings())
    builds = {"n": "default", "other": "default", "n2": "else"}
    for namespace, store in builds.items():
        build = thing("b", uid=f"b-{namespace}")
        build["metadata"]["namespace"] = namespace[:1] if namespace == "n2" else namespace
        build["metadata"]["name"] = namespace
        build["spec"] = {"targets": ["cpu"], "store": {"name": store}}
        controller.take("genaibuilds", None, build)

    def of_store(status: str) -> dict[str, Any]:
        return thing("default", conditions=[{"type": "Ready", "status": status}])

    controller.take("artifactstores", None, of_store("True"))
    controller.queue.forget(Ref("genaibuilds", "n", "n"))
    before = len(controller.queue)
    controller.take("artifactstores", "MODIFIED", of_store(ready))
    assert len(controller.queue) - before == wakes
