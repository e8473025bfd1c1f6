"""Options that are changed for a replay."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from genai_cli.build.replay import changed_config
from genai_cli.testing import InProcess
from genai_core.errors import InvalidSpec
from genai_core.names import Backend, Digest, Key
from genai_core.operations import (
    ChipConfig,
    CompileHtpConfig,
    GraphConfig,
    SplitConfig,
    operation_of,
)
from genai_core.store.directory.directory_store import DirectoryStore
from genai_core.tasks.keys import task_key
from genai_core.tasks.record import Record, ToolchainUsed, entry_folder

COMPILE = operation_of("compile", Backend.HTP)
CONFIG = CompileHtpConfig(
    chip=ChipConfig(soc_model=69, dsp_arch=79),
    split=SplitConfig(index=1, count=1, first=0, last=2, embedding=True, lm_head=True),
    graphs=(GraphConfig(ar=1, cl=256),),
    options={"graphs.O": "3"},
).model_dump(mode="json")


def changed(*changes: str) -> dict[str, Any]:
    record = Record(
        operation="compile",
        key=Key("0" * 64),
        config=CONFIG,
        toolchain=ToolchainUsed(id=Digest("0" * 64)),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    return changed_config(COMPILE, record, changes)


def test_without_changes_the_config_is_the_record_s() -> None:
    assert changed() == CONFIG


def test_vendor_options_have_dots_in_their_names_and_text_as_values() -> None:
    found = changed("options.graphs.O=2", "options.graphs.vtcm_size_in_mb=4")
    assert found == CONFIG | {"options": {"graphs.O": "2", "graphs.vtcm_size_in_mb": "4"}}


def test_other_fields_are_reached_through_dots_and_read_as_yaml() -> None:
    found = changed("chip.dsp_arch=75", "weight_sharing=no", "graphs=[{ar: 8, cl: 64}]")
    assert found["chip"] == {"soc_model": 69, "dsp_arch": 75}
    assert found["weight_sharing"] is False
    assert found["graphs"] == [{"ar": 8, "cl": 64}]


@pytest.mark.parametrize(
    ("operation", "config", "says"),
    [
        ("resolve", {}, "resolve is no stage that can be run again here"),
        ("convert", {"backend": "Npu"}, "convert is no stage that can be run again here"),
        ("arcl", {"graph": {"ar": 1, "cl": 2}, "old": 3}, "made by another version"),
        ("arcl", {}, "made by another version"),
    ],
)
def test_an_entry_of_another_version_is_said_to_be_one(
    tmp_path: Path, operation: str, config: dict[str, Any], says: str
) -> None:
    store = DirectoryStore(tmp_path)
    record = Record(
        operation=operation,
        key=task_key(operation, 1, toolchain_id=Digest("0" * 64), config=config, inputs={}),
        config=config,
        toolchain=ToolchainUsed(id=Digest("0" * 64)),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    store.commit(record)
    ran = InProcess(tmp_path)("replay", str(tmp_path / entry_folder(record)))
    assert ran.code == 2
    assert says in ran.errors[0]
    assert f"error: model/{operation}_" in ran.errors[0]


def test_the_record_is_not_changed() -> None:
    before = repr(CONFIG)
    changed("chip.dsp_arch=75", "options.graphs.O=1")
    assert repr(CONFIG) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("chip.dsp_arc=75", r"^--set chip\.dsp_arc: unknown option"),
        ("weight_sharng=no", r"^--set weight_sharng: unknown option; did you mean weight_sharing"),
        ("split=x", r"^--set split: "),
    ],
)
def test_a_wrong_change_is_named(change: str, said: str) -> None:
    with pytest.raises(InvalidSpec, match=said):
        changed(change)
