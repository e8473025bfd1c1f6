"""The board and its two renderings, fed by events."""

from __future__ import annotations

import io
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from genai_cli.display.board import Board, RunningTask
from genai_cli.display.render import LiveProgress, PlainProgress, board_view
from genai_cli.display.words import counted, duration, size
from genai_cli.engine.events import (
    BuildWarning,
    Event,
    MemorySampled,
    PlannedTask,
    PlanReady,
    TaskCached,
    TaskDone,
    TaskFailed,
    TaskStarted,
    TaskWaiting,
)
from genai_core.errors import BadEncodings

PLAN = PlanReady(
    (
        PlannedTask("ingest", "ingest"),
        PlannedTask("arcl/a", "arcl", after=("ingest",)),
        PlannedTask("arcl/b", "arcl", after=("ingest",)),
    ),
    derived=("AR 1 and 32: as the spec says",),
)
FAILURE = TaskFailed(
    "arcl/b", BadEncodings("x", where="f", remedy="y"), seconds=2.0, log=Path("/logs/b.txt")
)
STORY: list[Event] = [
    PLAN,
    TaskCached("ingest"),
    TaskStarted("arcl/a"),
    TaskWaiting("arcl/b", "needs 2 GB, 1 GB is free"),
    MemorySampled(3_000_000),
    MemorySampled(2_000_000),
    TaskDone("arcl/a", 1.5, 3_000_000, ("one thing",)),
    TaskStarted("arcl/b", attempt=2),
    BuildWarning("another", where="file"),
    FAILURE,
]


def board_after(events: list[Event]) -> Board:
    board = Board(started=0.0)
    for second, event in enumerate(events):
        board.apply(event, float(second))
    return board


def test_states_are_counted_for_each_operation() -> None:
    board = board_after(STORY)
    rows = {row.operation: row for row in board.rows()}
    assert list(rows) == ["ingest", "arcl"]
    assert (rows["ingest"].cached, rows["ingest"].ended, rows["ingest"].total) == (1, 1, 1)
    arcl = rows["arcl"]
    assert (arcl.done, arcl.failed, arcl.running, arcl.ended, arcl.total) == (1, 1, 0, 2, 2)
    assert board.totals().ended == board.totals().total == 3
    assert board.warnings == ["one thing", "file: another"]


def test_running_tasks_show_how_long_they_run_and_what_waits() -> None:
    board = board_after(STORY[:4])
    assert board.running(10.0) == [
        RunningTask("arcl/a", 8.0, 1),
        RunningTask("arcl/b", 0.0, 0, "needs 2 GB, 1 GB is free"),
    ]


def test_memory_is_nothing_once_nothing_runs() -> None:
    board = board_after(STORY[:6])
    assert (board.memory, board.peak) == (2_000_000, 3_000_000)
    assert board_after(STORY).memory == 0


def test_a_later_plan_replaces_the_tasks_and_keeps_what_happened() -> None:
    first = PlanReady((PLAN.tasks[0],), complete=False)
    board = board_after([first, TaskCached("ingest"), PLAN])
    assert board.complete
    assert board.totals().cached == 1
    assert board.totals().total == 3


def plain(events: list[Event]) -> list[str]:
    out = io.StringIO()
    with PlainProgress(Console(file=out, highlight=False)) as report:
        for event in events:
            report(event)
    return out.getvalue().splitlines()


def test_plain_lines_tell_the_story() -> None:
    assert plain(STORY) == [
        "plan     3 tasks, 0 cached",
        "         AR 1 and 32: as the spec says",
        "cached   1 task",
        "start    arcl/a",
        "waiting  arcl/b: needs 2 GB, 1 GB is free",
        "done     arcl/a (1.5 s, 3.00 MB)",
        "warning  arcl/a: one thing",
        "start    arcl/b (attempt 2)",
        "warning  file: another",
        "failed   arcl/b: BadEncodings after 2.0 s; log: /logs/b.txt",
    ]


def test_plain_lines_count_cached_tasks_instead_of_listing_them() -> None:
    many: list[Event] = [TaskCached(f"t{i}") for i in range(40)]
    assert plain(many) == ["cached   40 tasks"]


def test_plain_lines_do_not_read_brackets_as_markup() -> None:
    assert plain([BuildWarning("a [bold] thing [0]")]) == ["warning  a [bold] thing [0]"]


def drawn(board: Board, now: float) -> str:
    out = io.StringIO()
    Console(file=out, width=90, highlight=False).print(board_view("tiny → cpu", board, now))
    return out.getvalue()


def test_the_live_view_shows_counts_elapsed_time_and_memory() -> None:
    text = drawn(board_after(STORY[:6]), 12.0)
    assert "tiny → cpu" in text.splitlines()[0]
    assert "12 s" in text.splitlines()[0]
    assert "1/3 tasks" in text.splitlines()[0]
    assert "2.00 MB in memory" in text
    assert "arcl/a" in text
    assert "10 s" in text
    assert "needs 2 GB, 1 GB is free" in text
    assert "1 running" in text
    assert "1 cached" in text


def test_the_live_view_says_when_more_tasks_are_to_come() -> None:
    text = drawn(board_after([PlanReady((PLAN.tasks[0],), complete=False)]), 1.0)
    assert "0/1 task so far" in text


def test_live_progress_keeps_failures_and_warnings_on_the_screen() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, highlight=False)
    with LiveProgress("tiny", console) as report:
        for event in STORY:
            report(event)
    text = out.getvalue()
    assert "arcl/b: BadEncodings after 2.0 s; log: /logs/b.txt" in text
    assert "file: another" in text


@given(st.floats(0, 1e15))
def test_sizes_have_at_most_four_digits(count: float) -> None:
    number, unit = size(count).split()
    assert unit in {"B", "kB", "MB", "GB", "TB"}
    if unit != "TB":
        assert 0 <= float(number) < 1000
        assert len(number.replace(".", "")) <= 3
    scale = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]
    assert abs(float(number) * scale - count) <= max(0.5, 0.01 * count)


def test_durations_are_read_at_a_glance() -> None:
    shown = [duration(seconds) for seconds in (0.04, 9.94, 9.96, 59.6, 185, 3725)]
    assert shown == ["0.0 s", "9.9 s", "10 s", "1:00 min", "3:05 min", "1:02 h"]
    assert (counted(1, "task"), counted(0, "task")) == ("1 task", "0 tasks")
