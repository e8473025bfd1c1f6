"""The tree of commands. Importing it imports every command's signature and nothing they use."""

from __future__ import annotations

from typing import Annotated

import typer

from genai_cli.commands import (
    adapter,
    build,
    cache,
    dashboard,
    evaluation,
    graph,
    inspection,
    remote,
    replay,
    running,
    serving,
    verification,
)
from genai_cli.settings import ProgramSettings

__all__ = ["app"]

app = typer.Typer(
    name="genai",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's help costs 0.2 s of importing
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Build quantized LLMs for Snapdragon and CPU, and run what was built.",
)


def _version(value: bool) -> None:  # noqa: FBT001
    if value:
        from importlib import metadata

        typer.echo(metadata.version("genai-operator"))
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Build quantized LLMs for Snapdragon and CPU, and run what was built."""
    del version  # its callback has done the work
    settings: ProgramSettings = context.obj
    settings.debug |= debug


app.command("build", epilog=build.EXAMPLES)(build.build)
app.command("graph", epilog=graph.EXAMPLES)(graph.graph)
app.command("replay", epilog=replay.EXAMPLES)(replay.replay)
app.add_typer(cache.app, name="cache")
app.add_typer(adapter.app, name="adapter")
app.command("inspect")(inspection.inspect)
app.command("run", epilog=running.EXAMPLES)(running.run)
app.command("serve", epilog=serving.EXAMPLES)(serving.serve)
app.command("verify")(verification.verify)
app.command("evaluate")(evaluation.evaluate)
app.command("status", epilog=remote.EXAMPLES_STATUS)(remote.status)
app.command("logs", epilog=remote.EXAMPLES_LOGS)(remote.logs)
app.command("top")(remote.top)
app.command("dashboard", epilog=dashboard.EXAMPLES)(dashboard.dashboard)
app.command("pull", epilog=remote.EXAMPLES_PULL)(remote.pull)
