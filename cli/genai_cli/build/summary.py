"""The end of a build: what was made, what it cost, what went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from genai_cli.containers.choice import best_to_run, trial_of
from genai_cli.display.words import counted, duration, size
from genai_cli.engine.events import BuildResult
from genai_core.store.delivery import Delivered

__all__ = ["as_json", "print_summary"]


def as_json(name: str, result: BuildResult, containers: Mapping[str, Delivered]) -> dict[str, Any]:
    """The object that `genai build --json` prints."""
    found: dict[str, Any] = {
        "name": name,
        "containers": {target: item.as_json() for target, item in containers.items()},
        "tasks": {
            "total": result.total,
            "run": result.run,
            "cached": result.cached,
            "failed": len(result.failures),
        },
        "seconds": round(result.seconds, 3),
        "peakMemoryBytes": result.peak_memory_bytes,
        "warnings": list(result.warnings),
    }
    if result.failures:
        found["failures"] = [
            {"task": failure.id, **failure.error.as_dict(), "log": str(failure.log or "")}
            for failure in result.failures
        ]
        found["error"] = result.failures[0].error.as_dict()
    return found


def print_summary(
    console: Console, name: str, *, result: BuildResult, containers: Mapping[str, Delivered]
) -> None:
    """Print what people want to know after a build."""
    facts = [f"{result.run} run", f"{result.cached} cached"]
    left = result.total - result.run - result.cached - len(result.failures)
    if result.failures:
        facts.append(f"{len(result.failures)} failed")
    if left > 0:
        facts.append(f"{left} not started")
    cost = [duration(result.seconds)]
    if result.peak_memory_bytes:
        cost.append(f"peak memory {size(result.peak_memory_bytes)}")
    mark = "[red]✗[/]" if result.failures else "[green]✓[/]"
    _print(
        console,
        f"{mark} [bold]{escape(name)}[/]: {counted(result.total, 'task')} "
        f"({', '.join(facts)}) in {', '.join(cost)}",
    )
    width = max((len(target) for target in containers), default=0)
    for target, item in containers.items():
        state = "[green]new[/]" if item.changed else "[dim]unchanged[/]"
        path = escape(_shown(item.path))
        _print(console, f"  {escape(target):{width}}  [bold]{path}[/]")
        _print(console, f"  {'':{width}}  {item.revision}  {size(item.size_bytes)}  {state}")
    for text in result.warnings:
        _print(console, f"  [yellow]warning[/] {escape(text)}")
    for failure in result.failures:
        error = failure.error
        _print(console, f"  [red]failed[/]  [bold]{escape(failure.id)}[/] ({error.code})")
        where = f"{error.where}: " if error.where else ""
        _print(console, f"          {escape(where + error.message)}")
        if error.remedy:
            _print(console, f"          what to do: {escape(error.remedy)}")
        if failure.log:
            _print(console, f"          log: {escape(str(failure.log))}")
    if not result.failures and containers:
        target, command = _try(containers)
        _print(console, f"  [dim]try[/] {escape(target)}  {escape(command)}")


def _try(containers: Mapping[str, Delivered]) -> tuple[str, str]:
    """The target whose container is best to try, and the command that does it."""
    targets = {item.path: target for target, item in containers.items()}
    best = best_to_run(list(targets))
    if best is None:
        return "it", "on a device: none of them runs here; build the cpu target for one that does"
    return targets[best], trial_of(best, shown=_shown(best))


def _print(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False)


def _shown(path: Path) -> str:
    """Relative to where the user stands, where that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
