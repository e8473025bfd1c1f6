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
from genai_operator.jobs.retries import RecordLost, judge
from genai_operator.jobs.verdicts import (
    BackingOff,
    NextAttempt,
    PermanentFailure,
    Retry,
    Running,
    Verdict,
    pause_of,
)
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


def failed(verdict: Verdict) -> PermanentFailure:
    assert isinstance(verdict, PermanentFailure)
    return verdict


def again(verdict: Verdict) -> tuple[NextAttempt, Retry]:
    assert isinstance(verdict, NextAttempt)
    assert verdict.retry is not None
    return verdict, verdict.retry


def test_a_job_that_runs_is_waited_for() -> None:
    assert judge([job(state=JobState.ACTIVE)], {}, retries=2, now=NOW) == Running()


def test_bad_input_is_final_at_once_in_the_stages_own_words() -> None:
    verdict = failed(judged([said(BadModel("no such node", where="model.onnx"), 2)]))
    assert isinstance(verdict.error, BadModel)
    assert str(verdict.error) == "model.onnx: no such node"
    assert verdict.log == "d" * 64


def test_out_of_memory_gets_twice_the_memory_once_and_keeps_it() -> None:
    first, retry = again(judged([OOM]))
    assert (first.number, first.memory_bytes) == (2, 1024 * MIB)
    assert retry == Retry("it was out of memory with 512 MiB", "OOMKilled", tries=1)
    second = failed(judged([OOM, OOM], memory_bytes=1024 * MIB))
    assert second.error.code == "OOMKilled"
    assert "1024 MiB" in second.error.message
    # A crash after it does not forget what was learnt.
    third, _ = again(judged([OOM, KILLED], memory_bytes=1024 * MIB))
    assert third.memory_bytes == 1024 * MIB


def test_a_task_that_says_itself_that_memory_was_short_is_sized_up_too() -> None:
    told = said(OutOfMemory("it was out of memory"))
    first, _ = again(judged([told], retries=0))
    assert first.memory_bytes == 1024 * MIB
    last = failed(judged([told, OOM], memory_bytes=1024 * MIB))
    assert isinstance(last.error, OutOfMemory)
    assert "1024 MiB" in last.error.message


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_crash_is_tried_again_as_often_as_the_build_allows(retries: int) -> None:
    for failures in range(1, retries + 1):
        attempt, retry = again(judged([KILLED] * failures, retries=retries))
        assert (attempt.number, retry.tries, retry.reason) == (failures + 1, failures, "ToolFailed")
    assert isinstance(failed(judged([KILLED] * (retries + 1), retries=retries)).error, ToolFailed)


def test_a_store_that_is_away_costs_no_attempt() -> None:
    attempt, retry = again(judged([said(StoreUnavailable("connection refused"))] * 9, retries=0))
    assert attempt.number == 10
    assert isinstance(retry.waits_for, StoreUnavailable)


def test_a_full_disk_may_be_another_nodes_next_time() -> None:
    assert again(judged([said(NoSpace("full"), 2)]))
    assert isinstance(failed(judged([said(NoSpace("full"), 2)] * 3)).error, NoSpace)


def test_lost_bytes_are_told_apart() -> None:
    assert again(judged([said(CorruptBlob("blob 12 is missing"))]))[1].inputs_lost
    assert not again(judged([KILLED]))[1].inputs_lost


def test_judge_backs_off_when_the_last_attempt_has_just_failed() -> None:
    verdict = judged([KILLED, KILLED], ended_at=NOW - timedelta(seconds=4))
    assert isinstance(verdict, BackingOff)
    assert verdict.pause == pytest.approx(6)
    assert verdict.retry.reason == "ToolFailed"


def test_a_pods_own_words_are_waited_for_a_moment() -> None:
    just = NOW - timedelta(seconds=2)
    silent = {"j-1": [pod(1, None)]}
    verdict = judge([job(ended_at=just)], silent, retries=0, now=NOW)
    assert isinstance(verdict, Running)
    assert 0 < verdict.pause <= 5
    told = {"j-1": [pod(1, OOM)]}
    attempt, _ = again(judge([job(ended_at=just)], told, retries=0, now=NOW))
    assert attempt.memory_bytes == 1024 * MIB
    assert failed(judge([job()], silent, retries=0, now=NOW))


def test_a_record_that_vanished_is_no_failure() -> None:
    verdict = judge([job(state=JobState.SUCCEEDED)], {}, retries=0, now=NOW)
    assert verdict == NextAttempt(2, retry=Retry("its record is gone", "RecordGone", tries=1))


def test_records_that_never_stay_end_the_build_after_growing_pauses() -> None:
    def after(times: int, seconds: float) -> Verdict:
        ended = NOW - timedelta(seconds=seconds)
        jobs = [job(n, JobState.SUCCEEDED, ended_at=ended) for n in range(1, times + 1)]
        return judge(jobs, {}, retries=0, now=NOW)

    assert isinstance(after(2, 0.5), BackingOff)
    assert isinstance(after(2, 1.5), NextAttempt)
    assert pause_of(after(3, 9)) == pytest.approx(1)
    error = failed(after(4, 0)).error
    assert isinstance(error, RecordLost)
    assert "4 times" in str(error)
    assert error.where == "convert/1"


def test_a_job_on_its_way_out_still_holds_its_name() -> None:
    verdict = judge([job(deleting=True)], {}, retries=2, now=NOW)
    assert isinstance(verdict, Running)
    assert verdict.pause > 0, "not everybody is told when it is gone"


def test_without_a_pod_the_job_controllers_words_are_used() -> None:
    verdict = judge(
        [job(message="Job was active longer than specified deadline")], {}, retries=0, now=NOW
    )
    assert "longer than specified" in str(failed(verdict).error)
    late = {"j-1": [pod(1, None, reason="DeadlineExceeded")]}
    verdict = judge([job()], late, retries=0, now=NOW)
    assert "activeDeadlineSeconds" in str(failed(verdict).error)


def test_attempts_are_put_in_order() -> None:
    assert [j.attempt for j in group([job(3), job(1), job(2)])[Key("k" * 64)]] == [1, 2, 3]


def test_a_pod_evicted_for_its_own_fault_ran_out_of_space() -> None:
    evicted = pod(1, KILLED, reason="Evicted", message='Usage of volume "scratch" exceeds 64Ki')
    verdict = failed(judge([job()], {"j-1": [evicted]}, retries=0, now=NOW))
    assert isinstance(verdict.error, NoSpace)
    assert 'volume "scratch"' in str(verdict.error)
    assert "spec.run.scratch.size" in str(verdict.error)


def test_the_end_of_a_killed_stages_log_is_not_lost() -> None:
    verdict = failed(judged([Ending(137, "Error", words="loading 3 of 7")], retries=0))
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
    attempt, _ = again(judge([job(n) for n in (1, 2, 3)], pods, retries=0, now=NOW))
    assert attempt.number == 4
    # What fails by itself is counted as if the others had not been.
    pods["j-3"] = [pod(3, said(ToolFailed("it broke")))]
    assert again(judge([job(n) for n in (1, 2, 3)], pods, retries=1, now=NOW))
    assert failed(judge([job(n) for n in (1, 2, 3)], pods, retries=0, now=NOW))


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
    assert failed(judge(theirs, pods, retries=2, now=NOW, owner="x"))
    verdict = judge(theirs, pods, retries=2, now=NOW, owner="b")
    assert verdict == NextAttempt(3), "it starts, under a name that is free"
    joined = [*theirs, job(3, state=JobState.ACTIVE, owners=frozenset({"x"}))]
    assert judge(joined, pods, retries=2, now=NOW, owner="b") == Running()
    shared = [theirs[0], job(2, owners=frozenset({"x", "b"}))]
    attempt, retry = again(judge(shared, pods, retries=2, now=NOW, owner="b"))
    assert (attempt.memory_bytes, retry.tries) == (1024 * MIB, 1)


def test_of_attempts_that_cost_nothing_the_last_few_stay() -> None:
    away = said(StoreUnavailable("connection refused"))
    attempt, retry = again(judged([KILLED, *[away] * 9], retries=1))
    assert [old.attempt for old in retry.spent] == [2, 3, 4, 5, 6]
    assert attempt.number == 11
    assert again(judged([away] * 4))[1].spent == ()
    assert again(judged([KILLED] * 2))[1].spent == (), "what counts is not forgotten"


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
    verdict = failed(late(ending, limit=3, seconds=3))
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
    assert isinstance(failed(verdict).error, DeadlineExceeded)


def test_a_shorter_limit_of_another_build_is_no_failure_of_ones_own() -> None:
    attempt, retry = again(late(STOPPED, limit=3, seconds=3600, phases=4))
    assert (attempt.number, retry.reason) == (5, "DeadlineExceeded")
    assert failed(late(STOPPED, limit=3600, seconds=3)), "nor is a longer one enough"


def test_what_a_task_says_itself_counts_for_more_than_its_time_limit() -> None:
    verdict = late(said(BadModel("no such node"), 2), limit=3, seconds=3)
    assert isinstance(failed(verdict).error, BadModel)
    assert failed(judged([STOPPED], retries=0)).error.code == "Interrupted"
