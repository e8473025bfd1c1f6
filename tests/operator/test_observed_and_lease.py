"""The mirror mends what watches lost; the Lease has one holder, whatever clocks and networks do."""

from __future__ import annotations

import asyncio
import copy
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from fake_apiserver import FakeApiserver
from hypothesis import given
from hypothesis import strategies as st

from genai_operator.errors import Stalled
from genai_operator.jobs.retries import judge
from genai_operator.jobs.verdicts import Running
from genai_operator.kube.apiserver.api import NotLeading
from genai_operator.kube.apiserver.client import ApiClient
from genai_operator.kube.apiserver.connection import Connection
from genai_operator.kube.build import build_view
from genai_operator.kube.job import JobView, job_view
from genai_operator.kube.watch import observed as observed_module
from genai_operator.kube.watch.cache import Cache
from genai_operator.kube.watch.kinds import Ref
from genai_operator.manager import controller as controller_module
from genai_operator.manager.controller import Controller
from genai_operator.manager.health import sick
from genai_operator.manager.leader import LeaseHolder
from genai_operator.settings import Settings, read_settings
from genai_operator.stores.endpoints import check_endpoint

SECONDS = 30
"""Long enough for what happens at once, on any machine; half of what a lease holds here."""


async def until(true: Callable[[], bool]) -> None:
    """Let others run until something is so."""
    async with asyncio.timeout(SECONDS):
        while not true():  # noqa: ASYNC110 - the product says no such thing
            await asyncio.sleep(0.005)


def thing(name: str, version: int, uid: str = "") -> dict[str, Any]:
    meta = {"name": name, "namespace": "n", "uid": uid or name, "resourceVersion": str(version)}
    return {"metadata": meta, "spec": {}}


@given(st.permutations([1, 2, 3, 4, 5]))
def test_the_newest_version_stands_in_whatever_order_events_come(order: list[int]) -> None:
    kept: Cache[int] = Cache()
    for version in order:
        kept.put(thing("a", version), version)
    assert kept.get("n", "a") == 5


def test_another_object_of_that_name_replaces_it_and_an_old_deletion_does_not_touch_it() -> None:
    kept: Cache[str] = Cache()
    kept.put(thing("a", 9, "old"), "old")
    kept.put(thing("a", 11, "new"), "new")
    assert kept.drop("n", "a", "old") is None
    assert kept.get("n", "a") == "new"
    assert kept.drop("n", "a", "new") == "new"


def test_a_listing_shows_what_was_missed_and_what_is_gone() -> None:
    kept: Cache[str] = Cache()
    for name in ("same", "older", "gone"):
        kept.put(thing(name, 5), name)
    newer, gone = kept.missed([thing("same", 5), thing("older", 7), thing("unseen", 6)])
    assert sorted(newer) == [("n", "older"), ("n", "unseen")]
    assert gone == [("n", "gone", "gone")]


def test_a_listing_from_before_does_not_revive_what_was_deleted() -> None:
    kept: Cache[str] = Cache()
    kept.put(thing("a", 5), "a")
    listed = [thing("a", 5)]
    kept.drop("n", "a", "a")
    assert kept.missed(listed) == ([], [])
    assert not kept.put(listed[0], "a")
    assert len(kept) == 0
    assert kept.put(thing("a", 9, "another"), "new")


def apiserver() -> FakeApiserver:
    """Its newest write is older than what tests call late."""
    api = FakeApiserver()
    api.version = 50
    return api


def test_a_watch_that_keeps_missing_things_is_called_deaf_and_mended_all_the_same() -> None:
    async def scenario() -> None:
        api = apiserver()
        controller = Controller(api, Settings())
        for round_ in range(1, 4):
            api.put("genaibuilds", thing("b", 10 * round_))
            await controller.relister.compare(settle=0.001)
            assert len(controller.observed.builds) == 1
            assert (controller.relister.deaf == ["genaibuilds"]) == (round_ == 3)
        assert await controller.queue.get() == Ref("genaibuilds", "n", "b")
        await controller.relister.compare(settle=0.001)
        assert controller.relister.deaf == ["genaibuilds"], "nothing happened: that proves nothing"
        api.objects.clear()
        controller.take("genaibuilds", "ADDED", thing("late", 99))
        assert controller.relister.deaf == [], "it delivers again"
        await controller.relister.compare()
        assert controller.observed.builds.places() == [("n", "late")], "made after the listing"

    asyncio.run(scenario())


def test_a_watch_that_misses_only_deletions_is_deaf_too() -> None:
    async def scenario() -> None:
        api = apiserver()
        controller = Controller(api, Settings())
        for round_ in range(1, 4):
            made = thing(f"b{round_}", round_)
            controller.observed.builds.put(made, build_view(made))
            await controller.relister.compare(settle=0.001)
            assert len(controller.observed.builds) == 0
            assert (controller.relister.deaf == ["genaibuilds"]) == (round_ == 3)

    asyncio.run(scenario())


def test_a_deleted_job_is_waited_for_until_its_pod_has_ended() -> None:
    """kubectl delete job: the Job is gone at once, its pod has seconds left."""
    note, made = {"genai-operator.dev/key": "k" * 64}, "2026-01-01T00:00:00Z"
    owner = {"uid": "b-uid"}

    def object_(name: str, version: int, **more: Any) -> dict[str, Any]:
        found = thing(name, version)
        found["metadata"] |= {"creationTimestamp": made} | more
        return found

    def pod(version: int, **status: Any) -> dict[str, Any]:
        labels = {"batch.kubernetes.io/job-name": "j"}
        return object_("p", version, labels=labels) | {"status": status}

    async def scenario() -> None:
        controller = Controller(apiserver(), Settings())
        build = thing("b", 1)
        build["metadata"]["uid"] = "b-uid"
        controller.take("genaibuilds", "ADDED", build)
        job = object_("j", 2, annotations=note, ownerReferences=[owner])
        controller.take("jobs", "ADDED", job)
        controller.take("pods", "ADDED", pod(3, phase="Running"))
        controller.take("jobs", "DELETED", job)
        controller.queue.done(await controller.queue.get())
        (left,) = controller.observed.jobs_of("n", "")
        verdict = judge([left], {}, retries=2, now=datetime.now(UTC))
        assert isinstance(verdict, Running)
        assert len(controller.queue) == 0
        controller.take("pods", "MODIFIED", pod(4, phase="Failed"))
        assert controller.observed.jobs_of("n", "") == []
        assert len(controller.queue) == 1, "the build is looked at again"

    asyncio.run(scenario())


def test_a_job_that_is_deleted_as_it_begins_may_have_a_pod_that_was_not_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(observed_module, "_UNSEEN_SECONDS", 0.05)
    observed = observed_module.Observed()
    note = {"genai-operator.dev/key": "k" * 64}
    made = {"creationTimestamp": "2026-01-01T00:00:00Z", "annotations": note}

    def job(**spec: Any) -> JobView:
        value = thing("j", 1) | {"spec": spec}
        value["metadata"] |= made
        view = job_view(value)
        assert view is not None
        return view

    observed.leave(job(suspend=True))
    assert observed.jobs_of("n", "") == [], "it never had a pod"
    observed.leave(job())
    (left,) = observed.jobs_of("n", "")
    assert left.deleting
    time.sleep(0.06)
    assert observed.jobs_of("n", "") == [left], "that time went by says nothing of its pod"
    assert [gone.uid for gone in observed.doubtful()] == [left.uid]
    assert observed.settle(left.uid)
    assert observed.jobs_of("n", "") == observed.doubtful() == []


def deleted_unseen(controller: Controller) -> None:
    """A Job that was deleted, and no watch has told of its pod."""
    controller.take("genaibuilds", "ADDED", thing("b", 1, "b-uid"))
    job = thing("j", 2, "j-uid")
    job["metadata"] |= {
        "annotations": {"genai-operator.dev/key": "k" * 64},
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "ownerReferences": [{"uid": "b-uid"}],
    }
    controller.take("jobs", "ADDED", job)
    controller.take("jobs", "DELETED", job)


def running_pod(job_uid: str) -> dict[str, Any]:
    pod = thing("p-" + job_uid, 3, "p-uid-" + job_uid)
    pod["metadata"] |= {
        "labels": {"batch.kubernetes.io/job-name": "j"},
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "ownerReferences": [{"uid": job_uid}],
    }
    return pod | {"status": {"phase": "Running"}}


def test_leaving_asks_for_the_pods_when_the_watch_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observed_module, "_UNSEEN_SECONDS", -1.0)
    pods = [running_pod("j-uid")]
    api = apiserver()
    api.put("pods", pods[0])

    async def scenario() -> None:
        controller = Controller(api, Settings())
        deleted_unseen(controller)
        controller.queue.done(await controller.queue.get())
        await controller._terminating.look()
        (asked,) = api.asked("list", "pods")
        assert asked.how["fresh"]
        assert asked.how["labels"] == "batch.kubernetes.io/job-name in (j)"
        assert controller.observed.is_leaving("n", "j"), "its pod runs"
        await controller._terminating.look()
        assert len(api.asked("list", "pods")) == 1, "the pod is known: its watch tells how it ends"
        assert len(controller.queue) == 0
        controller.take("pods", "DELETED", pods[0])
        assert not controller.observed.is_leaving("n", "j")
        assert len(controller.queue) == 1, "the build is looked at again"

    asyncio.run(scenario())


def test_leaving_forgets_a_job_when_the_apiserver_has_no_pod_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(observed_module, "_UNSEEN_SECONDS", -1.0)

    async def scenario() -> None:
        controller = Controller(apiserver(), Settings())
        deleted_unseen(controller)
        controller.queue.done(await controller.queue.get())
        assert controller.observed.is_leaving("n", "j")
        await controller._terminating.look()
        assert not controller.observed.is_leaving("n", "j")
        assert len(controller.queue) == 1

    asyncio.run(scenario())


def test_leave_remembers_a_job_when_the_pod_it_knows_is_of_an_earlier_one_of_that_name() -> None:
    async def scenario() -> None:
        controller = Controller(apiserver(), Settings())
        earlier = running_pod("before") | {"status": {"phase": "Failed"}}
        controller.take("pods", "ADDED", earlier)
        deleted_unseen(controller)
        assert controller.observed.is_leaving("n", "j"), "its own pod may not have been seen"

    asyncio.run(scenario())


def test_pods_of_leaves_out_those_of_an_earlier_job_of_that_name() -> None:
    controller = Controller(apiserver(), Settings())
    job = thing("j", 2, "j-uid")
    job["metadata"] |= {
        "annotations": {"genai-operator.dev/key": "k" * 64},
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    controller.take("jobs", "ADDED", job)
    for uid in ("before", "j-uid"):
        controller.take("pods", "ADDED", running_pod(uid))
    assert [pod.name for pod in controller.observed.pods_of("n")["j"]] == ["p-j-uid"]


def test_whoever_joins_a_job_as_it_ends_hears_of_it() -> None:
    """The event of the end is older than the claim, and later than the answer to it."""
    note = {"genai-operator.dev/key": "k" * 64}

    def job(version: int, *owners: str, ended: bool = False) -> dict[str, Any]:
        condition = {
            "type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:00:09Z",
        }  # fmt: skip
        value = thing("j", version)
        value["metadata"] |= {
            "annotations": note, "creationTimestamp": "2026-01-01T00:00:00Z",
            "ownerReferences": [{"uid": owner} for owner in owners],
        }  # fmt: skip
        return value | {"status": {"conditions": [condition] if ended else []}}

    async def scenario(*, answered: bool) -> None:
        controller = Controller(apiserver(), Settings())

        async def woken() -> set[str]:
            found = set()
            while len(controller.queue):
                ref = await controller.queue.get()
                controller.queue.done(ref)
                found.add(ref.name)
            return found

        for name in ("first", "second"):
            controller.take("genaibuilds", "ADDED", thing(name, 1))
        controller.take("jobs", "ADDED", job(2, "first"))
        await woken()
        if answered:
            known = controller.observed.jobs.get("n", "j")
            assert known is not None
            joined = replace(known, owners=frozenset({"first", "second"}))
            controller.observed.jobs.amend("n", "j", joined)
        controller.take("jobs", "MODIFIED", job(3, "first", ended=True))
        assert await woken() == ({"first", "second"} if answered else {"first"})
        controller.take("jobs", "MODIFIED", job(4, "first", "second", ended=True))
        assert await woken() == {"second"}
        controller.take("jobs", "MODIFIED", job(5, "second", ended=True))
        assert await woken() == set()

    for answered in (True, False):
        asyncio.run(scenario(answered=answered))


def test_what_upkeep_cannot_do_once_it_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one odd object would end the process, again and again."""
    monkeypatch.setattr(controller_module, "_UPKEEP_SECONDS", 0.001)

    async def scenario() -> None:
        controller = Controller(apiserver(), Settings())
        tried = asyncio.Event()
        times = 0

        async def fails() -> None:
            nonlocal times
            times += 1
            if times == 3:
                tried.set()
            raise OverflowError("date value out of range")

        monkeypatch.setattr(controller.upkeep, "clear", fails)
        upkeep = asyncio.create_task(controller._upkeep(lambda: True))
        await asyncio.wait_for(tried.wait(), 5)
        upkeep.cancel()

    asyncio.run(scenario())


def test_the_end_of_a_build_is_not_that_of_the_next_one_of_its_name() -> None:
    async def scenario() -> None:
        controller = Controller(apiserver(), Settings())
        old, new = thing("b", 1, "old"), thing("b", 3, "new")
        controller.take("genaibuilds", "ADDED", old)
        controller.queue.done(await controller.queue.get())
        controller.observed.builds.put(new, build_view(new))  # an answer told of it
        controller.queue.add(Ref("genaibuilds", "n", "b"), after=9)
        controller.take("genaibuilds", "DELETED", old)
        assert len(controller.queue) == 1, "it is due as it was"
        controller.take("genaibuilds", "DELETED", new)
        assert len(controller.queue) == 0

    asyncio.run(scenario())


def test_our_own_status_wakes_nobody() -> None:
    async def scenario() -> None:
        controller = Controller(apiserver(), Settings())
        build = thing("b", 1)
        controller.take("genaibuilds", None, build)
        assert len(controller.queue) == 1
        controller.queue.done(await controller.queue.get())
        written = copy.deepcopy(build)
        written["metadata"]["resourceVersion"] = "2"
        written["status"] = {"phase": "Building"}
        controller.take("genaibuilds", "MODIFIED", written)
        assert len(controller.queue) == 0
        edited = copy.deepcopy(written)
        edited["metadata"] |= {"resourceVersion": "3", "generation": 2}
        controller.take("genaibuilds", "MODIFIED", edited)
        assert len(controller.queue) == 1

    asyncio.run(scenario())


def test_never_two_holders_and_a_cut_off_one_is_followed() -> None:
    async def scenario() -> None:
        server = FakeApiserver()
        clients = {name: server.client() for name in ("a", "b")}
        holders = {
            name: LeaseHolder(client, namespace="n", identity=name, seconds=0.6)
            for name, client in clients.items()
        }
        tasks = {name: asyncio.create_task(holder.run()) for name, holder in holders.items()}
        await until(lambda: any(holder.held for holder in holders.values()))
        first = [name for name, holder in holders.items() if holder.held]
        assert len(first) == 1
        clients[first[0]].refuse(OSError("no route"))
        other = holders["b" if first == ["a"] else "a"]

        def followed() -> bool:
            assert not (holders[first[0]].held and other.held)
            return other.held

        await until(followed)
        await asyncio.wait_for(tasks[first[0]], SECONDS)  # it ends rather than works on
        for task in tasks.values():
            task.cancel()

    asyncio.run(scenario())


def test_a_replica_that_lost_the_lease_writes_nothing_but_leases() -> None:
    """It may wake in the middle of a pass, long after another one has taken over."""

    async def scenario() -> None:
        leads = True
        sent: list[tuple[str, str]] = []
        to = Connection("https://apiserver", ssl.create_default_context())
        api = ApiClient(to, may_write=lambda: leads)

        async def answer(verb: str, path: str, _read: object, **_: Any) -> str:
            sent.append((verb, path.rpartition("/")[2]))
            return "{}"

        api._send = answer  # type: ignore[assignment,method-assign]
        thing_ = {"metadata": {"name": "x"}}
        writes: list[Callable[[], Awaitable[Any]]] = [
            lambda: api.create("jobs", thing_, namespace="n"),
            lambda: api.apply_status("genaibuilds", thing_, namespace="n"),
            lambda: api.merge_lists("jobs", "x", {}, namespace="n"),
            lambda: api.delete("pods", "x", namespace="n", uid="u"),
        ]
        for write in writes:
            await write()
        assert len(sent) == 4
        leads = False
        for write in writes:
            with pytest.raises(NotLeading):
                await write()
        assert len(sent) == 4
        await api.get("jobs", "x", namespace="n")
        await api.create("leases", thing_, namespace="n")
        await api.replace("leases", thing_, namespace="n")
        assert len(sent) == 7

    asyncio.run(scenario())


def test_a_lease_that_is_given_up_is_taken_at_once() -> None:
    async def scenario() -> None:
        server = FakeApiserver()
        first = LeaseHolder(server.client(), namespace="n", identity="a", seconds=60)
        task = asyncio.create_task(first.run())
        await until(lambda: first.held)
        await first.release()
        task.cancel()
        second = LeaseHolder(server.client(), namespace="n", identity="b", seconds=60)
        task = asyncio.create_task(second.run())
        await until(lambda: second.held)  # not after the minute that the lease holds
        assert not first.held
        task.cancel()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("endpoint", "addresses", "refused"),
    [
        (None, [], False),
        ("https://s3.example.org", ["203.0.113.7"], False),
        ("http://s3.svc:7070", ["10.96.0.4"], False),
        ("http://metadata", ["169.254.169.254"], True),
        ("http://127.0.0.1:9000", ["127.0.0.1"], True),
        ("http://[fe80::1]", ["fe80::1%eth0"], True),
        ("https://innocent.example.org:6443", ["10.96.0.1"], True),
    ],
)
def test_endpoints_that_only_the_operator_reaches_are_refused(
    endpoint: str | None, addresses: list[str], refused: bool
) -> None:
    def resolve(host: str) -> list[str]:
        return ["10.96.0.1"] if host == "kubernetes" else addresses

    def check() -> None:
        check_endpoint(
            endpoint, allowed=("*",), apiserver="https://kubernetes:6443", resolve=resolve
        )

    if refused:
        with pytest.raises(Stalled, match="is "):
            check()
    else:
        check()


def test_a_list_of_allowed_endpoints_is_kept_to() -> None:
    def check(endpoint: str) -> None:
        check_endpoint(
            endpoint, allowed=("*.corp", "https://one:1"), apiserver="", resolve=lambda _: []
        )

    check("https://s3.corp")
    check("https://one:1")
    with pytest.raises(Stalled, match="not among"):
        check("https://s3.corp.evil.org")


def test_a_process_is_sick_when_it_is_deaf_or_blind() -> None:
    assert sick([], 100, 150) == ""
    assert "jobs" in sick(["jobs"], 100, 150)
    assert "compared" in sick([], 100, 1000)


def test_settings_come_from_the_environment() -> None:
    found = read_settings(
        {"GENAI_NAMESPACES": "a, b", "GENAI_LEASE": "False", "GENAI_OPERATOR_NAMESPACE": "x"}
    )
    assert (found.namespaces, found.lease, found.operator_namespace) == (("a", "b"), False, "x")
    with pytest.raises(ValueError, match="many"):
        read_settings({"GENAI_WORKERS": "many"})
