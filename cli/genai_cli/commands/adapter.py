"""`genai adapter`: adapters of a container that stands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genai_cli import options
from genai_cli.settings import ProgramSettings

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="LoRA adapters of a container (cpu)."
)

EXAMPLES = """\b
Examples:
  genai adapter add containers/tiny-llama/cpu ./adapters/uppercase-r16 -o with-uppercase
  genai adapter add containers/tiny-llama/cpu s3://adapters/sql-r8 --name sql -o with-sql
"""

_Output = Annotated[
    Path,
    typer.Option("-o", "--output", metavar="DIR", help="Where the new revision is written."),
]


@app.command("add", epilog=EXAMPLES)
def add(
    context: typer.Context,
    container: options.OneContainer,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="PEFT's folder, s3:// or https://; or the .safetensors of AIMET's export.",
            show_default=False,
        ),
    ],
    *,
    output: _Output,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="By which requests choose it; else the folder's name."),
    ] = None,
    store: options.Store = None,
    json: options.Json = False,
) -> int:
    """Add an adapter: a new revision in DIR, the given container untouched.

    The base is not built again, and what runs on it keeps its caches: `base` stays the same. The
    store is asked only where the model's names do not tell where the adapter belongs.
    """
    settings: ProgramSettings = context.obj
    settings.json = json
    from genai_cli.containers import adapters

    return adapters.add(container, source, output, name=name, store=store, settings=settings)


@app.command("remove")
def remove(
    context: typer.Context,
    container: options.OneContainer,
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)],
    *,
    output: _Output,
    json: options.Json = False,
) -> int:
    """Leave an adapter out: a new revision in DIR, the given container untouched."""
    settings: ProgramSettings = context.obj
    settings.json = json
    from genai_cli.containers import adapters

    return adapters.remove(container, name, output, settings=settings)


@app.command("list")
def list_adapters(
    context: typer.Context, container: options.OneContainer, *, json: options.Json = False
) -> int:
    """Show the adapters and use cases of a container."""
    settings: ProgramSettings = context.obj
    settings.json = json
    from genai_cli.containers import adapters

    return adapters.show(container, settings=settings)
