"""`genai evaluate`: how well a container predicts given tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genai_cli import options
from genai_cli.settings import ProgramSettings


def evaluate(
    context: typer.Context,
    container: options.Container,
    *,
    tokens: Annotated[
        Path,
        typer.Option(metavar="FILE.npy", help="Integers [pieces, length].", show_default=False),
    ],
    pieces: Annotated[
        int, typer.Option(min=0, metavar="N", help="Only the first so many; 0 is all.")
    ] = 0,
    length: Annotated[
        int, typer.Option(min=0, metavar="N", help="Only so many tokens each; 0 is all.")
    ] = 0,
    context_length: options.ContextLength = None,
    threads: options.Threads = 0,
    adapter: options.Adapters = None,
    use_case: options.UseCase = None,
    json: options.Json = False,
) -> int:
    """Measure how well a container predicts tokens.

    The loss in nats a token, and the perplexity. Each piece is scored from an empty cache and no
    token is added: the mean of -log p over its positions 1 to the last.
    """
    settings: ProgramSettings = context.obj
    settings.json = json
    from genai_cli.containers import execution
    from genai_cli.containers.worn_adapters import Wearing

    return execution.evaluate(
        container,
        settings,
        tokens=tokens,
        pieces=pieces,
        length=length,
        context_length=context_length,
        threads=threads,
        wearing=Wearing(adapter or (), use_case),
    )
