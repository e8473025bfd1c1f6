"""`report.html`: everything of a build on one page that opens from disk."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from genai_cli.build.report import write_report
from genai_cli.display.report_page import (
    AdapterRow,
    BuildReport,
    ContainerReport,
    TaskCost,
    report_page,
)
from genai_cli.engine.events import BuildResult, PlannedTask, PlanReady, TaskFailed
from genai_core.errors import BadInput

TASKS = (
    PlannedTask("ingest", "ingest", cached=True),
    PlannedTask("convert/cpu/int8", "convert", target="cpu", after=("ingest",)),
    PlannedTask("compile/cpu/int8", "compile", target="cpu", after=("convert/cpu/int8",)),
    PlannedTask("package/cpu/int8", "package", target="cpu", after=("compile/cpu/int8",)),
)
STATES = {
    "ingest": "cached", "convert/cpu/int8": "run", "compile/cpu/int8": "failed",
    "package/cpu/int8": "idle",
}  # fmt: skip


class Tags(HTMLParser):
    """Tags with their attributes, and the text between."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "input", "path", "rect"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in {"path", "rect"}:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page(**changes: object) -> str:
    matched = {"matched": 314}
    report = BuildReport(
        name="tiny <b>", headline="4 tasks: 1 run", derived=("context length 256: as given",),
        tasks=TASKS, states=STATES,
        costs=(
            TaskCost("ingest", "cached", 4.7, 148_000_000, 13_900_000, ("6.7e-07",), matched),
            TaskCost("convert/cpu/int8", "run", 1.2, coverage={"float": 2}),
            TaskCost("compile/cpu/int8", "failed"),
        ),
        containers=(
            ContainerReport(
                "cpu", {"revision": "sha256:12", "verified": ""}, {"model.onnx": 10, "m.data": 99},
                {"natsPerToken": 3.8, "baselineNats": 3.7, "budget": 0.01, "within": False},
                (AdapterRow("c-headers", "rank 8", "126 kB", {"natsPerToken": 1.8618}),),
            ),
        ),
        warnings=("it <warns>",), failures=("compile/cpu/int8: BadModel",),
    )  # fmt: skip
    return report_page(BuildReport(**{**vars(report), **changes}))


def test_report_page_is_well_formed_and_reads_nothing_from_elsewhere() -> None:
    made = page()
    found = Tags(made)
    assert found.open == [], "every tag is closed"
    for tag, attributes in found.tags:
        assert tag not in {"link", "img", "iframe"}
        assert not {"src", "href"} & set(attributes)
    assert not re.search(r"url\(|@import|fetch\(", made)
    assert "tiny <b>" in found.text
    assert "it <warns>" in found.text, "text of others is no markup"


def test_report_page_shows_what_became_of_each_task() -> None:
    boxes = [
        str(attributes.get("class"))
        for tag, attributes in Tags(page()).tags
        if tag == "g" and attributes.get("data-n") is not None
    ]
    assert boxes == ["task cached", "task run", "task failed", "task idle"]
    text = Tags(page()).text
    for word in ("ran", "from the store", "failed", "not started", "compile/cpu/int8: BadModel"):
        assert word in text


def test_report_page_shows_times_sizes_drift_coverage_and_adapters() -> None:
    text = Tags(page()).text
    for shown in (
        "4.7 s", "148 MB", "13.9 MB", "6.7e-07", "314", "matched", "float", "c-headers", "rank 8",
        "1.8618", "rise +0.1000 of 0.01 allowed", "2 files", "sha256:12",
    ):  # fmt: skip
        assert shown in text, shown
    assert "propagated" not in text.split("Of tasks")[0], "a column that nothing has is left out"
    assert 'class="bad"' in page()


def test_report_page_says_so_when_no_container_was_built() -> None:
    assert "None was built." in Tags(page(containers=(), costs=(), tasks=(), states={})).text


def test_a_build_that_left_nothing_leaves_no_page_but_replaces_an_earlier_one(
    tmp_path: Path,
) -> None:
    plan = PlanReady(TASKS)
    failure = TaskFailed("ingest", BadInput("it is broken", where="model.onnx"))
    result = BuildResult({}, total=4, run=0, cached=0, seconds=1.0, failures=(failure,))
    write_report(tmp_path, "tiny", plan, result, {})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "report.html").write_text("earlier")
    write_report(tmp_path, "tiny", plan, result, {})
    assert "ingest: model.onnx: it is broken" in (tmp_path / "report.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
