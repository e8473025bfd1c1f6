"""Text as it comes out of a model, and how fast it came."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from genai_core.redaction import plain
from genai_runtime.generate import Generation
from genai_runtime.speculation.control import Counts
from genai_runtime.tokenizer import TextTokenizer

__all__ = ["TextStream", "speed"]


@dataclass
class TextStream:
    """Prints text while tokens come; characters that are cut in two wait for their rest.

    A terminal gets control characters as text: a model may write any.
    """

    tokenizer: TextTokenizer | None
    tokens: list[int] = field(default_factory=list)
    shown: int = 0

    def __call__(self, token: int) -> None:
        """Print what the next token adds."""
        self.tokens.append(token)
        self.flush(whole=False)

    def flush(self, *, whole: bool) -> None:
        """Print what is still to come; `whole`: no further token follows."""
        if self.tokenizer is None:
            text = " ".join(map(str, self.tokens))
        else:
            text = self.tokenizer.decode(self.tokens)
            if not whole:
                text = text.rstrip("\N{REPLACEMENT CHARACTER}")
        new = text[self.shown :]
        sys.stdout.write(plain(new) if sys.stdout.isatty() else new)
        sys.stdout.flush()
        self.shown = max(self.shown, len(text))


def speed(result: Generation) -> dict[str, Any]:
    """How an answer ended and what it took, as `run --json` shows it."""
    metrics = result.metrics
    guessed = {} if metrics.speculation is None else {"speculation": _counts(metrics.speculation)}
    return {
        "stopped": "end" if result.stopped else "length",
        "metrics": {
            "promptTokens": metrics.prompt_tokens,
            "promptSeconds": round(metrics.prompt_seconds, 6),
            "promptTokensPerSecond": round(metrics.prompt_tokens_per_second, 2),
            "generatedTokens": metrics.generated_tokens,
            "generationSeconds": round(metrics.generation_seconds, 6),
            "generationTokensPerSecond": round(metrics.generation_tokens_per_second, 2),
            **guessed,
        },
    }


def _counts(counts: Counts) -> dict[str, Any]:
    return {
        "method": counts.method,
        "drafts": counts.drafts,
        "draftTokens": counts.guessed,
        "acceptedTokens": counts.accepted,
        "acceptedPerPosition": counts.positions,
        "acceptance": round(counts.accepted / counts.guessed, 4) if counts.guessed else None,
    }
