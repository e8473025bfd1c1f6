"""The leases of this machine's builds."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from genai_cli.engine.leases import Claim, claim_upload, working
from genai_core.store.directory.directory_store import DirectoryStore

NAME = f"sha256-{'ab' * 32}"


@pytest.mark.parametrize("host", ["laptop", "Kim\u2019s Mac (2).local", "h\udcffst", "x" * 300])
def test_any_name_of_a_machine_makes_a_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    store = DirectoryStore(tmp_path)
    with working(store, "b") as held:
        held.claim((), [NAME])
        (lease,) = store.list_leases()
        assert lease.uploads == (NAME,)
    assert store.list_leases() == [], "a build that has ended gives it up"
    assert claim_upload(store, NAME, "b") == ""
    assert Claim(store, "b", tmp_path, frozenset({NAME})).renew([], {}) == ""
    assert [lease.uploads for lease in store.list_leases()] == [(NAME,)] * 2


def test_a_lease_that_cannot_be_read_is_a_warning_at_the_end(tmp_path: Path) -> None:
    """The containers are there already."""
    claim = Claim(DirectoryStore(tmp_path), "b", tmp_path)
    (tmp_path / "leases").mkdir()
    (tmp_path / "leases" / f"{claim.lease_name}.json").write_text('{"schema": "genai.lease/9"}')
    assert "no lease could be written: leases/" in claim.renew([], {})


def test_a_model_that_cannot_be_claimed_is_told(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path, read_only=True)
    assert "gc may take the model" in claim_upload(store, NAME, "b")
