"""Whole builds under a control plane that lags, loses and forgets, by an operator that dies.

After each: Ready, of the newest generation, no task in two pods at once, every Job ended.
"""

from __future__ import annotations

import asyncio
import copy
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pytest
from simulated import Replica, Value, Weather, World, build, furnished, opener

from genai_core.sources.resolved import RESOLVE
from genai_core.store.protocol import Hit, RecordRef
from genai_operator.builds import leases
from genai_operator.builds import reconciler as build_module
from genai_operator.builds.planning import survey
from genai_operator.jobs import applier, holds, renewal, retries
from genai_operator.kube.apiserver.api import ApiError
from genai_operator.kube.watch import observed, relist
from genai_operator.manager import controller
from genai_operator.stores import lookups
from genai_operator.stores.open_stores import Stores

CALM, BAD = Weather(), Weather(lost=0.04, crashes=0.15, missed=0.03, delay=0.01)
T = TypeVar("T")
Story = Callable[["Room"], Awaitable[None]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for in seconds is waited for in tenths."""
    monkeypatch.setattr(relist, "_SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(controller, "_UPKEEP_SECONDS", 0.1)
    monkeypatch.setattr(survey, "_CHAIN_SECONDS", 0.2)
    monkeypatch.setattr(retries, "_LEAVING_SECONDS", 0.1)
    monkeypatch.setattr(observed, "_UNSEEN_SECONDS", 1.0)
    monkeypatch.setattr(lookups, "_MISSED_SECONDS", 0.2)
    monkeypatch.setattr(retries, "_PAUSES", (0.0,) * 4)
    monkeypatch.setattr(retries, "_RENEWED_SECONDS", 0.1)
    monkeypatch.setattr(renewal, "_TURN_SECONDS", 0.05)


class Room:
    """The world, whoever operates it, and a user."""

    def __init__(self, folder: Path, seed: int, *, weather: Weather, chain_tasks: int) -> None:
        self.rng = Random(seed)
        self.world = World(folder, self.rng, copy.copy(weather))
        self.chain_tasks = chain_tasks
        self.operators: list[Replica] = []
        furnished(self.world)

    def operate(self) -> Replica:
        self.operators.append(Replica(self.world, chain_tasks=self.chain_tasks))
        return self.operators[-1]

    def restart(self) -> None:
        self.operators.pop().kill()
        self.operate()

    def apply(self, name: str, **spec: Any) -> None:
        there = self.world.find("genaibuilds", name)
        wanted = build(name, **spec)
        if there is not None:
            wanted = {**there, "metadata": dict(there["metadata"]), "spec": wanted["spec"]}
        self.world.put("genaibuilds", wanted, spec_changed=there is not None)

    def status(self, name: str) -> Value:
        value = self.world.find("genaibuilds", name)
        assert value is not None
        status: Value = value["status"]
        return status

    def reason(self, name: str) -> str:
        """Of the build's first condition, as far as it has one."""
        conditions = self.status(name).get("conditions") or [{"reason": ""}]
        return str(conditions[0]["reason"])

    def is_ready(self, value: Value) -> bool:
        status = value["status"]
        ready = [c for c in status.get("conditions", ()) if c["type"] == "Ready"]
        seen = status.get("observedGeneration") == value["metadata"]["generation"]
        return seen and bool(ready) and ready[0]["status"] == "True"

    async def ready(self, seconds: float = 60.0) -> None:
        """Wait until all builds are Ready and nothing is left to do."""
        for _ in range(int(seconds / 0.02)):
            await asyncio.sleep(0.02)
            assert not self.world.faults, self.world.faults
            jobs = [job.get("status", {}).get("conditions") for job in self.world.of("jobs")]
            if all(map(self.is_ready, self.world.of("genaibuilds"))) and all(jobs):
                return
        shown = {b["metadata"]["name"]: b["status"] for b in self.world.of("genaibuilds")}
        raise AssertionError((shown, [j["metadata"]["name"] for j in self.world.of("jobs")]))


def played(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    story: Story,
    *,
    seed: int = 0,
    weather: Weather = CALM,
    chain_tasks: int = 8,
) -> Room:
    async def scenario() -> Room:
        room = Room(folder, seed, weather=weather, chain_tasks=chain_tasks)
        monkeypatch.setattr(Stores, "open", opener(room.world))
        room.operate()
        try:
            await story(room)
            await room.ready()
        finally:
            for replica in room.operators:
                replica.kill()
        return room

    return asyncio.run(scenario())


async def two_builds(room: Room) -> None:
    room.apply("one")
    room.apply("two", golden={"prompts": ["x"]})
    await asyncio.sleep(0.05)
    room.apply("three")


@pytest.mark.parametrize("chain_tasks", [1, 8])
def test_builds_share_what_they_have_in_common(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain_tasks: int
) -> None:
    room = played(tmp_path, monkeypatch, two_builds, chain_tasks=chain_tasks)
    assert max(Counter(room.world.done).values()) == 1
    status = room.status("one")
    assert status["progress"] == "5/5"
    assert status.get("cached", 0) == 0
    revisions = [room.status(n)["artifacts"][0]["revision"] for n in ("one", "two", "three")]
    assert revisions[0] == revisions[2] != revisions[1]
    assert ("one", "TaskRetried") not in room.world.events


def test_a_build_is_built_again_when_the_store_was_emptied_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator remembers what it found; nobody is told of a container that is gone."""
    monkeypatch.setattr(lookups, "_FRESH_SECONDS", 0.0)

    before: list[RecordRef] = []

    async def story(room: Room) -> None:
        room.apply("one")
        await room.ready()
        store = room.world.store
        before.extend(ref for ref in store.list_records() if ref.operation != RESOLVE)
        for ref in list(store.list_records()):
            store.delete_record(ref)
        for stat in list(store.list_blobs()):
            store.delete_blob(stat.sha256)
        room.apply("two")

    room = played(tmp_path, monkeypatch, story)
    after = {ref for ref in room.world.store.list_records() if ref.operation != RESOLVE}
    assert after == set(before), "Ready of what is there"
    revisions = {room.status(name)["artifacts"][0]["revision"] for name in ("one", "two")}
    assert len(revisions) == 1
    assert max(Counter(room.world.done).values()) == 2, "no task more than once more"


def test_a_build_at_rest_is_built_again_when_its_store_was_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody asks: its lease is gone when it is renewed, so it is looked through."""
    monkeypatch.setattr(lookups, "_FOUND_SECONDS", 0.1)  # a day is longer
    monkeypatch.setattr(leases, "_FIRST_SECONDS", (0.2, 0.3))
    monkeypatch.setattr(leases, "_LOOK_SECONDS", 0.3)

    async def story(room: Room) -> None:
        room.apply("one")
        await room.ready()
        store = room.world.store
        packages = [ref for ref in store.list_records() if ref.operation == "package"]
        for ref in list(store.list_records()):
            store.delete_record(ref)
        for stat in list(store.list_blobs()):
            store.delete_blob(stat.sha256)
        for lease in store.list_leases():
            store.delete_lease(lease.name)
        for _ in range(600):
            await asyncio.sleep(0.1)
            if all(isinstance(store.lookup(ref.operation, ref.key), Hit) for ref in packages):
                return await room.ready()
        raise AssertionError(room.status("one"))

    room = played(tmp_path, monkeypatch, story)
    assert max(Counter(room.world.done).values()) == 2, "no task more than once more"
    assert room.world.store.list_leases(), "and it is leased again"


@pytest.mark.parametrize("seed", range(4))
def test_they_come_through_bad_weather(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chain_tasks = 1 if seed % 2 else 8
    played(
        tmp_path, monkeypatch, two_builds, seed=seed, weather=BAD, chain_tasks=chain_tasks
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_they_come_through_an_operator_that_dies_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    async def story(room: Room) -> None:
        await two_builds(room)
        for _ in range(8):
            await asyncio.sleep(room.rng.random() * 0.2)
            room.restart()

    weather = Weather(lost=0.02, crashes=0.05, delay=0.01)
    room = played(tmp_path, monkeypatch, story, seed=seed, weather=weather)
    assert max(Counter(room.world.done).values()) == 1


@pytest.mark.parametrize("seed", range(4))
def test_a_user_edits_suspends_deletes_and_applies_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    async def story(room: Room) -> None:
        await two_builds(room)
        for number in range(12):
            await asyncio.sleep(room.rng.random() * 0.1)
            match room.rng.randrange(5):
                case 0:
                    room.apply("one", golden={"prompts": [str(number)]})
                case 1:
                    room.apply("two", run={"suspend": True})
                case 2:
                    room.apply("two", run={"retries": 10})
                case 3:
                    room.world.remove("genaibuilds", "three")
                    await asyncio.sleep(room.rng.random() * 0.02)
                    room.apply("three")
                case 4:
                    for job in room.world.of("jobs")[-1:]:
                        room.world.remove("jobs", job["metadata"]["name"])
        room.apply("two", run={"retries": 10})

    # Where a deletion by hand and a lost answer meet, nobody can know of the pod that is left.
    played(tmp_path, monkeypatch, story, seed=seed, weather=Weather(delay=0.01))


def test_a_replica_that_takes_over_goes_on_where_the_other_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(room: Room) -> None:
        second = room.operate()
        second.leads = False
        await two_builds(room)
        for _ in range(6):
            await asyncio.sleep(0.05)
            for replica in room.operators:
                replica.leads = not replica.leads

    room = played(tmp_path, monkeypatch, story, weather=Weather(delay=0.01))
    assert max(Counter(room.world.done).values()) == 1


NOWHERE = {"nodeSelector": {"disk": "none"}}


async def waited(for_what: Callable[[], T]) -> T:
    """What it comes to, as soon as that is something."""
    async with asyncio.timeout(60.0):
        while not (found := for_what()):  # noqa: ASYNC110 - the world has no event
            await asyncio.sleep(0.02)
    return found


def node_of(room: Room, name: str) -> set[str]:
    """Selectors of the Jobs of an operation."""
    found = [job["spec"]["template"]["spec"] for job in room.world.of("jobs")
             if job["metadata"]["labels"]["genai-operator.dev/operation"] == name]  # fmt: skip
    return {str(spec.get("nodeSelector", {}).get("disk")) for spec in found}


async def placed(room: Room, name: str, disk: str) -> None:
    """Wait for the Job of an operation: every one there is has this selector."""
    async with asyncio.timeout(60.0):
        while not node_of(room, name):  # noqa: ASYNC110 - the world has no event
            await asyncio.sleep(0.02)
    assert node_of(room, name) == {disk}


def test_an_edit_reaches_a_job_whose_pod_never_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(room: Room) -> None:
        room.apply("one", run=NOWHERE)
        await placed(room, "resolve", "none")
        room.apply("one", run={"nodeSelector": {}})

    room = played(tmp_path, monkeypatch, story)
    assert node_of(room, "resolve") == {"None"}
    assert max(Counter(room.world.done).values()) == 1
    assert ("one", "TaskRetried") not in room.world.events


def test_a_neighbour_does_not_wait_for_a_job_that_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(room: Room) -> None:
        room.world.anywhere = frozenset({"resolve"})
        room.apply("bad", run=NOWHERE)
        await placed(room, "ingest", "none")
        room.apply("good")

    room = played(tmp_path, monkeypatch, story)
    assert max(Counter(room.world.done).values()) == 1


def test_of_two_that_cannot_start_the_one_that_can_at_last_ends_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(room: Room) -> None:
        room.world.anywhere = frozenset({"resolve"})
        room.apply("one", run=NOWHERE)
        room.apply("two", run={"nodeSelector": {"disk": "fast"}})
        await asyncio.sleep(1.5)
        # Between two turns there is neither Job nor pod for a moment.
        made = await waited(lambda: room.world.of("jobs") + room.world.of("pods"))
        uids = [int(value["metadata"]["uid"].removeprefix("uid-")) for value in made]
        assert max(uids) < 60, "turns are seldom"
        room.world.labels = {"disk": "fast"}

    played(tmp_path, monkeypatch, story)


@pytest.mark.parametrize("seed", range(4))
def test_they_come_through_nodes_that_refuse_and_users_who_mend_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    async def story(room: Room) -> None:
        await two_builds(room)
        for _ in range(14):
            await asyncio.sleep(room.rng.random() * 0.15)
            match room.rng.randrange(5):
                case 0:
                    room.apply("one", run=NOWHERE)
                case 1:
                    room.apply("two", run=NOWHERE)
                case 2:
                    room.apply("one", run={"nodeSelector": {"disk": "fast"}})
                case 3:
                    room.world.labels = {"disk": room.rng.choice(["fast", "slow"])}
                case 4:
                    room.restart()
        room.apply("one")
        room.apply("two", golden={"prompts": ["x"]}, run={"retries": 10})

    weather = Weather(lost=0.02, missed=0.02, delay=0.01)
    played(tmp_path, monkeypatch, story, seed=seed, weather=weather, chain_tasks=seed % 2 * 7 + 1)


def test_a_job_that_gets_no_pod_is_said_though_nothing_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "STARTED_SECONDS", 0.3)
    monkeypatch.setattr(holds, "_RIPE", timedelta(seconds=5.2))  # a Job here is 5 s old

    async def story(room: Room) -> None:
        room.world.no_pods = True
        room.apply("one")
        await waited(lambda: room.reason("one") == "NotAdmitted")
        assert room.status("one")["conditions"][0]["status"] == "Unknown"
        room.world.no_pods = False

    room = played(tmp_path, monkeypatch, story)
    assert ("one", "NotAdmitted") in room.world.events


DENIED = ApiError(422, "Invalid", "jobs.batch is forbidden: policy p denied request: no team")
BROKEN = ApiError(500, "InternalError", 'failed calling webhook "wh": no endpoints')


@pytest.mark.parametrize("error", [DENIED, BROKEN])
def test_a_cluster_that_admits_no_jobs_is_waited_for_while_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: ApiError
) -> None:
    monkeypatch.setattr(applier, "_REFUSED_SECONDS", (0.1, 0.2))

    async def story(room: Room) -> None:
        refuse = partial(room.world.api.refuse, error, verb="create", plural="jobs")
        refuse()
        room.apply("one")
        await waited(lambda: room.reason("one") == "NotAdmitted")
        ready = room.status("one")["conditions"][0]
        assert ready["status"] == "Unknown"
        assert error.message in ready["message"]
        for number in range(6):  # now and then, in the middle of it
            if number % 2 == 0:
                room.world.api.allow()
            else:
                refuse()
            await asyncio.sleep(room.rng.random() * 0.1)
        room.world.api.allow()

    room = played(tmp_path, monkeypatch, story, chain_tasks=1)
    assert max(Counter(room.world.done).values()) == 1, "no Job that ran was given up"
    assert ("one", "JobRefused") not in room.world.events


def test_a_deployment_waits_for_an_image_that_serves_its_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(room: Room) -> Value:
        (value,) = room.world.of("genaideployments")
        conditions = value["status"].get("conditions", ())
        return {c["type"]: (c["status"], c["reason"]) for c in conditions}

    async def story(room: Room) -> None:
        spec = {"from": {"build": "one", "target": "cpu"}}
        room.world.put(
            "genaideployments", {"metadata": {"name": "chat"}, "spec": spec, "status": {}}
        )
        for _ in range(500):
            await asyncio.sleep(0.02)
            if told(room):
                break
        reason = "ServingImageNotConfigured"
        assert told(room) == {"Ready": ("Unknown", reason), "Reconciling": ("True", reason)}
        room.apply("one")

    played(tmp_path, monkeypatch, story)
