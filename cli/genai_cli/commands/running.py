"""`genai run`: a prompt through a container."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from genai_cli import options
from genai_cli.settings import ProgramSettings
from genai_core.errors import BadInput

EXAMPLES = """\b
Examples:
  genai run containers/tiny-llama/cpu --prompt 'def main('
  genai run containers/tiny-llama/cpu --chat
  genai run containers/tiny-llama/cpu --prompt-tokens 1,2,3 --json
  genai run containers/tiny-llama/cpu --prompt 'def main(' --speculation ngram
  genai run containers/tiny-llama-vision/cpu --chat --prompt 'What color is it?' --image red.png
"""


def run(
    context: typer.Context,
    container: options.Container,
    *,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Text; - is standard input.")
    ] = None,
    prompt_tokens: Annotated[
        str | None, typer.Option(metavar="1,2,3", help="Token ids; nothing is added to them.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Converse; from a pipe, each line is a turn.")
    ] = False,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="With --chat: the system message.")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="At most so many; else 64, with --chat to the answer's end."
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0, metavar="X", help="0 takes the most likely token.")
    ] = 0.0,
    top_k: Annotated[
        int, typer.Option(min=0, metavar="N", help="Draw from so many; 0 is all.")
    ] = 0,
    top_p: Annotated[
        float, typer.Option(metavar="P", help="Draw from the smallest set so likely.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the draws.")] = 0,
    ignore_end: Annotated[
        bool, typer.Option("--ignore-end", help="Do not stop at the model's end token.")
    ] = False,
    context_length: options.ContextLength = None,
    threads: options.Threads = 0,
    adapter: options.Adapters = None,
    use_case: options.UseCase = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A picture; repeat for several, in the order of their places in the prompt.",
        ),
    ] = None,
    speculation: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help="Guess tokens by ngram, suffix, lookahead or draft_model; or vLLM's JSON.",
        ),
    ] = None,
    draft: options.Draft = None,
    draft_tokens: options.DraftTokens = None,
    json: options.Json = False,
) -> int:
    """Run a prompt through a container, or converse with it.

    --chat writes the conversation as the model's chat template says. A container for the CPU runs
    as it is, one for Snapdragon in the emulator, where the build was small enough to have a twin
    for it.
    """
    settings: ProgramSettings = context.obj
    settings.json = json
    if system is not None and not chat:
        raise BadInput("it is of conversations", where="--system", remedy="add --chat")
    from genai_cli.containers import execution
    from genai_cli.containers.speculation import Guessing
    from genai_cli.containers.worn_adapters import Wearing

    return execution.run(
        container,
        settings,
        prompt=execution.Prompt(prompt, prompt_tokens),
        images=tuple(image or ()),
        max_tokens=max_tokens,
        sampling={"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed},
        ignore_end=ignore_end,
        context_length=context_length,
        threads=threads,
        wearing=Wearing(adapter or (), use_case),
        guessing=Guessing(speculation, draft, draft_tokens, threads),
        chat=(system or "") if chat else None,
    )
