"""What guesses tokens for a server, and what it tells of it."""

from __future__ import annotations

from typing import Any

from genai_core.errors import BadInput
from genai_core.files.digest_cache import FileCache
from genai_runtime.container import container as containers
from genai_runtime.container.backend import open_executor
from genai_runtime.container.container import Container
from genai_runtime.executor.executor import Executor
from genai_runtime.prefixes.cache import PrefixCache
from genai_runtime.prefixes.prefix_files import PrefixFiles
from genai_runtime.speculation.control import Speculation
from genai_runtime.speculator import open_speculation
from genai_runtime.steadiness import Steadiness
from genai_serving.start.options import Options
from genai_serving.start.prefix_folder import prefix_files_of

__all__ = ["about_speculation", "keep_beginnings", "speculation_of"]


def speculation_of(
    options: Options,
    opened: Container,
    executor: Executor,
    steadiness: Steadiness,
    files: FileCache,
) -> tuple[Speculation | None, Container | None]:
    """What guesses tokens, and the container of the model that does.

    Raises:
        BadInput: As `open_speculation`.
    """
    if options.speculation is None:
        return None, None
    if not options.exact:
        raise BadInput(
            "guesses are verified several at once, and without exact numbers answers would differ "
            "from plain ones",
            where="--speculation",
            remedy="leave it out, or --no-exact (in a deployment spec.server.exact)",
        )
    opened_drafts: list[Container] = []

    def open_draft(draft: Container, threads: int | None) -> Executor:
        opened_drafts.append(draft)
        return open_executor(
            draft,
            cache=options.cache / "cpu",
            threads=options.threads if threads is None else threads,
            adapters=[],
            digest_of=files.digest,
        )

    speculation = open_speculation(
        options.speculation,
        executor,
        steady=steadiness.chunks,
        tokenizer_of=opened,
        open_draft=open_draft,
        load_draft=lambda folder: containers.load(folder, digest_of=files.digest),
        where="--speculation",
    )
    return speculation, opened_drafts[0] if opened_drafts else None


def keep_beginnings(
    options: Options, speculation: Speculation, draft: Container | None, most_bytes: int
) -> None:
    """Let a draft model keep what it has read, as the base does.

    Args:
        options: Of the server.
        speculation: Its own.
        draft: The draft model's container; None = no model guesses.
        most_bytes: Of what it keeps in memory.
    """
    if draft is None or not most_bytes:
        return

    def opened(executor: Executor) -> tuple[PrefixCache, PrefixFiles | None]:
        files = prefix_files_of(options, draft, executor, scope_text=lambda salt: f"draft {salt}")
        return PrefixCache(executor, most_bytes), files

    speculation.keep_beginnings(opened)


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
