"""The drawing of a plan: layout and page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from genai_cli.display.graph_layout import lay_out
from genai_cli.display.graph_page import page
from genai_cli.engine.events import PlannedTask, PlanReady


@st.composite
def plans(draw: st.DrawFn) -> list[PlannedTask]:
    """Random acyclic plans whose operations may come in any order."""
    count = draw(st.integers(0, 14))
    found: list[PlannedTask] = []
    for number in range(count):
        after = draw(st.lists(st.sampled_from([t.id for t in found]), max_size=4)) if found else []
        operation = draw(st.sampled_from(["ingest", "arcl", "convert"]))
        found.append(PlannedTask(f"t{number}", operation, after=tuple(after)))
    return found


def reachable(edges: set[tuple[str, str]], start: str) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        here = todo.pop()
        for a, b in edges:
            if a == here and b not in seen:
                seen.add(b)
                todo.append(b)
    return seen


@given(plans())
def test_every_task_is_placed_once_and_arrows_point_right(tasks: list[PlannedTask]) -> None:
    layout = lay_out(tasks)
    placed = [task for column in layout.columns for task in column]
    assert sorted(placed) == sorted(task.id for task in tasks)
    column = {task: n for n, tasks_of in enumerate(layout.columns) for task in tasks_of}
    assert all(column[a] < column[b] for a, b in layout.edges)


@given(plans())
def test_arrows_left_out_follow_from_the_others(tasks: list[PlannedTask]) -> None:
    drawn = set(lay_out(tasks).edges)
    full = {(before, task.id) for task in tasks for before in task.after}
    assert drawn <= full
    for task in tasks:
        assert reachable(drawn, task.id) == reachable(full, task.id)
    for edge in drawn:  # and none of those drawn is superfluous
        assert edge[1] not in reachable(drawn - {edge}, edge[0])


def test_a_stage_has_one_column() -> None:
    tasks = [
        PlannedTask("ingest", "ingest"),
        PlannedTask("arcl", "arcl", after=("ingest",)),
        PlannedTask("convert/htp", "convert", after=("arcl",)),
        PlannedTask("convert/cpu", "convert", after=("ingest",)),
    ]
    assert [set(column) for column in lay_out(tasks).columns] == [
        {"ingest"},
        {"arcl"},
        {"convert/htp", "convert/cpu"},
    ]


class Tags(HTMLParser):
    """Checks that tags close in order; counts what is drawn."""

    void = frozenset({"meta", "rect", "path", "br", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.classes: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.classes.append(values.get("class") or "")
        self.links += [v for k in ("src", "href") if (v := values.get(k))]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        assert tag in self.void

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


PLAN = PlanReady(
    (
        PlannedTask("ingest", "ingest", key="ab" * 32, cached=True, why="its record stands"),
        PlannedTask("arcl/<b>&", "arcl", graph="ar1_cl256", after=("ingest",), why="no <record>"),
    ),
    derived=("3 splits: each below 2 GB",),
)


def test_the_page_is_whole_and_draws_every_task_in_its_state() -> None:
    text = page("a & b", PLAN)
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert tags.classes.count("task cached") == 1
    assert tags.classes.count("task run") == 1
    assert tags.classes.count("edge") == 1
    assert "1 cached" in text
    assert "1 will run" in text
    assert "3 splits: each below 2 GB" in text


def test_the_page_needs_nothing_from_elsewhere() -> None:
    text = page("x", PLAN)
    tags = Tags()
    tags.feed(text)
    assert tags.links == []
    assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org/2000/svg)", text)


def test_names_cannot_break_out_of_the_page() -> None:
    text = page("<script>alert(1)</script>", PLAN)
    assert "<script>alert" not in text
    assert "<record>" not in text
    assert "arcl/&lt;b&gt;&amp;" in text


def test_an_unfinished_plan_says_so() -> None:
    assert "Further tasks follow" in page("x", PlanReady(PLAN.tasks, complete=False))
    assert "Further tasks follow" not in page("x", PLAN)


def test_an_empty_plan_is_a_page_too() -> None:
    tags = Tags()
    tags.feed(page("x", PlanReady(())))
    assert tags.open == []


def test_twenty_columns_and_a_hundred_tasks_fit_the_page() -> None:
    """Every text stays in its box, no two boxes meet, and the window's width is enough."""
    tasks: list[PlannedTask] = []
    before: list[str] = []
    for column in range(20):
        names = [f"stage_of_a_long_name_{column}/sm8750/{row}" for row in range(5)]
        tasks += [
            PlannedTask(
                name, name.partition("/")[0], target="dsp_arch:v79;soc_model:69",
                graph="ar128_cl4096", split=f"{row}/5", after=tuple(before),
            )
            for row, name in enumerate(names)
        ]  # fmt: skip
        before = names
    text = page("big", PlanReady(tuple(tasks)))
    assert re.search(r"svg \{[^}]*max-width: 100%;[^}]*height: auto", text)
    width, height = map(float, re.findall(r'<svg [^>]*width="(\d+)" height="(\d+)"', text)[0])
    assert width / height < 20
    assert width <= 4200, "two and a half windows: legible when it is made to fit"
    boxes = [
        tuple(map(float, found))
        for found in re.findall(
            r'<rect x="([\d.]+)" y="([\d.]+)" width="(\d+)" height="(\d+)"', text
        )
    ]
    assert len(boxes) == 100
    for x, y, wide, high in boxes:
        assert x >= 0
        assert x + wide <= width
        assert y + high <= height
    assert len({(x, y) for x, y, *_ in boxes}) == 100
    columns = sorted({x for x, *_ in boxes})
    assert all(b - a > boxes[0][2] for a, b in pairwise(columns))
    for kind, letter in (("name", 8.2), ("detail", 7.3)):
        shown = re.findall(rf'class="{kind}">([^<]*)', text)
        assert max(map(len, shown)) * letter <= boxes[0][2]
