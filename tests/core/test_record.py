"""Records: round trips, what they refuse, and the vendor's form."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from genai_core.canonical import digest_bytes
from genai_core.files.paths import check_relative_path
from genai_core.tasks.record import (
    RESERVED_SLUGS,
    Blob,
    Output,
    Record,
    entry_folder,
    flat_strings,
    model_slug,
    record_of_sidecar,
    sidecar,
)

MakeRecord = Callable[..., Record]
ONE, TWO = digest_bytes(b"1"), digest_bytes(b"22")


def test_round_trip_keeps_everything(make_record: MakeRecord) -> None:
    record = make_record(
        config={"absent": None, "list": [1, None], "deep": {"none": None}},
        facts={"layers": 4, "nothing": None},
        outputs={
            "a/b.onnx": Output(sha256=ONE, size=1),
            "c.dlc": Output(sha256=TWO, size=2, semantic=ONE),
        },
        measurements={"seconds": 1.5, "notes": {"x": None}, "log": {"sha256": TWO, "size": 2}},
    )
    assert Record.from_bytes(record.to_bytes()) == record
    assert record_of_sidecar(sidecar(record)) == record
    seen = json.loads(record.to_bytes())
    assert seen["schema"] == "genai.record/1"
    assert seen["config"]["absent"] is None, "null in a config is what was hashed"
    assert "semantic" not in seen["outputs"]["a/b.onnx"]
    assert record.identities() == {"a/b.onnx": ONE, "c.dlc": ONE}
    assert record.blobs() == {ONE: 1, TWO: 2}


def test_bytes_do_not_depend_on_zone_or_order(make_record: MakeRecord) -> None:
    here = datetime(2026, 3, 1, 1, 30, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    one = make_record(created_at=here, facts={"a": 1, "b": 2.0})
    two = make_record(created_at=here.astimezone(UTC), facts={"b": 2, "a": 1})
    assert one.to_bytes() == two.to_bytes()
    assert json.loads(one.to_bytes())["created_at"] == "2026-02-28T20:00:00Z"


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../x", "a/../b", "a/./b", "a//b", "a/", "a\\b", "a\nb", "a\0b", ".", ".."],
)
def test_paths_that_leave_the_folder_are_refused(path: str, make_record: MakeRecord) -> None:
    with pytest.raises(ValueError, match=r"relative path|leaves its folder"):
        check_relative_path(path)
    with pytest.raises(ValidationError):
        make_record({path: Blob(sha256=ONE, size=1)})


@pytest.mark.parametrize(
    "fields",
    [
        {"outputs": {"builder_cache_info.json": {"sha256": ONE, "size": 1}}},
        {"outputs": {"a": {"sha256": ONE, "size": 1}, "a/b": {"sha256": ONE, "size": 1}}},
        {"outputs": {"a": {"sha256": "sha256:" + ONE, "size": 1}}},
        {"outputs": {"a": {"sha256": ONE, "size": -1}}},
        {"operation": "Convert/../x"},
        {"key": "short"},
        {"model": "../up"},
        {"model": "records"},
        {"created_at": datetime(2026, 1, 1)},  # noqa: DTZ001
        {"unknown": 1},
        {"schema": "genai.record/2"},
        {"measurements": {"seconds": float("inf")}},
    ],
)
def test_records_that_make_no_sense_are_refused(
    fields: dict[str, Any], make_record: MakeRecord
) -> None:
    with pytest.raises(ValidationError):
        make_record(**fields)


def test_records_are_frozen(make_record: MakeRecord) -> None:
    record = make_record()
    with pytest.raises(ValidationError):
        record.operation = "other"  # type: ignore[misc]


def test_vendor_form_is_all_strings(make_record: MakeRecord) -> None:
    config = {
        "graphs": {"vtcm_size_in_mb": 8, "O": 3.0},
        "flag": True,
        "ars": [1, 32],
        "none": None,
        "empty": {},
        "name": "x",
    }
    record = make_record(config=config, operation="compile")
    seen = json.loads(sidecar(record))
    assert seen["config"] == {
        "ars": "[1,32]",
        "empty": "{}",
        "flag": "true",
        "graphs.O": "3",
        "graphs.vtcm_size_in_mb": "8",
        "name": "x",
        "none": "",
    }
    assert re.fullmatch("[0-9a-f]{64}", seen["hash"])
    assert entry_folder(record) == f"tiny-llama/compile_{seen['hash'][:32]}"
    assert datetime.fromisoformat(seen["created_at"]).utcoffset() == timedelta(0)


@pytest.mark.parametrize("damage", [b"[]", b"{}", b"null", b'{"record": {}}', b"{"])
def test_foreign_sidecars_are_refused(damage: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        record_of_sidecar(damage)


@given(st.text())
def test_any_name_makes_a_slug(text: str) -> None:
    slug = model_slug(text)
    assert re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", slug)
    assert slug not in RESERVED_SLUGS
    assert model_slug(slug) == slug


def test_slugs() -> None:
    assert model_slug("Meta Llama/3.1 (8B)") == "meta-llama-3.1-8b"
    for folder in ("records", "sweeps", "sources"):
        assert model_slug(folder) == f"{folder}-model", "a store keeps its own things there"
    assert flat_strings({}) == {}
