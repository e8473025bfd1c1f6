"""What a build on a cluster came to, as a summary and as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.markup import escape

from genai_cli.cluster.build_views import ClusterBuild
from genai_cli.cluster.remote.followed_build import Followed
from genai_cli.display.console import PlainConsole
from genai_cli.display.output import emit, tell
from genai_cli.display.words import counted, duration, size
from genai_cli.settings import ProgramSettings
from genai_core.errors import GenAIError, from_dict


@dataclass(frozen=True)
class RemoteResult:
    """What a build came to.

    Attributes:
        followed: The build as it was read last.
        seconds: Since the command began.
        before: Target -> revision, when it was applied.
        stood: It was built already: nothing happened.
    """

    followed: Followed
    seconds: float
    before: Mapping[str, str]
    stood: bool


def report_result(settings: ProgramSettings, result: RemoteResult) -> int:
    """Print how a build ended; returns the exit code, that of the first failed task."""
    view = result.followed.view
    errors = [
        from_dict({"code": f.reason, "message": f.message, "where": f.task}) for f in view.failures
    ]
    if view.ready[0] != "True" and not errors:
        errors = [_of_ready(view)]
    if settings.json:
        emit(_as_json(result, errors))
    else:
        _print_summary(result)
    for failure in view.failures:
        tell(f"error: {failure.task}: {failure.message}")
    if errors and not view.failures:
        tell(f"error: {errors[0]}")
    return errors[0].exit_code if errors else 0


def _of_ready(view: ClusterBuild) -> GenAIError:
    """Why a build rests without being built."""
    _, reason, message = view.ready
    where = f"{view.namespace}/{view.name}"
    return from_dict({"code": reason, "message": message or reason, "where": where})


def _ran(result: RemoteResult) -> tuple[int, int]:
    view = result.followed.view
    if result.stood:
        return 0, view.total
    return sum(stage.done for stage in view.stages), view.cached


def _as_json(result: RemoteResult, errors: list[GenAIError]) -> dict[str, Any]:
    view = result.followed.view
    run, cached = _ran(result)
    value: dict[str, Any] = {
        "name": view.name,
        "namespace": view.namespace,
        "containers": {
            item.target: {
                "path": item.url,
                "revision": item.revision,
                "sizeBytes": item.size_bytes,
                "changed": result.before.get(item.target) != item.revision,
            }
            for item in view.artifacts
        },
        "tasks": {
            "total": view.total,
            "run": run,
            "cached": cached,
            "failed": len(view.failures),
        },
        "seconds": round(result.seconds, 3),
        "peakMemoryBytes": result.followed.peak_memory,
        "warnings": list(view.warnings),
    }
    if view.failures:
        value["failures"] = [
            {"task": f.task, **e.as_dict(), "log": f.log}
            for f, e in zip(view.failures, errors, strict=False)
        ]
    if errors:
        value["error"] = errors[0].as_dict()
    return value


def _print_summary(result: RemoteResult) -> None:
    view = result.followed.view
    console = PlainConsole(highlight=False)

    def put(text: str) -> None:
        console.print(text, soft_wrap=True)

    run, cached = _ran(result)
    facts = [f"{run} run", f"{cached} cached"]
    if view.failures:
        facts.append(f"{len(view.failures)} failed")
    cost = duration(result.seconds)
    if result.followed.peak_memory:
        cost += f", largest task {size(result.followed.peak_memory)}"
    good = view.ready[0] == "True"
    mark = "[green]✓[/]" if good else "[red]✗[/]"
    put(
        f"{mark} [bold]{escape(view.name)}[/]: {counted(view.total, 'task')} "
        f"({', '.join(facts)}) in {cost}"
    )
    width = max((len(item.target) for item in view.artifacts), default=0)
    for item in view.artifacts:
        same = result.before.get(item.target) == item.revision
        state = "[dim]unchanged[/]" if same else "[green]new[/]"
        if not good:
            state = "[yellow]of an earlier build[/]"
        line = f"  {escape(item.target):{width}}  {item.revision}  {size(item.size_bytes)}  {state}"
        put(line)
    for text in view.warnings:
        put(f"  [yellow]warning[/] {escape(text)}")
    for failure in view.failures:
        put(f"  [red]failed[/]  [bold]{escape(failure.task)}[/] ({failure.reason})")
        put(f"          {escape(failure.message)}")
        log = shlex.join(("genai", "logs", view.name, failure.task, "-n", view.namespace))
        put(f"          log: {escape(log)}")
    if good and view.artifacts:
        targets = [item.target for item in view.artifacts]
        target = "cpu" if "cpu" in targets else targets[-1]  # what runs where people sit
        get = shlex.join(("genai", "pull", view.name, "--target", target, "-n", view.namespace))
        put(f"  [dim]get it[/]  {escape(get)}")
