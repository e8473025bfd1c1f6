"""Passes over a GenAIDeployment whose next revision has the same base: pods go over as they run."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from deployment_room import NEWER, READY, WRONG, A, Room


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path / "store")


@pytest.fixture
def served(room: Room) -> Room:
    """Two pods serve a revision with two adapters."""
    room.build(room.adapted("base", c="1", d="1"))
    room.serve()
    assert room.ready == ("True", "Serving")
    return room


def adapters(room: Room) -> dict[str, tuple[str, str]]:
    return {a["name"]: (a["state"], a["loaded"]) for a in room.status.get("adapters", ())}


def declared(room: Room) -> Any:
    return json.loads(room.objects["configmaps", "chat-adapters"]["data"]["adapters.json"])


def test_pods_go_over_to_a_revision_of_the_same_base(served: Room) -> None:
    first, before = served.applied, copy.deepcopy(served.objects)
    second = served.adapted("base", c="2", e="1")
    served.build(second)
    served.go()
    changed = {key for key, value in served.objects.items() if value != before[key]}
    assert changed == {("configmaps", "chat-adapters")}, "no pod is started anew"
    container = declared(served)["container"]
    assert container["revision"] == second
    assert container["record"] == f"package/{served.listed(second)['url'][-69:-5]}"
    assert served.ready == ("True", "Serving")
    assert f"2/2 pods serve {second[:19]}" in served.message
    assert served.status["revision"] == {"current": second, "target": second, "lastGood": second}
    assert adapters(served) == {"c": ("Loaded", "2/2"), "e": ("Loaded", "2/2")}
    kept = [entry["revision"] for entry in served.status["containers"]]
    assert kept == [second, first], "a pod that comes later is started with the first"
    # A third, and all of it again after the operator was started anew.
    third = served.adapted("base", c="3")
    served.build(third)
    served.status = json.loads(json.dumps(served.status))
    served.go()
    assert (served.applied, declared(served)["container"]["revision"]) == (first, third)
    kept = [entry["revision"] for entry in served.status["containers"]]
    assert kept == [third, first]
    # And back: the declaration is that of the container which the pods have.
    served.build(first)
    served.go()
    assert "container" not in declared(served)
    assert served.status["revision"]["current"] == first


def test_a_revision_of_another_base_rolls_and_old_pods_keep_what_they_have(served: Room) -> None:
    first = served.applied
    second = served.adapted("base", c="2")
    served.build(second)
    served.go()
    third = served.adapted("other", c="3")
    served.build(third)
    served.go()
    assert (served.applied, first != third) == (third, True)
    served.observe(ready=2, replicas=3)
    asked = len(served.asked)
    served.version += 1
    served.go()
    assert served.status["revision"]["current"] == second, "the old pods still serve it"
    assert served.asked[asked:] == []
    assert {entry["revision"] for entry in served.status["containers"]} == {first, second, third}


@pytest.mark.parametrize("wide", [{"adapters": {}}, {"base": "other", "adapters": {"c": "1"}}])
def test_a_revision_rolls_where_pods_cannot_go_over_to_it(served: Room, wide: Any) -> None:
    without = not wide["adapters"]
    wanted = A if without else served.adapted(wide["base"], **wide["adapters"])
    served.build(wanted)
    served.go()
    assert served.applied == wanted


def test_a_revision_rolls_when_pods_say_that_they_cannot_take_it_in(served: Room) -> None:
    first = served.applied
    second = served.adapted("base", c="1", d="1", wide="1")
    served.broken = {"wide": "it has rank 64, and a pass holds 32"}
    served.build(second)
    served.go()
    assert served.applied == first
    assert served.ready == ("False", "AdapterFailed")
    served.go()
    assert served.applied == second, "new pods have room for it"
    served.broken = {}
    served.observe(ready=2, replicas=2)
    served.pods(READY, READY)
    served.go()
    assert served.ready == ("True", "Serving")
    assert adapters(served)["wide"] == ("Loaded", "2/2")
    assert served.status["revision"]["lastGood"] == second
    assert "container" not in declared(served)


def test_what_rolls_anyway_rolls_to_the_newest_revision(served: Room) -> None:
    second = served.adapted("base", c="2")
    served.build(second)
    served.go()
    assert served.applied != second
    served.spec = {**served.spec, "server": {"threads": 2}}
    served.generation += 1
    served.go()
    assert served.applied == second


def test_another_image_of_the_target_rolls_nothing_that_went_over(served: Room) -> None:
    first = served.applied
    served.build(served.adapted("base", c="2"))
    served.go()
    served.target(NEWER)
    served.go()
    assert served.applied == first
    assert "ServerOutdated" in {c["type"] for c in served.status["conditions"]}


def test_a_revision_rolls_while_what_pods_are_started_with_has_never_served(room: Room) -> None:
    room.build(room.adapted("base", c="1"))
    room.go()
    room.observe(ready=0, replicas=2)
    room.pods(WRONG, WRONG)
    room.go()
    assert room.ready == ("False", "RolloutFailed")
    mended = room.adapted("base", c="2")
    room.build(mended)
    room.go()
    assert room.applied == mended


def test_a_revision_counts_as_served_when_every_pod_has_gone_over(served: Room) -> None:
    first = served.applied
    second = served.adapted("base", c="2")
    served.pods(READY, READY | {"podIP": "10.9.9.9"})
    served.build(second)
    served.go()
    assert served.ready == ("Unknown", "AdaptersLoading")
    assert served.status["revision"]["lastGood"] == first
    served.pods(READY, READY)
    served.go()
    assert served.ready == ("True", "Serving")
    assert served.status["revision"]["lastGood"] == second


def test_all_pods_gone_is_said_and_the_same_pods_come_back(served: Room) -> None:
    first = served.applied
    second = served.adapted("base", c="2")
    served.build(second)
    served.go()
    served.observe(ready=0, replicas=2)
    served.pods()
    served.go()
    assert served.ready == ("False", "NoPodReady")
    assert served.applied == first, "what comes back goes over before it is ready"
    assert adapters(served)["c"] == ("Loading", "0/2")
