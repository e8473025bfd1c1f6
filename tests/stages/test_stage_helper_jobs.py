"""Questions about a store that only pods reach: leases with uploads, and cleaning."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from genai_core.helper_jobs import CollectFile, LeaseFile
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.protocol import Lease
from genai_stages.worker.helper_jobs import answer_question

NAME = f"sha256-{'ab' * 32}"
RECORD = f"ingest/{'1' * 64}"


def uploads(store: DirectoryStore) -> tuple[str, ...] | None:
    lease = store.get_lease("b")
    assert lease is not None
    return lease.uploads


def question(**fields: object) -> LeaseFile:
    return LeaseFile.model_validate({"name": "b", "holder": "east", **fields})


def test_a_lease_by_helper_job_names_the_builds_model(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    answer_question(question(), store)
    assert store.get_lease("b") is None, "there is nothing to renew"
    answer_question(question(uploads=[NAME]), store)
    assert uploads(store) == (NAME,), "it is suspended, and was never built"
    answer_question(question(records=[RECORD], uploads=[NAME]), store)
    assert uploads(store) == (NAME,)
    answer_question(question(records=[RECORD], containers={}, uploads=[NAME]), store)
    assert uploads(store) == (NAME,)
    answer_question(question(), store)
    assert uploads(store) == (NAME,), "at rest nothing is lost"
    answer_question(question(records=[RECORD], containers={}), store)
    assert uploads(store) == ()


def test_cleaning_tells_what_became_of_uploads(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.put_lease(Lease("b", "east", (), datetime.now(UTC) + timedelta(days=1)))
    facts = answer_question(CollectFile(grace_days=1), store).facts
    assert facts["uploadsKept"] == facts["uploadsDeleted"] == 0
