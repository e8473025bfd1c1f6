"""`genai graph --html`: one self-contained page that draws a plan. No script is needed to read it.

Boxes are tasks, green where their result is in the store, blue where they will run; arrows are
data. Pointing at a task lights up what it needs and what needs it. A drawing of many columns is
drawn closer and made to fit the window; a switch shows it in its own size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources

from genai_cli.display.graph_layout import lay_out
from genai_cli.display.words import counted
from genai_cli.engine.events import PlannedTask, PlanReady

__all__ = ["drawing", "page", "resource"]

_BOX = (212, 46)
_GAP = (76, 14)
_MARGIN = 24
_HEAD = 40
_MANY = 10
"""More columns than this stand closer, with narrower boxes."""
_NARROW_BOX, _NARROW_GAP = (166, 46), (32, 12)
_LETTER = {"name": 8.2, "target": 7.4, "detail": 7.3}
"""Pixels that a letter takes at most, of the page's fonts."""
_WORDS = {"run": "ran", "idle": "not started"}
"""What is said of a finished build's tasks, where it is not the class itself."""


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
{resource("graph_page.css")}</style></head><body>
<header><h1>{escape(name)}</h1>
<p>{counted(len(tasks), "task")}: <span class="key cached"></span>{cached} cached
<span class="key run"></span>{len(tasks) - cached} will run.
An arrow that follows from others is left out.</p>
{f"<ul>{facts}</ul>" if facts else ""}{open_end}</header>
<input type="checkbox" id="own-size"><label for="own-size">full size</label>
<div class="drawing">{drawing(tasks)}</div>
<details><summary>All tasks</summary><table>
<thead><tr><th>task</th><th>key</th><th>state</th><th>why</th></tr></thead>
<tbody>{rows}</tbody></table></details>
<script>
{resource("graph_page.js")}</script>
</body></html>
"""


def resource(name: str) -> str:
    """A file that is written into pages."""
    return resources.files("genai_cli.display").joinpath(name).read_text(encoding="utf-8")


def _row(task: PlannedTask) -> str:
    state = "cached" if task.cached else "will run"
    cells = (task.id, task.key[:12], state, task.why)
    return "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in cells) + "</tr>"


@dataclass(frozen=True)
class _Grid:
    """Sizes of a drawing in pixels: (width, height) of a box and of the room between two."""

    box: tuple[int, int]
    gap: tuple[int, int]

    def height(self, rows: int) -> int:
        """Of a column."""
        return rows * (self.box[1] + self.gap[1]) - self.gap[1]


def drawing(tasks: Sequence[PlannedTask], states: Mapping[str, str] | None = None) -> str:
    """Tasks and what they read, SVG.

    Args:
        tasks: Each behind those that it reads from.
        states: Task -> one word that says what became of it, a class of the style sheet; None = a
            plan: cached, or to be run.
    """
    layout = lay_out(tasks)
    grid = _Grid(_BOX, _GAP)
    if len(layout.columns) > _MANY:
        grid = _Grid(_NARROW_BOX, _NARROW_GAP)
    by_id = {task.id: task for task in tasks}
    height = grid.height(max((len(column) for column in layout.columns), default=0))
    place: dict[str, tuple[float, float]] = {}
    heads = []
    for index, column in enumerate(layout.columns):
        x = _MARGIN + index * (grid.box[0] + grid.gap[0])
        top = _MARGIN + _HEAD + (height - grid.height(len(column))) / 2
        for row, task in enumerate(column):
            place[task] = (x, top + row * (grid.box[1] + grid.gap[1]))
        stages = " · ".join(dict.fromkeys(by_id[task].operation for task in column))
        room = grid.box[0] + grid.gap[0]
        heads.append(
            f'<text class="stage" x="{x + grid.box[0] / 2}" y="{_MARGIN + 12}">'
            f"{escape(_cut(stages, room, 'name'))}</text>"
        )
    number = {task.id: n for n, task in enumerate(tasks)}
    lines = "".join(
        _edge(place[a], place[b], grid, (number[a], number[b])) for a, b in layout.edges
    )
    boxes = "".join(
        _box(task, place[task.id], grid, number[task.id], _state(task, states)) for task in tasks
    )
    columns = max(1, len(layout.columns))
    width = 2 * _MARGIN + columns * (grid.box[0] + grid.gap[0]) - grid.gap[0]
    total = 2 * _MARGIN + _HEAD + max(height, 0)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{total}" '
        f'viewBox="0 0 {width} {total}" role="img" aria-label="tasks and what they read">'
        f"{''.join(heads)}<g>{lines}</g><g>{boxes}</g></svg>"
    )


def _edge(
    start: tuple[float, float], end: tuple[float, float], grid: _Grid, numbers: tuple[int, int]
) -> str:
    x1, y1 = start[0] + grid.box[0], start[1] + grid.box[1] / 2
    x2, y2 = end[0], end[1] + grid.box[1] / 2
    bend = min((x2 - x1) / 2, grid.gap[0])
    return (
        f'<path class="edge" data-a="{numbers[0]}" data-b="{numbers[1]}" '
        f'd="M{x1:g},{y1:g}C{x1 + bend:g},{y1:g} {x2 - bend:g},{y2:g} {x2:g},{y2:g}"/>'
    )


def _state(task: PlannedTask, states: Mapping[str, str] | None) -> tuple[str, str]:
    """The class of a task's box, and the words for it."""
    if states is None:
        return ("cached", "cached") if task.cached else ("run", "will run")
    state = states.get(task.id, "idle")
    return state, _WORDS.get(state, state)


def _box(
    task: PlannedTask, at: tuple[float, float], grid: _Grid, number: int, look: tuple[str, str]
) -> str:
    x, y = at
    left = 14 if grid.box == _BOX else 9
    room = grid.box[0] - 2 * left
    detail = " ".join(part for part in (task.graph, task.split) if part)
    kind, state = look
    key = f"\n{task.key[:32]}" if task.key else ""
    tip = f"{task.id}\n{state}: {task.why}{key}" if task.why else f"{task.id}\n{state}{key}"
    rest = task.id.removeprefix(f"{task.operation}/").removeprefix(f"{task.target}/")
    second = detail or (state if rest in {task.operation, task.target} else rest)
    name = _cut(task.operation, room, "name")
    beside = room - len(name) * _LETTER["name"] - 7
    third = ""
    if task.target and len(task.target) * _LETTER["target"] <= beside:
        third = f'<tspan class="target" dx="7">{escape(task.target)}</tspan>'
    return (
        f'<g class="task {kind}" data-n="{number}" tabindex="0">'
        f"<title>{escape(tip)}</title>"
        f'<rect x="{x:g}" y="{y:g}" width="{grid.box[0]}" height="{grid.box[1]}" rx="8"/>'
        f'<text x="{x + left:g}" y="{y + 19:g}" class="name">{escape(name)}{third}</text>'
        f'<text x="{x + left:g}" y="{y + 36:g}" class="detail">'
        f"{escape(_cut(second, room, 'detail'))}</text></g>"
    )


def _cut(text: str, room: float, kind: str) -> str:
    """As much of a text as fits; the whole stands in the box's title."""
    most = max(1, int(room / _LETTER[kind]))
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
