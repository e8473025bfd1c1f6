"""`genai graph --html`: one self-contained page that draws a plan. No script is needed to read it.

Boxes are tasks, green where their result is in the store, blue where they will run; arrows are
data. Pointing at a task lights up what it needs and what needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources

from genai_cli.events import PlanReady, TaskView
from genai_cli.graph_layout import lay_out
from genai_cli.words import counted

__all__ = ["page"]

_BOX = (212, 46)
_GAP = (76, 14)
_MARGIN = 24
_HEAD = 40


def page(name: str, plan: PlanReady) -> str:
    """The page, HTML 5.

    Args:
        name: Of the build.
        plan: Its tasks.
    """
    tasks = plan.tasks
    cached = sum(task.cached for task in tasks)
    facts = "".join(f"<li>{escape(text)}</li>" for text in plan.derived)
    open_end = "" if plan.complete else "<p>Further tasks follow from what ingest finds.</p>"
    rows = "".join(_row(task) for task in tasks)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(name)}: plan</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
{_resource("graph_page.css")}</style></head><body>
<header><h1>{escape(name)}</h1>
<p>{counted(len(tasks), "task")}: <span class="key cached"></span>{cached} cached
<span class="key run"></span>{len(tasks) - cached} will run.
An arrow that follows from others is left out.</p>
{f"<ul>{facts}</ul>" if facts else ""}{open_end}</header>
<div class="drawing">{_drawing(tasks)}</div>
<details><summary>All tasks</summary><table>
<thead><tr><th>task</th><th>key</th><th>state</th><th>why</th></tr></thead>
<tbody>{rows}</tbody></table></details>
<script>
{_resource("graph_page.js")}</script>
</body></html>
"""


def _resource(name: str) -> str:
    return resources.files("genai_cli").joinpath(name).read_text(encoding="utf-8")


def _row(task: TaskView) -> str:
    state = "cached" if task.cached else "will run"
    cells = (task.id, task.key[:12], state, task.why)
    return "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in cells) + "</tr>"


def _drawing(tasks: Sequence[TaskView]) -> str:
    layout = lay_out(tasks)
    by_id = {task.id: task for task in tasks}
    tallest = max((len(column) for column in layout.columns), default=0)
    height = tallest * (_BOX[1] + _GAP[1]) - _GAP[1]
    place: dict[str, tuple[float, float]] = {}
    heads = []
    for index, column in enumerate(layout.columns):
        x = _MARGIN + index * (_BOX[0] + _GAP[0])
        own = len(column) * (_BOX[1] + _GAP[1]) - _GAP[1]
        for row, task in enumerate(column):
            y = _MARGIN + _HEAD + (height - own) / 2 + row * (_BOX[1] + _GAP[1])
            place[task] = (x, y)
        stages = " · ".join(dict.fromkeys(by_id[task].operation for task in column))
        heads.append(
            f'<text class="stage" x="{x + _BOX[0] / 2}" y="{_MARGIN + 12}">{escape(stages)}</text>'
        )
    number = {task.id: n for n, task in enumerate(tasks)}
    lines = "".join(_edge(place[a], place[b], number[a], number[b]) for a, b in layout.edges)
    boxes = "".join(_box(task, place[task.id], number[task.id]) for task in tasks)
    width = 2 * _MARGIN + max(1, len(layout.columns)) * (_BOX[0] + _GAP[0]) - _GAP[0]
    total = 2 * _MARGIN + _HEAD + max(height, 0)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{total}" '
        f'viewBox="0 0 {width} {total}" role="img" aria-label="tasks and what they read">'
        f"{''.join(heads)}<g>{lines}</g><g>{boxes}</g></svg>"
    )


def _edge(start: tuple[float, float], end: tuple[float, float], a: int, b: int) -> str:
    x1, y1 = start[0] + _BOX[0], start[1] + _BOX[1] / 2
    x2, y2 = end[0], end[1] + _BOX[1] / 2
    bend = min((x2 - x1) / 2, _GAP[0])
    return (
        f'<path class="edge" data-a="{a}" data-b="{b}" '
        f'd="M{x1:g},{y1:g}C{x1 + bend:g},{y1:g} {x2 - bend:g},{y2:g} {x2:g},{y2:g}"/>'
    )


def _box(task: TaskView, at: tuple[float, float], number: int) -> str:
    x, y = at
    detail = " ".join(part for part in (task.graph, task.split) if part)
    state = "cached" if task.cached else "will run"
    key = f"\n{task.key[:32]}" if task.key else ""
    tip = f"{task.id}\n{state}: {task.why}{key}" if task.why else f"{task.id}\n{state}{key}"
    rest = task.id.removeprefix(f"{task.operation}/").removeprefix(f"{task.target}/")
    second = detail or (state if rest in {task.operation, task.target} else rest)
    third = f'<tspan class="target" dx="7">{escape(task.target)}</tspan>' if task.target else ""
    return (
        f'<g class="task {"cached" if task.cached else "run"}" data-n="{number}" tabindex="0">'
        f"<title>{escape(tip)}</title>"
        f'<rect x="{x:g}" y="{y:g}" width="{_BOX[0]}" height="{_BOX[1]}" rx="8"/>'
        f'<text x="{x + 14:g}" y="{y + 19:g}" class="name">{escape(task.operation)}{third}</text>'
        f'<text x="{x + 14:g}" y="{y + 36:g}" class="detail">{escape(second[:30])}</text></g>'
    )
