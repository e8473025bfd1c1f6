"""`report.html`: one self-contained page of a finished build. No script is needed to read it.

It shows the graph of tasks with each one's outcome; containers with sizes, fidelity and adapters;
each task's time, memory, drift and encodings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from genai_cli.display.graph_page import drawing, resource
from genai_cli.display.words import duration, size
from genai_cli.engine.events import PlannedTask

__all__ = ["AdapterRow", "BuildReport", "ContainerReport", "TaskCost", "report_page"]


@dataclass(frozen=True)
class AdapterRow:
    """An adapter or a use case of a container.

    Attributes:
        name: By which it is chosen.
        what: Its rank and linears, or its adapters with their alphas.
        size: Of its file and, where it has them, its own binaries; empty where it has neither.
        drift: As the package measured it.
    """

    name: str
    what: str
    size: str
    drift: Mapping[str, Any]


@dataclass(frozen=True)
class ContainerReport:
    """A container.

    Attributes:
        target: That it was built for.
        facts: Name -> text.
        files: Path -> bytes.
        fidelity: What its fidelity task found.
        adapters: That it carries.
    """

    target: str
    facts: Mapping[str, str]
    files: Mapping[str, int]
    fidelity: Mapping[str, Any]
    adapters: Sequence[AdapterRow] = ()


@dataclass(frozen=True)
class TaskCost:
    """What a task took and found.

    Attributes:
        task: Its id.
        state: run, cached, failed or idle.
        seconds: Wall time when it was made, here or elsewhere; None = it was not.
        peak_memory_bytes: Of its process.
        bytes_written: Of its outputs.
        drift: Of its output against its input, in words.
        coverage: matched, propagated, calibrated, float -> encodings or tensors.
    """

    task: str
    state: str
    seconds: float | None = None
    peak_memory_bytes: int = 0
    bytes_written: int = 0
    drift: Sequence[str] = ()
    coverage: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class BuildReport:
    """All that the page shows.

    Attributes:
        name: Of the build.
        headline: Tasks, time, memory.
        derived: Sentences of the plan.
        tasks: Of the plan, in order.
        states: Task -> run, cached, failed or idle.
        costs: Of each task.
        containers: Of each target that was built.
        warnings: Sentences.
        failures: The same, of tasks that failed.
    """

    name: str
    headline: str
    derived: Sequence[str]
    tasks: Sequence[PlannedTask]
    states: Mapping[str, str]
    costs: Sequence[TaskCost]
    containers: Sequence[ContainerReport]
    warnings: Sequence[str] = ()
    failures: Sequence[str] = ()


_KEYS = (
    ("run", "ran"),
    ("cached", "from the store"),
    ("failed", "failed"),
    ("idle", "not started"),
)
_COLUMNS = ("matched", "propagated", "calibrated", "float")


def report_page(report: BuildReport) -> str:
    """The page, HTML 5."""
    states = set(report.states.values())
    keys = "".join(
        f'<span class="key {state}"></span>{words} ' for state, words in _KEYS if state in states
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(report.name)}: build report</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
{resource("graph_page.css")}{resource("report_page.css")}</style></head><body>
<header><h1>{escape(report.name)}</h1><p>{escape(report.headline)}</p>
{_list(report.failures, "failures")}{_list(report.warnings, "warnings")}</header>
<section><h2>Containers</h2><div class="cards">
{"".join(map(_container, report.containers)) or "<p>None was built.</p>"}</div></section>
<section><h2>Tasks</h2><p>{keys}An arrow that follows from others is left out.</p></section>
<input type="checkbox" id="own-size"><label for="own-size">full size</label>
<div class="drawing">{drawing(report.tasks, report.states)}</div>
<section>{_list(report.derived, "derived")}</section>
<section><h2>Times, sizes, drift, encodings</h2>{_costs(report.costs)}</section>
<script>
{resource("graph_page.js")}</script>
</body></html>
"""


def _list(texts: Sequence[str], kind: str) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<ul class="{kind}">{items}</ul>' if items else ""


def _container(one: ContainerReport) -> str:
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>"
        for name, text in one.facts.items()
        if text
    )
    return (
        f"<article><h3>{escape(one.target)}</h3><dl>{facts}</dl>"
        f"{_fidelity(one.fidelity)}{_adapters(one.adapters)}{_files(one.files)}</article>"
    )


def _fidelity(found: Mapping[str, Any]) -> str:
    loss, baseline = found.get("natsPerToken"), found.get("baselineNats")
    if not isinstance(loss, int | float) or not isinstance(baseline, int | float):
        return ""
    rise, budget = loss - baseline, found.get("budget")
    allowed = f" of {budget:g} allowed" if isinstance(budget, int | float) else ""
    kind = "bad" if found.get("within") is False else "good"
    rows = [("container", loss), ("source, encodings simulated", baseline)]
    if isinstance(floating := found.get("floatNats"), int | float):
        rows.append(("source in float", floating))
    cells = "".join(
        f'<tr><td>{name}</td><td class="number">{value:.4f}</td></tr>' for name, value in rows
    )
    tokens = f" on {found['tokens']} tokens" if "tokens" in found else ""
    text = f", text {escape(str(found['text']))}" if "text" in found else ""
    return (
        f"<h4>Loss, nats a token{tokens}{text}</h4><table>{cells}</table>"
        f'<p class="{kind}">rise {rise:+.4f}{allowed}</p>'
    )


def _adapters(rows: Sequence[AdapterRow]) -> str:
    if not rows:
        return ""
    made = "".join(
        f"<tr><td>{escape(row.name)}</td><td>{escape(row.what)}</td>"
        f'<td class="number">{escape(row.size)}</td>'
        + "".join(
            f'<td class="number">{_digits(row.drift.get(name))}</td>'
            for name in ("natsPerToken", "baselineNats", "divergence")
        )
        + f"<td>{escape(str(row.drift.get('unmeasured', '')))}</td></tr>"
        for row in rows
    )
    return (
        "<h4>Adapters and use cases</h4><table><thead><tr><th>name</th><th></th>"
        '<th class="number">size</th><th class="number">nats</th><th class="number">source</th>'
        f'<th class="number">divergence</th><th></th></tr></thead>{made}</table>'
    )


def _files(files: Mapping[str, int]) -> str:
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="number">{size(count)}</td></tr>'
        for name, count in sorted(files.items(), key=lambda item: -item[1])
    )
    return f"<details><summary>{len(files)} files</summary><table>{rows}</table></details>"


def _digits(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else ""


def _costs(costs: Sequence[TaskCost]) -> str:
    longest = max((cost.seconds or 0.0 for cost in costs), default=0.0) or 1.0
    columns = [name for name in _COLUMNS if any(name in cost.coverage for cost in costs)]
    heads = "".join(f'<th class="number">{name}</th>' for name in columns)
    rows = "".join(_cost(cost, longest, columns) for cost in costs)
    note = (
        '<p class="note">Of tasks from the store: what they took when they were made. matched, '
        "propagated, calibrated, float: encodings that name a tensor, that follow from a "
        "neighbour's, that were measured, tensors left in floating point.</p>"
        if columns
        else '<p class="note">Of tasks from the store: what they took when they were made.</p>'
    )
    return (
        '<table class="costs"><thead><tr><th>task</th><th></th><th class="number">time</th>'
        '<th></th><th class="number">memory</th><th class="number">written</th><th>drift</th>'
        f"{heads}</tr></thead>{rows}</table>{note}"
    )


def _cost(cost: TaskCost, longest: float, columns: Sequence[str]) -> str:
    part = 100 * (cost.seconds or 0.0) / longest
    cells = [
        f"<td>{escape(cost.task)}</td>",
        f'<td><span class="key {cost.state}" title="{cost.state}"></span></td>',
        f'<td class="number">{"" if cost.seconds is None else duration(cost.seconds)}</td>',
        f'<td class="bar"><div class="{cost.state}" style="width:{part:.1f}%"></div></td>',
        f'<td class="number">{_size(cost.peak_memory_bytes)}</td>',
        f'<td class="number">{_size(cost.bytes_written)}</td>',
        f"<td>{escape(', '.join(cost.drift))}</td>",
    ]
    cells += [f'<td class="number">{cost.coverage.get(name, "")}</td>' for name in columns]
    return f"<tr>{''.join(cells)}</tr>"


def _size(count: int) -> str:
    return size(count) if count else ""
