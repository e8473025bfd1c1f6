"""`genai verify`: a container's files against its manifest."""

from __future__ import annotations

from typing import Annotated

import typer

from genai_cli import options
from genai_cli.settings import ProgramSettings


def verify(
    context: typer.Context,
    container: options.OneContainer,
    *,
    golden: Annotated[
        bool,
        typer.Option("--golden", help="Ask its golden prompts again, of each adapter too."),
    ] = False,
    json: options.Json = False,
) -> int:
    """Read every byte of a container and compare it with the manifest.

    Exit code 1 where a file is missing, other than the manifest says, or not in it. `genai cache
    verify` does the same for a store.
    """
    settings: ProgramSettings = context.obj
    settings.json = json
    from genai_cli.containers import verification

    return verification.verify(container, settings, golden=golden)
