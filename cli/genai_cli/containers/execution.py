"""Running a container here: a prompt, or the loss on given tokens."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genai_cli.containers.chat import talk
from genai_cli.containers.choice import runnable_container
from genai_cli.containers.images import Images, looked_at
from genai_cli.containers.speculation import Guessing
from genai_cli.containers.streamed_text import TextStream, speed
from genai_cli.containers.worn_adapters import Wearing
from genai_cli.display.console import PlainConsole
from genai_cli.display.output import emit, say
from genai_cli.display.render import busy
from genai_cli.display.words import duration
from genai_cli.engine.work_folders import known_digests
from genai_cli.settings import ProgramSettings
from genai_core.errors import BadInput
from genai_core.redaction import plain
from genai_runtime.container import container as containers
from genai_runtime.container.backend import open_session
from genai_runtime.container.container import Container
from genai_runtime.evaluate import evaluate as measure
from genai_runtime.evaluate import read_pieces
from genai_runtime.generate import generate
from genai_runtime.sampling import Sampling
from genai_runtime.tokenizer import TextTokenizer, parse_tokens
from genai_runtime.vision.places import PicturedPrompt

__all__ = ["Prompt", "evaluate", "run"]

_TOKENS = 64
"""That `run` writes unless told otherwise."""


@dataclass(frozen=True)
class Prompt:
    """What the model is to continue: exactly one of the two."""

    text: str | None
    tokens: str | None

    def encoded(self, tokenizer: TextTokenizer | None, images: Images | None) -> PicturedPrompt:
        """Token ids, and pictures in their places.

        Raises:
            BadInput: None or both are given, there is no tokenizer for the text, or pictures are
                more or fewer than their places.
        """
        if (self.text is None) == (self.tokens is None):
            raise BadInput("give either --prompt or --prompt-tokens", where="genai run")
        if self.tokens is not None:
            ids = parse_tokens(self.tokens)
            return PicturedPrompt(ids) if images is None else images.among(ids)
        if tokenizer is None:
            raise BadInput(
                "the container has no tokenizer",
                where="--prompt",
                remedy="give token ids with --prompt-tokens",
            )
        text = sys.stdin.read() if self.text == "-" else str(self.text)
        if images is not None:
            return images.within(text, tokenizer, special=True)
        ids = tokenizer.encode(text)
        if ids.size == 0:
            raise BadInput("it holds no token", where="--prompt", remedy="write some text")
        return PicturedPrompt(ids)


def run(
    path: Path,
    settings: ProgramSettings,
    *,
    prompt: Prompt,
    max_tokens: int | None,
    sampling: Mapping[str, Any],
    ignore_end: bool,
    context_length: int | None,
    threads: int,
    wearing: Wearing,
    guessing: Guessing,
    chat: str | None = None,
    images: Sequence[Path] = (),
) -> int:
    """Continue a prompt, or converse, and print text and speed; returns the exit code.

    Args:
        path: The container's folder, or that of a build.
        settings: Of the program.
        prompt: What is continued, or said.
        max_tokens: At most; None = 64, or until an answer ends.
        sampling: Fields of `Sampling`.
        ignore_end: Go on behind the model's end token.
        context_length: Slots of the cache; None = the container's.
        threads: On the CPU.
        chat: The system message of a conversation, which may be empty; None = no conversation.
        wearing: Adapters.
        guessing: Speculation.
        images: Pictures, in the order of their places in the prompt.
    """
    took = Sampling(**sampling)
    if chat is not None:
        if prompt.tokens is not None or ignore_end:
            option = "--ignore-end" if ignore_end else "--prompt-tokens"
            raise BadInput("a conversation is text that ends", where=option, remedy="leave it out")
        opened = _opened(path)
        looked = looked_at(opened, images, threads=threads)
        return talk(
            opened,
            system=chat,
            once=prompt.text if prompt.text != "-" else sys.stdin.read().strip(),
            sampling=took,
            limit=max_tokens,
            context_length=context_length,
            threads=threads,
            worn=wearing.of(opened.adapters()),
            guessing=guessing,
            as_json=settings.json,
            images=looked,
        )
    opened = _opened(path)
    tokenizer = opened.tokenizer()
    read = prompt.encoded(tokenizer, looked_at(opened, images, threads=threads))
    stream = None if settings.json else TextStream(tokenizer)
    began = time.monotonic()
    worn = wearing.of(opened.adapters())
    with (
        closing(
            open_session(opened, threads=threads, context_length=context_length, worn=worn)
        ) as session,
        guessing.opened(opened, session) as speculation,
    ):
        ready = time.monotonic() - began
        if stream is not None:
            _show_prompt(prompt)
        result = generate(
            session,
            read.tokens,
            max_tokens=_TOKENS if max_tokens is None else max_tokens,
            sampling=took,
            stop_tokens=frozenset() if ignore_end else opened.stop_tokens(),
            on_token=stream,
            speculation=speculation,
            embeddings=read.embeddings,
        )
    told = speed(result)
    metrics = {"initSeconds": round(ready, 4), **told["metrics"]}
    if stream is None:
        text = tokenizer.decode(result.tokens) if tokenizer else ""
        emit(
            {
                "text": text,
                "tokens": list(result.tokens),
                **told,
                "metrics": metrics,
            }
        )
        return 0
    stream.flush(whole=True)
    say()
    PlainConsole(stderr=True, highlight=False).print(
        f"[dim]{metrics['promptTokens']} tokens read at {metrics['promptTokensPerSecond']:,.0f}/s, "
        f"{metrics['generatedTokens']} written at {metrics['generationTokensPerSecond']:,.0f}/s, "
        f"loaded in {duration(ready)}{_executor(opened)}[/]",
        soft_wrap=True,
    )
    counts = result.metrics.speculation
    if counts is not None:
        PlainConsole(stderr=True, highlight=False).print(
            f"[dim]{counts.method}: {counts.accepted} of {counts.guessed} guesses in "
            f"{counts.drafts} drafts were right[/]",
            soft_wrap=True,
        )
    return 0


def evaluate(
    path: Path,
    settings: ProgramSettings,
    *,
    tokens: Path,
    pieces: int,
    length: int,
    context_length: int | None,
    threads: int,
    wearing: Wearing,
) -> int:
    """Score tokens and print loss and perplexity; returns the exit code."""
    opened = _opened(path)
    worn = wearing.of(opened.adapters())
    array = read_pieces(tokens, pieces=pieces, length=length)
    began = time.monotonic()
    console = PlainConsole(stderr=True, highlight=False)
    with (
        busy(f"scoring {array.shape[0]} pieces"),
        closing(
            open_session(opened, threads=threads, context_length=context_length, worn=worn)
        ) as session,
    ):
        result = measure(session, array)
    seconds = time.monotonic() - began
    if settings.json:
        finite = math.isfinite(result.perplexity)
        emit(
            {
                "natsPerToken": result.nats_per_token,
                "perplexity": result.perplexity if finite else None,
                "tokens": result.tokens,
                "seconds": round(seconds, 3),
            }
        )
    else:
        say(f"{result.nats_per_token:.4f} nats a token (perplexity {result.perplexity:.2f})")
        console.print(
            f"[dim]{result.tokens} tokens in {duration(seconds)}{_executor(opened)}[/]",
            soft_wrap=True,
        )
    return 0


def _opened(path: Path) -> Container:
    """The container that a path means, each file compared with its manifest."""
    return containers.load(runnable_container(path), digest_of=known_digests().digest)


def _executor(opened: Container) -> str:
    backend = opened.manifest.target.backend.value
    return ", in the emulator" if backend == "Htp" else ", on the CPU"


def _show_prompt(prompt: Prompt) -> None:
    """On a terminal, show what is being continued; a pipe gets the continuation alone."""
    if prompt.text not in {None, "-"} and sys.stdout.isatty():
        PlainConsole(highlight=False).print(
            plain(str(prompt.text)), style="dim", end="", markup=False, soft_wrap=True
        )
