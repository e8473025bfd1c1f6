"""The state table of the contract, row by row, and what stays from one pass to the next."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from genai_core.errors import BadModel
from genai_core.kinds.build_status import BuildStatus
from genai_core.names import MODEL, Digest, Key, TaskId, adapter_source, child_source
from genai_core.store.address import StoreAddress
from genai_core.tasks.record import Record, ToolchainUsed
from genai_operator.builds.status import Outcome, ResolvedEntry, build_status
from genai_operator.kube.status.conditions import same_status
from genai_operator.kube.status.status_phase import Phase
from genai_planner.execution.progress import BuildProgress, StageProgress

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STORE = StoreAddress("bucket", "ns", "http://s3:7070")
REVISION = "sha256:" + "a" * 64
RECORD = Record(
    operation="package", key=Key("b" * 64), toolchain=ToolchainUsed(id=Digest("c" * 64)),
    created_at=NOW, facts={"revision": REVISION, "sizeBytes": 12, "verified": "Cpu"},
)  # fmt: skip


def status(
    state: str, reason: str = "R", previous: Any = None, generation: int = 1, **more: Any
) -> dict[str, Any]:
    outcome = Outcome(Phase(state), reason, **({"store": STORE} | more))
    return build_status(outcome, previous or {}, generation=generation, now=NOW)


def shown(found: dict[str, Any]) -> dict[str, str]:
    return {c["type"]: c["status"] for c in found["conditions"]}


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        (Phase.BUILDING, {"Ready": "Unknown", "Reconciling": "True"}),
        (Phase.WAITING, {"Ready": "Unknown", "Reconciling": "True"}),
        (Phase.STALLED, {"Ready": "False", "Stalled": "True"}),
        (Phase.SUSPENDED, {"Ready": "Unknown"}),
        (Phase.READY, {"Ready": "True"}),
    ],
)
def test_the_state_table(state: str, wanted: dict[str, str]) -> None:
    assert shown(status(state)) == wanted
    built = status(Phase.READY, containers={"cpu": RECORD}, targets=["cpu"])
    later = status(state, previous=built, generation=2, targets=["cpu"])
    assert shown(later) == wanted | {"ArtifactAvailable": "True"}
    assert later["artifacts"][0]["revision"] == REVISION
    BuildStatus.model_validate(later)


def test_an_artifact_shows_what_this_build_measured() -> None:
    facts = {"natsPerToken": 2.5, "baselineNats": 2, "within": True, "tokens": 40, "text": "x" * 99,
             "yardstick": "the source itself"}  # fmt: skip
    wrong = {"budget": float("nan"), "floatNats": "2", "verified": 3, "more": {"a": 1}}
    found = status(
        Phase.READY,
        containers={"cpu": RECORD},
        targets=["cpu"],
        fidelity={"cpu": facts | wrong},
    )
    assert found["artifacts"][0]["fidelity"] == facts | {"text": "x" * 64}
    BuildStatus.model_validate(found)
    # Another build of the same container; then it is built while the last good one stays.
    other = {"natsPerToken": 3.5}
    again = status(
        Phase.READY, previous=found, containers={"cpu": RECORD}, targets=["cpu"],
        fidelity={"cpu": other},
    )  # fmt: skip
    assert again["artifacts"][0]["fidelity"] == other
    assert not same_status(found, again)
    later = status(Phase.BUILDING, previous=again, targets=["cpu"])
    assert later["artifacts"][0]["fidelity"] == other


def test_an_artifact_goes_with_its_target() -> None:
    built = status(Phase.READY, containers={"cpu": RECORD}, targets=["cpu"])
    assert "artifacts" not in status(Phase.BUILDING, previous=built, targets=["sm8750"])


def test_a_condition_keeps_its_time_until_its_status_changes() -> None:
    first = status(Phase.BUILDING)
    later = build_status(
        Outcome(Phase.WAITING, "StoreNotReady"), first, generation=1, now=NOW + timedelta(hours=1)
    )
    assert {c["lastTransitionTime"] for c in later["conditions"]} == {"2026-01-01T00:00:00Z"}
    last = build_status(
        Outcome(Phase.READY, "Built"), later, generation=1, now=NOW + timedelta(hours=2)
    )
    assert last["conditions"][0]["lastTransitionTime"] == "2026-01-01T02:00:00Z"


def test_counts_tell_what_ran_from_what_was_cached() -> None:
    progress = BuildProgress(
        (StageProgress("ingest", cached=1), StageProgress("convert", cached=4))
    )
    found = status(Phase.READY, progress=progress, ran={"convert": 3})
    assert (found["progress"], found["cached"]) == ("5/5", 2)
    assert [(s["cached"], s["done"]) for s in found["stages"]] == [(1, 0), (1, 3)]
    BuildStatus.model_validate(found)


def test_counts_and_sources_belong_to_a_generation() -> None:
    entry = ResolvedEntry("s3://m/x", "sha256:" + "d" * 64, "e" * 64)
    sources = {
        MODEL: entry,
        child_source("decode"): replace(entry, uri="s3://m/decode"),
        adapter_source("c"): replace(entry, uri="s3://m/c"),
    }
    found = status(Phase.BUILDING, progress=BuildProgress(()), sources=sources, toolchain="t")
    assert [(s["name"], s["uri"]) for s in found["sources"]] == [
        ("model", "s3://m/x"),
        ("child:decode", "s3://m/decode"),
        ("adapter:c", "s3://m/c"),
    ]
    BuildStatus.model_validate(found)
    same = status(Phase.WAITING, previous=found)
    assert same["sources"] == found["sources"]
    assert same["toolchain"] == "t"
    other = status(Phase.WAITING, previous=found, generation=2)
    assert "sources" not in other
    assert "toolchain" not in other
    asked_anew = status(Phase.BUILDING, previous=found, requested_at="now")
    assert "sources" not in asked_anew, "the source may have been mended meanwhile"
    assert status(Phase.BUILDING, previous=asked_anew, requested_at="now", sources=sources)[
        "sources"
    ]


def test_what_was_found_out_stays_while_nothing_is_looked_at() -> None:
    found = status(Phase.BUILDING, progress=BuildProgress(()), notes=["n"], warnings=["w"])
    waits = status(Phase.WAITING, previous=found)
    assert (waits["plan"], waits["warnings"]) == (["n"], ["w"])
    assert "warnings" not in status(Phase.WAITING, previous=found, generation=2)
    assert "warnings" not in status(Phase.BUILDING, previous=found, progress=BuildProgress(()))


def test_warnings_that_are_left_out_are_counted() -> None:
    found = status(Phase.READY, warnings=[f"w{n}" for n in range(20)])["warnings"]
    assert found == [*(f"w{n}" for n in range(15)), "and 5 more"]
    assert len(status(Phase.READY, warnings=["w"] * 16)["warnings"]) == 16


def test_it_stays_small_whatever_happens() -> None:
    failed = [
        (TaskId(f"convert/{n}"), BadModel("x" * 9999, where="y" * 999), "f" * 64)
        for n in range(500)
    ]
    found = status(
        Phase.STALLED, message="m" * 99999, failed=failed, notes=["n" * 999] * 99,
        warnings=["w" * 9999] * 99,
    )  # fmt: skip
    assert len(found["failures"]) == 5
    assert found["failures"][0]["log"].startswith("s3://bucket/ns/blobs/ff/fff")
    assert len(str(found)) < 100_000
    BuildStatus.model_validate(found)


def test_defaults_of_the_apiserver_are_no_difference() -> None:
    found = status(Phase.BUILDING)
    echoed = found | {"cached": 0, "artifacts": [], "progress": ""}
    assert same_status(found, echoed)
    assert not same_status(found, echoed | {"cached": 1})


def test_a_failed_build_whose_toolchain_is_outdated_keeps_what_failed() -> None:
    error = BadModel("no such node", where="model.onnx")
    before = build_status(
        Outcome(Phase.STALLED, error.code, failed=[(TaskId("ingest"), error, "")], toolchain="old"),
        {},
        generation=1,
        now=NOW,
    )
    resting = Outcome(Phase.STALLED, error.code, outdated="versions changed")
    after = build_status(resting, before, generation=1, now=NOW)
    assert after["failures"] == before["failures"]
    assert after["toolchain"] == "old"
    assert shown(after)["ToolchainOutdated"] == "True"
    # Looked at anew, it says what it finds.
    again = build_status(Outcome(Phase.BUILDING, "Progressing"), after, generation=1, now=NOW)
    assert "failures" not in again
