"""The lease that a build of the cluster holds: what it names, when nothing is done too."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fake_apiserver import FakeApiserver

from genai_core.helper_jobs import LeaseFile
from genai_core.kinds.artifact_store import ArtifactStoreSpec
from genai_core.kinds.base import SecretRef
from genai_core.kinds.build import BuildSpec
from genai_core.names import Backend, Key
from genai_core.store.address import StoreAddress
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.store.protocol import Lease, RecordRef
from genai_operator.builds.build_pass import BuildPass
from genai_operator.builds.leases import BuildLeases
from genai_operator.builds.reconciler import BuildReconciler
from genai_operator.builds.status import Outcome
from genai_operator.jobs.access import StoreAccess
from genai_operator.jobs.job_manifest import Owner
from genai_operator.kube.status.status_phase import Phase
from genai_operator.kube.watch.observed import Observed
from genai_operator.settings import Settings
from genai_operator.stores.open_stores import OpenStore, Stores

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
NAME = f"sha256-{'ab' * 32}"
REF = RecordRef("ingest", Key("1" * 64))
ACCESS = StoreAccess(address="s3://genai/team")
TARGET: Any = None  # no helper Job is run here


class HelperJobs:
    """What would be handed to Jobs."""

    def __init__(self) -> None:
        self.sent: list[LeaseFile] = []

    async def ask(self, _one: BuildPass, document: LeaseFile, _key: str, **_: Any) -> None:
        self.sent.append(document)


def a_pass(source: str, status: Mapping[str, Any] | None = None, **more: Any) -> BuildPass:
    spec = BuildSpec.model_validate({"model": {"source": source}, "targets": ["cpu"], **more})
    return BuildPass({}, spec, Owner("b", "uid"), "team", 1, "", status or {}, BEGAN)


def opened(folder: Path | None) -> OpenStore:
    """A store that the operator reaches itself; without a folder, one that only Jobs reach."""
    spec = ArtifactStoreSpec(bucket="genai", secret_ref=SecretRef(name="s3"))
    store = DirectoryStore(folder) if folder is not None else None
    return OpenStore(spec, StoreAddress("genai", "team"), None, store, ACCESS)


def uploads(folder: Path) -> tuple[str, ...] | None:
    lease = DirectoryStore(folder).get_lease("build-uid")
    assert lease is not None
    return lease.uploads


def test_an_uploaded_model_is_claimed_before_anything_is_looked_up(tmp_path: Path) -> None:
    leases = BuildLeases("east", HelperJobs())  # type: ignore[arg-type]
    place = opened(tmp_path)
    asyncio.run(leases.claim_upload(a_pass("s3://models/mine"), place))
    assert not (tmp_path / "leases").exists(), "a model elsewhere is its owner's"
    one = a_pass(f"s3://genai/team/sources/{NAME}")
    asyncio.run(leases.claim_upload(one, place))
    assert uploads(tmp_path) == (NAME,)
    leases.claim(one, place, [REF])
    assert uploads(tmp_path) == (NAME,)
    asyncio.run(leases.settle(one, place, [REF], containers={}, access=ACCESS, target=TARGET))
    assert uploads(tmp_path) == (NAME,), "it may be asked to be resolved anew"
    edited = a_pass("s3://models/mine")
    asyncio.run(leases.settle(edited, place, [REF], containers={}, access=ACCESS, target=TARGET))
    assert uploads(tmp_path) == ()


def test_an_uploaded_child_is_claimed_beside_the_model(tmp_path: Path) -> None:
    leases = BuildLeases("east", HelperJobs())  # type: ignore[arg-type]
    other = f"sha256-{'cd' * 32}"
    children = [
        {"arn": 1, "source": f"s3://genai/team/sources/{other}"},
        {"arn": 8, "source": "s3://models/verify"},
    ]
    one = a_pass(f"s3://genai/team/sources/{NAME}", children=children)
    asyncio.run(leases.claim_upload(one, opened(tmp_path)))
    assert sorted(uploads(tmp_path) or ()) == [NAME, other]


def test_a_lease_of_an_older_operator_is_told_what_it_did_not_know(tmp_path: Path) -> None:
    soon = datetime.now(UTC) + timedelta(days=29)
    DirectoryStore(tmp_path).put_lease(Lease("build-uid", "east", (REF,), soon, uploads=None))
    leases = BuildLeases("east", HelperJobs())  # type: ignore[arg-type]
    one = a_pass(f"s3://genai/team/sources/{NAME}", {"artifacts": [{}]})
    asyncio.run(leases.at_rest(one, opened(tmp_path), access=ACCESS, target=TARGET))
    assert uploads(tmp_path) == (NAME,)
    lease = DirectoryStore(tmp_path).get_lease("build-uid")
    assert lease is not None
    assert lease.records == (REF,)


def test_a_build_that_was_never_built_keeps_its_model(tmp_path: Path) -> None:
    """It is suspended, or failed: there was no lease yet."""
    leases = BuildLeases("east", HelperJobs())  # type: ignore[arg-type]
    one = a_pass(f"s3://genai/team/sources/{NAME}")
    asyncio.run(leases.at_rest(one, opened(tmp_path), access=ACCESS, target=TARGET))
    assert uploads(tmp_path) == (NAME,)


def test_jobs_that_write_leases_are_told_of_uploads_where_there_are_any() -> None:
    helpers = HelperJobs()
    leases = BuildLeases("east", helpers)  # type: ignore[arg-type]
    place = opened(None)
    for source in (f"s3://genai/team/sources/{NAME}", "s3://models/mine"):
        one = a_pass(source)
        asyncio.run(leases.at_rest(one, place, access=ACCESS, target=TARGET))
        asyncio.run(leases.settle(one, place, [REF], containers={}, access=ACCESS, target=TARGET))
    assert [document.uploads for document in helpers.sent] == [(NAME,), (NAME,), None, None]
    assert b"uploads" not in helpers.sent[-1].model_dump_json(exclude_none=True).encode()
    assert helpers.sent[1].records == (str(REF),)


@pytest.mark.parametrize("state", [Phase.SUSPENDED, Phase.STALLED])
def test_a_build_that_waits_for_its_user_is_looked_after(
    monkeypatch: pytest.MonkeyPatch, state: Phase
) -> None:
    """Else its lease ends after a month, and with it the last good container."""

    api = FakeApiserver()
    builds = BuildReconciler(api, Observed(), Stores(api, Settings()))
    meta = {"name": "b", "namespace": "team", "uid": "uid", "generation": 1}
    spec = {"model": {"source": "s3://models/mine"}, "targets": [Backend.CPU.value.lower()]}
    value = {"metadata": meta, "spec": spec, "status": {}}

    async def outcome(_: BuildPass) -> Outcome:
        return Outcome(state, "Why", "so it is")

    async def report(*_: Any) -> None:
        return

    monkeypatch.setattr(builds, "_outcome", outcome)
    monkeypatch.setattr(builds._reporter, "report", report)
    again = asyncio.run(builds._pass(value))
    assert again is not None
    assert 0 < again <= timedelta(days=1).total_seconds()
