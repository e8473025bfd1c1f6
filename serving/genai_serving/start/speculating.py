"""What guesses tokens for a server, and what it tells of it."""

from __future__ import annotations

from typing import Any

from genai_core.files.digest_cache import FileCache
from genai_runtime import container as containers
from genai_runtime.container import Container
from genai_runtime.executor import Executor
from genai_runtime.speculation.control import Speculation
from genai_runtime.speculator import open_speculation
from genai_runtime.steadiness import Steadiness
from genai_serving.start.options import Options

__all__ = ["about_speculation", "speculation_of"]


def speculation_of(
    options: Options,
    opened: Container,
    executor: Executor,
    steadiness: Steadiness,
    files: FileCache,
) -> Speculation | None:
    """What guesses tokens.

    Raises:
        BadInput: As `open_speculation`.
    """
    if options.speculation is None:
        return None

    def open_draft(draft: Container, threads: int | None) -> Executor:
        return draft.open_executor(
            cache=options.cache / "cpu",
            threads=options.threads if threads is None else threads,
            adapters=[],
            digest_of=files.digest,
        )

    return open_speculation(
        options.speculation,
        executor,
        steady=steadiness.chunks,
        tokenizer_of=opened,
        open_draft=open_draft,
        load_draft=lambda folder: containers.load(folder, digest_of=files.digest),
        where="--speculation",
    )


def about_speculation(
    options: Options, speculation: Speculation | None, steadiness: Steadiness
) -> dict[str, Any] | None:
    """What /v1/models tells of it."""
    if options.speculation is None or speculation is None:
        return None
    return {
        "method": speculation.name,
        "num_speculative_tokens": speculation.most,
        "adaptive": options.speculation.adaptive,
        "lossy": not steadiness.chunks or speculation.typical is not None,
    }
