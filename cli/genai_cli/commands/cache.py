"""`genai cache`: what the store holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genai_cli import completion, options
from genai_cli.settings import ProgramSettings

app = typer.Typer(
    help="The store: what is in it, copies out of it, checks, cleaning.", no_args_is_help=True
)

Key = Annotated[
    str,
    typer.Argument(
        metavar="ENTRY", help="A key or its beginning (4 digits), or the entry's folder."
    ),
]
Operation = Annotated[
    str | None,
    typer.Option(
        "--operation",
        metavar="NAME",
        help="Only ingest, arcl, convert ...",
        autocompletion=completion.operations,
    ),
]

Weights = Annotated[
    bool,
    typer.Option(
        "--weights/--no-weights",
        help="With the weights of other entries that graphs of arcl and transform name.",
    ),
]


@app.command("ls")
def ls(
    context: typer.Context,
    *,
    operation: Operation = None,
    store: options.Store = None,
    json: options.Json = False,
) -> int:
    """List the entries, the newest last."""
    from genai_cli.store import entries

    settings = _settings(context, json=json)
    return entries.list_entries(settings, store, operation=operation, terms=[])


@app.command("find")
def find(
    context: typer.Context,
    terms: Annotated[
        list[str],
        typer.Argument(
            metavar="TERM...",
            help="A word, FIELD=VALUE (operation, model, graph.ar ...), or a file: who made it?",
        ),
    ],
    *,
    store: options.Store = None,
    json: options.Json = False,
) -> int:
    """List the entries that match every TERM."""
    from genai_cli.store import entries

    settings = _settings(context, json=json)
    return entries.list_entries(settings, store, operation=None, terms=terms)


@app.command("show")
def show(
    context: typer.Context,
    entry: Key,
    *,
    log: Annotated[bool, typer.Option("--log", help="Print the task's log instead.")] = False,
    store: options.Store = None,
    json: options.Json = False,
) -> int:
    """Show one entry: what was asked, what came out, what it cost."""
    from genai_cli.store import entries

    return entries.show(_settings(context, json=json), store, entry=entry, log=log)


@app.command("pull")
def pull(
    context: typer.Context,
    entry: Key,
    *,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Else the entry's name here."),
    ] = None,
    weights: Weights = True,
    store: options.Store = None,
    json: options.Json = False,
) -> int:
    """Copy one entry's files out of the store, so that onnx.load opens its graphs."""
    from genai_cli.store import copies

    settings = _settings(context, json=json)
    return copies.pull(settings, store, entry=entry, output=output, weights=weights)


@app.command("export")
def export(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Gets <model>/<operation>_<key>/.")],
    entries: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ENTRY]...", help="As of pull; else all.", show_default=False),
    ] = None,
    *,
    operation: Operation = None,
    weights: Weights = True,
    store: options.Store = None,
    json: options.Json = False,
) -> int:
    """Write entries, else every one, as folders with their builder_cache_info.json."""
    from genai_cli.store import copies

    settings = _settings(context, json=json)
    return copies.export(
        settings, store, folder=folder, entries=entries or [], operation=operation, weights=weights
    )


@app.command("verify")
def verify(
    context: typer.Context,
    *,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove wrong blobs, so that their tasks run again.")
    ] = False,
    store: options.Store = None,
    json: options.Json = False,
) -> int:
    """Read every byte and compare it with its digest; exit code 1 where one is wrong."""
    from genai_cli.store import upkeep

    return upkeep.verify_store(_settings(context, json=json), store, remove=remove)


@app.command("gc")
def gc(
    context: typer.Context,
    *,
    keep_days: Annotated[
        float,
        typer.Option(
            "--keep-days", min=0, max=36500, metavar="N", help="Keep everything written since."
        ),
    ] = 7.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    store: options.Store = None,
    json: options.Json = False,
) -> int:
    """Remove what no lease needs and what is older than --keep-days, uploaded models too."""
    from genai_cli.store import upkeep

    settings = _settings(context, json=json)
    return upkeep.collect_garbage(settings, store, keep_days=keep_days, dry_run=dry_run)


def _settings(context: typer.Context, *, json: bool) -> ProgramSettings:
    settings: ProgramSettings = context.obj
    settings.json = json
    return settings
