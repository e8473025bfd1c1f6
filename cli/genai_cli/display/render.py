"""A build while it runs, on standard error: a live board on a terminal, plain lines in a pipe.

Both are fed by the engine's events. Standard output stays free for the result.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.markup import escape
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from genai_cli.display.board import Board, BoardRow, RunningTask
from genai_cli.display.console import PlainConsole
from genai_cli.display.words import counted, duration, size
from genai_cli.engine.events import (
    BuildWarning,
    Event,
    PlanReady,
    TaskCached,
    TaskDone,
    TaskFailed,
    TaskStarted,
    TaskWaiting,
)

__all__ = [
    "LiveProgress",
    "PlainProgress",
    "ProgressDisplay",
    "Shown",
    "board_view",
    "busy",
    "progress",
]

_MOST_RUNNING = 8
_BAR_WIDTH = 28


class ProgressDisplay(Protocol):
    """Called with each event; used in a `with` statement."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def __call__(self, event: Event) -> None:
        """Show what happened."""


def progress(title: str) -> ProgressDisplay:
    """The progress that suits standard error."""
    console = PlainConsole(stderr=True, highlight=False)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveProgress(title, console)
    return PlainProgress(console)


@contextmanager
def busy(text: str) -> Iterator[None]:
    """Show on a terminal that something goes on which says nothing itself."""
    console = PlainConsole(stderr=True, highlight=False)
    if not console.is_terminal or console.is_dumb_terminal:
        yield
        return
    with console.status(escape(text)):
        yield


class PlainProgress:
    """One line for each thing that happened; tasks that are cached are counted, not listed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._cached = 0
        self._planned = 0
        self._told: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tell_cached()

    def __call__(self, event: Event) -> None:
        """Print what the event says."""
        if isinstance(event, TaskCached):
            self._cached += 1
            return
        if isinstance(event, PlanReady):
            # Planned again, e.g. after a fidelity check: news only where the tasks are others.
            if len(event.tasks) == self._planned or not event.complete:
                return
            self._planned = len(event.tasks)
        lines = list(_lines(event))
        if lines:
            self._tell_cached()
        for line in lines:
            if line not in self._told or isinstance(event, TaskStarted):
                self._told.add(line)
                self._print(line)

    def _tell_cached(self) -> None:
        if self._cached:
            self._print(f"cached   {counted(self._cached, 'task')}")
            self._cached = 0

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)


def _lines(event: Event) -> Iterator[str]:
    match event:
        case PlanReady() if event.complete:
            cached = sum(task.cached for task in event.tasks)
            yield f"plan     {counted(len(event.tasks), 'task')}, {cached} cached"
            yield from (f"         {text}" for text in event.derived)
        case TaskWaiting():
            yield f"waiting  {event.id}: {event.why}"
        case TaskStarted():
            again = f" (attempt {event.attempt})" if event.attempt > 1 else ""
            yield f"start    {event.id}{again}"
        case TaskDone():
            cost = [duration(event.seconds)]
            if event.peak_memory_bytes:
                cost.append(size(event.peak_memory_bytes))
            yield f"done     {event.id} ({', '.join(cost)})"
            yield from (f"warning  {event.id}: {text}" for text in event.warnings)
        case TaskFailed():
            yield _failed(event)
        case BuildWarning():
            where = f"{event.where}: " if event.where else ""
            yield f"warning  {where}{event.message}"
        case _:
            pass


def _failed(event: TaskFailed) -> str:
    log = f"; log: {event.log}" if event.log else ""
    return f"failed   {event.id}: {event.error.code} after {duration(event.seconds)}{log}"


class LiveProgress:
    """A board that redraws itself: stages with counts, what runs and for how long, memory."""

    def __init__(self, title: str, console: Console) -> None:
        self._title = title
        self._lock = threading.Lock()
        self._board = Board(started=time.monotonic())
        self._live = Live(
            self, console=console, refresh_per_second=8, transient=True, redirect_stdout=False
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take note; failures and warnings stay on the screen above the board."""
        with self._lock:
            before = len(self._board.warnings)
            self._board.apply(event, time.monotonic())
            new = self._board.warnings[before:]
        if isinstance(event, TaskFailed):
            self._live.console.print(f"[red]✗[/] {escape(_failed(event)[9:])}", soft_wrap=True)
        for text in new:
            self._live.console.print(f"[yellow]![/] {escape(text)}", soft_wrap=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the board as it is now; called by Live's own thread."""
        with self._lock:
            now = time.monotonic()
            yield board_view(self._title, self._board, now)


class Shown(Protocol):
    """What a picture of a build is made of: a `Board`, or a build in a cluster."""

    @property
    def started(self) -> float:
        """When it began, seconds of the clock that the picture is drawn by."""
        ...

    @property
    def complete(self) -> bool:
        """No further tasks can appear."""
        ...

    @property
    def memory(self) -> int:
        """Resident memory of the running tasks, bytes; 0 where nobody knows."""
        ...

    def rows(self) -> list[BoardRow]:
        """One row for each operation."""
        ...

    def totals(self) -> BoardRow:
        """All tasks in one row."""
        ...

    def running(self, now: float) -> list[RunningTask]:
        """Running tasks."""
        ...


def board_view(title: str, board: Shown, now: float) -> RenderableType:
    """A picture of the board.

    Args:
        title: Name and targets of the build.
        board: Its state.
        now: Of the clock that the board was told.
    """
    total = board.totals()
    head = Table.grid(padding=(0, 2))
    facts = [f"[bold]{escape(title)}[/]", f"[cyan]{duration(now - board.started)}[/]"]
    if total.total:
        more = "" if board.complete else " so far"
        facts.append(f"{total.ended}/{counted(total.total, 'task')}{more}")
    if board.memory:
        facts.append(f"{size(board.memory)} in memory")
    head.add_row(*facts)
    stages = Table.grid(padding=(0, 2))
    stages.add_column(min_width=10)
    stages.add_column(width=_BAR_WIDTH)
    stages.add_column(justify="right")
    stages.add_column()
    for row in board.rows():
        stages.add_row(row.operation, _bar(row), f"{row.ended}/{row.total}", _counts(row))
    running = Table.grid(padding=(0, 2))
    tasks = board.running(now)
    for task in tasks[:_MOST_RUNNING]:
        if task.waiting:
            why = f"[yellow]{escape(task.waiting)}[/]"
            running.add_row("[yellow]…[/]", escape(task.id), why, escape(task.node))
        else:
            again = f" [yellow]attempt {task.attempt}[/]" if task.attempt > 1 else ""
            seconds = f"{duration(task.seconds)}{again}"
            running.add_row("[cyan]▸[/]", escape(task.id), seconds, escape(task.node))
    if len(tasks) > _MOST_RUNNING:
        running.add_row("", f"[dim]and {len(tasks) - _MOST_RUNNING} more[/]", "", "")
    parts: list[RenderableType] = [head, Padding(stages, (0, 0, 0, 2))]
    if tasks:
        parts.append(Padding(running, (0, 0, 0, 2)))
    return Group(*parts)


def _bar(row: BoardRow) -> RenderableType:
    style = "red" if row.failed else "green" if row.ended == row.total else "cyan"
    return ProgressBar(
        total=row.total or 1,
        completed=row.ended,
        width=_BAR_WIDTH,
        complete_style=style,
        finished_style=style,
    )


def _counts(row: BoardRow) -> Text:
    parts = [
        (f"{row.failed} failed", "red", row.failed),
        (f"{row.running} running", "cyan", row.running),
        (f"{row.cached} cached", "dim", row.cached),
    ]
    return Text(" · ").join(Text(text, style=style) for text, style, count in parts if count)
