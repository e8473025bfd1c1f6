"""`genai inspect`: what is in a container or an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genai_cli import options
from genai_cli.settings import ProgramSettings


def inspect(
    context: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="A container, an entry of the store, an .onnx or a .bin file."
        ),
    ],
    *,
    json: options.Json = False,
) -> int:
    """Show what is in a container or an artifact.

    Graphs with their inputs and outputs, files, golden prompts, measurements.
    """
    settings: ProgramSettings = context.obj
    settings.json = json
    from genai_cli.containers import inspection

    return inspection.inspect(path, settings)
