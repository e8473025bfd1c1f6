"""A build in a cluster followed to its end, as a build on this machine is shown.

A poll each second compares what was with what is: a list from the apiserver's own memory costs it
nothing, and there is no watch to lose. News go to standard error as lines, or onto a board.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from rich.live import Live
from rich.text import Text

from genai_cli.cluster.api_errors import ClusterUnavailable
from genai_cli.cluster.build_views import ClusterBuild, ClusterTask
from genai_cli.display import output
from genai_cli.display.board import BoardRow, RunningTask
from genai_cli.display.console import PlainConsole
from genai_cli.display.render import board_view
from genai_cli.display.words import counted, duration, size
from genai_core.errors import GenAIError

__all__ = ["Followed", "News", "follow", "news"]

_EVERY = 1.0
_PATIENCE = 15.0
_UNTAKEN = 120.0
_UNANSWERED = 120.0


@dataclass
class Followed:
    """What was seen of a build so far.

    Attributes:
        view: As it is now.
        ended: Key of a task that was seen to run -> how it ended.
        peak_memory: The largest that a task's process said of itself.
    """

    view: ClusterBuild
    ended: dict[str, ClusterTask] = field(default_factory=dict)
    peak_memory: int = 0

    def take(self, view: ClusterBuild) -> None:
        """Note what a later look shows."""
        self.view = view
        for task in view.tasks:
            if not task.active:
                self.ended[task.key] = task
            peak = task.said.get("peakMemoryBytes")
            self.peak_memory = max(self.peak_memory, peak if isinstance(peak, int) else 0)


@dataclass(frozen=True)
class News:
    """A line about what happened; `bad` and `odd` are shown in their colors."""

    text: str
    bad: bool = False
    odd: bool = False


def news(before: ClusterBuild, now: ClusterBuild) -> Iterator[News]:
    """What happened between two looks."""
    if now.taken_up and now.plan and now.plan != before.plan:
        yield News(f"plan     {counted(now.total, 'task')}, {now.cached} cached")
        for note in now.plan:
            yield News(f"         {note}")
    known = {(task.key, task.attempt): task for task in before.tasks}
    for task in now.tasks:
        earlier = known.get((task.key, task.attempt))
        yield from _of_task(task, earlier)
    for text in now.warnings:
        if text not in before.warnings:
            yield News(f"warning  {text}", odd=True)
    if now.taken_up and now.ready != before.ready and now.phase in {"Waiting", "Suspended"}:
        yield News(f"waiting  {now.ready[1]}: {now.ready[2]}", odd=True)


def _of_task(task: ClusterTask, earlier: ClusterTask | None) -> Iterator[News]:
    began = task.state == "running" or (task.node and not task.active)
    if began and (earlier is None or earlier.state == "waiting"):
        again = f", attempt {task.attempt}" if task.attempt > 1 else ""
        yield News(f"start    {task.label} ({task.node}{again})")
    if earlier is not None and earlier.state == task.state:
        if task.waits != earlier.waits and task.waits not in {"", "its pod starts", "no pod yet"}:
            yield News(f"waiting  {task.label}: {task.waits}", odd=True)
        return
    if task.state == "done":
        peak = task.said.get("peakMemoryBytes")
        cost = f", {size(peak)}" if isinstance(peak, int) and peak else ""
        yield News(f"done     {task.label} ({duration(task.seconds)}{cost})")
    elif task.state == "failed":
        error = task.said.get("error")
        why = error.get("code", "") if isinstance(error, dict) else "its process ended badly"
        yield News(f"failed   {task.ended_in}: {why} after {duration(task.seconds)}", bad=True)


def follow(title: str, first: ClusterBuild, look: Callable[[], ClusterBuild]) -> Followed:
    """Show a build until it is built, or somebody has to act.

    Args:
        title: Name and targets.
        first: As it is now.
        look: Reads it again.

    Raises:
        GenAIError: It is gone, or nobody takes it up, or the apiserver does not come back.
    """
    followed = Followed(first)
    followed.take(first)
    began = time.monotonic()
    told_untaken = False
    with _shown(title, followed) as tell:
        for item in news(_nothing_of(first), first):
            tell(item)
        while not followed.view.settled:
            time.sleep(_EVERY)
            before, now = followed.view, _patiently(look, tell)
            if now.uid != before.uid:
                raise GenAIError(
                    "it was deleted and made anew",
                    where=title,
                    remedy="the same command follows the new one",
                )
            followed.take(now)
            for item in news(before, now):
                tell(item)
            waited = time.monotonic() - began
            if now.taken_up or waited < _PATIENCE:
                continue
            if waited > _UNTAKEN:
                raise _nobody(now)
            if not told_untaken:
                told_untaken = True
                tell(News(f"waiting  {_nobody(now).message}", odd=True))
    return followed


def _nobody(view: ClusterBuild) -> GenAIError:
    return GenAIError(
        "the operator has not taken it up yet; does it run?",
        where=f"{view.namespace}/{view.name}",
        remedy="see kubectl get pods -A -l app.kubernetes.io/name=genai-operator; the build stands "
        "and goes on when it runs",
    )


def _nothing_of(view: ClusterBuild) -> ClusterBuild:
    """What ended before anybody looked is no news."""
    ended = tuple(task for task in view.tasks if not task.active)
    return replace(view, tasks=ended, plan=() if not view.settled else view.plan)


def _patiently(look: Callable[[], ClusterBuild], tell: Callable[[News], None]) -> ClusterBuild:
    """Look until the apiserver answers; a restart of it is no reason to give up."""
    began = time.monotonic()
    while True:
        try:
            return look()
        except ClusterUnavailable as error:
            if time.monotonic() - began > _UNANSWERED:
                raise
            tell(News(f"waiting  {error}", odd=True))
            time.sleep(2 * _EVERY)


class _Board:
    """A build in a cluster as `board_view` draws it."""

    memory = 0

    def __init__(self, followed: Followed) -> None:
        self._followed = followed
        self.started = time.monotonic()

    @property
    def complete(self) -> bool:
        return bool(self._followed.view.total)

    def rows(self) -> list[BoardRow]:
        return [
            BoardRow(s.operation, s.total, s.running, s.cached, s.done, s.failed)
            for s in self._followed.view.stages
        ]

    def totals(self) -> BoardRow:
        rows = self.rows()
        return BoardRow(
            operation="",
            total=sum(row.total for row in rows),
            running=sum(row.running for row in rows),
            cached=sum(row.cached for row in rows),
            done=sum(row.done for row in rows),
            failed=sum(row.failed for row in rows),
        )

    def running(self, now: float) -> list[RunningTask]:
        del now  # of a clock that the cluster does not share
        clock = datetime.now(UTC)
        return [
            RunningTask(
                id=task.label,
                seconds=max((clock - task.since).total_seconds(), 0.0),
                attempt=task.attempt,
                waiting=task.waits if task.state == "waiting" else "",
                node=task.node,
            )
            for task in self._followed.view.running
        ]


@contextmanager
def _shown(title: str, followed: Followed) -> Iterator[Callable[[News], None]]:
    console = PlainConsole(stderr=True, highlight=False)
    shown: set[str] = set()
    if not console.is_terminal or console.is_dumb_terminal:

        def tell(item: News) -> None:
            if item.text not in shown or not item.odd:
                shown.add(item.text)
                output.tell(item.text)
                sys.stderr.flush()

        yield tell
        return
    board = _Board(followed)

    class Picture:
        def __rich__(self) -> object:
            return board_view(title, board, time.monotonic())

    with Live(Picture(), console=console, refresh_per_second=4, transient=True) as live:  # type: ignore[arg-type]

        def say(item: News) -> None:
            if (item.bad or item.odd) and item.text not in shown:
                shown.add(item.text)
                style = "red" if item.bad else "yellow"
                mark = "✗" if item.bad else "!"
                text = Text.assemble((f"{mark} ", style), item.text[9:])
                live.console.print(text, soft_wrap=True)

        yield say
