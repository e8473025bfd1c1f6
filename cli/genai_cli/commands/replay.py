"""`genai replay`: one cached stage again, from its record."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genai_cli import options
from genai_cli.settings import ProgramSettings

EXAMPLES = """\b
Examples:
  genai replay 3f2a
  genai replay STORE/tiny-llama/convert_3f2a...
  genai replay STORE/tiny-llama/compile_90ab... --set options.graphs.O=2
"""


def replay(
    context: typer.Context,
    entry: Annotated[
        str,
        typer.Argument(
            metavar="ENTRY",
            help="A key or its beginning (4 digits), or <store>/<model>/<operation>_<key>.",
        ),
    ],
    *,
    fields: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change an option: a new entry; repeat."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Of ingest: the model's folder, where it has moved."),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|s3://...", help="Else the one that the folder lies in, else as ever."
        ),
    ] = None,
    json: options.Json = False,
) -> int:
    """Run one stage again and compare what comes out.

    With --set the changed stage is run and kept beside the old one.
    """
    settings: ProgramSettings = context.obj
    settings.json = json
    from genai_cli.build import replay as replays

    return replays.replay(entry, settings, changes=fields or [], source=source, store=store)
