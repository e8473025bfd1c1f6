"""`genai serve`: a container to many clients, by OpenAI's API."""

from __future__ import annotations

from typing import Annotated

import typer

from genai_cli import options

EXAMPLES = """\b
Examples:
  genai serve containers/tiny-llama
  GENAI_API_KEY=secret genai serve containers/tiny-llama --host 0.0.0.0 --threads 4
  curl http://127.0.0.1:8000/v1/completions -d '{"prompt": "def main("}'
"""


def serve(
    container: options.Container,
    *,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where it listens.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="0 takes a free one and says which.")
    ] = 8000,
    api_key: Annotated[
        str,
        typer.Option(
            metavar="KEY",
            envvar="GENAI_API_KEY",
            show_envvar=True,
            show_default=False,
            help="Clients must send it.",
        ),
    ] = "",
    model_name: Annotated[
        str,
        typer.Option(
            metavar="NAME", show_default=False, help="What requests call it; else the build's name."
        ),
    ] = "",
    max_concurrency: Annotated[
        int, typer.Option(min=1, max=256, metavar="N", help="Answers at once; others wait.")
    ] = 8,
    max_waiting: Annotated[
        int, typer.Option(min=0, metavar="N", help="More that wait are refused (429).")
    ] = 256,
    kv_cache_mib: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="MIB", help="Keys and values of all answers; else what memory allows."
        ),
    ] = None,
    prefix_cache_mib: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="MIB",
            show_default=False,
            help="Of them for beginnings of earlier prompts, 0 for none; else all that is free.",
        ),
    ] = None,
    prefix_cache_dir: Annotated[
        str,
        typer.Option(
            metavar="DIR", show_default=False, help="Keeps beginnings of prompts beyond a restart."
        ),
    ] = "",
    prefix_cache_dir_mib: Annotated[
        int, typer.Option(min=1, metavar="MIB", help="Of all files there; the oldest go.")
    ] = 4096,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact/--no-exact",
            help="Numbers never depend on neighbours, to the bit; without, some time is saved.",
        ),
    ] = True,
    system_prompt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", show_default=False, help="Read at the start and kept; several times."
        ),
    ] = None,
    system_prompt_file: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", show_default=False, help="The same, of a file."),
    ] = None,
    tokens_per_pass: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="More read prompts sooner, and let writers wait longer."
        ),
    ] = 128,
    admin_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            metavar="N",
            show_default=False,
            help="Where adapters come and go while it runs; needs GENAI_ADMIN_TOKEN or a file.",
        ),
    ] = None,
    admin_token_file: Annotated[
        str, typer.Option(metavar="FILE", show_default=False, help="Holds the admin port's token.")
    ] = "",
    adapter_folder: Annotated[
        str,
        typer.Option(
            metavar="DIR",
            show_default=False,
            help="Below it lie containers of the same base, whose adapters may be loaded.",
        ),
    ] = "",
    max_adapter_rank: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=4096,
            metavar="N",
            show_default=False,
            help="Ranks of all adapters in a pass, which pays for them; 0 for none, else 64.",
        ),
    ] = None,
    adapter_cache_mib: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="MIB",
            show_default=False,
            help="All memory of adapters; else what they need, and up to 1024 for more to come.",
        ),
    ] = None,
    request_timeout: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Of an answer; 0 is without end.")
    ] = 0.0,
    drain_seconds: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="For running answers at the end.")
    ] = 30.0,
    context_length: options.ContextLength = None,
    threads: options.Threads = 0,
    speculation: Annotated[
        str | None,
        typer.Option(
            "--speculation",
            "--speculative-config",
            metavar="METHOD",
            show_default=False,
            help="Guess tokens by ngram, suffix, lookahead or draft_model; or vLLM's JSON.",
        ),
    ] = None,
    draft: options.Draft = None,
    draft_tokens: options.DraftTokens = None,
) -> None:
    """Serve a container to many clients: OpenAI's chat, completions and models, and metrics.

    Answers are computed beside one another in shared passes. The first start prepares the model
    for this machine's processor and keeps that in the cache.
    """
    from genai_cli.containers import server

    server.serve(
        container,
        {
            "host": host,
            "port": port,
            "model-name": model_name,
            "max-concurrency": max_concurrency,
            "max-waiting": max_waiting,
            "kv-cache-mib": kv_cache_mib,
            "prefix-cache-mib": prefix_cache_mib,
            "prefix-cache-dir": prefix_cache_dir,
            "prefix-cache-dir-mib": prefix_cache_dir_mib,
            "system-prompt": system_prompt,
            "system-prompt-file": system_prompt_file,
            "tokens-per-pass": tokens_per_pass,
            "admin-port": admin_port,
            "admin-token-file": admin_token_file,
            "adapter-folder": adapter_folder,
            "max-adapter-rank": max_adapter_rank,
            "adapter-cache-mib": adapter_cache_mib,
            "request-timeout": request_timeout,
            "drain-seconds": drain_seconds,
            "context-length": context_length,
            "threads": threads,
            "speculation": speculation,
            "draft": None if draft is None else server.draft_folder(draft),
            "draft-tokens": draft_tokens,
        },
        flags=() if exact else ("no-exact",),
        api_key=api_key,
    )
