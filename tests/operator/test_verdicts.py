"""What attempts mean: which failures are final, which cost an attempt, which cost nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from genai_core.errors import (
    BadModel,
    CorruptBlob,
    DeadlineExceeded,
    Interrupted,
    NoSpace,
    OutOfMemory,
    StoreUnavailable,
    ToolFailed,
)
from genai_core.names import Key
from genai_operator.jobs.attempts import group
from genai_operator.jobs.verdicts import RecordLost, Verdict, judge
from genai_operator.kube.job import JobState, JobView
from genai_operator.kube.pod import Ending, PodView
from genai_operator.manager.upkeep import outlived

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
LONG_AGO = NOW - timedelta(hours=1)
MIB = 1 << 20


def job(attempt: int = 1, state: JobState = JobState.FAILED, **more: Any) -> JobView:
    values: dict[str, Any] = {
        "namespace": "n", "name": f"j-{attempt}", "uid": f"u{attempt}", "key": Key("k" * 64),
        "operation": "convert", "task": "convert/1", "scope": "s", "attempt": attempt,
        "memory_bytes": 512 * MIB, "owners": frozenset({"b"}), "state": state,
        "created_at": LONG_AGO, "ended_at": None if state is JobState.ACTIVE else LONG_AGO,
    }  # fmt: skip
    return JobView(**(values | more))


def pod(attempt: int, ending: Ending | None, **more: Any) -> PodView:
    values: dict[str, Any] = {
        "namespace": "n", "name": f"p{attempt}", "uid": f"pu{attempt}", "job": f"j-{attempt}",
        "node": "node1", "phase": "Failed", "created_at": LONG_AGO, "ending": ending,
    }  # fmt: skip
    return PodView(**(values | more))


def said(error: Exception, code: int = 1) -> Ending:
    return Ending(code, "Error", {"error": error.as_dict(), "log": "d" * 64})  # type: ignore[attr-defined]


OOM = Ending(137, "OOMKilled")
KILLED = Ending(137, "Error")


def judged(endings: list[Ending | None], *, retries: int = 2, **last: Any) -> Verdict:
    jobs = [job(n) for n in range(1, len(endings))] + [job(len(endings), **last)]
    pods = {f"j-{n}": [pod(n, ending)] for n, ending in enumerate(endings, 1)}
    return judge(jobs, pods, retries=retries, now=NOW)


def test_a_job_that_runs_is_waited_for() -> None:
    assert judge([job(state=JobState.ACTIVE)], {}, retries=2, now=NOW).running


def test_bad_input_is_final_at_once_in_the_stages_own_words() -> None:
    verdict = judged([said(BadModel("no such node", where="model.onnx"), 2)])
    assert isinstance(verdict.error, BadModel)
    assert str(verdict.error) == "model.onnx: no such node"
    assert verdict.log == "d" * 64


def test_out_of_memory_gets_twice_the_memory_once_and_keeps_it() -> None:
    first = judged([OOM])
    assert (first.error, first.running) == (None, False)
    assert (first.attempt, first.memory_bytes) == (2, 1024 * MIB)
    second = judged([OOM, OOM], memory_bytes=1024 * MIB)
    assert second.error is not None
    assert second.error.code == "OOMKilled"
    assert "1024 MiB" in second.error.message
    # A crash after it does not forget what was learnt.
    third = judged([OOM, KILLED], memory_bytes=1024 * MIB)
    assert (third.error, third.memory_bytes) == (None, 1024 * MIB)


def test_a_task_that_says_itself_that_memory_was_short_is_sized_up_too() -> None:
    told = said(OutOfMemory("it was out of memory"))
    first = judged([told], retries=0)
    assert (first.error, first.memory_bytes) == (None, 1024 * MIB)
    last = judged([told, OOM], memory_bytes=1024 * MIB)
    assert isinstance(last.error, OutOfMemory)
    assert "1024 MiB" in last.error.message


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_crash_is_tried_again_as_often_as_the_build_allows(retries: int) -> None:
    for failures in range(1, retries + 2):
        verdict = judged([KILLED] * failures, retries=retries)
        assert (verdict.error is not None) == (failures > retries)
        assert verdict.attempt == failures + 1
    assert isinstance(verdict.error, ToolFailed)


def test_a_store_that_is_away_costs_no_attempt() -> None:
    verdict = judged([said(StoreUnavailable("connection refused"))] * 9, retries=0)
    assert (verdict.error, verdict.attempt) == (None, 10)


def test_a_full_disk_may_be_another_nodes_next_time() -> None:
    assert judged([said(NoSpace("full"), 2)]).error is None
    assert judged([said(NoSpace("full"), 2)] * 3).error is not None


def test_lost_bytes_are_told_apart() -> None:
    assert judged([said(CorruptBlob("blob 12 is missing"))]).inputs_lost
    assert not judged([KILLED]).inputs_lost


def test_a_pause_before_the_next_attempt_counts_as_running() -> None:
    verdict = judged([KILLED, KILLED], ended_at=NOW - timedelta(seconds=4))
    assert verdict.running
    assert verdict.pause == pytest.approx(6)


def test_a_pods_own_words_are_waited_for_a_moment() -> None:
    just = NOW - timedelta(seconds=2)
    silent = {"j-1": [pod(1, None)]}
    verdict = judge([job(ended_at=just)], silent, retries=0, now=NOW)
    assert (verdict.running, verdict.error) == (True, None)
    assert 0 < verdict.pause <= 5
    told = {"j-1": [pod(1, OOM)]}
    assert judge([job(ended_at=just)], told, retries=0, now=NOW).memory_bytes == 1024 * MIB
    assert judge([job()], silent, retries=0, now=NOW).error is not None


def test_a_record_that_vanished_is_no_failure() -> None:
    verdict = judge([job(state=JobState.SUCCEEDED)], {}, retries=0, now=NOW)
    assert (verdict.error, verdict.running, verdict.attempt) == (None, False, 2)
    assert "gone" in verdict.retried


def test_records_that_never_stay_end_the_build_after_growing_pauses() -> None:
    def after(times: int, seconds: float) -> Verdict:
        ended = NOW - timedelta(seconds=seconds)
        jobs = [job(n, JobState.SUCCEEDED, ended_at=ended) for n in range(1, times + 1)]
        return judge(jobs, {}, retries=0, now=NOW)

    assert after(2, 0.5).running
    assert not after(2, 1.5).running
    assert after(3, 9).pause == pytest.approx(1)
    error = after(4, 0).error
    assert isinstance(error, RecordLost)
    assert "4 times" in str(error)
    assert error.where == "convert/1"


def test_a_job_on_its_way_out_still_holds_its_name() -> None:
    assert judge([job(deleting=True)], {}, retries=2, now=NOW).running


def test_without_a_pod_the_job_controllers_words_are_used() -> None:
    verdict = judge(
        [job(message="Job was active longer than specified deadline")], {}, retries=0, now=NOW
    )
    assert "longer than specified" in str(verdict.error)
    late = {"j-1": [pod(1, None, reason="DeadlineExceeded")]}
    verdict = judge([job()], late, retries=0, now=NOW)
    assert "activeDeadlineSeconds" in str(verdict.error)


def test_attempts_are_put_in_order() -> None:
    assert [j.attempt for j in group([job(3), job(1), job(2)])[Key("k" * 64)]] == [1, 2, 3]


def test_a_pod_evicted_for_its_own_fault_ran_out_of_space() -> None:
    evicted = pod(1, KILLED, reason="Evicted", message='Usage of volume "scratch" exceeds 64Ki')
    verdict = judge([job()], {"j-1": [evicted]}, retries=0, now=NOW)
    assert isinstance(verdict.error, NoSpace)
    assert 'volume "scratch"' in str(verdict.error)
    assert "spec.run.scratch.size" in str(verdict.error)


def test_the_end_of_a_killed_stages_log_is_not_lost() -> None:
    verdict = judged([Ending(137, "Error", words="loading 3 of 7")], retries=0)
    assert str(verdict.error) == "convert/1: its process was killed; its log ends: loading 3 of 7"


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("Evicted", "The node had condition: [DiskPressure]. "),
        ("Evicted", "Pod was rejected: The node had condition: [DiskPressure]. "),
        ("Evicted", "The node was low on resource: ephemeral-storage."),
        ("OutOfcpu", "Node didn't have enough resource: cpu"),
    ],
)
def test_what_a_node_refuses_costs_no_attempt(reason: str, message: str) -> None:
    told = said(ToolFailed("stopped before it was done"), 130)
    pods = {f"j-{n}": [pod(n, told, reason=reason, message=message)] for n in (1, 2, 3)}
    verdict = judge([job(n) for n in (1, 2, 3)], pods, retries=0, now=NOW)
    assert (verdict.error, verdict.attempt) == (None, 4)
    # What fails by itself is counted as if the others had not been.
    pods["j-3"] = [pod(3, said(ToolFailed("it broke")))]
    assert judge([job(n) for n in (1, 2, 3)], pods, retries=1, now=NOW).error is None
    assert judge([job(n) for n in (1, 2, 3)], pods, retries=0, now=NOW).error is not None


def test_a_job_goes_when_its_time_is_over_and_nobody_builds_with_it() -> None:
    done = job(2, JobState.SUCCEEDED)
    both = [job(1), done]
    assert outlived(both, {"b": "Ready"}, NOW) == both, "with its failed attempt"
    assert outlived(both, {}, NOW) == both
    assert outlived(both, {"b": "Building"}, NOW) == []
    assert outlived(both, {"b": "Ready"}, LONG_AGO + timedelta(seconds=599)) == []
    assert outlived([*both, job(3, JobState.ACTIVE)], {"b": "Ready"}, NOW) == []


def test_a_failure_stays_to_be_looked_at_unless_all_came_to_a_good_end() -> None:
    failed = job(1)
    assert outlived([failed], {"b": "Failed"}, NOW) == []
    assert outlived([failed], {"b": "Ready"}, NOW) == [failed]
    shared = job(1, owners=frozenset({"b", "c"}))
    assert outlived([shared], {"b": "Ready", "c": "Building"}, NOW) == []


def test_what_nobody_claims_any_more_goes_whatever_it_came_to() -> None:
    left = job(1, owners=frozenset())
    assert outlived([left], {}, NOW) == [left]
    assert outlived([left], {}, LONG_AGO) == []


def test_what_others_failed_at_is_no_attempt_of_ones_own() -> None:
    theirs = [job(n, owners=frozenset({"x"})) for n in (1, 2)]
    pods = {f"j-{n}": [pod(n, OOM)] for n in (1, 2)}
    assert judge(theirs, pods, retries=2, now=NOW, owner="x").error is not None
    verdict = judge(theirs, pods, retries=2, now=NOW, owner="b")
    assert verdict == Verdict(attempt=3), "it starts, under a name that is free"
    joined = [*theirs, job(3, state=JobState.ACTIVE, owners=frozenset({"x"}))]
    assert judge(joined, pods, retries=2, now=NOW, owner="b").running
    shared = [theirs[0], job(2, owners=frozenset({"x", "b"}))]
    verdict = judge(shared, pods, retries=2, now=NOW, owner="b")
    assert (verdict.error, verdict.memory_bytes, verdict.tries) == (None, 1024 * MIB, 1)


def test_of_attempts_that_cost_nothing_the_last_few_stay() -> None:
    away = said(StoreUnavailable("connection refused"))
    verdict = judged([KILLED, *[away] * 9], retries=1)
    assert [old.attempt for old in verdict.spent] == [2, 3, 4, 5, 6]
    assert verdict.attempt == 11
    assert judged([away] * 4).spent == ()
    assert judged([KILLED] * 2).spent == (), "what counts is not forgotten"


def test_one_tenants_task_is_not_another_tenants_attempt() -> None:
    mine = job(1, JobState.SUCCEEDED)
    theirs = job(1, JobState.ACTIVE, namespace="other", owners=frozenset({"x"}))
    assert outlived([theirs, mine], {"b": "Ready", "x": "Building"}, NOW) == [mine]


STOPPED = said(Interrupted("stopped before it was done", where="convert/1"), 130)


def late(ending: Ending | None, *, limit: int, seconds: int, phases: int = 1) -> Verdict:
    """A task whose pod ran into its limit, judged by a build that allows `seconds`."""
    jobs = [job(n, deadline_seconds=limit) for n in range(1, phases + 1)]
    pods = {f"j-{n}": [pod(n, ending, reason="DeadlineExceeded")] for n in range(1, phases + 1)}
    return judge(jobs, pods, retries=5, now=NOW, task_seconds=seconds)


@pytest.mark.parametrize("ending", [STOPPED, KILLED, None])
def test_a_time_limit_is_final_and_called_what_it_is(ending: Ending | None) -> None:
    verdict = late(ending, limit=3, seconds=3)
    assert verdict.error is not None
    assert verdict.error.code == "DeadlineExceeded"
    assert str(verdict.error) == (
        "convert/1: it ran for longer than spec.run.activeDeadlineSeconds allows (3 s); "
        "raise it, or give more in spec.run.resources"
    )
    if ending is STOPPED:
        assert verdict.log == "d" * 64


def test_a_chains_task_that_ran_into_its_limit_says_so_by_itself() -> None:
    ended = said(DeadlineExceeded("it ran for longer", where="convert/1"))
    verdict = judged([ended], retries=5, deadline_seconds=3)
    assert isinstance(verdict.error, DeadlineExceeded)


def test_a_shorter_limit_of_another_build_is_no_failure_of_ones_own() -> None:
    verdict = late(STOPPED, limit=3, seconds=3600, phases=4)
    assert (verdict.error, verdict.attempt, verdict.retried_for) == (None, 5, "DeadlineExceeded")
    assert late(STOPPED, limit=3600, seconds=3).error is not None, "nor is a longer one enough"


def test_what_a_task_says_itself_counts_for_more_than_its_time_limit() -> None:
    verdict = late(said(BadModel("no such node"), 2), limit=3, seconds=3)
    assert isinstance(verdict.error, BadModel)
    assert judged([STOPPED], retries=0).error.code == "Interrupted"  # type: ignore[union-attr]
