"""Which record in a store is a task's: by operation, config and where its inputs come from."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from genai_cli.cluster.tasks import match_records
from genai_cli.containers.device import steps
from genai_core.canonical import digest_bytes
from genai_core.container.manifest import Manifest
from genai_core.names import MODEL, Digest, Key, TaskId
from genai_core.operations import OperationConfig
from genai_core.tasks.record import Output, Record, ToolchainUsed
from genai_planner.plan import Demand, Plan, Selection, Task

THEN = datetime(2026, 1, 1, tzinfo=UTC)


class Config(OperationConfig):
    """Of a made-up operation."""

    number: int = 0


def digest(text: str) -> Digest:
    return Digest(digest_bytes(text.encode()))


def task(name: str, *after: str, number: int = 0) -> Task:
    """A task that reads everything of others, or of the source."""
    parts = tuple(Selection(TaskId(other), ("*",)) for other in after) or (
        Selection(None, ("*",), MODEL),
    )
    operation = name.partition("/")[0]
    return Task(TaskId(name), operation, None, Config(number=number), {"in": parts}, Demand(1, 1.0))


def record(operation: str, reads: str, makes: str, *, number: int = 0, age: int = 0) -> Record:
    return Record(
        operation=operation,
        key=Key(digest(f"{operation} {reads} {makes} {number}")),
        config={"number": number},
        inputs={"in": {"a": digest(reads)}},
        outputs={"a": Output(sha256=digest(makes), size=1)},
        toolchain=ToolchainUsed(id=Digest("0" * 64)),
        created_at=THEN - timedelta(hours=age),
    )


PLAN = Plan((task("ingest"), task("convert/a", "ingest", number=1), task("package", "convert/a")))
SOURCE = frozenset({digest("model")})


def made(records: list[Record]) -> dict[str, str | None]:
    """Task -> what it made, as a word."""
    words = {digest(word): word for word in ("i", "j", "c", "d", "p", "q")}
    found = match_records(PLAN, records, SOURCE)
    return {
        name: words[one.outputs["a"].sha256] if one is not None else None
        for name, one in found.items()
    }


def test_records_are_found_along_the_plan() -> None:
    right = [
        record("ingest", "model", "i"),
        record("convert", "i", "c", number=1),
        record("package", "c", "p"),
    ]
    others = [
        record("ingest", "another model", "j"),
        record("convert", "j", "d", number=1),
        record("convert", "i", "d", number=2),
        record("package", "d", "q"),
    ]
    expected = {"ingest": "i", "convert/a": "c", "package": "p"}
    assert made([*right, *others]) == expected
    assert made([*reversed(others), *reversed(right)]) == expected


def test_of_several_that_fit_the_newest_counts() -> None:
    records = [record("ingest", "model", "j", age=5), record("ingest", "model", "i", age=1)]
    assert made(records)["ingest"] == "i"


def test_what_never_ran_has_none_and_nothing_follows_from_it() -> None:
    records = [record("convert", "i", "c", number=1), record("package", "c", "p")]
    assert made(records) == {"ingest": None, "convert/a": None, "package": None}
    assert made([record("ingest", "model", "i")]) == {
        "ingest": "i",
        "convert/a": None,
        "package": None,
    }


@pytest.mark.parametrize(
    ("soc", "arch", "shell"), [(69, 79, "adb push"), (60, 73, "genie-t2t-run.exe")]
)
def test_a_laptops_chip_needs_no_adb(tmp_path: Path, soc: int, arch: int, shell: str) -> None:
    target: dict[str, Any] = {
        "name": "chip",
        "backend": "Htp",
        "soc_model": soc,
        "dsp_arch": arch,
    }
    manifest = Manifest.model_validate(
        {"model": {}, "architecture": "llama", "target": target, "context_length": 1, "files": {}}
    )
    (tmp_path / "manifest.json").write_text(manifest.model_dump_json())
    text = "\n".join(line for step in steps(tmp_path, name="x") for line in step.commands)
    assert shell in text
    assert f"hexagon-v{arch}" in text
    assert ("adb" in text) == (shell == "adb push")
