"""Errands of a store that only pods reach: leases with uploads, and cleaning."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from genai_core.helper_jobs import CollectFile, LeaseFile
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.protocol import Lease
from genai_stages.worker.helper_jobs import run_errand

NAME = f"sha256-{'ab' * 32}"
RECORD = f"ingest/{'1' * 64}"


def uploads(store: DirectoryStore) -> tuple[str, ...] | None:
    lease = store.get_lease("b")
    assert lease is not None
    return lease.uploads


def errand(**fields: object) -> LeaseFile:
    return LeaseFile.model_validate({"name": "b", "holder": "east", **fields})


def test_a_lease_by_errand_names_the_builds_model(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    run_errand(errand(), store)
    assert store.get_lease("b") is None, "there is nothing to renew"
    run_errand(errand(uploads=[NAME]), store)
    assert uploads(store) == (NAME,), "it is suspended, and was never built"
    run_errand(errand(records=[RECORD], uploads=[NAME]), store)
    assert uploads(store) == (NAME,)
    run_errand(errand(records=[RECORD], containers={}, uploads=[NAME]), store)
    assert uploads(store) == (NAME,)
    run_errand(errand(), store)
    assert uploads(store) == (NAME,), "at rest nothing is lost"
    run_errand(errand(records=[RECORD], containers={}), store)
    assert uploads(store) == ()


def test_cleaning_tells_what_became_of_uploads(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.put_lease(Lease("b", "east", (), datetime.now(UTC) + timedelta(days=1)))
    facts = run_errand(CollectFile(grace_days=1), store).facts
    assert facts["uploadsKept"] == facts["uploadsDeleted"] == 0
