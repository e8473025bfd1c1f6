"""A plan as a table, as JSON, as a page, and one task of it explained."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rich.text import Text

from genai_cli.build.spec_flags import SpecFlags
from genai_cli.build.spec_source import build_of
from genai_cli.display.console import PlainConsole
from genai_cli.display.output import emit, say, table, tell
from genai_cli.display.render import busy
from genai_cli.display.words import counted
from genai_cli.engine.events import PlannedTask, PlanReady
from genai_cli.engine.local_engine import PlannedBuild, plan_build
from genai_cli.settings import ProgramSettings
from genai_core.errors import BadInput
from genai_core.kinds.documents.problems import nearest
from genai_core.store.location import open_store

__all__ = ["show_plan"]

_SHORT_KEY = 12


def show_plan(
    flags: SpecFlags,
    settings: ProgramSettings,
    *,
    store: str | None,
    read_from: Sequence[str],
    html: bool,
    explain: str | None,
) -> int:
    """Plan the build that the flags mean and print the plan; returns the exit code."""
    if settings.json and html:
        raise BadInput("--json and --html exclude each other", where="genai graph")
    settings.in_options = flags.file is None
    wanted = build_of(flags)
    artifacts = open_store(store or settings.store, read_from=read_from)
    with busy("reading the model and looking up what is there"):
        planned = plan_build(
            wanted.spec, Path.cwd(), artifacts, name=wanted.metadata.name, bring=False
        )
    for text in planned.warnings:
        tell(f"warning: {text}")
    if explain is not None:
        task = _task(planned.ready, explain)
        emit(_as_json(task)) if settings.json else _explain(planned.ready, task)
    elif settings.json:
        emit({"name": planned.name, **plan_as_json(planned)})
    elif html:
        from genai_cli.display.graph_page import page

        _write_page(planned.name, page(planned.name, planned.ready))
    else:
        _print_table(planned)
    return 0


def plan_as_json(planned: PlannedBuild) -> dict[str, Any]:
    """The object that `genai graph --json` prints, without the name."""
    ready = planned.ready
    return {
        "complete": ready.complete,
        "derived": list(ready.derived),
        "warnings": list(planned.warnings),
        "tasks": [_as_json(task) for task in ready.tasks],
    }


def _as_json(task: PlannedTask) -> dict[str, Any]:
    return {
        "id": task.id,
        "operation": task.operation,
        "target": task.target,
        "graph": task.graph,
        "split": task.split,
        "key": task.key,
        "after": list(task.after),
        "cached": task.cached,
        "why": task.why,
    }


def _write_page(name: str, text: str) -> None:
    """Into the pipe; on a terminal, where nobody wants to see HTML, into a file."""
    if not sys.stdout.isatty():
        sys.stdout.write(text)
        return
    path = Path(f"{name}-plan.html")
    path.write_text(text, encoding="utf-8")
    tell(f"written to {path}")


def _print_table(planned: PlannedBuild) -> None:
    ready = planned.ready
    console = PlainConsole(highlight=False)
    cached = sum(task.cached for task in ready.tasks)
    more = "" if ready.complete else " so far; the rest follows from what ingest finds"
    console.print(
        Text.assemble(
            (planned.name, "bold"),
            f": {counted(len(ready.tasks), 'task')}, {cached} cached, "
            f"{len(ready.tasks) - cached} to run{more}",
        ),
        soft_wrap=True,
    )
    for text in ready.derived:
        console.print(Text(f"  {text}", style="dim"), soft_wrap=True)
    say()
    table(
        ("task", "key", "state", "why"),
        [
            (task.id, task.key[:_SHORT_KEY] or "-", "cached" if task.cached else "run", task.why)
            for task in ready.tasks
        ],
    )


def _task(ready: PlanReady, name: str) -> PlannedTask:
    found = [task for task in ready.tasks if name in {task.id, task.key}]
    found = found or [task for task in ready.tasks if task.key.startswith(name) and len(name) > 5]
    if len(found) == 1:
        return found[0]
    ids = [task.id for task in ready.tasks]
    near = nearest(name, ids) or next((task for task in ids if name in task), None)
    near = near or next(iter(get_close_matches(name, ids, n=1)), None)
    remedy = f"did you mean {near}?" if near else "genai graph lists the tasks of this plan"
    raise BadInput("there is no such task in the plan", where=f"--explain {name}", remedy=remedy)


def _explain(ready: PlanReady, task: PlannedTask) -> None:
    console = PlainConsole(highlight=False)

    def line(name: str, text: str) -> None:
        console.print(Text.assemble((f"{name:10}", "dim"), text), soft_wrap=True)

    console.print(Text(task.id, style="bold"), soft_wrap=True)
    line("state", "cached" if task.cached else "will run")
    line("why", task.why or "-")
    line("key", task.key or "known once its inputs are")
    by_id = {other.id: other for other in ready.tasks}
    for name in task.after:
        other = by_id.get(name)
        state = "" if other is None else " (cached)" if other.cached else " (will run)"
        line("reads", f"{name}{state}")
    for other in ready.tasks:
        if task.id in other.after:
            line("needed by", other.id)
