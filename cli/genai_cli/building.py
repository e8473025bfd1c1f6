"""A build from its spec to its containers: plan, run, deliver, report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from genai_cli.containers import Delivered, deliver, folder_name
from genai_cli.engine import plan_build, run_plan
from genai_cli.output import emit
from genai_cli.render import progress
from genai_cli.settings import Settings
from genai_cli.summary import as_json, print_summary
from genai_core.kinds.build import GenAIBuild
from genai_core.store.location import open_store

__all__ = ["run_build"]


def run_build(
    build: GenAIBuild,
    settings: Settings,
    *,
    store: str | None,
    read_from: Sequence[str],
    output: Path,
    jobs: int | None,
) -> int:
    """Run a build and print what came of it; returns the exit code.

    Args:
        build: What to build; its source is absolute.
        settings: Of the program.
        store: Address of the store; None = the settings'.
        read_from: Further stores, only read.
        output: Gets `<build>/<target>/`.
        jobs: Tasks at once; None = what the machine bears.
    """
    name = build.metadata.name
    artifacts = open_store(store or settings.store, read_from=read_from)
    planned = plan_build(build.spec, Path.cwd(), artifacts, name=name)
    with progress(f"{name} → {', '.join(build.spec.targets)}") as report:
        result = run_plan(planned, on_event=report, jobs=jobs)
    containers: dict[str, Delivered] = {}
    for target, record in result.containers.items():
        path = (output / name / folder_name(target)).absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        containers[target] = deliver(record, artifacts, path, target=target)
    if settings.json:
        emit(as_json(name, result, containers))
    else:
        console = Console(highlight=False)
        print_summary(console, name, result=result, containers=containers)
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    for failure in result.failures:
        sys.stderr.write(f"error: {failure.id}: {failure.error}\n")
    return result.failures[0].error.exit_code if result.failures else 0
